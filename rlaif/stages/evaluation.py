"""policies → win rate, KL and gold traits on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.engines.base import Engine, Sampling, weights_of
from rlaif.errors import ConfigError, DataError
from rlaif.records import Completion, Pair, Preference, Prompt
from rlaif.stages.asking import ask
from rlaif.stages.inputs import held_out, held_out_section, is_tiny, sampling_of, tiny_target
from rlaif.stages.jury import Judges, judges_at_hand
from rlaif.stages.labelling import prefer
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run, is_finished
from rlaif.stages.temperature import require_temperature
from rlaif.steps.executors import run_sampling
from rlaif.steps.sampling import completion_keys
from rlaif.store import RunStore, lineage, write_json

# what training stages may leave in `models/`
POLICIES = ("sft", "dpo", "ppo", "grpo", "rloo", "online-dpo")


def evaluate(run: Run) -> None:
    """policies → win rate, KL and gold traits on held-out prompts.

    Samples, pairs and verdicts of the evaluation lie in `evaluation/`, a store like the run's own,
    so that it resumes and can be opened like it.
    """
    clock = time.monotonic()
    names = trained_policies(run.store)
    if not names:
        raise DataError(f"{run.store.root}: no trained policy: run `rlaif train dpo` first")
    tell_stale(run, *map(lineage.model, names))
    config, rejected = run.config.evaluate, Rejected("evaluate")
    prompts = held_out(run, rejected.add, [run.store.path("models", name) for name in names])
    rejected.write(run)
    if not prompts:
        raise rejected.none_left(held_out_section(run.config).path, "prompt")
    base = run.engine(run.config.policy)
    policies = {"base": base}
    for name in names:
        trained = str(run.store.path("models", name))
        whole = {"model": trained, "adapter": None}  # what training began from is in its weights
        policies[name] = run.engine(run.config.policy.model_copy(update=whole))
    rates = {}
    with RunStore(run.store.path("evaluation"), command="evaluate") as store:
        samples, new_rows = _evaluation_samples(run, store, policies, prompts)
        store.table("pairs").replace([])  # those of this evaluation, whatever stood here
        for name in names if config.winrate else ():
            rates[name] = _winrate(run, store, prompts, samples, name, base)
            write_json(run.store.path("evaluation", winrate_file(name)), rates[name])
        if rates:
            _tell_of_judge(run, next(iter(rates.values()))["judge"])
        drawn, more = _samples_for_kl(run, store, policies, prompts, samples)
    found = {name: _gold(run, prompts, rows) for name, rows in samples.items()}
    _add_words(found, prompts, samples)
    for name in names:
        found[name]["kl"] = _kl(
            policies[name], base, prompts, drawn[name], run.config.policy.thought_tokens
        )
    write_json(run.store.path("evaluation", "policies.json"), found)
    shown = [
        {"prompt": prompt.messages[-1].content}
        | {name: rows[i].text for name, rows in samples.items()}
        for i, prompt in enumerate(prompts)
    ]
    write_json(run.store.path("evaluation", "samples.json"), shown[:50])
    finish(
        run,
        "evaluate",
        clock,
        {
            "rows": len(prompts),
            "new_rows": new_rows + more,
            "rejected_rows": rejected.counts(),
            "policies": {name: engine.fingerprint for name, engine in policies.items()},
        },
    )


def trained_policies(store: RunStore) -> list[str]:
    """Names of the policies in `models/` whose training was finished."""
    return [n for n in POLICIES if is_finished(store.path("models", n))]


def winrate_file(policy: str) -> str:
    """The file of `evaluation/` with a policy's win rate over the base."""
    return "winrate.json" if policy == "dpo" else f"winrate-{policy}.json"


def _evaluation_samples(
    run: Run, store: RunStore, policies: Mapping[str, Engine], prompts: Sequence[Prompt]
) -> tuple[dict[str, list[Completion]], int]:
    """One completion of each prompt by each policy, in the prompts' order, and how many are new."""
    return _sampled(run, store, policies, prompts, _sampling(run), "evaluate")


def _sampling(run: Run) -> Sampling:
    return sampling_of(run.config).but(
        n=1,
        temperature=run.config.evaluate.temperature,
        seed=run.config.evaluate.seed,
    )


def _samples_for_kl(
    run: Run,
    store: RunStore,
    policies: Mapping[str, Engine],
    prompts: Sequence[Prompt],
    samples: Mapping[str, Sequence[Completion]],
) -> tuple[Mapping[str, Sequence[Completion]], int]:
    """The samples, where they come from all of each policy's distribution; else others that do."""
    sampling = _sampling(run)
    if sampling.temperature == 1 and sampling.top_p == 1:
        return samples, 0
    whole = sampling.but(temperature=1.0, top_p=1.0)
    trained = {name: engine for name, engine in policies.items() if name != "base"}
    return _sampled(run, store, trained, prompts, whole, "samples for the KL:")


