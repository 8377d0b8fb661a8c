"""Ctrl-C while a model trains: its step is ended and a checkpoint written before the command stops.

A trainer says when its steps run (`in_steps`) and looks after each whether to stop (`asked`).
Whoever hears Ctrl-C looks whether steps run (`held`) and then leaves it to the trainer. Without a
command line nobody asks, and KeyboardInterrupt strikes as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class _State:
    held = asked = False
    step = 0  # that of the last checkpoint


def held() -> bool:
    """Whether steps run now that end with a checkpoint when they are asked to."""
    return _State.held


def ask() -> None:
    """Asks the trainer to stop when its step is done."""
    _State.asked = True


def asked() -> bool:
    """Whether the trainer is to write a checkpoint now, and to `leave`."""
    return _State.asked


def saved(step: int) -> None:
    """A checkpoint is there: the same command would go on from this step."""
    _State.step = step


def step() -> int:
    """The steps that the last checkpoint holds."""
    return _State.step


def leave() -> NoReturn:
    """Stops, after the checkpoint."""
    raise KeyboardInterrupt


@contextmanager
def in_steps(done: int, *, alone: bool = True) -> Iterator[None]:
    """The steps of a training, `done` of which a checkpoint holds already.

    One of several processes, which is not `alone`, does not wait for its step to end.
    """
    _State.step, _State.held, _State.asked = done, alone, False
    try:
        yield
    finally:
        _State.held = False
    if _State.asked:  # after the last step
        leave()
