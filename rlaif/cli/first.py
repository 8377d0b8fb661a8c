"""What comes before a model is loaded: what a command needs is there, or its run stays unmade."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rlaif.config import Config
from rlaif.constitution import Constitution, require
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError, DataError, EngineError, RlaifError
from rlaif.judges.load import make_judge
from rlaif.judges.settings import JudgingSettings
from rlaif.store import missing_run
from rlaif.store.places import Named, missing, named

# What a stage needs of a run that is there already.
_OF_A_RUN = {
    "label": "nothing to label: run `rlaif sample`, or give --pairs FILE",
    "audit": "run `rlaif label` first",
    "attack": "run `rlaif label` first",
    "train_judge": "give --pairs FILE, with labels",
    "learn_constitution": "give --pairs FILE, with labels",
    **dict.fromkeys(
        ("train_reward", "train_dpo"),
        "run `rlaif label` first, or give pairs that people compared: --pairs FILE --labels own",
    ),
    "evaluate": "run `rlaif train dpo` first",
    "best_of_n": "run `rlaif train reward` first",
}
# The sections of the config that name what a stage reads, beside its judges and the constitution.
_READS = {
    "sample": ("prompts", "policy"),
    "read": ("pairs",),
    "revise": ("prompts", "policy", "revise"),
    "contrast": ("prompts", "policy", "revise"),
    "train_sft": ("train.sft", "policy"),
    "train_reward": ("train.reward", "policy"),
    "train_judge": ("train.judge",),
    "train_dpo": ("policy",),
    "train_ppo": ("train.ppo", "prompts", "policy"),
    "train_grpo": ("train.grpo", "prompts", "policy"),
    "train_rloo": ("train.rloo", "prompts", "policy"),
    "train_online_dpo": ("prompts", "policy"),
    "evaluate": (
        "evaluate.prompts",
        "evaluate.policies",
        "evaluate.reward",
        "evaluate.watch",
        "policy",
    ),
    "best_of_n": ("evaluate.prompts", "policy"),
    "rewardbench": ("evaluate.rewardbench",),
    "model_written": ("evaluate.model_written", "policy"),
    "write_evaluation": ("policy", "judge"),
    "text": ("evaluate.text",),
    "learn_constitution": ("learn.candidates",),
}
_PAID_FOR = ("completions", "verdicts", "revisions", "models", "evaluation")  # by a model's work


def check(config: Config, stages: Sequence[str]) -> None:
    """All that stages need and that no model is needed to look at; what is missing is named.

    Raises DataError for a run or rows that are not there, ConfigError for a constitution, a
    template, a judge's settings or a reward that cannot be, EngineError for a model's folder.
    """
    hint = _OF_A_RUN.get(stages[0])
    if _learns_pairs(config, stages[0]) and config.pairs is not None:
        hint = None  # it reads them
    if stages[0] == "evaluate" and config.evaluate.policies:
        hint = None  # they may all be others'
    if hint is not None and not os.path.lexists(config.out):
        raise missing_run(Path(config.out), hint)
    if "label" in stages:
        from rlaif.stages.temperature import require_temperature  # with all stages, and so late

        require_temperature(config)
    constitution = Constitution.load(config.constitution)
    judges = _judges(config, stages)
    wanted = {section for stage in stages for section in _READS.get(stage, ())} | {*judges}
    if any(_learns_pairs(config, stage) for stage in stages):
        wanted.add("pairs")
    if "learn_constitution" in stages and config.learn.propose:
        wanted.add("policy")
    faults = [
        (one, why)
        for one in named(config)
        if any(one.name == at or one.name.startswith(f"{at}.") for at in wanted)
        if (why := missing(one))
    ]
    if faults:
        raise _error(faults)
    for judge in judges.values():
        make_judge(ScriptedEngine(), judge)
    if "evaluate" in stages:
        from rlaif.stages.policies import check_evaluation

        trained = [s.removeprefix("train_").replace("_", "-") for s in stages]
        check_evaluation(config, trained)
    asked = config.judge.principles
    if judges:
        require(constitution.principles if asked == "all" else constitution.select(asked), "label")


def needs_torch(config: Config, stages: Sequence[str]) -> bool:
    """Whether a stage runs a model on this machine: all that train and evaluate do, others where
    their engine is no server."""
    for stage in stages:
        if stage in ("read", "audit", "report"):
            continue
        if stage in ("sample", "revise", "contrast"):
            engines = [config.policy.engine]
        elif stage in ("label", "attack", "run_tests", "learn_constitution"):
            engines = [judge.engine for judge in _judges(config, [stage]).values()]
            if stage == "learn_constitution" and config.learn.propose:
                engines.append(config.policy.engine)
        else:
            return True
        if any(engine != "http" for engine in engines):
            return True
    return False


def _learns_pairs(config: Config, stage: str) -> bool:
    """Whether a stage learns what is known of the run's pairs, and so reads their file."""
    train = config.train
    if stage == "learn_constitution":
        return config.learn.labels == "own"
    learns = {"train_judge": train.judge, "train_reward": train.reward, "train_dpo": train.dpo}
    section = learns.get(stage)
    return section is not None and section.labels == "own"


def _judges(config: Config, stages: Sequence[str]) -> dict[str, JudgingSettings]:
    """The judges that stages ask, by where the config has them."""
    own: dict[str, JudgingSettings] = {f"jury.{i}": j for i, j in enumerate(config.jury)}
    own = own or {"judge": config.judge}
    found: dict[str, JudgingSettings] = {}
    from rlaif.stages.policies import asks_judge

    train, other = config.train, config.evaluate.judge
    live = {"train_ppo": train.ppo, "train_grpo": train.grpo, "train_rloo": train.rloo}
    for stage in stages:
        section = live.get(stage)
        asks = stage in ("label", "attack", "run_tests", "learn_constitution", "train_online_dpo")
        if stage == "train_judge" and train.judge is not None:
            asks = train.judge.model is None
        asks = asks or (section is not None and section.reward == "judge")
        if section is not None:
            asks = asks or section.held_out is not None
        watched = train.online_dpo is not None and train.online_dpo.held_out is not None
        if stage == "train_online_dpo" and watched and other is not None:
            found["evaluate.judge"] = other
        if stage == "rewardbench":
            asks = config.evaluate.rewardbench.by == "judge"
        if stage == "evaluate" and asks_judge(config):
            found |= own if other is None else {"evaluate.judge": other}
        if asks:
            found |= own
    return found


def _error(faults: Sequence[tuple[Named, str]]) -> RlaifError:
    kinds: dict[str, type[RlaifError]] = {
        "rows": DataError,
        "model": EngineError,
        "policy": EngineError,
        "adapter": EngineError,
    }
    kind: type[RlaifError] = kinds.get(faults[0][0].kind, ConfigError)
    if len(faults) == 1:
        return kind(f"{faults[0][0].name}: {faults[0][1]}")
    return kind("this cannot be used:\n" + "\n".join(f"  {one.name}: {why}" for one, why in faults))


@contextmanager
def gone_if_failed(root: Path) -> Iterator[None]:
    """Takes a run directory away again that a failed command has made, with its new parents.

    It stays where a model has done some work in it.
    """
    new = [path for path in (root, *root.parents) if not os.path.lexists(path)]
    try:
        yield
    except Exception:
        if new and not any((root / name).exists() for name in _PAID_FOR):
            shutil.rmtree(root, ignore_errors=True)
            with suppress(OSError):
                for path in new[1:]:
                    path.rmdir()
        raise
