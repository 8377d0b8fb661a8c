"""Ctrl-C: answered at once, once, and the command has ended within seconds.

A thread of its own answers the first one, so that it is heard wherever the program is: among
imports, in a long forward pass, in a library that swallows KeyboardInterrupt. From then on nothing
else is written to standard error, as what comes is only how libraries and their threads take it.
Where a model trains, its step is ended first and a checkpoint written, however long that takes;
only a second Ctrl-C ends it there. Any other command unwinds in order, which stops Ray and worker
processes; if that takes too long, or Ctrl-C is pressed again, it is ended there. Whatever has been
stored stays whole either way, as after any kill.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Event, Thread, Timer
from types import FrameType
from typing import NoReturn

from rlaif.training import stopping

INTERRUPTED = 130  # the shell's code for Ctrl-C
PATIENCE, PATIENCE_CLUSTER = 2.0, 15.0  # seconds to unwind: alone, with other processes to stop
GOES_ON = frozenset({"run", "sample", "label", "revise", "contrast", "train", "eval"})
_WAITS = b"stopping when this step is done, with a checkpoint; Ctrl-C again stops at once\n"
_SHOW = b"\r\x1b[2K\x1b[?25h"  # clears a bar's line and shows the cursor that it hid


class Interrupts:
    """Answers Ctrl-C for this process; its forked children end without a word."""

    def __init__(self, command: str) -> None:
        goes_on = "; the same command goes on from here" if command in GOES_ON else ""
        self._text = f"stopped{goes_on}\n".encode()
        self._process = os.getpid()
        self._told = Event()
        self._error = os.dup(2) if is_open(2) else None  # a library's start may have turned 2 away
        self.came = self._waits = False

    def watch(self) -> None:
        """Begins to listen, unless whoever started this process wants Ctrl-C to be ignored."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        Thread(target=self._listen, args=[read], name="rlaif-interrupts", daemon=True).start()
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._interrupt)

    def _listen(self, pipe: int) -> None:
        """Reads the numbers of the signals as they come."""
        while number := os.read(pipe, 1):
            if number[0] != signal.SIGINT:
                continue
            if self._told.is_set():
                if self._waits:
                    self._say_step()
                os._exit(INTERRUPTED)
            self._tell()

    def _tell(self) -> None:
        cluster = any(name in sys.modules for name in ("ray", "vllm"))
        self._waits = stopping.held() and not cluster  # whose processes hear Ctrl-C themselves
        self._say(_WAITS if self._waits else self._text)
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        self._told.set()
        if self._waits:
            return
        seconds = PATIENCE_CLUSTER if cluster else PATIENCE
        last = Timer(seconds, os._exit, [INTERRUPTED])
        last.daemon = True
        last.start()

    def _say(self, text: bytes) -> None:
        with suppress(OSError):
            first = os.environ.get("RANK", "0") == "0"  # of several processes, it speaks
            if first and self._error is not None:
                os.write(self._error, (_SHOW if os.isatty(self._error) else b"") + text)

    def _say_step(self) -> None:
        step = stopping.step()
        where = f"after step {step}" if step else "at the first step: no checkpoint is written yet"
        self._say(f"stopped; the same command goes on {where}\n".encode())

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Python's own part, in the main thread as soon as it can be reached."""
        del number, frame
        if os.getpid() != self._process:
            os._exit(INTERRUPTED)
        self.came = True
        self._told.wait(PATIENCE)
        if self._waits and stopping.held():
            stopping.ask()
            return
        raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """Ends the process without waiting for threads at work."""
        if self._waits:
            self._say_step()
        with suppress(Exception):
            sys.stdout.flush()
        if "multiprocessing.process" in sys.modules:
            from multiprocessing import active_children

            for child in active_children():
                child.terminate()
        os._exit(INTERRUPTED)


def is_open(descriptor: int) -> bool:
    """Whether the process has this file open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
