"""A finished model, put aside while another is trained into its folder: a training that fails has
cost nobody the model that was there."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

BEFORE = ".before"
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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


def keeps_the_model(train: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Of a function that trains into its third argument, `out`: where it fails before its first
    checkpoint, what it began is taken away and the model that was there comes back.

    With a checkpoint, the same call goes on from there; with the settings of before, `prepare`
    brings the model back. So it is after Ctrl-C or a kill.
    """

    @functools.wraps(train)
    def training(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return train(*args, **kwargs)
        except Exception:
            out = kwargs.get("out", args[2] if len(args) > 2 else None)
            if isinstance(out, str | Path) and Path(out, BEFORE).is_dir():
                from rlaif.training.loop import back_if_nothing_was_learnt

                back_if_nothing_was_learnt(Path(out))
            raise

    return training
