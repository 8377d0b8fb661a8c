"""The writer's lock of a run directory: `flock` on `.lock`, by filelock, signed by its holder.

The operating system frees it when its holder ends, however that ends, so that no lock is ever left
behind. On NFS it holds among machines where the server and the mount do locks; mounted with
`nolock` or `local_lock`, it holds among the processes of one machine only, so let one machine write
to a run there. A file system without locks is refused.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path

import filelock

from rlaif.errors import DataError
from rlaif.files.small import explained


class WriterLock:
    """The lock of one run. `command` tells others who holds it."""

    def __init__(self, root: Path, command: str) -> None:
        self._root, self._path, self._command = root, root / ".lock", command
        self._lock = filelock.FileLock(
            self._path,
            thread_local=False,
            blocking=False,
            preserve_lock_file=True,  # removing it could race with a taker
            on_acquired=self._sign,
        )

    def take(self) -> None:
        """Takes the lock. DataError if another process has it (naming it), or none can be had."""
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise DataError(self._held()) from None
        except OSError as error:
            if self._path.is_symlink() or self._path.is_dir():
                what = "a link" if self._path.is_symlink() else "a folder"
                raise DataError(f"{self._path} is {what} and no lock of ours: remove it") from error
            if error.filename is not None:
                raise
            raise DataError(
                f"{self._root} is on a file system without locks ({error.strerror}); "
                "use a run directory on a local disk"
            ) from error

    def free(self) -> None:
        """Lets the lock go, if it is held."""
        if self._lock.is_locked:
            os.truncate(self._path, 0)
            self._lock.release()

    def _sign(self, handle: int) -> None:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DataError(f"{self._path} is no plain file and no lock of ours: remove it")
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": self._command,
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        with explained(self._root):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)

    def _held(self) -> str:
        try:
            holder = json.loads(self._path.read_bytes())
            who = (
                f"process {holder['pid']} on {holder['host']} "
                f"(`{holder['command']}`, since {holder['started']})"
            )
        except (ValueError, KeyError, TypeError):  # taken, but its holder has not signed it yet
            who = "another process"
        return (
            f"{self._root} is already being written by {who}. "
            "Wait until it ends, stop it, or use another run directory"
        )
