"""What a stage's product was made from: recorded when it is made, told of when it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlaif.config.sections import EvaluateConfig
from rlaif.engines.settings import HTTPSettings, VLLMSettings
from rlaif.errors import ConfigError
from rlaif.files.small import read_object
from rlaif.judges.methods import method_of
from rlaif.records import content_id
from rlaif.stages.policies import asks_judge
from rlaif.stages.run import Run
from rlaif.store import lineage
from rlaif.store.places import Kept


def about_constitution(run: Run) -> dict[str, Any]:
    """The manifest's section on the run's constitution."""
    constitution = run.constitution
    return {
        "name": constitution.name,
        "version": constitution.version,
        "hash": constitution.hash,
        "principles": [p.record() for p in run.principles()],
    }


# What can change no row, by section; all else counts, so that an option added later does.
_NO_EFFECT = {
    "device",
    "batch_tokens",
    "attention",
    "max_not_finite",
    "skip_bad",
    "principles",
    "draw",
    "draw_weighted",
    "draw_seed",
    "weight",
}
_NO_EFFECT |= {f"http.{name}" for name in HTTPSettings.model_fields} - {
    "http.base_url",
    "http.revision",
    "http.prefill",
    "http.scoring",
    "http.top_logprobs",
    "http.extra_body",
    "http.max_length",
}
# Sections of `evaluate` with commands of their own: what they say makes no other evaluation. They
# stand as they are by default, as runs from before recorded them.
_OF_OTHERS = {
    name: EvaluateConfig.model_fields[name].default.model_dump(mode="json")
    for name in ("rewardbench", "model_written", "write", "text")
}
_NO_EFFECT |= {f"vllm.{name}" for name in VLLMSettings.model_fields} - {
    "vllm.quantization",
    "vllm.max_model_len",
}


def asked(run: Run, kept: Kept) -> dict[str, Any]:
    """What the config says of what products are made from, files by name and content."""
    config, data = run.config, kept.data
    judges = data["jury"] or [data["judge"]]
    weighted = config.preferences.aggregate == "weighted" or config.judge.draw_weighted
    draw = {k: data["judge"][k] for k in ("draw", "draw_weighted", "draw_seed")}
    rule = {**config.preferences.rule(), **(draw if config.judge.draw else {})}
    if not config.jury:
        rule = {k: v for k, v in rule.items() if k not in ("jury", "quorum")}
    elif config.preferences.jury == "weighted":
        rule |= {f"weight of {juror.name}": juror.weight for juror in config.jury}
    if weighted:
        rule |= {f"weight of {p.id}": p.weight for p in run.principles()}
    rule |= {f"tier of {p.id}": p.tier for p in run.principles() if p.tier is not None}
    named = [
        (f"{judge['name']}: " if data["jury"] else "", f"jury.{i}" if data["jury"] else "judge")
        for i, judge in enumerate(judges)
    ]
    return {
        "principles": {p.id: content_id(p.compare) for p in run.principles()},
        "rule": rule,
        "people": config.preferences.about_people(),
        "judge": {
            before + key: value
            for (before, at), judge in zip(named, judges, strict=True)
            for key, value in _flat(judge, at, kept).items()
        },
        "prompts": _flat(data["prompts"], "prompts", kept),
        "policy": _flat(data["policy"], "policy", kept),
        "sampling": data["sampling"],
        "evaluate": _flat(data["evaluate"] | _OF_OTHERS, "evaluate", kept),
        "model_written": _flat(data["evaluate"]["model_written"], "evaluate.model_written", kept),
        **({"source": _flat(data["pairs"], "pairs", kept)} if data["pairs"] else {}),
        **_learner(data, kept),
    }


def _learner(data: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """What `train judge` begins from: a judge's model and template, whatever else it is told.

    Nothing where the run judges with what it trained: that was begun from another one.
    """
    named, jury = (data["train"]["judge"] or {}).get("juror"), data["jury"] or []
    places = {juror["name"]: f"jury.{i}" for i, juror in enumerate(jury)}
    at = places.get(named, "judge")
    judge = next((juror for juror in jury if juror["name"] == named), data["judge"])
    if judge["model"] == f"./{lineage.model('judge')}":
        return {}
    template = ("template",) if method_of(judge["method"]).of_pairs else ()
    found = {key: judge[key] for key in ("model", "adapter", *template)}
    return {"learner": _flat(found, at, kept)}


def _flat(section: Mapping[str, Any], at: str, kept: Kept, prefix: str = "") -> dict[str, Any]:
    """A section's options under dotted names, those that change nothing left out."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        name = prefix + key
        if name in _NO_EFFECT or key in _NO_EFFECT:
            continue
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{at}.{key}", kept, f"{name}.")
        elif (copy := kept.files.get(f"{at}.{key}")) is not None:
            found[name] = f"{Path(str(value)).name} ({copy['digest']})"
        else:
            found[name] = value
    return found


def record_inputs(run: Run, stage: str) -> None:
    """Writes into the manifest what the product of a stage was made from."""
    products = _made_by(run, stage)
    if not products:
        return
    run.store.update_manifest("made", lineage.made(run.store, products))
    if stage == "label":
        run.store.update_manifest("labelled", about_constitution(run))


