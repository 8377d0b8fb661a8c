"""The last word of a command that failed: one paragraph, whatever went wrong.

What is known to go wrong has its own error where it goes wrong. This is for the rest: a disk or a
memory that is full, a file that cannot be read, and faults of our own. `RLAIF_TRACEBACK=1` shows
where it was.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

from rlaif.errors import RlaifError
from rlaif.files.small import reason, refused_by_disk

FAILED = 2  # somebody can mend it: a config, a file, a disk
BROKEN = 1  # a fault of rlaif itself
TRACEBACK = "RLAIF_TRACEBACK"
_NO_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|storage size calculation overflowed", re.IGNORECASE
)
_LONGEST = 600  # letters of an error that nobody wrote for people


def last_word(error: BaseException) -> tuple[str, int]:
    """What to tell of an error, and the status to end with."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, RlaifError):
        return str(error), FAILED
    if refused_by_disk(error):
        return (
            f"the disk takes no more: {_short(error)}. What was written before is kept: free or "
            "allow space there and run the same command again to go on"
        ), FAILED
    if isinstance(error, OSError) and error.filename is not None:
        name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
        hint = "Give a shorter name" if error.errno == errno.ENAMETOOLONG else "Check the path"
        shown = name if len(name) <= 120 else name[:119] + "…"
        return f"{shown}: {reason(error)}. {hint}, and what may be read or written there", FAILED
    if isinstance(error, OSError):
        return f"the system refuses: {_short(error)}. {_where(error)}", FAILED
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)[:2000]):
        return (
            f"out of memory: {_short(error)}. Lower batch_tokens, batch_size, max_length or chunk, "
            "or take a smaller model; what was written before is kept"
        ), FAILED
    if isinstance(error, UnicodeError):
        return f"a text is not valid Unicode: {_short(error)}. {_where(error)}", FAILED
    return (
        f"{type(error).__name__}: {_short(error)}. This is a fault of rlaif: nothing that was "
        f"written before is lost. {_where(error)}"
    ), BROKEN


def _short(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    text = reason(error) + (f": {name}" if name is not None else "")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _where(error: BaseException) -> str:
    """The last place of our own that an error came by, for a report of it."""
    ours = Path(__file__).resolve().parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    found = [f for f in frames if Path(f.filename).is_relative_to(ours)]
    if not found:
        return f"{TRACEBACK}=1 shows where"
    last = found[-1]
    place = Path(last.filename).relative_to(ours.parent).as_posix()
    return f"It came by {place}:{last.lineno}; {TRACEBACK}=1 shows the whole way"
