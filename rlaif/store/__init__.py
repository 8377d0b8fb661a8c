"""A run directory: what every stage writes, and what makes it resumable.

    runs/NAME/
      .lock  manifest.json
      prompts/ completions/ pairs/ verdicts/ preferences/    NUMBER-DIGEST.parquet

A table is a folder of immutable Parquet shards. A shard is written aside, synced and renamed, so
that it is there as a whole or not at all; a killed stage loses at most the shard it was writing,
and `keys()` tells the next one what is done. One process writes, any number read. The shards are
plain Parquet: `datasets`, pandas, Polars and DuckDB read `NAME/*.parquet` as they are.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from rlaif.errors import DataError, nearest
from rlaif.files.small import ASIDE, Shape, explained, is_written_now, read_object
from rlaif.files.small import write_json as write_json
from rlaif.records import Completion, Pair, Preference, Prompt, Revision, Verdict
from rlaif.store.lock import WriterLock
from rlaif.store.schemas import SCHEMAS
from rlaif.store.table import Superseded as Superseded
from rlaif.store.table import Table as Table

_MANIFEST: dict[str, Shape] = {
    "run": {"versions": {str: str}, "target_trait": str},
    "constitution": {"name": str, "principles": [{"id": str, "compare": str, "tags": [str]}]},
    "judge": {"jury": {str: {}}},
    "read": {},
    "inputs": {"at": str, "files": {str: {str: str}}},
    "stages": {str: {"rejected_rows": {str: float}, "without_pair": {str: float}}},
}


class RunStore:
    """A run directory, open for writing inside `with RunStore(path) as run:`.

    `command` names the holder to others who try to write. `read_only` takes no lock and needs an
    existing directory.
    """

    def __init__(self, path: str | Path, *, command: str = "", read_only: bool = False) -> None:
        self.root = Path(path)
        self.command = command or " ".join(sys.argv)
        self.read_only = read_only
        self._tables: dict[str, Table[Any]] = {}
        self._lock: WriterLock | None = None
        if read_only and not self.root.is_dir():
            raise missing_run(self.root)

    @classmethod
    def open_readonly(cls, path: str | Path) -> RunStore:
        """A run to look at, beside its writer or without one.

        Raises DataError if there is no such directory.
        """
        return cls(path, read_only=True)

    def __enter__(self) -> RunStore:
        """Create the directory and take the writer's lock.

        Raises DataError if another process writes there (naming it) or the directory cannot be
        made. A dead writer's lock vanishes with it; the files it left half-written are removed.
        """
        if not self.read_only:
            with explained(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                lock = WriterLock(self.root, self.command)
                lock.take()
                self._lock = lock
                for leftover in itertools.chain(
                    self.root.glob(ASIDE + "*"), self.root.glob(f"*/{ASIDE}*")
                ):
                    if not is_written_now(leftover):
                        leftover.unlink(missing_ok=True)
            for table in self._tables.values():
                table._last = None  # others may have written since
            self._tables.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; reading goes on to work."""
        if self._lock is not None:
            self._lock.free()
            self._lock = None

    @overload
    def table(self, name: Literal["prompts"]) -> Table[Prompt]: ...
    @overload
    def table(self, name: Literal["completions"]) -> Table[Completion]: ...
    @overload
    def table(self, name: Literal["pairs"]) -> Table[Pair]: ...
    @overload
    def table(self, name: Literal["verdicts"]) -> Table[Verdict]: ...
    @overload
    def table(self, name: Literal["revisions"]) -> Table[Revision]: ...
    @overload
    def table(self, name: Literal["preferences"]) -> Table[Preference]: ...
    def table(self, name: str) -> Table[Any]:
        """The table of that name, its shards checked byte for byte when it is first asked for.

        A damaged shard is moved to `NAME/damaged/` with a warning, so that its rows are done
        again; a read-only run raises DataError instead.
        """
        if name not in SCHEMAS:
            raise DataError(f"no table named '{name}'.{nearest(name, SCHEMAS)}")
        if name not in self._tables:
            table: Table[Any] = Table(self.root / name, self._check_writable)
            try:
                if self._lock is None:
                    table.refuse_damaged()
                else:
                    table.set_damaged_aside()
                table.refuse_foreign()
            except OSError as error:
                raise DataError(
                    f"cannot read {error.filename or table.folder}: {error.strerror or error}; "
                    "check its permissions and the disk"
                ) from error
            self._tables[name] = table
        return self._tables[name]

    def path(self, *parts: str) -> Path:
        """A path inside the run directory."""
        return self.root.joinpath(*parts)

    def read_manifest(self) -> dict[str, Any]:
        """What the stages said about themselves; empty before the first. Raises DataError."""
        found = read_object(self.path("manifest.json"), "the last stage", _MANIFEST)
        return {name: section for name, section in found.items() if section is not None}

    def update_manifest(self, section: str, value: Mapping[str, Any]) -> None:
        """Put `value` in the place of a section, atomically. Raises DataError as `append` does."""
        self._check_writable()
        write_json(self.path("manifest.json"), {**self.read_manifest(), section: dict(value)})

    def _check_writable(self) -> None:
        if self._lock is None:
            raise DataError(
                f"{self.root} is not open for writing: use `with RunStore(path) as run:`"
            )


def missing_run(root: Path, hint: str = "`rlaif run` makes one") -> DataError:
    """The error for a run directory that is not there, with those that may be meant."""
    if os.path.lexists(root):
        return DataError(f"{root} is no run directory: it is no folder")
    beside = (root.parent, root.parent / "runs", Path("runs"))
    runs = {f.parent.name: f.parent for at in beside for f in at.glob("*/manifest.json")}
    close = get_close_matches(root.name, runs, n=1, cutoff=0.5)
    if close:
        meant = f" (did you mean {runs[close[0]]}?)"
    else:
        some = sorted(str(path) for path in runs.values())[:5]
        meant = f" (there are {', '.join(some)})" if some else ""
    return DataError(f"there is no run directory {root}{meant}: {hint}")
