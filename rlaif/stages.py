"""The stages of a run, each from files to files: what the commands call.

A stage reads what earlier ones left in the run directory, does what is not yet done, and writes its
section of the manifest last. So any stage can be killed at any moment and run again.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlaif.config import (
    Config,
    EngineConfig,
    LoraConfig,
    PPOConfig,
    PromptsConfig,
    TrainConfig,
    to_yaml,
)
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Engine, Sampling, Usage, load_engine
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.metrics import LabelQuality
from rlaif.executors import Done, Judged, Progress, counted, run_judge, run_sampling
from rlaif.judges.base import Judge, expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.preferences import aggregate
from rlaif.readers import BadRow, read_pairs, read_prompts
from rlaif.records import ORDERS, Completion, Order, Pair, Preference, Prompt, Verdict, content_id
from rlaif.running import judging, make_judge, sampling
from rlaif.sampling import completion_keys, make_pairs
from rlaif.store import RunStore, write_json
from rlaif.templates import Rendered

if TYPE_CHECKING:
    from rlaif.training.models import LoraSettings
    from rlaif.training.scorers import Scorer

READ_PAIRS = 1_024  # pairs read at a time
POLICIES = ("dpo", "ppo")  # what training stages may leave in `models/`
TINY_PROMPTS = 512  # prompts of the embedded world when no limit is given


class Reporter(Protocol):
    """Where a stage tells people what it does."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, title: str, total: int | None) -> AbstractContextManager[Progress]: ...


@dataclass
class Run:
    """One run at work: its config, its directory, and the engines that are loaded."""

    config: Config
    store: RunStore
    reporter: Reporter
    _engines: dict[str, Engine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # ours tells the rate and the time left
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.constitution = Constitution.load(self.config.constitution)

    def engine(self, config: EngineConfig) -> Engine:
        """The engine of a section, loaded once."""
        options = config.options()
        name = content_id(config.model, config.engine, options)
        if name not in self._engines:
            self._engines[name] = load_engine(config.model, config.engine, **options)
        return self._engines[name]

    def judge(self) -> PairwiseJudge:
        return make_judge(self.config.judge, self.engine(self.config.judge))

    def principles(self) -> tuple[Principle, ...]:
        wanted = self.config.judge.principles
        return self.constitution.principles if wanted == "all" else self.constitution.select(wanted)

    def orders(self) -> tuple[Order, ...]:
        return ORDERS if self.config.judge.orders == "both" else ("first_second",)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------------------------------ sample


def sample(run: Run) -> None:
    """prompts → completions → pairs."""
    clock = time.monotonic()
    rejected = Rejected("sample")
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    if not prompts:
        raise DataError(f"{run.config.prompts.path}: no usable prompt in it")
    store = run.store
    known = store.table("prompts").keys()
    new = {p.id: p for p in prompts if p.id not in known}
    store.table("prompts").append(list(new.values()))
    settings, done = sampling_of(run.config), Done()
    with run.reporter.progress("sample", len(prompts)) as progress:
        work = sampling(
            run.config, lambda: run.engine(run.config.policy), prompts, settings,
            store.table("completions"),
        )  # fmt: skip
        parts = counted(work.stream, done, len(prompts), progress)
        completions = [completion for part in parts for completion in part.rows]
    about = work.about()
    skipped: Counter[str] = Counter()
    pairs = make_pairs(
        prompts, completions, keep_cut=run.config.sampling.keep_cut,
        on_skip=lambda why, _: skipped.update([why]),
    )  # fmt: skip
    store.table("pairs").replace(pairs)
    _tell_skipped(run, skipped, len(prompts))
    run.reporter.say(
        f"{len(completions):,} completions of {len(prompts):,} prompts "
        f"({done.new_rows:,} new), {len(pairs):,} pairs"
    )
    rejected.write(run)
    facts = {
        "rows": len(completions), "new_rows": done.new_rows, "prompts": len(prompts),
        "pairs": len(pairs), "without_pair": dict(skipped), "rejected_rows": rejected.counts(),
        **work.spent(), "device": about["device"], "sampling": asdict(settings),
        "policy": {"model": run.config.policy.model, "fingerprint": about["fingerprint"]},
    }  # fmt: skip
    finish(run, "sample", clock, facts)


def _tell_skipped(run: Run, skipped: Mapping[str, int], prompts: int) -> None:
    if not skipped:
        return
    reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(skipped.items()))
    text = f"{sum(skipped.values()):,} of {prompts:,} prompts gave no pair: {reasons}"
    if skipped.get("cut"):
        text += f"; raise sampling.max_new_tokens={run.config.sampling.max_new_tokens}, or set "
        text += "sampling.keep_cut=true"
    run.reporter.warn(text)


