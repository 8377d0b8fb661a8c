"""The temperature of labels: `preferences.temperature`, a number or what the run's audit fitted."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config import Config
from rlaif.errors import DataError
from rlaif.evaluation.audit import Elsewhere
from rlaif.files.small import Shape, read_object, write_json
from rlaif.store import RunStore, lineage, missing_run

if TYPE_CHECKING:
    from rlaif.stages.run import Run

FILE = "evaluation/temperature.json"
_SHAPE: dict[str, Shape] = dict.fromkeys(("value", "low", "high", "slope", "n"), float)


def require_temperature(config: Config) -> float | None:
    """The temperature of the config's labels, None for none.

    DataError where it is the audit's, and no audit has fitted one, or could.
    """
    said = config.preferences.temperature
    if said != "audit":
        return said
    out = shlex.quote(config.out)
    return _fitted(
        Path(config.out),
        "Make labels without one, audit them, and label again, which asks no judge twice: "
        f"`rlaif label --set preferences.temperature=null --out {out}`, "
        f"`rlaif eval audit --out {out}`, "
        f"`rlaif label --set preferences.temperature=audit --out {out}`",
        "Give a number as preferences.temperature, or null",
    )


def temperature_of(run: Run, other: str) -> Elsewhere:
    """The temperature that another run's audit fitted, and in what that run's labels were made
    otherwise than this run's; DataError where there is none."""
    root = Path(other)
    if not root.is_dir():
        raise missing_run(root, "--temperature-from takes the folder of an audited run")
    again = f"Run `rlaif eval audit --out {shlex.quote(other)}`"
    value = _fitted(root, again, "Name a run whose audit did")
    with RunStore.open_readonly(root) as store:
        theirs, ours = (_made(s.read_manifest()) for s in (store, run.store))
    differs = tuple(
        what
        for name, what in (("judge", "judge"), ("principles", "principles"), ("rule", "rule"))
        if theirs.get(name) != ours.get(name)
    )
    return Elsewhere(other, value, differs)


def _made(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What labels were made from, as far as it changes what a temperature is fitted to."""
    made = (manifest.get("made") or {}).get(lineage.LABELS) or {}
    rule = {k: v for k, v in (made.get("rule") or {}).items() if k != "temperature"}
    return {**made, "rule": rule}


def _fitted(root: Path, missing: str, without: str) -> float:
    """The temperature that the last audit of a run fitted; DataError with what to do for none."""
    found = read_object(root / FILE, "`rlaif eval audit`", _SHAPE)
    if not found:
        raise DataError(f"{root}: no audit has fitted a temperature to these labels yet. {missing}")
    value = found.get("value")
    if value is None:
        raise DataError(f"{root}: the audit could fit no temperature: {_why(found)}. {without}")
    if not 0 < value < math.inf:
        raise DataError(
            f"{root / FILE}: the temperature is {value}, and must be above 0. {missing}"
        )
    return float(value)


def _why(found: Mapping[str, Any]) -> str:
    """Why a fit has no temperature, in words."""
    if not found.get("n"):
        return "of no pair that is preferred it is known which side is better"
    if found.get("slope") is None:
        return f"the {found['n']:,} labels that could be checked are all right, or all wrong"
    return f"the {found['n']:,} labels that could be checked are right no more often than a coin"


def record_temperature(run: Run, audit: Mapping[str, Any]) -> None:
    """Keeps what an audit fitted, for labels to be made at it: other labels do not undo it."""
    fitted = (audit.get("known") or {}).get("temperature") or {}
    kept = {name: fitted.get(name) for name in ("value", "low", "high", "slope", "n")}
    write_json(run.store.path(FILE), {**kept, "known_from": audit.get("known_from")})
