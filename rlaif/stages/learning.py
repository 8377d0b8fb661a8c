"""preferences → a reward model, a policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config.sections import PairsConfig, RewardConfig
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_pairs
from rlaif.files.readers.repeats import Votes
from rlaif.files.small import read_bytes, read_object
from rlaif.records import Pair, Preference, Prompt, content_id
from rlaif.stages.audit import require_fit
from rlaif.stages.inputs import start_of
from rlaif.stages.labelling import known
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts
from rlaif.store import RunStore, lineage, write_json

if TYPE_CHECKING:
    from rlaif.training.data import Samples
    from rlaif.training.settings import Runtime


def train_reward(run: Run) -> None:
    """preferences → models/reward."""
    from rlaif.training.reward import train_reward as fit

    settings = run.config.train.reward
    if settings is None:
        raise ConfigError("train.reward is null in this config: give it settings, or {}")
    model, references = settings.model or run.config.policy.model, _references(run, settings)
    adapter = run.config.policy.adapter if settings.model is None else None

    def train(preferences: Sequence[Preference], out: Path, runtime: Runtime) -> Any:
        return fit(
            preferences,
            model,
            out,
            settings,
            references=references,
            adapter=adapter,
            cut=cut_completions(run.store),
            runtime=runtime,
        )

    _train(run, "reward", train, settings.labels, model, [prompt for prompt, _ in references])
    if settings.test is not None and run.main:
        _test_reward(run, settings.test)


def _references(run: Run, settings: RewardConfig) -> list[tuple[Prompt, str]]:
    """The completions whose mean reward is to be 0; none where the config names none."""
    if settings.references is None:
        return []
    pairs = _read(run, settings.references, "references")
    sided = [pair for pair in pairs if pair.label not in (None, 0.5)]
    if len(sided) < len(pairs):
        run.reporter.warn(
            f"{len(pairs) - len(sided):,} pairs of {settings.references.path} are ties or have "
            "no label: none of their completions is a reference"
        )
    if not sided:
        raise DataError(f"{settings.references.path}: no pair in it has a chosen completion")
    return [(pair.prompt, _chosen(pair)) for pair in sided]


def _read(run: Run, config: PairsConfig, what: str) -> list[Pair]:
    """The pairs of a file, with their labels."""
    rejected = Rejected(f"reward-{what}")
    found: dict[str, Pair] = {}  # a pair and its mirror image are one
    votes = Votes()
    for pair in read_pairs(config.path, config, on_bad=rejected.add):
        if votes.add(pair):
            found[pair.id] = pair
    pairs = [votes.counted(pair) for pair in found.values()]
    rejected.write(run)
    if not pairs:
        raise rejected.none_left(config.path, "pair")
    return pairs


def _chosen(pair: Pair) -> str:
    """The completion that people preferred."""
    return pair.second if (pair.label or 0.0) < 0.5 else pair.first


_MEASURED = 2  # how quality is measured: 2 compares with soft labels, 1 rounded them


def _test_reward(run: Run, config: PairsConfig) -> None:
    """models/reward on human pairs → evaluation/reward.json."""
    from rlaif.training.reward import RewardModel

    folder, out = run.store.path("models", "reward"), run.store.path("evaluation", "reward.json")
    pairs = _read(run, config, "test")
    trained = read_bytes(folder / "run.key", DataError).decode(errors="replace")
    key = content_id(trained, [(p.id, p.label) for p in pairs], _MEASURED)
    if read_object(out, "`rlaif train reward`").get("key") == key:
        return
    if not (folder / "config.json").is_file():
        raise ConfigError("train.reward.test needs the whole model: set train.reward.merge to true")
    found = RewardModel(folder, device=run.config.policy.device).quality(pairs)
    out.parent.mkdir(exist_ok=True)
    write_json(out, {"key": key, "source": config.path, **found})
    left = ", ".join(f"{n:,} {why}" for why, n in sorted(found["left_out"].items()))
    if left:
        run.reporter.warn(f"pairs of {config.path} left out: {left}")
    if found["n"]:
        right = found["accuracy"]
        told = "only ties" if right is None else f"accuracy {right:.3f}"
        run.reporter.say(
            f"reward on {found['n']:,} human pairs: {told}, calibration error {found['ece']:.3f}"
        )


def train_dpo(run: Run) -> None:
    """preferences → models/dpo."""
    from rlaif.training.dpo import train_dpo as fit

    settings = run.config.train.dpo
    if settings is None:
        raise ConfigError("train.dpo is null in this config: give it settings, or {}")

    def train(preferences: Sequence[Preference], out: Path, runtime: Runtime) -> Any:
        return fit(
            preferences,
            start_of(run),
            out,
            settings,
            samples=samples_of(run.store),
            runtime=runtime,
        )

    _train(run, "dpo", train, settings.labels, run.config.policy.model)


def _train(
    run: Run,
    name: str,
    fit: Callable[[Sequence[Preference], Path, Runtime], Any],
    labels: str,
    model: str,
    others: Sequence[Prompt] = (),
) -> None:
    """Trains on the run's preferences, and records what was read; `others` are prompts besides."""
    clock = time.monotonic()
    preferences = judged(run) if labels == "preferences" else _known(run, labels)
    with fitting(run, name) as (runtime, steps):
        metrics = fit(preferences, run.store.path("models", name), runtime).metrics
    read = [*(row.pair.prompt for row in preferences), *others]
    record_prompts(run, name, read, *starts(run), model)
    _tell_training(run, name, metrics)
    refused = {reason: found["n"] for reason, found in metrics["refused"].items()}
    finish(
        run,
        name,
        clock,
        {
            "rows": metrics["pairs"],
            "new_rows": metrics["pairs"] if steps else 0,
            "steps": metrics["steps"],
            "model": model,
            "labels": labels,
            "rejected_rows": refused,
        },
    )