def sampling_of(config: Config) -> Sampling:
    """The sampling section as an engine takes it."""
    values = config.sampling.model_dump(exclude={"keep_cut"})
    return Sampling(**{**values, "stop": tuple(values["stop"])})


def load_prompts(
    run: Run,
    config: PromptsConfig,
    split: Literal["train", "test"],
    on_bad: Callable[[BadRow], None],
) -> Iterator[Prompt]:
    """Prompts from a file, or of the embedded world (`split`: train or test), each text once."""
    found: Iterable[Prompt]
    if is_tiny(config):
        found = _tiny_prompts(split, config.limit or TINY_PROMPTS, tiny_target(run))
    else:
        found = read_prompts(config.path, skip_bad=config.skip_bad, on_bad=on_bad)
    seen: set[str] = set()
    fresh = (p for p in found if not (p.id in seen or seen.add(p.id)))  # type: ignore[func-returns-value]
    return islice(fresh, config.limit)


def _tiny_prompts(
    split: Literal["train", "test"], limit: int, target: tuple[str, int] | None
) -> list[Prompt]:
    """Prompts of the embedded world: half of them of kinds that put the target trait at stake.

    As one takes red-team prompts to train harmlessness; the other half is of all kinds.
    """
    from rlaif import tiny

    every = tiny.prompts(split, limit=limit)
    if target is not None:
        apt = tiny.prompts(split, kinds=tiny.kinds_at_stake(target[0]), limit=limit - limit // 2)
        chosen = {p.text for p in apt}
        others = [p for p in every if p.text not in chosen]
        every = apt + others[: limit - len(apt)]
    return [Prompt.user(p.text, f"tiny:{split}:{p.id}") for p in every]


def is_tiny(config: PromptsConfig) -> bool:
    """Whether these are the embedded world's prompts; a file of that name wins."""
    return config.path == "tiny" and not Path("tiny").is_file()


# ------------------------------------------------------------------------------------------- label


def read(run: Run) -> None:
    """pairs from a file into the run, those that cannot be used named and counted."""
    config = run.config.pairs
    if config is None:
        raise ConfigError("no pairs to read: give --pairs FILE, or set `pairs:` in the config")
    rejected = Rejected("read")
    seen: set[str] = set()
    lines = 0

    def fresh() -> Iterator[Pair]:
        nonlocal lines
        for pair in read_pairs(
            config.path, limit=config.limit, skip_bad=config.skip_bad, on_bad=rejected.add
        ):
            lines += 1
            progress(lines, None)
            if pair.id not in seen:
                seen.add(pair.id)
                yield pair
        if not seen:
            raise DataError(f"{config.path}: no usable pair in it")

    with run.reporter.progress("read", None) as progress:
        run.store.table("pairs").replace(fresh())
    repeated = lines - len(seen)
    again = f", {repeated:,} repeated ones left out" if repeated else ""
    run.reporter.say(f"{len(seen):,} pairs read{again}")
    rejected.tell(run)
    rejected.write(run)
    facts = {"rows": len(seen), "repeated": repeated, "rejected_rows": rejected.counts()}
    run.store.update_manifest("read", {**facts, "source": config.path})


def label(run: Run) -> None:
    """pairs → verdicts → preferences."""
    clock = time.monotonic()
    store = run.store
    total = len(store.table("pairs"))
    if not total:
        raise DataError(f"{store.root}: nothing to label: run `rlaif sample`, or give --pairs FILE")
    principles, orders, done = run.principles(), run.orders(), Done()
    quality = LabelQuality(truth(run))
    with run.reporter.progress("label", total) as progress:
        pairs = chain.from_iterable(store.table("pairs").iter_batches(READ_PAIRS))
        work = judging(run.config, run.judge, pairs, principles, orders, store.table("verdicts"))
        parts = counted(work.stream, done, total, progress)
        store.table("preferences").replace(
            prefer_stream(run.config, parts, principles, orders, quality)
        )
    _tell_labels(run, done.new_rows, quality)
    write_json(store.path("evaluation", "labels.json"), quality.result())
    about = work.about()
    device = about.pop("device")
    run.store.update_manifest(
        "judge",
        {"model": run.config.judge.model, "method": run.config.judge.method, **about},
    )
    finish(run, "label", clock, {
        "rows": quality.verdicts, "new_rows": done.new_rows, "abstained": dict(quality.reasons),
        "preferences": dict(quality.status), **work.spent(), "device": device,
    })  # fmt: skip


def prefer_stream(
    config: Config,
    parts: Iterable[Judged],
    principles: Sequence[Principle],
    orders: Sequence[Order],
    quality: LabelQuality,
) -> Iterator[Preference]:
    """The preferences of each chunk, of which nothing but `quality` is kept."""
    for part in parts:
        preferences = prefer(config, part.items, part.rows, principles, orders)
        quality.add(part.items, preferences, part.rows)
        yield from preferences


def current_verdicts(
    store: RunStore,
    pairs: Sequence[Pair],
    judge: Judge,
    principles: Sequence[Principle],
    orders: Sequence[Order],
) -> list[Verdict]:
    """The stored verdicts that this judge and these principles would give again.

    Older ones (a principle since edited, another judge) stay in the store and are not read.
    """
    wanted = {judge.key(ask) for ask in expand(pairs, principles, orders)}
    return [
        v for rows in store.table("verdicts").iter_batches() for v in rows if v.key in wanted
    ]  # fmt: skip


def prefer(
    config: Config,
    pairs: Sequence[Pair],
    verdicts: Sequence[Verdict],
    principles: Sequence[Principle],
    orders: Sequence[Order],
) -> list[Preference]:
    """Preferences by the config's rule."""
    rule = config.preferences
    return aggregate(
        pairs, verdicts, rule=rule.aggregate, weights={p.id: p.weight for p in principles},
        orders=orders, principle_margin=rule.principle_margin, min_margin=rule.min_margin,
        soft=rule.soft,
    )  # fmt: skip


def _tell_labels(run: Run, new: int, quality: LabelQuality) -> None:
    status = quality.status
    run.reporter.say(
        f"{quality.verdicts:,} verdicts ({new:,} new); {quality.pairs:,} pairs: "
        f"{status['preferred']:,} preferred, {status['tie']:,} ties, "
        f"{status['abstained']:,} abstained"
    )
    if quality.reasons:
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(quality.reasons.items()))
        run.reporter.warn(f"{quality.reasons.total():,} verdicts abstained: {reasons}")


