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
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from rlaif.config import Config, EngineConfig, JudgeConfig, PromptsConfig, TrainConfig, to_yaml
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Engine, Sampling, load_engine
from rlaif.errors import ConfigError, DataError
from rlaif.executors import Progress, run_judge, run_sampling
from rlaif.judges.base import Judge, expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.preferences import aggregate
from rlaif.readers import BadRow, read_pairs, read_prompts
from rlaif.records import ORDERS, Completion, Order, Pair, Preference, Prompt, Verdict, content_id
from rlaif.sampling import completion_keys, make_pairs
from rlaif.store import RunStore, write_json

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
        config: JudgeConfig = self.config.judge
        engine = self.engine(config)
        return PairwiseJudge(engine, template=config.template, min_mass=config.min_mass)

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
    engine = run.engine(run.config.policy)
    before = engine.usage.snapshot()
    sampling = sampling_of(run.config)
    with run.reporter.progress("sample", len(prompts)) as progress:
        done = run_sampling(
            prompts, engine, sampling, store.table("completions"),
            chunk=run.config.chunk, total=len(prompts), on_progress=progress,
        )  # fmt: skip
    wanted = {key for p in prompts for key in completion_keys(engine, sampling, p)}
    completions = [c for c in store.table("completions").read() if c.key in wanted]
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
        **spent(engine, before), "sampling": asdict(sampling),
        "policy": {"model": run.config.policy.model, "fingerprint": engine.fingerprint},
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
    pairs: dict[str, Pair] = {}
    lines = 0
    with run.reporter.progress("read", None) as progress:
        for pair in read_pairs(
            config.path, limit=config.limit, skip_bad=config.skip_bad, on_bad=rejected.add
        ):
            lines += 1
            pairs.setdefault(pair.id, pair)
            progress(lines, None)
    if not pairs:
        raise DataError(f"{config.path}: no usable pair in it")
    run.store.table("pairs").replace(pairs.values())
    repeated = lines - len(pairs)
    again = f", {repeated:,} repeated ones left out" if repeated else ""
    run.reporter.say(f"{len(pairs):,} pairs read{again}")
    rejected.tell(run)
    rejected.write(run)
    facts = {"rows": len(pairs), "repeated": repeated, "rejected_rows": rejected.counts()}
    run.store.update_manifest("read", {**facts, "source": config.path})


def label(run: Run) -> None:
    """pairs → verdicts → preferences."""
    clock = time.monotonic()
    store = run.store
    pairs = store.table("pairs").read()
    if not pairs:
        raise DataError(f"{store.root}: nothing to label: run `rlaif sample`, or give --pairs FILE")
    judge, principles, orders = run.judge(), run.principles(), run.orders()
    before = judge.engine.usage.snapshot()
    with run.reporter.progress("label", len(pairs)) as progress:
        done = run_judge(
            pairs, judge, principles, store.table("verdicts"), orders=orders,
            chunk=run.config.chunk, max_not_finite=run.config.judge.max_not_finite,
            total=len(pairs), on_progress=progress,
        )  # fmt: skip
    verdicts = current_verdicts(store, pairs, judge, principles, orders)
    preferences = prefer(run.config, pairs, verdicts, principles, orders)
    store.table("preferences").replace(preferences)
    abstained: Counter[str] = Counter(v.reason for v in verdicts if v.reason)
    _tell_labels(run, done.new_rows, verdicts, preferences, abstained)
    write_json(store.path("evaluation", "labels.json"), quality(run, pairs, preferences, verdicts))
    run.store.update_manifest("judge", {
        "model": run.config.judge.model, "fingerprint": judge.fingerprint,
        "method": run.config.judge.method, "template": judge.template_name,
        "template_hash": judge.template.hash,
    })  # fmt: skip
    finish(run, "label", clock, {
        "rows": len(verdicts), "new_rows": done.new_rows, "abstained": dict(abstained),
        "preferences": dict(Counter(p.status for p in preferences)),
        **spent(judge.engine, before),
    })  # fmt: skip


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


