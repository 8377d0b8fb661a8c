"""Who compares the answers of policies: the run's judge or jury, another judge, or a reward.

Each is a function from pairs to labels. What it says of an evaluation's pairs is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif.config import Config
from rlaif.constitution import Principle
from rlaif.engines.base import weights_of
from rlaif.evaluation.winrate import Label
from rlaif.records import Completion, Pair, Preference, Prompt, content_id, mirrored
from rlaif.stages.asking import ask, fill
from rlaif.stages.jury import Judges, judges_at_hand
from rlaif.stages.labelling import prefer
from rlaif.stages.policies import rewarded
from rlaif.stages.rewards import reward_folder
from rlaif.stages.run import Run
from rlaif.stages.temperature import require_temperature
from rlaif.store import RunStore
from rlaif.store.kept import Kept

Samples = Mapping[str, Sequence[Completion]]  # one a prompt, in the prompts' order, by policy
Score = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Sequence[float | None]]
SCORES_FILE = "winrate-scores.jsonl"


def comparer(run: Run, store: RunStore, samples: Samples) -> tuple[Label, dict[str, Any]]:
    """The labels of who compares for win rates, and what is told of it."""
    if rewarded(run.config):
        return _rewarded(run, store, samples)
    section = run.config.evaluate.judge
    judges = judges_at_hand(run, section)
    temperature = require_temperature(run.config) if section is None else None  # the own judge's
    label = judged(run.config, store, judges, run.principles(), temperature, "win rate")
    return label, about_judges(run, judges)


def judged(
    config: Config,
    store: RunStore,
    judges: Judges,
    principles: Sequence[Principle],
    temperature: float | None,
    title: str,
) -> Label:
    """The judges' labels of pairs, which are stored. Two policies that gave a prompt the same two
    answers the other way round have one pair, and one judgement."""

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        turned = [mirrored(pair.id) in known for pair in pairs]
        asked = [p.swap() if turn else p for p, turn in zip(pairs, turned, strict=True)]
        store.table("pairs").append([pair for pair in asked if pair.id not in known])
        verdicts = ask(store, judges, asked, title)
        made = prefer(config, asked, verdicts, principles, judges.orders, temperature)
        return [p.swap() if turn else p for p, turn in zip(made, turned, strict=True)]

    return label


def _rewarded(run: Run, store: RunStore, samples: Samples) -> tuple[Label, dict[str, Any]]:
    """Labels by a reward: σ(r_A − r_B), of a reward model before its normalisation. Scores are
    kept, and pairs stored."""
    said = str(run.config.evaluate.reward)
    key, score = _score(run, said)
    rows = [c for answers in samples.values() for c in answers]
    cut = {(c.prompt_id, c.text) for c in rows if c.finish_reason == "length"}
    kept = Kept(store.path(SCORES_FILE))

    def scores(asked: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        rows = [(prompt, text, (prompt.id, text) not in cut) for prompt, text in asked]
        keys = [content_id(key, prompt.id, text, ended) for prompt, text, ended in rows]

        def made(part: Sequence[int]) -> dict[str, float | None]:
            todo = list({keys[i]: i for i in part}.values())
            found = score(*_columns([rows[i] for i in todo]))
            return dict(zip((keys[i] for i in todo), found, strict=True))

        fill(run, kept, [[k] for k in keys], made, "win rate: rewards")
        return [kept[k] for k in keys]

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        store.table("pairs").append([pair for pair in pairs if pair.id not in known])
        found = scores([(p.prompt, text) for p in pairs for text in (p.first, p.second)])
        return [_by_scores(*row) for row in zip(pairs, found[::2], found[1::2], strict=True)]

    model = "models/reward" if said == "model" else said
    return label, {"reward": model, "models": [model], "labelled": False, "is_policy": False}


def _columns(
    rows: Sequence[tuple[Prompt, str, bool]],
) -> tuple[list[Prompt], list[str], list[bool]]:
    return [p for p, _, _ in rows], [text for _, text, _ in rows], [ended for *_, ended in rows]


def _by_scores(pair: Pair, first: float | None, second: float | None) -> Preference:
    if first is None or second is None:
        return Preference(pair, "abstained", None, reason="too_long")
    p = 1 / (1 + math.exp(min(second - first, 700.0)))
    return Preference(pair, "tie" if p == 0.5 else "preferred", p)


def _score(run: Run, said: str) -> tuple[str, Score]:
    """The key of a reward, and its scores in log-odds; None for what it cannot score."""
    folder = reward_folder(run, said)
    if folder is None:
        from rlaif.training.rl.scorers import load_function

        function = load_function(said)
        return function.key, function.score
    from rlaif.training.models import fingerprint_of
    from rlaif.training.reward import RewardModel

    model = RewardModel(folder, device=run.config.policy.device)

    def score(
        prompts: Sequence[Prompt], texts: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        rows = list(zip(prompts, texts, ended, strict=True))
        fits = [not model.too_long(prompt, text) for prompt, text, _ in rows]
        some = [row for row, fit in zip(rows, fits, strict=True) if fit]
        made = iter(model.rewards(*_columns(some)) if some else [])
        return [next(made) / model.normalisation.gain if fit else None for fit in fits]

    return content_id("win rate", fingerprint_of(folder)), score


def about_judges(run: Run, judges: Judges) -> dict[str, Any]:
    """Who compared: whether it is who labelled, and whether it is the policy before training."""
    labelled = run.store.read_manifest().get("judge") or {}
    parts = labelled.get("jury", {"": labelled}).values()
    said = {part.get("weights") for part in parts if isinstance(part, Mapping)}
    base = weights_of(run.engine(run.config.policy))
    each = [(juror.section.model, weights_of(judge.engine)) for juror, judge in judges.seats]
    return {
        "models": [model for model, _ in each],
        "labelled": any(weights in said for _, weights in each),
        "is_policy": any(weights == base for _, weights in each),
    }