def truth(run: Run) -> Callable[[Pair], float | None]:
    """P(first is better) as known: by the embedded world's gold checker, else the pair's label."""
    target = tiny_target(run)
    if target is None:
        return lambda pair: pair.label
    from rlaif.tiny import gold_preference

    trait, sign = target
    return lambda pair: gold_preference(
        pair.prompt.messages[-1].content, pair.first, pair.second, trait, sign
    )


def tiny_target(run: Run) -> tuple[str, int] | None:
    """The trait of the embedded world that the principles ask for, with its sign.

    None when they ask for several, or the prompts are not of that world.
    """
    from rlaif.tiny import principle_trait

    if run.config.pairs is not None or not is_tiny(run.config.prompts):
        return None
    traits = {principle_trait(p.tags) for p in run.principles()}
    return traits.pop() if len(traits) == 1 else None


# ------------------------------------------------------------------------------------------- train


def train_reward(run: Run) -> None:
    """preferences → models/reward."""
    from rlaif.training.reward import train_reward as fit

    settings = run.config.train.reward
    if settings is None:
        raise ConfigError("train.reward is null in this config: give it settings, or {}")
    _train(run, "reward", fit, settings, settings.model or run.config.policy.model)


def train_dpo(run: Run) -> None:
    """preferences → models/dpo."""
    from rlaif.training.dpo import train_dpo as fit

    settings = run.config.train.dpo
    if settings is None:
        raise ConfigError("train.dpo is null in this config: give it settings, or {}")
    _train(run, "dpo", fit, settings, run.config.policy.model)


