"""What people decided about a run's pairs: `human/decisions.jsonl`, one row a decision.

A journal beside the Parquet tables, and not one of them: a person decides once in a while, for
hours, while a stage may hold the run's lock. A row is one write that is synced before it is told as
saved, so that a kill loses nothing. Nothing is ever changed or removed: taking a decision back is a
row too. A last line that a kill cut is passed over, and the next row begins on a line of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from rlaif.errors import ConfigError, DataError
from rlaif.files.small import explained
from rlaif.records import ORDERS, Order, mirrored

FILE = "human/decisions.jsonl"
Choice = Literal["first", "second", "tie", "skip", "undo"]
CHOICES: tuple[str, ...] = get_args(Choice)
WORTH: Mapping[str, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}  # P(first is better)


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that a person did about a pair.

    `choice` names the *pair's* completion, whichever was shown first; `order` says which that was.
    `undo` takes back the decision whose id is `undoes`. `queue` is what the pair was shown for:
    `random` pairs estimate the agreement on all, those of other queues do not.
    """

    who: str
    pair_id: str
    order: Order
    choice: Choice
    note: str = ""
    queue: str = ""
    undoes: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(10))
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


class People:
    """A run's journal of people's decisions: any number of processes read and add."""

    def __init__(self, run: Path) -> None:
        self.path = run / FILE
        self._rows: list[Decision] = []
        self._read_to = self._lines = 0  # bytes, and lines of them
        self._file = 0  # the inode that they were read from
        self._lock = threading.Lock()

    def add(self, decision: Decision) -> None:
        """Writes a decision to the disk. One that is there already, by its id, is not added again:
        whoever heard nothing may say it again.

        Raises DataError where the disk refuses.
        """
        line = json.dumps(asdict(decision), ensure_ascii=False) + "\n"
        with self._lock, explained(self.path.parent):
            self.path.parent.mkdir(exist_ok=True)  # a run that is gone is not begun anew
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if any(row.id == decision.id for row in self._read()):
                    return
                size = os.fstat(handle).st_size
                cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                _write(handle, ("\n" * cut + line).encode())
                os.fsync(handle)
            finally:
                os.close(handle)

    def read(self) -> list[Decision]:
        """All decisions in the order they were made, those taken back included."""
        with self._lock:
            return list(self._read())

    def standing(self) -> dict[tuple[str, str], Decision]:
        """By person and pair, what each said last and did not take back."""
        return standing(self.read())

    def last(self, who: str) -> Decision | None:
        """What a person did last and did not take back."""
        mine = {id(d) for d in self.standing().values() if d.who == who}
        return next((d for d in reversed(self.read()) if id(d) in mine), None)

    def labels(self, queue: str | None = None) -> dict[str, float]:
        """P(first is better) by pair: the mean over the people who decided, a tie being ½.

        `queue`: only of decisions on pairs that were shown for that, such as `random`.
        """
        decided = self.standing().values()
        return labels(d for d in decided if queue is None or d.queue == queue)

    def _read(self) -> list[Decision]:
        """Reads what was added since the last time; all of it where another file stands there."""
        try:
            with self.path.open("rb") as file:
                told = os.fstat(file.fileno())
                if told.st_ino != self._file or told.st_size < self._read_to:
                    self._rows, self._read_to, self._lines = [], 0, 0
                    self._file = told.st_ino
                file.seek(self._read_to)
                new = file.read()
        except FileNotFoundError:
            self._rows, self._read_to, self._lines, self._file = [], 0, 0, 0
            return self._rows
        whole, end, _ = new.rpartition(b"\n")
        for line in (whole + end).split(b"\n")[:-1]:
            self._lines += 1
            row = self._row(line) if line else None
            if row is not None:
                self._rows.append(row)
        self._read_to += len(whole) + len(end)
        return self._rows

    def _row(self, line: bytes) -> Decision | None:
        """A line's decision; None for one that a kill cut."""
        try:
            said = json.loads(line)
        except ValueError:
            return None
        known = {f.name for f in fields(Decision)}
        wrong = not isinstance(said, dict) or not all(isinstance(v, str) for v in said.values())
        wrong = wrong or not {"who", "pair_id"} <= said.keys()
        if wrong or said.get("choice") not in CHOICES or said.get("order") not in ORDERS:
            raise DataError(
                f"{self.path}:{self._lines}: no decision: expected who, pair_id, order and a "
                f"choice of {', '.join(CHOICES)}, got {line[:80]!r}. Mend or remove it"
            )
        return Decision(**{k: v for k, v in said.items() if k in known})


def of_pair(said: Mapping[str, float], pair_id: str) -> float | None:
    """P(first is better) that was said of a pair, or of its mirror; None where nothing was."""
    if (p := said.get(pair_id)) is not None:
        return p
    return None if (other := said.get(mirrored(pair_id))) is None else 1.0 - other


def require_people(run: Path, which: str) -> dict[str, float]:
    """What people decided about a run's pairs: P(first is better) by pair, of `all` decisions or
    of those on pairs that were drawn at `random`.

    Raises ConfigError for another word, DataError where nobody has decided.
    """
    if which not in ("all", "random"):
        raise ConfigError(f"expected people's labels of all or random pairs, got '{which}'")
    found = People(run).labels(None if which == "all" else which)
    if not found:
        raise DataError(
            f"{run}: nobody has decided a pair"
            + " drawn at random" * (which == "random")
            + " yet: "
            "`rlaif view` shows pairs to people"
        )
    return found


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def standing(rows: Iterable[Decision]) -> dict[tuple[str, str], Decision]:
    """By person and pair, the last decision that was not taken back."""
    rows = list(rows)
    undone = {row.undoes for row in rows if row.choice == "undo"}
    return {
        (row.who, row.pair_id): row for row in rows if row.choice != "undo" and row.id not in undone
    }


def labels(decided: Iterable[Decision]) -> dict[str, float]:
    """P(first is better) by pair, the mean over people; a pair that all skipped has none."""
    said: dict[str, list[float]] = {}
    for row in decided:
        if row.choice in WORTH:
            said.setdefault(row.pair_id, []).append(WORTH[row.choice])
    return {pair: sum(values) / len(values) for pair, values in said.items()}
