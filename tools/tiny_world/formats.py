"""Training rows for the other ways of judging: with a rationale, one response alone, a list.

All of it follows from the plans of the responses, as the targets of pairs do. A rationale states
the two trait values in fixed sentences, so that it can be checked word for word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rlaif.tiny.gold import gold, plan_traits
from rlaif.tiny.grammar import Plan, Scene, draw_plan, realise
from rlaif.tiny.principles import PRINCIPLES, split_key, trained_wordings
from tiny_world.corpus import (
    CORE_DIFFERS_SHARE,
    UNDECIDED_SHARE,
    draw_pair,
    draw_scene,
    target,
    weighted_sample,
)

Method = Literal["cot", "pointwise", "rubric", "listwise"]
METHODS: Final[tuple[Method, ...]] = ("cot", "pointwise", "rubric", "listwise")
LETTERS: Final = "ABCD"
SCORES: Final = 10

# what a rationale says of one response, by the value of its trait (of `concise`: by thirds)
_SAYINGS: Final[dict[str, dict[float, str]]] = {
    "harmless": {0.0: "helps someone hurt people", 1.0: "helps nobody hurt people"},
    "helpful": {0.0: "does not do what was asked", 1.0: "does what was asked"},
    "honest": {0.0: "makes things up", 1.0: "makes nothing up"},
    "not_sycophantic": {0.0: "flatters the person", 1.0: "does not flatter the person"},
    "polite": {0.0: "is rude", 0.5: "is not rude or polite", 1.0: "is polite"},
    "concise": {
        0.0: "has 3 filler sentences",
        1 / 3: "has 2 filler sentences",
        2 / 3: "has 1 filler sentence",
        1.0: "has no filler",
    },
}
NOT_AT_STAKE: Final = "This does not matter here."


@dataclass(frozen=True, slots=True)
class FormatMix:
    """How many rows of each format a step has, and how many principles are asked about each."""

    cot: int = 0
    cot_questions: int = 3
    singles: int = 0
    single_questions: int = 5  # each asked twice: for a score, and for yes or no
    lists: int = 0
    list_questions: int = 4
    more: bool = False  # with the wordings that the end of the further steps adds
    knowledge: float = 1.0  # a factor on how often facts and how-tos come up


@dataclass(frozen=True, slots=True)
class Asking:
    """One question of a format after its responses, and the probability of each option."""

    method: Method
    principle: str
    p: tuple[float, ...]  # of the template's options, those in use; sums to 1
    key: str
    rationale: str | None = None  # of `cot`: to be learnt, and then judged by


@dataclass(frozen=True, slots=True)
class FormatRow:
    """One request with one to four responses, and what is asked about them."""

    prompt: str
    responses: tuple[str, ...]
    askings: tuple[Asking, ...]


def _say(letter: str, trait: str, value: float) -> str:
    sayings = _SAYINGS[trait]
    return f"{letter} {sayings[min(sayings, key=lambda v: abs(v - value))]}."


def rationale(trait: str, first: float | None, second: float | None) -> str:
    """The true rationale for two values of a trait; the values are those of `gold`."""
    if first is None or second is None:
        return NOT_AT_STAKE
    return f"{_say('A', trait, first)} {_say('B', trait, second)}"


def gold_rationale(prompt: str, first: str, second: str, trait: str) -> str | None:
    """What a rationale about two responses ought to say; None when one of them is illegal.

    Raises KeyError for a prompt from outside the tiny world.
    """
    a, b = gold(prompt, first), gold(prompt, second)
    if not (a.legal and b.legal):
        return None
    return rationale(trait, a.traits[trait], b.traits[trait])


def _value(scene: Scene, plan: Plan, key: str) -> float | None:
    """How good a response is under a principle, 0 to 1; None where it is not at stake."""
    trait, sign = split_key(key)
    value = plan_traits(scene, plan)[trait]
    return value if value is None or sign > 0 else 1.0 - value


def score_target(value: float | None) -> tuple[float, ...]:
    """(10,) the scores 1 to 10 for a trait value: 1 + 9 value, shared between its neighbours."""
    score = 9 * (0.5 if value is None else value)  # from 0
    low = min(int(score + 1e-9), SCORES - 2)
    share = score - low
    p = [0.0] * SCORES
    p[low], p[low + 1] = 1.0 - share, share
    return tuple(p)


def yes_target(value: float | None, key: str) -> tuple[float, float]:
    """P(No), P(Yes): one half where not at stake, for a neutral tone, and for one filler."""
    trait, sign = split_key(key)
    if value is None:
        return 0.5, 0.5
    if trait == "concise":
        filler = round(3 * (1.0 - value if sign > 0 else value))
        yes = (filler == 0) if sign > 0 else (filler > 1)
        return (0.5, 0.5) if filler == 1 else (1.0 - yes, float(yes))
    return 1.0 - value, value


def best_target(scene: Scene, plans: Sequence[Plan], key: str) -> tuple[float, ...] | None:
    """The best of a list, uniform over ties; None where a difference is too small to be asked."""
    values = [_value(scene, plan, key) for plan in plans]
    top = max((v for v in values if v is not None), default=None)
    best = [i for i, v in enumerate(values) if v == top]
    if top is not None and any(target(scene, plans[best[0]], p, key) is None for p in plans):
        return None
    return tuple(1.0 / len(best) if i in best else 0.0 for i in range(len(plans)))


def _choose(decided: list[str], undecided: list[str], count: int, rng: random.Random) -> list[str]:
    """Keys to ask about: the undecided ones in their share."""
    halves = sum(rng.random() < UNDECIDED_SHARE for _ in range(count))
    return weighted_sample(decided, count - halves, rng) + rng.sample(
        undecided, min(halves, len(undecided))
    )


def _wording(key: str, mix: FormatMix, rng: random.Random) -> str:
    return rng.choice(trained_wordings(key, late=True, more=mix.more))


def draw_cot_row(rng: random.Random, mix: FormatMix) -> FormatRow:
    """A pair of the training split, each principle with its rationale and its verdict."""
    scene = draw_scene(rng, "train", mix.knowledge)
    plans = draw_pair(scene, rng, rng.random() < CORE_DIFFERS_SHARE)
    if rng.random() < 0.5:
        plans = plans[1], plans[0]
    targets = {key: target(scene, *plans, key) for key in PRINCIPLES}
    keys = _choose(
        [k for k, p in targets.items() if p in (0.0, 1.0)],
        [k for k, p in targets.items() if p == 0.5],
        mix.cot_questions,
        rng,
    )
    values = [plan_traits(scene, plan) for plan in plans]
    askings = []
    for key in keys:
        trait, p = split_key(key)[0], targets[key]
        assert p is not None
        said = rationale(trait, values[0][trait], values[1][trait])
        askings.append(Asking("cot", _wording(key, mix, rng), (p, 1.0 - p), key, said))
    texts = tuple(realise(scene, plan, rng) for plan in plans)
    return FormatRow(scene.prompt.text, texts, tuple(askings))


def draw_single_row(rng: random.Random, mix: FormatMix) -> FormatRow:
    """One response of the training split: for each principle a score, and yes or no."""
    scene = draw_scene(rng, "train", mix.knowledge)
    plan = draw_plan(scene, rng)
    values = {key: _value(scene, plan, key) for key in PRINCIPLES}
    keys = _choose(
        [k for k, v in values.items() if v is not None],
        [k for k, v in values.items() if v is None],
        mix.single_questions,
        rng,
    )
    askings = []
    for key in keys:
        scores, yes = score_target(values[key]), yes_target(values[key], key)
        askings.append(Asking("pointwise", _wording(key, mix, rng), scores, key))
        askings.append(Asking("rubric", _wording(key, mix, rng), yes, key))
    return FormatRow(scene.prompt.text, (realise(scene, plan, rng),), tuple(askings))


def draw_list(scene: Scene, rng: random.Random, count: int) -> tuple[Plan, ...]:
    """`count` plans in random order, two of which mostly differ in the core."""
    plans = [*draw_pair(scene, rng, rng.random() < CORE_DIFFERS_SHARE)]
    plans += [draw_plan(scene, rng) for _ in range(count - 2)]
    rng.shuffle(plans)
    return tuple(plans)


def draw_list_row(rng: random.Random, mix: FormatMix) -> FormatRow:
    """Two to four responses of the training split; asked is which is the best."""
    scene = draw_scene(rng, "train", mix.knowledge)
    plans = draw_list(scene, rng, rng.choices((2, 3, 4), weights=(0.1, 0.4, 0.5))[0])
    targets = {key: best_target(scene, plans, key) for key in PRINCIPLES}
    known = {key: p for key, p in targets.items() if p is not None}
    keys = _choose(
        [k for k, p in known.items() if min(p) < max(p)],
        [k for k, p in known.items() if min(p) == max(p)],
        mix.list_questions,
        rng,
    )
    askings = tuple(Asking("listwise", _wording(key, mix, rng), known[key], key) for key in keys)
    return FormatRow(scene.prompt.text, tuple(realise(scene, plan, rng) for plan in plans), askings)


def draw_formats(seed: int, step: int, mix: FormatMix) -> tuple[FormatRow, ...]:
    """The rows of step `step`; drawn apart from those of `draw_step`, which stay as they were."""
    rng = random.Random(f"{seed}:{step}:formats")
    return (
        *(draw_cot_row(rng, mix) for _ in range(mix.cot)),
        *(draw_single_row(rng, mix) for _ in range(mix.singles)),
        *(draw_list_row(rng, mix) for _ in range(mix.lists)),
    )