def _train(run: Run, name: str, fit: Callable[..., Any], settings: TrainConfig, model: str) -> None:
    from rlaif.training.models import LoraSettings

    clock = time.monotonic()
    preferences = run.store.table("preferences").read()
    if not preferences:
        raise DataError(f"{run.store.root}: no preferences to train on: run `rlaif label` first")
    options = settings.model_dump(exclude={"model", "lora"})
    if settings.lora is not None:
        options["lora"] = LoraSettings(**settings.lora.model_dump())
    steps_now = 0
    with run.reporter.progress(name, None) as progress:

        def on_log(row: Mapping[str, Any]) -> None:
            nonlocal steps_now
            steps_now += 1
            progress(row["step"], row["total_steps"])

        result = fit(
            preferences, model, run.store.path("models", name), cut=cut_completions(run.store),
            device=run.config.policy.device, on_log=on_log, **options,
        )  # fmt: skip
    metrics = result.metrics
    _tell_training(run, name, metrics)
    refused = {reason: found["n"] for reason, found in metrics["refused"].items()}
    finish(run, name, clock, {
        "rows": metrics["pairs"], "new_rows": metrics["pairs"] if steps_now else 0,
        "steps": metrics["steps"], "model": model, "rejected_rows": refused,
    })  # fmt: skip


def train_ppo(run: Run) -> None:
    """prompts, and what rewards completions → models/ppo."""
    from rlaif.training.ppo import AlarmLimits, PPOSettings
    from rlaif.training.ppo_run import train_ppo as fit

    clock, config = time.monotonic(), run.config.train.ppo
    if config is None:
        raise ConfigError("train.ppo is null in this config: give it settings, or {}")
    rejected = Rejected("ppo")
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    rejected.write(run)
    reward = reward_folder(run, config)
    options = config.model_dump(exclude={"reward", "lora", "alarms", "checkpoint_every"})
    once = 4 if config.algorithm == "ppo" else 1
    options["epochs"] = config.epochs or once
    options["minibatches"] = config.minibatches or once
    options["value_model"] = config.value_model or reward
    if config.value == "shared":
        options["value_model"] = None
    steps_now, told = 0, set[str]()
    with run.reporter.progress("ppo", None) as progress:

        def on_log(row: Mapping[str, Any]) -> None:
            nonlocal steps_now
            steps_now += 1
            for name in row["alarms"].keys() - told:
                run.reporter.warn(f"ppo step {row['step']}: {row['alarms'][name]}")
            told.update(row["alarms"])
            progress(row["step"], row["total_steps"])

        result = fit(
            prompts, run.config.policy.model, run.store.path("models", "ppo"),
            _scorer(run, config, reward),
            PPOSettings(
                **options, lora=lora_of(config.lora), alarms=AlarmLimits(**dict(config.alarms)),
                max_new_tokens=run.config.sampling.max_new_tokens,
            ),
            device=run.config.policy.device, checkpoint_every=config.checkpoint_every,
            on_log=on_log,
        )  # fmt: skip
    metrics = result.metrics
    _tell_ppo(run, metrics)
    episodes = metrics["steps"] * config.batch_size
    finish(run, "ppo", clock, {
        "rows": episodes, "new_rows": steps_now * config.batch_size, "steps": metrics["steps"],
        "model": run.config.policy.model, "reward": config.reward,
        "abstained": metrics["abstained"], "rejected_rows": metrics["refused"],
    })  # fmt: skip


