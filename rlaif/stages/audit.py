"""verdicts, preferences → evaluation/audit.json; and whether labels are fit to train on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif.errors import DataError, TrainingError
from rlaif.evaluation.audit import Labels, failed
from rlaif.evaluation.audit import audit as audited
from rlaif.files.small import Shape, read_object
from rlaif.records import Preference
from rlaif.report.audit import table
from rlaif.report.data import Run as StoredRun
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import finish
from rlaif.stages.run import Run
from rlaif.stages.temperature import record_temperature, temperature_of
from rlaif.stages.testing import FILE as INVARIANCE
from rlaif.store import lineage, write_json
from rlaif.store.people import require_people

FILE = "audit.json"


def audit(run: Run, temperature_from: str | None = None, people: str | None = None) -> None:
    """How far the run's labels agree with what is known, and with themselves. Loads no model.

    `temperature_from`: the folder of another run, of whose temperature is told whether it helps.
    `people`: `all` or `random`, to measure against what people decided in `rlaif view`.
    """
    clock = time.monotonic()
    if not len(run.store.table("preferences")):
        raise DataError(f"{run.store.root}: no labels to audit: run `rlaif label` first")
    tell_stale(run, lineage.LABELS)
    other = None if temperature_from is None else temperature_of(run, temperature_from)
    root = run.store.root
    stored = StoredRun(root, None if people is None else require_people(root, people))
    labels = stored_labels(stored)
    found = {**audited(labels, other), "known_from": stored.known_from}
    if other is not None and not (found["known"] or {}).get("transfer"):
        raise DataError(
            f"{run.store.root}: no pair that is preferred has a label of its own to measure a "
            "temperature by: give pairs that have, or leave out --temperature-from"
        )
    write_json(run.store.path("evaluation", FILE), found)
    record_temperature(run, found)
    run.reporter.say(table(found))
    finish(run, "audit", clock, {"rows": len(labels.ids), "new_rows": 0})


def stored_labels(stored: StoredRun) -> Labels:
    """A run's labels as arrays, by the verdicts alone: people are who they are measured against.
    The texts pass by for their lengths."""
    ids, prompts, lengths = [], [], []
    for batch in stored.store.table("pairs").iter_batches():
        for pair in batch:
            ids.append(pair.id)
            prompts.append(pair.prompt.id)
            lengths.append((len(pair.first), len(pair.second)))
    return Labels(
        ids,
        prompts,
        stored.judged_statuses,
        stored.judged,
        stored.known,
        np.array(lengths, dtype=np.float64).reshape(-1, 2),
        stored.cube,
        stored.tied,
        None if stored.temperature is None else stored.raw,
        stored.temperature,
    )


_QUALITY: dict[str, Shape] = {
    **dict.fromkeys(("swap_consistency", "questions"), float),
    "gold_agreement": dict.fromkeys(("value", "low", "high", "n"), float),
}


def _flips(run: Run) -> Any:
    """What `rlaif constitution test --invariance` found, by kind of change; None unless it was of
    the judge that labelled and of all its principles as they are worded."""
    found = read_object(run.store.path("evaluation", INVARIANCE), "`rlaif constitution test`")
    manifest = run.store.read_manifest()
    labelled = manifest.get("labelled") or {}
    asked = {p["id"]: p["compare"] for p in labelled.get("principles") or ()}
    cards = {name: card["compare"] for name, card in (found.get("principles") or {}).items()}
    judge = (manifest.get("judge") or {}).get("fingerprint")
    same = judge is not None and found.get("judge") == judge and asked.items() <= cards.items()
    return found.get("kinds") if same else None


def require_fit(run: Run, preferences: Sequence[Preference]) -> None:
    """TrainingError where labels pass a limit of `train.limits`, with all that they pass."""
    limits = run.config.train.limits
    if limits is None:
        return
    path = run.store.path("evaluation", "labels.json")
    quality: dict[str, Any] = read_object(path, "`rlaif label`", _QUALITY)
    asked = sum(p.verdicts for p in preferences)
    counts = {"verdicts": asked, "abstained": sum(p.abstained for p in preferences)}
    faults = failed({**quality, **counts, "kinds": _flips(run)}, limits)
    if faults:
        raise TrainingError(
            f"{run.store.root}: these labels are not fit to train on:\n"
            + "\n".join(f"  {name}: {text}" for name, text in faults.items())
            + "\n`rlaif eval audit` tells more of them. Mend the judge, the constitution or the "
            "pairs and label again; or, to train all the same, set "
            + ", ".join(f"train.limits.{name}=null" for name in faults)
        )