# What is read of whose labels a model learns.
_LEARNT = {
    "own": (lineage.PAIRS,),
    "people": (lineage.PAIRS, lineage.PEOPLE),
    "preferences": (lineage.LABELS,),
    "verdicts": (lineage.LABELS,),
}


def _made_by(run: Run, stage: str) -> dict[str, tuple[str, ...]]:
    """The products of a stage, each with the names of its inputs."""
    train, judged = run.config.train, ("principles", "rule", "judge")
    sampled, people = ("prompts", "policy", "sampling"), lineage.PEOPLE
    models = (k for k in lineage.contents(run.store) if k.startswith("models/"))
    others = (lineage.model("judge"), lineage.model("reward"))
    trained = [name for name in models if name not in others]
    match stage:
        case "sample":
            return {lineage.PAIRS: sampled}
        case "contrast":  # what stands first is better: no judge is asked
            return {lineage.PAIRS: sampled, lineage.LABELS: (lineage.PAIRS,)}
        case "read":
            return {lineage.PAIRS: ("source",)}
        case "label":
            audited = run.config.preferences.temperature == "audit"
            fitted = (lineage.TEMPERATURE,) if audited else ()
            by = () if run.config.preferences.people is None else (people,)
            return {lineage.LABELS: (lineage.PAIRS, *judged, "people", *by, *fitted)}
        case "audit":
            found = read_object(run.store.path("evaluation", "audit.json"), "`rlaif eval audit`")
            by = (people,) if found.get("known_from") == "people" else ()
            return {lineage.AUDIT: (lineage.LABELS, *by), lineage.TEMPERATURE: (lineage.RAW, *by)}
        case "judge":
            given = train.judge
            whose = "own" if given is None else given.labels
            start = [] if given is not None and given.model is not None else ["learner"]
            shown = [] if _LEARNT[whose] == (lineage.LABELS,) else ["principles"]
            return {lineage.model(stage): (*_LEARNT[whose], *shown, *start)}
        case "reward" | "dpo":
            learnt = train.reward if stage == "reward" else train.dpo
            whose = "preferences" if learnt is None else learnt.labels
            return {lineage.model(stage): (*_LEARNT[whose], "policy")}
        case "sft":
            best = train.sft is not None and train.sft.data == "best"
            return {lineage.model(stage): (*([lineage.LABELS] if best else []), "policy")}
        case "ppo" | "grpo" | "rloo" | "online-dpo":
            section = getattr(train, stage.replace("-", "_"))
            reward = getattr(section, "reward", "judge")
            more = {"judge": judged, "model": (lineage.model("reward"),)}.get(reward, ())
            return {lineage.model(stage): (*more, "prompts", "policy")}
        case "evaluate":
            asked = judged if asks_judge(run.config) else ()
            reward = others[1:] if run.config.evaluate.reward == "model" else ()
            return {lineage.EVALUATION: (*trained, *reward, "policy", "evaluate", *asked)}
        case "best-of-n":
            return {lineage.BEST_OF_N: (lineage.model("reward"), "policy", "evaluate")}
        case "model-written":
            return {lineage.MODEL_WRITTEN: (*trained, "policy", "model_written")}
    if stage.startswith(lineage.ATTACKS):
        return {stage: (lineage.PAIRS, "principles", "judge")}
    return {}


def tell_stale(run: Run, *inputs: str) -> None:
    """Warns of what is out of date: of these products, or of all."""
    if not run.main:
        return
    found = lineage.stale(run.store)
    shown = [one for one in found if not inputs or one.product in inputs]
    if shown:
        lines = "".join(f"\n  {one.text}" for one in shown)
        first = lineage.remedy(shown[0].product, found, run.store)
        run.reporter.warn(f"out of date in {run.store.root}:{lines}\nto make it again: {first}")


def require_not_read(run: Run) -> None:
    """ConfigError where the run's pairs came from a file: others would take their place."""
    source = run.config.pairs
    if source is not None and len(run.store.table("pairs")):
        raise ConfigError(
            f"the pairs of {run.store.root} are read from {source.path}, and pairs made of "
            "completions would take their place: give another --out; or, to replace them, "
            "--set pairs=null"
        )


def pair_ids(run: Run) -> pa.ChunkedArray:
    """Ids of the run's pairs, to be told by `tell_replaced` which of them have gone."""
    return run.store.table("pairs").to_arrow(["id"])["id"]


def tell_replaced(run: Run, before: pa.ChunkedArray) -> None:
    """Says what became of the pairs that the run had before others took their place."""
    if not len(before):
        return
    now = pair_ids(run)
    import pyarrow.compute as pc  # builds hundreds of functions, which few commands need

    gone = len(before) - pc.sum(pc.is_in(before, value_set=now)).as_py()
    if gone:
        labels = len(run.store.table("preferences"))
        run.reporter.warn(
            f"{gone:,} of the {len(before):,} pairs that the run had are not among its "
            f"{len(now):,} pairs now"
            + (": the next `rlaif label` leaves them out of the labels" if labels else "")
            + ". Their completions and verdicts stay stored: they come back without a model call. "
            "To keep both sets, give another --out, or all prompts at once"
        )
