"""Which prompts the models of a run learnt from, kept beside each model by its training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlaif.engines.settings import ModelSettings
from rlaif.errors import DataError
from rlaif.files.small import read_bytes, read_object
from rlaif.records import Prompt
from rlaif.stages.run import Run, is_finished
from rlaif.store import write_json

FILE = "trained_on.json"


def record_prompts(
    run: Run, name: str, prompts: Iterable[Prompt], *began_from: Path | str | None
) -> None:
    """Writes beside models/NAME the ids of the prompts that its training read.

    Those that the models it began from, or was rewarded by, had learnt from are among them.
    """
    if not run.main:
        return
    folder = run.store.path("models", name)
    ids = {prompt.id for prompt in prompts}
    for other in began_from:
        ids |= (prompts_of(Path(other)) if other else None) or set()
    write_json(folder / FILE, {"key": _key(folder), "prompts": sorted(ids)})


def starts(run: Run) -> list[Path]:
    """The folders that the run's policy is made of, where it is no name on the hub."""
    given = (run.config.policy.model, run.config.policy.adapter)
    return [Path(name) for name in given if name is not None and Path(name).is_dir()]


def prompts_of(folder: Path) -> set[str] | None:
    """Ids of the prompts that the model of a folder learnt from; None where none are recorded.

    An adapter lies in the folder of its model, whose record is its own.
    """
    if folder.name == "adapter" and not (folder / FILE).is_file():
        folder = folder.parent
    found = read_object(folder / FILE, "the command that trained it")
    if not found or found.get("key") != _key(folder):  # of weights that were there before
        return None
    return set(found.get("prompts", ()))


def prompts_of_models(run: Run, models: Iterable[Path]) -> dict[str, set[str]]:
    """Ids of the prompts that each of these models learnt from, by the model's name.

    A warning for what this run has trained and recorded nothing of, as older versions did.
    """
    found, ours = {}, run.store.path("models")
    for folder in models:
        ids = prompts_of(folder)
        shown = f"models/{folder.name}" if folder.parent == ours else str(folder)
        if ids is not None:
            found[shown] = ids
        elif folder.parent == ours and is_finished(folder):
            run.reporter.warn(
                f"{shown} has no record of the prompts that it learnt from, so nobody can tell "
                f"whether it is evaluated on them: `rlaif train {folder.name}` writes it, and "
                "trains nothing again"
            )
    return found


def tell_learnt(run: Run, judges: Iterable[ModelSettings]) -> None:
    """Warns where judges have learnt from prompts of the run's own pairs: what is known of these
    they may have been told, so agreeing with it proves nothing."""
    for name in dict.fromkeys(str(part) for j in judges for part in (j.model, j.adapter) if part):
        learnt = prompts_of(Path(name)) if Path(name).is_dir() else None
        if not learnt:
            continue
        batches = run.store.table("pairs").iter_batches()
        seen = [pair.prompt.id in learnt for batch in batches for pair in batch]
        if any(seen):
            run.reporter.warn(
                f"the judge {name} has learnt from the prompts of {sum(seen):,} of the "
                f"{len(seen):,} pairs: that it agrees with what is known of them says nothing of "
                "other prompts"
            )


def _key(folder: Path) -> str:
    path = folder / "run.key"
    return read_bytes(path, DataError).decode(errors="replace").strip() if path.is_file() else ""
