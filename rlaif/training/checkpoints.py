"""Checkpoints that can be trusted: sealed when they are whole, checked before training goes on.

A seal holds the SHA-256 of every file of a checkpoint and is written last. One without a seal was
cut off by a kill and is removed; one whose files are not those of its seal is set aside with a
warning, and training goes on from the one before it, or from the start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from rlaif.errors import DataError
from rlaif.files.small import is_file, read_object
from rlaif.records import content_id
from rlaif.training import stopping
from rlaif.training.models import write_json

JOURNAL, CHECKPOINTS = "training.jsonl", "checkpoints"
SEAL = "digests.json"
TRAINER = "trainer.pt"
SECONDS = 600.0  # of work that a kill may cost, where single steps are not longer
_KEPT = 2  # checkpoints: the newest, and the one to fall back on


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end; `check` has looked at its files."""
    whole = (folder for folder in _newest_first(out) if is_file(folder / SEAL))
    return next(whole, None)


def check(out: Path) -> None:
    """Removes what a kill cut off and sets aside what is damaged, down to the first sound one.

    Only one process may call this, and before any asks for the `last_checkpoint`.
    """
    for folder in _newest_first(out):
        if not os.path.lexists(folder / SEAL):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        why = fault(folder)
        if why is None:
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.warn(
            f"{folder}: {why}. The checkpoint is set aside as {aside.name}, and training goes on "
            "from the one before it, or from the start",
            stacklevel=3,
        )


def fault(folder: Path) -> str | None:
    """What is not as a checkpoint's seal says; None where all is."""
    try:
        expected = read_object(folder / SEAL, "the training", {str: str})
    except DataError:
        return f"its {SEAL} cannot be read"
    for name, digest in expected.items():
        if not is_file(folder / name):
            return f"its {name} is missing"
        if _digest(folder / name) != digest:
            return f"its {name} is not what was written"
    return None


def seal(folder: Path, journal: Path) -> None:
    """Marks a checkpoint as whole, with a copy of the journal as it was then."""
    if is_file(journal):
        shutil.copyfile(journal, folder / JOURNAL)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {str(path.relative_to(folder)): _digest(path) for path in files})


class Due:
    """Whether a checkpoint is due: every so many steps, and when SECONDS have gone since the last.

    Steps can take minutes; what a kill costs is then bounded by time.
    """

    def __init__(self, every: int) -> None:
        self._every, self._last = every, time.monotonic()

    def __call__(self, step: int) -> bool:
        now = time.monotonic()
        due = step % self._every == 0 or now - self._last >= SECONDS
        if due:
            self._last = now
        return due

    def after(self, step: int, steps: int, write: Callable[[int], None]) -> None:
        """Ends a step of so many: writes a checkpoint where one is due, and stops where asked."""
        stop = stopping.asked()
        if stop or (step < steps and self(step)):
            write(step)
        if stop:
            stopping.leave()


class Sealing(TrainerCallback):  # type: ignore[misc]
    """Has Trainer write its checkpoints when they are due, and seals each when all processes have
    written their parts of it. `whole`: checkpoints can only be of multiples of so many steps."""

    def __init__(self, journal: Path, whole: int = 1) -> None:
        self._journal, self._whole = journal, whole

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del state, control
        self._due = Due(args.save_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer itself saves each `save_steps`; this adds those that time has made due."""
        del args
        whole = state.global_step % self._whole == 0
        control.should_save |= whole and stopping.asked()
        if whole and state.global_step < state.max_steps:
            due = [self._due(state.global_step)]
            if PartialState().num_processes > 1:
                broadcast_object_list(due)  # all save, or none: the main process's clock decides
            control.should_save |= due[0]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del control
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._journal)
        stopping.saved(state.global_step)
        if stopping.asked():
            stopping.leave()


def write_checkpoint(out: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint aside, seals and renames it; all but the one before it are dropped."""
    root = out / CHECKPOINTS
    aside = root / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with (aside / TRAINER).open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    write_json(aside / "trainer_state.json", {"global_step": step})
    seal(aside, out / JOURNAL)
    shutil.rmtree(root / f"checkpoint-{step}", ignore_errors=True)
    aside.rename(root / f"checkpoint-{step}")
    for folder in _newest_first(out)[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
    stopping.saved(step)


def read_checkpoint(checkpoint: Path, device: Any) -> tuple[int, dict[str, Any]]:
    """The steps done and the state that `write_checkpoint` was given, on `device`."""
    state = torch.load(checkpoint / TRAINER, map_location=device, weights_only=True)
    return step_of(checkpoint), dict(state)


def keep_reference(path: Path, reference: Mapping[str, list[float]]) -> None:
    """Writes the reference's log-probabilities with a digest of their own."""
    write_json(path, {"digest": _digest_of(reference), "reference": dict(reference)})


def kept_reference(path: Path) -> dict[str, list[float]]:
    """What an earlier start wrote; empty, with a warning, where it is no longer what it wrote."""
    if not os.path.lexists(path):
        return {}
    try:
        found = read_object(path, "the training", {"digest": str, "reference": {str: [float]}})
        reference = dict(found.get("reference") or {})
        if found.get("digest") == _digest_of(reference):
            return reference
    except DataError:
        pass
    warnings.warn(f"{path} is not what was written: it is computed anew", stacklevel=3)
    return {}


def _digest_of(reference: Mapping[str, list[float]]) -> str:
    return content_id(json.dumps(dict(reference), sort_keys=True))


def steps_from(checkpoint: Path | None) -> AbstractContextManager[None]:
    """The steps of a training that goes on from a checkpoint, or begins: Ctrl-C ends them whole."""
    done = 0 if checkpoint is None else step_of(checkpoint)
    return stopping.in_steps(done, alone=PartialState().num_processes == 1)


def step_of(checkpoint: Path) -> int:
    """The steps that were done when it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _newest_first(out: Path) -> list[Path]:
    found = (out / CHECKPOINTS).glob("checkpoint-*")
    named = [p for p in found if p.name.rpartition("-")[2].isdecimal() and p.is_dir()]
    return sorted(named, key=step_of, reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