@contextmanager
def fitting(run: Run, name: str, device: str | None = None) -> Iterator[tuple[Runtime, list[Any]]]:
    """How a trainer of the run is run, under a bar of its steps, and the steps that it made.

    It is on the policy's device, unless told.
    """
    from rlaif.training.settings import Runtime

    steps: list[Any] = []
    with run.reporter.progress(name, None) as progress:

        def on_log(row: Mapping[str, Any]) -> None:
            steps.append(row["step"])
            progress(row["step"], row["total_steps"], row.get("found", 0))

        yield (
            Runtime(
                device=run.config.policy.device if device is None else device,
                log_to=run.config.train.log_to,
                on_log=on_log,
                progress=run.reporter.progress,
                cache=run.store.path("features"),
            ),
            steps,
        )


def judged(run: Run, first: str = "run `rlaif label` first") -> list[Preference]:
    """The run's labels, where they are fit to train on; `first` is what to do without any."""
    preferences = run.store.table("preferences").read()
    if not preferences:
        raise DataError(
            f"{run.store.root}: no preferences to train on: {first}; or, to train "
            "on what is known of its pairs, people's labels say, --labels own"
        )
    tell_stale(run, lineage.LABELS)
    require_fit(run, preferences)
    return preferences


def _known(run: Run, labels: str) -> list[Preference]:
    """What is known of the run's pairs, as labels."""
    found = known(run, labels)
    return [Preference(pair, "tie" if p == 0.5 else "preferred", p) for pair, p in found]


def _tell_training(run: Run, name: str, metrics: Mapping[str, Any]) -> None:
    held_out = metrics.get("held_out") or {}
    frozen = metrics.get("frozen")
    done = f"{metrics['steps']:,} steps"
    if frozen:
        done = (
            f"frozen after layer {frozen['depth']}, penalty {frozen['penalty']:.2g}, "
            f"{frozen['computed']:,} of {frozen['sequences']:,} completions computed"
        )
    text = f"{name}: {metrics['pairs']:,} pairs, {done}"
    if held_out.get("accuracy") is not None:
        text += f", held-out accuracy {held_out['accuracy']:.3f} on {held_out['n']:,} pairs"
    elif "accuracy" in metrics:
        text += f", accuracy {metrics['accuracy']:.3f} in the last epoch"
    run.reporter.say(text)
    for note in metrics["notes"]:
        run.reporter.warn(note)
    for reason, found in metrics["refused"].items():
        run.reporter.warn(f"{found['n']:,} pairs not trained on: {reason} (ids in metrics.json)")


def sampled_tokens(store: RunStore) -> dict[tuple[str, str], tuple[int, ...]]:
    """The tokens that completions were sampled as: a text may be made of others."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for batch in store.table("completions").iter_batches():
        for c in batch:
            if c.ids:
                found.setdefault((c.prompt_id, c.text), c.ids)
    return found


def cut_completions(store: RunStore) -> set[tuple[str, str]]:
    """The completions that a length limit cut off: they are given no end of turn in training."""
    rows = store.table("completions").iter_batches()
    return {(c.prompt_id, c.text) for batch in rows for c in batch if c.finish_reason == "length"}


def samples_of(store: RunStore) -> Samples:
    """How the run's completions were sampled."""
    from rlaif.training.data import Samples

    return Samples(cut_completions(store), sampled_tokens(store))