def reward_folder(run: Run, config: PPOConfig) -> str | None:
    """The reward model that rewards PPO; None when a judge or a function does."""
    if config.reward == "model":
        path = run.store.path("models", "reward")
        if not (path / "config.json").is_file():
            raise DataError(
                f"{run.store.root}: no reward model: run `rlaif train reward` first, or set "
                "train.ppo.reward to judge, to a folder or to module:function"
            )
        return str(path)
    named = config.reward == "judge" or (":" in config.reward and not Path(config.reward).is_dir())
    return None if named else config.reward


def _scorer(run: Run, config: PPOConfig, reward: str | None) -> Scorer:
    from rlaif.training.scorers import JudgeScorer, ModelScorer, load_function

    if reward is not None:
        return ModelScorer(reward, device=run.config.policy.device)
    if config.reward != "judge":
        return load_function(config.reward)
    judge, principles, orders = run.judge(), run.principles(), run.orders()
    base = run.engine(run.config.policy)
    once = replace(sampling_of(run.config), n=1)

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        verdicts = judge.judge(expand(pairs, principles, orders))
        return prefer(run.config, pairs, verdicts, principles, orders)

    def reference(prompts: Sequence[Prompt]) -> list[str]:
        asked = [Rendered.chat(p.messages) for p in prompts]
        return [samples[0].text for samples in base.generate(asked, once)]

    principle_ids = [(p.id, p.compare, p.weight) for p in principles]
    rule = run.config.preferences.model_dump()
    key = content_id(judge.fingerprint, principle_ids, orders, rule, asdict(once))
    return JudgeScorer(label, reference, key)


def lora_of(config: LoraConfig | None) -> LoraSettings | None:
    """The section as a trainer takes it."""
    from rlaif.training.models import LoraSettings

    return None if config is None else LoraSettings(**config.model_dump())


def _tell_ppo(run: Run, metrics: Mapping[str, Any]) -> None:
    run.reporter.say(
        f"ppo: {metrics['steps']:,} steps; over the last tenth the score is "
        f"{metrics['score']:.3f} and the KL to the reference {metrics['kl']:.2f} nats an episode"
    )
    if metrics["abstained"]:
        run.reporter.warn(f"{metrics['abstained']:,} episodes not trained on: no score for them")
    if metrics["refused"]["too_long"]:
        run.reporter.warn(
            f"{metrics['refused']['too_long']:,} prompts leave no room for "
            f"{run.config.sampling.max_new_tokens} tokens: not used"
        )
    for note in metrics["notes"]:
        run.reporter.warn(note)


def _tell_training(run: Run, name: str, metrics: Mapping[str, Any]) -> None:
    held_out = metrics.get("held_out") or {}
    text = f"{name}: {metrics['pairs']:,} pairs, {metrics['steps']:,} steps"
    if held_out.get("n"):
        text += f", held-out accuracy {held_out['accuracy']:.3f} on {held_out['n']:,} pairs"
    elif "accuracy" in metrics:
        text += f", accuracy {metrics['accuracy']:.3f} in the last epoch"
    run.reporter.say(text)
    for note in metrics["notes"]:
        run.reporter.warn(note)
    for reason, found in metrics["refused"].items():
        run.reporter.warn(f"{found['n']:,} pairs not trained on: {reason} (ids in metrics.json)")


def cut_completions(store: RunStore) -> set[tuple[str, str]]:
    """The completions that a length limit cut off: they are given no end of turn in training."""
    rows = store.table("completions").iter_batches()
    return {(c.prompt_id, c.text) for batch in rows for c in batch if c.finish_reason == "length"}


