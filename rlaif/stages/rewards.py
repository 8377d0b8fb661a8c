"""What rewards completions while a policy learns: the run's judge, a reward model, a function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.constitution import Principle
from rlaif.errors import ConfigError, DataError
from rlaif.files.templates import Rendered
from rlaif.judges.scores import ScoreJudge
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Pair, Preference, Prompt, content_id
from rlaif.stages.inputs import sampling_of
from rlaif.stages.jury import judges_at_hand
from rlaif.stages.labelling import prefer
from rlaif.stages.origins import tell_stale
from rlaif.stages.run import Run, is_finished
from rlaif.stages.temperature import require_temperature
from rlaif.store import lineage

if TYPE_CHECKING:
    from rlaif.training.rl.scorers import Label, Scorer
    from rlaif.training.rl.settings import HeldOutSettings


def reward_folder(run: Run, reward: str) -> str | None:
    """The reward model that rewards a policy; None when a judge or a function does."""
    if reward == "model":
        path = run.store.path("models", "reward")
        if not is_finished(path):
            raise DataError(
                f"{run.store.root}: no reward model: run `rlaif train reward` first, or set "
                "`reward` to judge, to a folder or to module:function"
            )
        tell_stale(run, lineage.model("reward"))
        return str(path)
    named = reward == "judge" or (":" in reward and not Path(reward).is_dir())
    return None if named else reward


def scorer_of(run: Run, reward: str, folder: str | None) -> Scorer:
    """The scorer of a `reward` option, whose reward model, if it names one, is `folder`.

    A judge of pairs compares a completion with one of the policy before training.
    """
    from rlaif.training.rl.scorers import DirectScorer, ModelScorer, load_function

    if folder is not None:
        return ModelScorer(folder, device=run.config.policy.device)
    if reward != "judge":
        return load_function(reward)
    judge, principles = scorer_alone(run), run.principles()
    if judge is not None:
        rule = rule_of(run)
        ids = _ids(principles)
        reward_of = partial(
            judge.rewards,
            principles=principles,
            weighted=rule["aggregate"] == "weighted",
            tier_margin=run.config.preferences.tier_margin,
        )
        return DirectScorer(reward_of, content_id(judge.fingerprint, ids, rule))
    return _against_before(run, *live_label(run))


def _against_before(run: Run, label: Label, key: str) -> Scorer:
    """A judge of pairs as a scorer: it compares a completion with one of the policy before."""
    from rlaif.training.rl.scorers import JudgeScorer

    base = run.engine(run.config.policy)
    once = sampling_of(run.config).but(n=1)

    def reference(prompts: Sequence[Prompt]) -> list[str]:
        asked = [Rendered.chat(p.messages) for p in prompts]
        return [samples[0].text for samples in base.generate(asked, once)]

    return JudgeScorer(label, reference, content_id(key, once.settings()))


def looking_on(run: Run, name: str, held: HeldOutSettings | None, reward: str) -> Scorer | None:
    """The run's judge, where `held_out` asks for it and it is not what rewards; this is told.

    Online DPO's labels are the run's judge's own: there `evaluate.judge` looks on, and ConfigError
    says where none is named.
    """
    if held is None or reward == "judge":
        return None
    if reward == "labels" and run.config.evaluate.judge is None:
        raise ConfigError(
            f"train.{name}.held_out asks for a judge that looks on, and the run's own labels: name "
            "another in evaluate.judge, or set held_out to null"
        )
    run.reporter.say(
        f"{name}: the judge looks on, every {held.every} steps on {held.prompts} answers "
        f"(train.{name}.held_out; null asks it nothing)"
    )
    if reward == "labels":
        return _against_before(run, *live_label(run, run.config.evaluate.judge))
    return scorer_of(run, "judge", None)


def live_label(run: Run, judge: JudgingSettings | None = None) -> tuple[Label, str]:
    """The run's judges, or another, and its rules as a function of pairs, and a hash of what
    decides the labels.

    The jurors of a jury are in memory together: the pairs come as the policy makes them.
    """
    temperature = require_temperature(run.config)
    judges, principles = judges_at_hand(run, judge), run.principles()

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        said = judges.now(pairs)
        return prefer(run.config, pairs, said, principles, judges.orders, temperature)

    ids = _ids(principles)
    rule, section = rule_of(run), run.config.judge
    drawn = [] if section.draw is None else [section.draw, section.draw_weighted, section.draw_seed]
    weights = [[juror.name, juror.weight] for juror in run.config.jury]
    at = [] if temperature is None else [temperature]
    return label, content_id(judges.fingerprint, ids, judges.orders, rule, *drawn, *weights, *at)


def _ids(principles: Sequence[Principle]) -> list[tuple[Any, ...]]:
    """What of the principles decides labels, for a hash: a tier only where there is one, so that
    policies from before there were tiers go on."""
    ranks = [() if p.tier is None else (p.tier,) for p in principles]
    return [(p.id, p.compare, p.weight, *rank) for p, rank in zip(principles, ranks, strict=True)]


def rule_of(run: Run) -> dict[str, Any]:
    """The rules that make labels of verdicts, for a hash: without a jury those over jurors are not
    among them."""
    over_jurors = set() if run.config.jury else {"jury", "quorum"}
    return {k: v for k, v in run.config.preferences.rule().items() if k not in over_jurors}


def scorer_alone(run: Run) -> ScoreJudge | None:
    """The run's judge, if it marks each completion by itself and there is no jury."""
    judge = None if run.config.jury else run.judge()
    return judge if isinstance(judge, ScoreJudge) else None


def judge_tokens(run: Run) -> float:
    """Tokens of the judges' requests so far."""
    engines = {id(e): e for e in (run.engine(j) for j in run.config.jury or [run.config.judge])}
    return sum(e.usage.submitted_tokens + e.usage.generated_tokens for e in engines.values())
