"""A training that fails has cost nobody the model that was there: it is brought back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from rlaif.training.aside import BEFORE

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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