# ---------------------------------------------------------------------------------------- evaluate


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
        raise DataError(f"{config.prompts.path}: no usable prompt in it")
    base = run.engine(run.config.policy)
    policies = {"base": base}
    for name in names:
        trained = str(run.store.path("models", name))
        policies[name] = run.engine(run.config.policy.model_copy(update={"model": trained}))
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

    judge, principles, orders = run.judge(), run.principles(), run.orders()

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        store.table("pairs").append([pair for pair in pairs if pair.id not in known])
        with run.reporter.progress("win rate", len(pairs)) as progress:
            run_judge(
                pairs, judge, principles, store.table("verdicts"), orders=orders,
                chunk=run.config.chunk, max_not_finite=run.config.judge.max_not_finite,
                total=len(pairs), on_progress=progress,
            )  # fmt: skip
        verdicts = current_verdicts(store, pairs, judge, principles, orders)
        return prefer(run.config, pairs, verdicts, principles, orders)

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
    return kl_to_base(policy, base, prompts, [c.text for c in rows], cut=cut).as_dict()


# ------------------------------------------------------------------------------------------ report


def report(run: Run) -> None:
    """report.html and summary.json from what the run holds."""
    write_report(run.store.root, run.reporter)


def write_report(root: Path, reporter: Reporter) -> None:
    """The same, for a run directory that is only looked at."""
    from rlaif.report.build import build_report
    from rlaif.report.summary import build_summary

    build_summary(root)
    reporter.say(f"report: {build_report(root)}")


# -------------------------------------------------------------------------------------- the record


@dataclass
class Rejected:
    """Input rows that could not be used: told, counted, and kept in rejected.jsonl."""

    stage: str
    rows: list[BadRow] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        self.rows.append(row)

    def counts(self) -> dict[str, int]:
        return dict(Counter(row.reason for row in self.rows))

    def tell(self, run: Run, most: int = 12) -> None:
        if not self.rows:
            return
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(self.counts().items()))
        shown = [f"  {row.source}: {row.reason}" for row in self.rows[:most]]
        if len(self.rows) > most:
            shown.append(f"  … and {len(self.rows) - most:,} more in rejected.jsonl")
        run.reporter.warn(f"{len(self.rows):,} rows not used: {reasons}\n" + "\n".join(shown))

    def write(self, run: Run) -> None:
        """One JSON line a row, in the run directory; removed when there is none."""
        path = run.store.path(f"rejected-{self.stage}.jsonl")
        if self.rows:
            lines = (json.dumps(asdict(row), ensure_ascii=False) for row in self.rows)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def finish(run: Run, stage: str, started: float, facts: Mapping[str, Any]) -> None:
    """Writes the stage's section of the manifest: the last thing a stage does.

    Seconds of a stage that only found its work done already are those of the run that did it.
    """
    seconds = round(time.monotonic() - started, 2)
    stages = dict(run.store.read_manifest().get("stages", {}))
    old = stages.get(stage, {})
    if facts.get("new_rows") == 0 and old:
        seconds = old.get("seconds", seconds)
        facts = {**facts, **{k: old[k] for k in Usage.__slots__ if k in old}}
    stages[stage] = {"seconds": seconds, **facts}
    run.store.update_manifest("stages", stages)


def describe(run: Run) -> None:
    """run.yaml and the manifest's head: what is run, with which versions, from which commit."""
    store, constitution = run.store, run.constitution
    store.path("run.yaml").write_text(to_yaml(run.config), encoding="utf-8")
    store.update_manifest("constitution", {
        "name": constitution.name, "version": constitution.version, "hash": constitution.hash,
        "principles": [p.model_dump(mode="json") for p in run.principles()],
    })  # fmt: skip
    target = tiny_target(run)
    store.update_manifest("run", {
        "versions": versions(), "git_commit": git_commit(), "seed": run.config.sampling.seed,
        "target_trait": None if target is None else ("-" if target[1] < 0 else "") + target[0],
        "machine": platform.machine(), "device": run.config.policy.device,
    })  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for name in ("rlaif", "torch", "transformers", "trl", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the folder the command runs in, with `+` when it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
