"""Numbers that a model made, kept by key in one file as they are made: an evaluation's scores.

A line a number, appended and synced, so that a kill costs the chunk at work; a line that a kill has
cut is dropped when the file is next opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import DataError
from rlaif.files.small import explained, reason, write_text


class Kept:
    """Values by key in a file of JSON lines. One process writes it, which holds the run's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        try:
            text = self._path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._path}: {reason(error)}. Remove it: what it holds is computed again"
            ) from error
        lines, found = text.split("\n"), {}
        for number, line in enumerate(lines, 1):
            try:
                key, value = json.loads(line)
                found[key] = value
            except (ValueError, TypeError):
                if number < len(lines):
                    raise DataError(
                        f"{self._path}:{number}: expected [key, value], got {line[:40]!r}. Remove "
                        "the file: what it holds is computed again"
                    ) from None
        if lines[-1]:
            write_text(self._path, "".join(f"{line}\n" for line in lines[:-1]))
        return found

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, values: Mapping[str, Any]) -> None:
        """Keeps values, which JSON can hold, under their keys."""
        if not values:
            return
        lines = "".join(f"{json.dumps([k, v], allow_nan=False)}\n" for k, v in values.items())
        with explained(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        self._known.update(values)
