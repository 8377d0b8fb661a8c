"""A finished model's files, put aside while another is trained into its folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

BEFORE = ".before"


def set_aside(out: Path, names: Iterable[str], mark: str) -> None:
    """Moves a finished model's files, named below `out`, into `out/.before`.

    The file `mark` goes last and comes back first: where it lies tells whether a kill came between.
    """
    let_go(out)
    for name in (*names, mark):
        if (out / name).exists():
            (out / BEFORE / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).rename(out / BEFORE / name)


def half_moved(out: Path, mark: str) -> bool:
    """Whether a kill came while files were moved either way: `bring_back` makes it whole."""
    return (out / BEFORE).is_dir() and not (out / BEFORE / mark).exists()


def bring_back(out: Path, mark: str) -> None:
    """Moves them back over what lies there now."""
    aside = out / BEFORE
    files = [p for p in aside.rglob("*") if not p.is_dir()]
    for path in sorted(files, key=lambda path: path != aside / mark):
        to = out / path.relative_to(aside)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.replace(to)
    let_go(out)


def let_go(out: Path) -> None:
    """Deletes what was put aside: another model is finished."""
    shutil.rmtree(out / BEFORE, ignore_errors=True)
