"""What several stages read: prompts, sampling settings, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlaif.config import Config
from rlaif.config.sections import PromptsConfig
from rlaif.engines.base import Sampling, SamplingSettings
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import BadRow, read_prompts
from rlaif.records import Pair, Prompt
from rlaif.stages.run import Run
from rlaif.stages.trained_on import prompts_of_models

if TYPE_CHECKING:
    from rlaif.training.models import Start

TINY_PROMPTS = 512  # prompts of the embedded world when no limit is given


def sampling_of(config: Config) -> Sampling:
    """The sampling section as an engine takes it, with the policy's thoughts."""
    fields = {name: getattr(config.sampling, name) for name in SamplingSettings.model_fields}
    return Sampling(**fields, thinking=config.policy.thought_tokens)


def start_of(run: Run) -> Start:
    """What the training of the run's policy begins from."""
    from rlaif.training.models import Start

    policy = run.config.policy
    return Start(policy.model, policy.adapter, policy.thought_tokens)


def held_out(run: Run, on_bad: Callable[[BadRow], None], models: Iterable[Path]) -> list[Prompt]:
    """The prompts of `evaluate`; DataError where some of them were trained on.

    `models`: the folders of what is evaluated. What their training read counts, with the run's
    pairs, and its prompts unless the pairs come from a file.

    Raises ConfigError where none are named and the run's own are not the embedded world's.
    """
    section = held_out_section(run.config)
    found = list(load_prompts(run, section, "test", on_bad))
    pairs = {pair.prompt.id for part in run.store.table("pairs").iter_batches() for pair in part}
    trained = {"the run's pairs": pairs}
    if run.config.pairs is None and not is_tiny(run.config.prompts):
        prompts = load_prompts(run, run.config.prompts, "train", lambda _: None)
        trained[f"prompts ({run.config.prompts.path})"] = {p.id for p in prompts}
    trained |= prompts_of_models(run, models)
    seen = [p for p in found if any(p.id in ids for ids in trained.values())]
    if seen:
        where = ", ".join(k for k, ids in trained.items() if any(p.id in ids for p in seen))
        shown = ", ".join(f"{p.source or repr(p.messages[-1].content[:40])}" for p in seen[:3])
        raise DataError(
            f"{len(seen):,} of the {len(found):,} prompts of evaluate.prompts ({section.path}) "
            f"were trained on: {shown}{', …' * (len(seen) > 3)}. They are among {where}. "
            "What a policy does there tells nothing of other prompts: evaluate on others, or take "
            "them out of what is trained on and train again"
        )
    return found


def held_out_section(config: Config) -> PromptsConfig:
    """`evaluate.prompts` with its path."""
    section = config.evaluate.prompts
    if section.path is not None:
        return section
    if config.pairs is not None or not is_tiny(config.prompts):
        ours = config.pairs.path if config.pairs is not None else config.prompts.path
        raise ConfigError(
            f"evaluate.prompts names no file, and this run learns from {ours}: name prompts that "
            "it does not learn from, as --set evaluate.prompts.path=held_out.jsonl"
        )
    return section.model_copy(update={"path": config.prompts.path})


def load_prompts(
    run: Run,
    config: PromptsConfig,
    split: Literal["train", "test"],
    on_bad: Callable[[BadRow], None],
) -> Iterator[Prompt]:
    """Prompts from a file, or of the embedded world (`split`: train or test), each text once."""
    found: Iterable[Prompt]
    if is_tiny(config):
        _warn_of_another_policy(run)
        found = _tiny_prompts(split, config.limit or TINY_PROMPTS, tiny_target(run))
    else:
        every = config.but(limit=None)  # it counts what is left of the same texts
        found = read_prompts(config.path, every, on_bad=on_bad)
    seen: set[str] = set()
    fresh = (p for p in found if not (p.id in seen or seen.add(p.id)))  # type: ignore[func-returns-value]
    return islice(fresh, config.limit)


def _warn_of_another_policy(run: Run) -> None:
    name = run.config.policy.model
    if name != "tiny" and not (Path(name) / "rlaif.json").is_file():
        run.reporter.warn(
            f"the prompts are the embedded world's, which only its own model knows, and the policy "
            f"is {name}: name prompts of your own, as --set prompts.path=prompts.txt and "
            "--set evaluate.prompts.path=held_out.txt"
        )


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
