"""A run's settings while a command is at work: its own, or those before it where it came to nought.

A command writes its settings into the run first, so that a kill leaves a run that goes on. Where it
fails instead, and has stored nothing by then, a model, a file or a value that cannot be is most
likely the reason: kept, it would be taken up by the next command, and make all that is good look
out of date.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlaif.errors import RlaifError
from rlaif.files.small import is_file
from rlaif.stages.record import describe
from rlaif.stages.run import Run
from rlaif.store import RunStore, lineage
from rlaif.store.places import INPUTS

_SAID = ("run.yaml", "manifest.json")
_BEFORE = ".before"  # holds them, and the run's copies of what it reads, while a command is at work


@contextmanager
def described(run: Run) -> Iterator[None]:
    """Writes the run's settings for the stages within, and puts back those from before where a
    stage fails and none has stored anything; Ctrl-C and a kill leave them, to go on with."""
    root, before = run.store.root, run.store.path(_BEFORE)
    held = _held(run.store)
    _keep(root, before)
    try:
        describe(run)
        yield
    except Exception:
        if not _held(run.store) - held and _put_back(before, root):
            run.reporter.warn(
                f"nothing was stored: the settings of {root} are again those from before"
            )
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def _held(store: RunStore) -> set[tuple[str, str | int]]:
    """What a run holds, by content. What is not readable counts as not there."""
    found: set[tuple[str, str | int]] = set()
    try:
        found |= set(lineage.contents(store).items())
        found |= {(name, len(store.table(name))) for name in ("completions", "verdicts")}
        found.add(("revisions", len(store.table("revisions"))))
    except RlaifError:
        pass
    # A training that has not made a step has only cleared its folder.
    begun = {name for name, _ in found if _begun(store.path(str(name)))}
    found = {one for one in found if not one[0].startswith("models/") or one[0] in begun}
    files = filter(is_file, store.path("evaluation").rglob("*"))
    return found | {(str(p), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def _begun(folder: Path) -> bool:
    journal = folder / "training.jsonl"
    return is_file(folder / "metrics.json") or (is_file(journal) and journal.stat().st_size > 0)


def _keep(root: Path, before: Path) -> None:
    """What a run says of itself, aside. Its inputs are linked: they are replaced, not rewritten."""
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    for name in filter(lambda name: is_file(root / name), _SAID):
        shutil.copyfile(root / name, before / name)
    if (root / INPUTS).is_dir():
        shutil.copytree(root / INPUTS, before / INPUTS, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system that knows no links
        shutil.copyfile(source, target)


def _put_back(before: Path, root: Path) -> bool:
    """Whether there was something before that differs from what there is now."""
    said, says = before / "run.yaml", root / "run.yaml"
    changed = is_file(said) and is_file(says) and said.read_bytes() != says.read_bytes()
    shutil.rmtree(root / INPUTS, ignore_errors=True)
    if (before / INPUTS).is_dir():
        (before / INPUTS).replace(root / INPUTS)
    for name in reversed(_SAID):  # the manifest, which says what the `./` of run.yaml mean, first
        if is_file(before / name):
            (before / name).replace(root / name)
        else:
            (root / name).unlink(missing_ok=True)
    return changed