def _sampled(
    run: Run,
    store: RunStore,
    policies: Mapping[str, Engine],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    title: str,
) -> tuple[dict[str, list[Completion]], int]:
    samples, new = {}, 0
    for name, engine in policies.items():
        with run.reporter.progress(f"{title} {name}", len(prompts)) as progress:
            new += run_sampling(
                prompts,
                engine,
                sampling,
                store.table("completions"),
                policy=name,
                chunk=run.config.chunk,
                total=len(prompts),
                on_progress=progress,
            ).new_rows
        made = {c.key: c for c in store.table("completions").read()}
        samples[name] = [made[completion_keys(engine, sampling, p)[0]] for p in prompts]
    return samples, new


def _winrate(
    run: Run,
    store: RunStore,
    prompts: Sequence[Prompt],
    samples: Mapping[str, Sequence[Completion]],
    name: str,
    base: Engine,
) -> dict[str, Any]:
    from rlaif.evaluation.moved import by_principle
    from rlaif.evaluation.winrate import compare, rate

    labels: list[Preference] = []
    section, principles = run.config.evaluate.judge, run.principles()
    judges = judges_at_hand(run, section)
    temperature = require_temperature(run.config) if section is None else None  # the own judge's

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        store.table("pairs").append([pair for pair in pairs if pair.id not in known])
        verdicts = ask(store, judges, pairs, "win rate")
        made = prefer(run.config, pairs, verdicts, principles, judges.orders, temperature)
        labels.extend(made)
        return made

    a, b = [c.text for c in samples[name]], [c.text for c in samples["base"]]
    outcomes = compare(prompts, a, b, label)
    found = {**rate(outcomes).as_dict(), "judge": _about(run, judges, base)}
    found["by_principle"] = by_principle(labels)
    if (target := tiny_target(run)) is not None and is_tiny(held_out_section(run.config)):
        from rlaif.tiny.gold import at_stake

        staked = [target[0] in at_stake(p.messages[-1].content) for p in prompts]
        some = [o for o, here in zip(outcomes, staked, strict=True) if here]
        found["at_stake"] = {"trait": target[0], **rate(some).as_dict()}
    _tell(run, name, found)
    return found


def _about(run: Run, judges: Judges, base: Engine) -> dict[str, Any]:
    """Who compared: whether it is who labelled, and whether it is the policy before training."""
    labelled = run.store.read_manifest().get("judge") or {}
    parts = labelled.get("jury", {"": labelled}).values()
    said = {part.get("weights") for part in parts if isinstance(part, Mapping)}
    each = [(juror.section.model, judge) for juror, judge in judges.seats]
    return {
        "models": [model for model, _ in each],
        "labelled": any(weights_of(judge.engine) in said for _, judge in each),
        "is_policy": any(weights_of(judge.engine) == weights_of(base) for _, judge in each),
    }


def _tell_of_judge(run: Run, judge: Mapping[str, Any]) -> None:
    same = ["the one that labelled"] * judge["labelled"] + ["the policy's base"] * judge[
        "is_policy"
    ]
    if same:
        run.reporter.warn(
            f"the judge of the win rates is {' and '.join(same)}; evaluate.judge names another"
        )


def _tell(run: Run, name: str, found: Mapping[str, Any]) -> None:
    counts = ", ".join(
        f"{found[key]:,} {words}"
        for key, words in (
            ("wins", "won"),
            ("losses", "lost"),
            ("ties", "tied"),
            ("identical", "identical"),
            ("abstained", "abstained"),
        )
    )
    told = f"win rate of {name} over base: "
    if found["value"] is None:
        told += "not known, as the judge abstained on all"
    else:
        told += f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    decided = found["decided"]
    if decided is not None:
        told += f", {decided['value']:.3f} [{decided['low']:.3f}, {decided['high']:.3f}] of the "
        told += "decided"
    run.reporter.say(f"{told} ({counts})")


def _gold(run: Run, prompts: Sequence[Prompt], rows: Sequence[Completion]) -> dict[str, Any]:
    """True traits in the embedded world; elsewhere nobody knows them."""
    if not is_tiny(held_out_section(run.config)):
        return {}
    from rlaif.evaluation.policy import gold_traits

    return gold_traits(prompts, [c.text for c in rows], tiny_target(run))


def _add_words(
    found: Mapping[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    samples: Mapping[str, Sequence[Completion]],
) -> None:
    """How long each policy's answers are, and how much longer than the base's."""
    from rlaif.evaluation.moved import words, words_change

    names = [prompt.id for prompt in prompts]
    texts = {name: [c.text for c in rows] for name, rows in samples.items()}
    for name, said in texts.items():
        found[name]["words"] = words(said, names).as_dict()
        if name != "base":
            found[name]["words_change"] = words_change(said, texts["base"], names).as_dict()


def _kl(
    policy: Engine,
    base: Engine,
    prompts: Sequence[Prompt],
    rows: Sequence[Completion],
    thinking: int | None,
) -> dict[str, Any]:
    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.policy import kl_to_base

    if not (isinstance(policy, HFEngine) and isinstance(base, HFEngine)):
        raise ConfigError("KL to the base needs both policies on the `hf` engine")
    cut = {(c.prompt_id, c.text) for c in rows if c.finish_reason == "length"}
    texts, ids = [c.text for c in rows], [c.ids for c in rows]
    return kl_to_base(policy, base, prompts, texts, ids=ids, cut=cut, thinking=thinking).as_dict()
