"""policies → win rate, KL and gold traits on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlaif.engines.base import Engine
from rlaif.errors import ConfigError, DataError
from rlaif.executors import run_judge, run_sampling
from rlaif.records import Completion, Pair, Preference, Prompt
from rlaif.sampling import completion_keys
from rlaif.stages.inputs import is_tiny, load_prompts, sampling_of
from rlaif.stages.jury import bench
from rlaif.stages.labelling import current_verdicts, prefer
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.store import RunStore, write_json

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
    config, rejected = run.config.evaluate, Rejected("evaluate")
    prompts = list(load_prompts(run, config.prompts, "test", rejected.add))
    rejected.write(run)
    if not prompts:
        raise rejected.none_left(config.prompts.path, "prompt")
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
            rates[name] = _winrate(run, store, prompts, samples, name)
            write_json(run.store.path("evaluation", winrate_file(name)), rates[name])
    found = {name: _gold(run, prompts, rows) for name, rows in samples.items()}
    for name in names:
        found[name]["kl"] = _kl(policies[name], base, prompts, samples[name])
    write_json(run.store.path("evaluation", "policies.json"), found)
    shown = [
        {"prompt": prompt.messages[-1].content}
        | {name: rows[i].text for name, rows in samples.items()}
        for i, prompt in enumerate(prompts)
    ]
    write_json(run.store.path("evaluation", "samples.json"), shown[:50])
    finish(run, "evaluate", clock, {
        "rows": len(prompts), "new_rows": new_rows, "rejected_rows": rejected.counts(),
        "policies": {name: engine.fingerprint for name, engine in policies.items()},
    })  # fmt: skip


def trained_policies(store: RunStore) -> list[str]:
    """Names of the trained policies that lie in `models/`."""
    return [n for n in POLICIES if (store.path("models", n) / "config.json").is_file()]


def winrate_file(policy: str) -> str:
    """The file of `evaluation/` with a policy's win rate over the base."""
    return "winrate.json" if policy == "dpo" else f"winrate-{policy}.json"


def _evaluation_samples(
    run: Run, store: RunStore, policies: Mapping[str, Engine], prompts: Sequence[Prompt]
) -> tuple[dict[str, list[Completion]], int]:
    """One completion of each prompt by each policy, in the prompts' order, and how many are new."""
    sampling = replace(
        sampling_of(run.config), n=1, temperature=run.config.evaluate.temperature,
        seed=run.config.evaluate.seed,
    )  # fmt: skip
    samples, new = {}, 0
    for name, engine in policies.items():
        with run.reporter.progress(f"evaluate {name}", len(prompts)) as progress:
            new += run_sampling(
                prompts, engine, sampling, store.table("completions"), policy=name,
                chunk=run.config.chunk, total=len(prompts), on_progress=progress,
            ).new_rows  # fmt: skip
        made = {c.key: c for c in store.table("completions").read()}
        samples[name] = [made[completion_keys(engine, sampling, p)[0]] for p in prompts]
    return samples, new


def _winrate(
    run: Run,
    store: RunStore,
    prompts: Sequence[Prompt],
    samples: Mapping[str, Sequence[Completion]],
    name: str,
) -> dict[str, Any]:
    from rlaif.evaluation.winrate import winrate

    judges, principles = bench(run), run.principles()

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        store.table("pairs").append([pair for pair in pairs if pair.id not in known])
        verdicts = []
        for juror, judge in judges.seats:
            with run.reporter.progress(juror.title("win rate"), len(pairs)) as progress:
                run_judge(
                    pairs, judge, run.asked(), store.table("verdicts"), orders=juror.orders,
                    chunk=run.config.chunk, max_not_finite=juror.section.max_not_finite,
                    total=len(pairs), on_progress=progress,
                )  # fmt: skip
            said = current_verdicts(store, pairs, judge, run.asked(), juror.orders)
            verdicts += juror.named(said)
        return prefer(run.config, pairs, verdicts, principles, judges.orders)

    a, b = [c.text for c in samples[name]], [c.text for c in samples["base"]]
    rate = winrate(prompts, a, b, label, seed=run.config.evaluate.seed).as_dict()
    if rate["value"] is not None:
        run.reporter.say(
            f"win rate of {name} over base: {rate['value']:.3f} "
            f"[{rate['low']:.3f}, {rate['high']:.3f}] on {rate['n']:,} prompts, "
            f"{rate['ties']:,} ties"
        )
    return rate


def _gold(run: Run, prompts: Sequence[Prompt], rows: Sequence[Completion]) -> dict[str, Any]:
    """True traits in the embedded world; elsewhere nobody knows them."""
    if not is_tiny(run.config.evaluate.prompts):
        return {}
    from rlaif.evaluation.policy import gold_traits

    return gold_traits(prompts, [c.text for c in rows], seed=run.config.evaluate.seed)


def _kl(
    policy: Engine, base: Engine, prompts: Sequence[Prompt], rows: Sequence[Completion]
) -> dict[str, Any]:
    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.policy import kl_to_base

    if not (isinstance(policy, HFEngine) and isinstance(base, HFEngine)):
        raise ConfigError("KL to the base needs both policies on the `hf` engine")
    cut = {(c.prompt_id, c.text) for c in rows if c.finish_reason == "length"}
    texts, ids = [c.text for c in rows], [c.ids for c in rows]
    return kl_to_base(policy, base, prompts, texts, ids=ids, cut=cut).as_dict()