def _tell_labels(
    run: Run,
    new: int,
    verdicts: Sequence[Verdict],
    preferences: Sequence[Preference],
    abstained: Mapping[str, int],
) -> None:
    status = Counter(p.status for p in preferences)
    run.reporter.say(
        f"{len(verdicts):,} verdicts ({new:,} new); {len(preferences):,} pairs: "
        f"{status['preferred']:,} preferred, {status['tie']:,} ties, "
        f"{status['abstained']:,} abstained"
    )
    if abstained:
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(abstained.items()))
        run.reporter.warn(f"{sum(abstained.values()):,} verdicts abstained: {reasons}")


def quality(
    run: Run,
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """How good the labels are, against gold or human labels where there are any."""
    from rlaif.evaluation.metrics import label_quality

    return label_quality(pairs, preferences, verdicts, truth(run))


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
    trained = run.store.path("models", "dpo")
    if not (trained / "config.json").is_file():
        raise DataError(f"{run.store.root}: no trained policy: run `rlaif train dpo` first")
    config, rejected = run.config.evaluate, Rejected("evaluate")
    prompts = list(load_prompts(run, config.prompts, "test", rejected.add))
    rejected.write(run)
    if not prompts:
        raise DataError(f"{config.prompts.path}: no usable prompt in it")
    base = run.engine(run.config.policy)
    policies = {
        "base": base,
        "dpo": run.engine(run.config.policy.model_copy(update={"model": str(trained)})),
    }
    with RunStore(run.store.path("evaluation"), command="evaluate") as store:
        samples, new_rows = _evaluation_samples(run, store, policies, prompts)
        if config.winrate:
            rate = _winrate(run, store, prompts, samples["dpo"], samples["base"])
            write_json(run.store.path("evaluation", "winrate.json"), rate)
    found = {name: _gold(run, prompts, rows) for name, rows in samples.items()}
    found["dpo"]["kl"] = _kl(policies["dpo"], base, prompts, samples["dpo"])
    write_json(run.store.path("evaluation", "policies.json"), found)
    shown = [
        {"prompt": p.messages[-1].content, "base": b.text, "dpo": d.text}
        for p, b, d in zip(prompts, samples["base"], samples["dpo"], strict=True)
    ]
    write_json(run.store.path("evaluation", "samples.json"), shown[:50])
    finish(run, "evaluate", clock, {
        "rows": len(prompts), "new_rows": new_rows, "rejected_rows": rejected.counts(),
        "policies": {name: engine.fingerprint for name, engine in policies.items()},
    })  # fmt: skip


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
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
) -> dict[str, Any]:
    from rlaif.evaluation.winrate import winrate

    judge, principles, orders = run.judge(), run.principles(), run.orders()

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        store.table("pairs").replace(pairs)
        with run.reporter.progress("win rate", len(pairs)) as progress:
            run_judge(
                pairs, judge, principles, store.table("verdicts"), orders=orders,
                chunk=run.config.chunk, max_not_finite=run.config.judge.max_not_finite,
                total=len(pairs), on_progress=progress,
            )  # fmt: skip
        verdicts = current_verdicts(store, pairs, judge, principles, orders)
        return prefer(run.config, pairs, verdicts, principles, orders)

    a, b = [c.text for c in ours], [c.text for c in theirs]
    rate = winrate(prompts, a, b, label, seed=run.config.evaluate.seed).as_dict()
    if rate["value"] is not None:
        run.reporter.say(
            f"win rate of dpo over base: {rate['value']:.3f} "
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


def spent(engine: Engine, before: Mapping[str, float]) -> dict[str, Any]:
    """What the engine did since `before`."""
    now = engine.usage.snapshot()
    return {**{k: now[k] - before.get(k, 0) for k in now}, "device": engine.device}


def finish(run: Run, stage: str, started: float, facts: Mapping[str, Any]) -> None:
    """Writes the stage's section of the manifest: the last thing a stage does.

    Seconds of a stage that only found its work done already are those of the run that did it.
    """
    seconds = round(time.monotonic() - started, 2)
    stages = dict(run.store.read_manifest().get("stages", {}))
    old = stages.get(stage, {})
    if facts.get("new_rows") == 0 and old:
        seconds = old.get("seconds", seconds)
        kept = ("requests", "submitted_tokens", "computed_tokens", "generated_tokens")
        facts = {**facts, **{k: old[k] for k in kept if k in old}}
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
