"""`summary.json`: the numbers of a run, in one shape whatever stages were run.

    {"target_trait",
     "labels": {"pairs", "verdicts", "abstained", "gold_agreement", "unseparated",
                "swap_consistency", "label_mass", "ece", "temperature"},
     "reward_model": {"accuracy"},
     "trained_judge": {"before": {"accuracy", "swap_consistency", "ece", "label_mass"}, "after"},
     "policies": {"base": {"traits": {…}, "legal", "and_legal": {trait: {"at_stake", "all"}}},
                  "dpo": {…, "kl", "win_rate": {"value", "low", "high", "n", "wins", "losses",
                          "ties", "identical", "abstained", "decided", "at_stake"}}},
     "seconds": {"sample", "label", "reward", "dpo", "evaluate", "total"},
     "out_of_date", "state"}

`policies` and `seconds` also have "sft", "ppo", "grpo", "rloo" and "online-dpo" where they were
run, in the shape of "dpo"; `trained_judge`, measured on held-out prompts, and its seconds are there
where one was trained. A number that the run does not have is null; shares are in [0, 1], KL in
nats. `gold_agreement` is of the preferred pairs that the truth separates; `unseparated`, an
interval, is the share of the preferred pairs of known truth that it does not. `out_of_date` is a
list of what stands on something that has changed since, and why; `state` is a hash of all that the
run held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlaif.evaluation.labels import Floats, agreement, mean, unseparated
from rlaif.report.data import EVALUATE, WIN_RATE, Json, Run, number
from rlaif.statistics.calibration import expected_calibration_error
from rlaif.store import lineage, write_json

RATE = (
    "value",
    "low",
    "high",
    "n",
    "wins",
    "losses",
    "ties",
    "identical",
    "abstained",
    "decided",
    "at_stake",
)
STAGES = ("sample", "label", "reward", "dpo", "evaluate")
ONLINE = ("sft", "ppo", "grpo", "rloo", "online-dpo")  # what may have been trained beside


JUDGE_QUALITY = ("accuracy", "swap_consistency", "ece", "label_mass")


def build_summary(run_dir: Path) -> dict[str, Any]:
    """Computes a run's numbers, writes them to `summary.json` in it, and returns them."""
    summary = summarise(Run(run_dir))
    write_json(run_dir / "summary.json", summary)
    return summary


def summarise(run: Run) -> Json:
    """The numbers of a run, in the shape above."""
    return {
        "target_trait": run.about.get("target_trait"),
        "labels": _labels(run),
        "reward_model": {"accuracy": _reward_accuracy(run)},
        **({} if (judge := trained_judge(run)) is None else {"trained_judge": judge}),
        "policies": {
            "base": _policy(run, "base"),
            "dpo": _trained(run, "dpo", run.win_rate),
            **{n: _trained(run, n, _rate(run, n)) for n in ONLINE if n in run.policies},
        },
        "seconds": _seconds(run),
        "out_of_date": run.out_of_date,
        "state": lineage.state(run.store, run.manifest),
    }


def _labels(run: Run) -> Json:
    cube = run.cube
    slots = cube.slots(run.prompts)
    without_truth = unseparated(run.preferred, run.known, run.tied, run.prompts)
    return {
        "pairs": len(run.known),
        "verdicts": int(cube.asked.sum()),
        "abstained": int(cube.abstained.sum()),
        "gold_agreement": gold_agreement(run),
        "unseparated": without_truth.as_dict() if without_truth else None,
        "swap_consistency": slots["swap_consistency"].value if slots else None,
        "label_mass": mean(cube.mass),
        "ece": ece(run),
        "temperature": run.temperature,
    }


def gold_agreement(run: Run) -> float | None:
    """Agreement of the preferred pairs with what is known, by labels they had or by the world."""
    found = agreement(run.preferred, run.known, run.prompts)
    return found.value if found else number(run.label_audit.get("gold_agreement"))


def ece(run: Run) -> float | None:
    """Expected calibration error against the same."""
    found = known_ece(run.preferred, run.known)
    return number(run.label_audit.get("ece")) if found is None else found


def known_ece(preferred: Floats, known: Floats) -> float | None:
    """Calibration of the preferred pairs whose P(first) is known; a known tie is ½."""
    usable = np.isfinite(preferred) & np.isfinite(known)
    if not usable.any():
        return None
    return expected_calibration_error(preferred[usable], known[usable])


def _reward_accuracy(run: Run) -> float | None:
    """On held-out pairs."""
    _, metrics = run.training("reward")
    held_out = number((metrics.get("held_out") or {}).get("accuracy"))
    return number(metrics.get("accuracy")) if held_out is None else held_out


def trained_judge(run: Run) -> Json | None:
    """What a judge does on held-out prompts, before and after its training; None without one."""
    held_out = run.training("judge")[1].get("held_out") or {}
    both = {when: held_out.get(when) for when in ("before", "after")}
    if not all(isinstance(found, dict) for found in both.values()):
        return None
    return {w: {k: number((f or {}).get(k)) for k in JUDGE_QUALITY} for w, f in both.items()}


def _policy(run: Run, name: str) -> Json:
    found = run.policies.get(name) or {}
    traits = {trait: number(value) for trait, value in (found.get("traits") or {}).items()}
    both = {
        trait: {where: number(value) for where, value in (rates or {}).items()}
        for trait, rates in (found.get("and_legal") or {}).items()
    }
    return {"traits": traits, "legal": number(found.get("legal")), "and_legal": both}


def _trained(run: Run, name: str, rate: Json) -> Json:
    return {
        **_policy(run, name),
        "kl": number((run.policies.get(name) or {}).get("kl")),
        "win_rate": {k: number(rate.get(k)) for k in RATE},
    }


def _rate(run: Run, name: str) -> Json:
    return run.evaluation(f"winrate-{name}", EVALUATE, WIN_RATE)


def _seconds(run: Run) -> Json:
    names = [*STAGES, *(name for name in ("judge", *ONLINE) if name in run.stages)]
    seconds = {name: number((run.stages.get(name) or {}).get("seconds")) for name in names}
    known = [s for s in seconds.values() if s is not None]
    return {**seconds, "total": sum(known) if known else None}
