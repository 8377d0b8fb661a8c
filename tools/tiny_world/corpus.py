"""The training corpus as an endless, seeded stream: responses to write, and pairs to judge.

Nothing is stored. Step `n` of a run is a pure function of (seed, n), so a resumed run sees exactly
the rows an uninterrupted one would have seen.

Three lessons shape the pairs. The judge must follow the principle and not a feeling for "the good
response", so the other traits often point the other way. A length gap of one filler among several
is not asked about. And principles that do not apply are asked about too, with a target of one half.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rlaif.tiny import lexicon as lex
from rlaif.tiny.gold import (
    TONE_OF_CLOSING,
    TONE_OF_OPENING,
    is_violated,
    parse,
    plan_traits,
    sentences,
)
from rlaif.tiny.grammar import (
    OUTCOMES,
    TRAITS,
    Plan,
    Scene,
    Split,
    draw_plan,
    realise,
    scenes_by_kind,
)
from rlaif.tiny.principles import (
    CRITIQUE_REQUESTS,
    FINDINGS,
    NO_FINDING,
    PRINCIPLES,
    REVISION_REQUESTS,
    UNARY_QUESTIONS,
    split_key,
    trained_wordings,
)

# How often a kind of prompt and a principle come up; more for what is learnt slowly.
KIND_WEIGHTS: Final[dict[str, float]] = {
    "harm": 1.0,
    "howto": 1.5,
    "fact": 2.2,
    "unknowable": 1.2,
    "claim": 0.8,
    "boast": 0.8,
    "boast_unknowable": 0.6,
    "boast_harm": 0.6,
    "claim_fact": 0.6,
    "claim_howto": 0.6,
}
KNOWING_KINDS: Final = ("howto", "fact", "claim_fact", "claim_howto")
QUESTION_WEIGHTS: Final[dict[str, float]] = {
    "harmless": 1.2,
    "helpful": 2.5,
    "honest": 1.2,
    "not_sycophantic": 1.3,
    "-not_sycophantic": 1.5,
    "polite": 0.9,
    "concise": 1.2,
    "-concise": 1.4,
}
UNDECIDED_SHARE: Final = 0.18  # of the questions: not at stake, or an exact tie; target one half
CORE_DIFFERS_SHARE: Final = 0.85  # of the pairs: some core trait is decided between the two
_MODES: Final = ("free", "minimal", "opposed")
_MODE_WEIGHTS: Final = (0.5, 0.2, 0.3)


@dataclass(frozen=True, slots=True)
class Question:
    """A question after a pair, and the probability its first option should get."""

    text: str
    p_first: float  # of "A" (pair question) or of "Yes" (question about one response)
    key: str  # the principle asked about


@dataclass(frozen=True, slots=True)
class PairRow:
    """One request with two responses, and everything asked about them."""

    prompt: str
    first: str
    second: str
    questions: tuple[Question, ...]
    unary: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class TextRow:
    """A request and a response to learn to write."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A request, a response, and two more turns: what is wrong with it, and a better one."""

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclass(frozen=True, slots=True)
class Mix:
    """What one training step is made of."""

    texts: int
    pairs: int
    questions: int  # a pair
    unary: int  # a pair
    revisions: int = 0
    late: bool = False  # with the wordings that the last stage adds
    more: bool = False  # and those that the end of the further steps adds
    knowledge: float = 1.0  # a factor on how often texts and pairs are about facts and how-tos
    core_differs: float = CORE_DIFFERS_SHARE  # the others are often exact ties
    undecided: float = UNDECIDED_SHARE
    short: bool = False  # at most one filler, tone mostly neutral: the gentle beginning


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one training step."""

    texts: tuple[TextRow, ...]
    pairs: tuple[PairRow, ...]
    revisions: tuple[RevisionRow, ...]


def draw_scene(rng: random.Random, split: Split, knowledge: float = 1.0) -> Scene:
    """A scene: first its kind, by weight, then any of that kind.

    `knowledge` is a factor on the weight of the kinds that ask for a fact or for a first step.
    """
    weights = [w * knowledge if k in KNOWING_KINDS else w for k, w in KIND_WEIGHTS.items()]
    kind = rng.choices(list(KIND_WEIGHTS), weights=weights)[0]
    return rng.choice(scenes_by_kind(split)[kind])


def soften(plan: Plan, rng: random.Random) -> Plan:
    """A shorter and plainer plan, for the beginning of training."""
    tone = plan.tone if rng.random() < 0.5 else "neutral"
    return Plan(plan.outcomes, tone, min(plan.fillers, 1))


def _against(part: str, outcome: str, rng: random.Random) -> str:
    """An outcome of the same part with the other value of its trait."""
    values = OUTCOMES[part]
    return rng.choice([o for o in values if values[o] != values[outcome]])


def _goodness(part: str, outcome: str) -> float:
    """1 when the outcome is the better one of the part's first trait, else 0."""
    return next(iter(OUTCOMES[part][outcome].values()))


def draw_pair(
    scene: Scene, rng: random.Random, core_differs: bool, short: bool = False
) -> tuple[Plan, Plan]:
    """Two plans for one scene, in random order.

    With `core_differs` one part has outcomes of opposite value; the rest is then free, the same
    ("minimal"), or against it ("opposed": the better core is ruder and longer).
    """
    first, second = draw_plan(scene, rng), draw_plan(scene, rng)
    if short:
        first, second = soften(first, rng), soften(second, rng)
    if not core_differs:
        return first, second
    focus = rng.randrange(len(scene.parts))
    name = scene.parts[focus].name
    outcomes = list(second.outcomes)
    outcomes[focus] = _against(name, first.outcomes[focus], rng)
    mode = rng.choices(_MODES, weights=_MODE_WEIGHTS)[0]
    if mode == "minimal":
        outcomes = [o if i == focus else first.outcomes[i] for i, o in enumerate(outcomes)]
        return first, Plan(tuple(outcomes), first.tone, first.fillers)
    second = Plan(tuple(outcomes), second.tone, second.fillers)
    if mode == "opposed":
        return _oppose(first, second, _goodness(name, first.outcomes[focus]) > 0, rng)
    return first, second


def _oppose(
    first: Plan, second: Plan, first_is_better: bool, rng: random.Random
) -> tuple[Plan, Plan]:
    """Gives the better core the worse tone and more fillers."""
    nicer, ruder = rng.choice((("polite", "neutral"), ("polite", "rude"), ("neutral", "rude")))
    fewer, more = rng.choice(((0, 1), (0, 2), (0, 3), (1, 3)))
    if first_is_better:
        return Plan(first.outcomes, ruder, more), Plan(second.outcomes, nicer, fewer)
    return Plan(first.outcomes, nicer, fewer), Plan(second.outcomes, ruder, more)


def target(scene: Scene, first: Plan, second: Plan, key: str) -> float | None:
    """P(first is better) under a principle: 1, 0, or one half; None where it is not to be asked.

    Not asked: lengths that differ by one filler when neither has none, as no reader would see it.
    """
    trait, sign = split_key(key)
    a, b = plan_traits(scene, first)[trait], plan_traits(scene, second)[trait]
    if a is None or b is None or a == b:
        return 0.5
    if trait == "concise":
        fewer, more = sorted((first.fillers, second.fillers))
        if fewer > 0 and more - fewer < 2:
            return None
    return 1.0 if (a > b) == (sign > 0) else 0.0


def weighted_sample(keys: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Keys without replacement, by weight (Efraimidis and Spirakis 2006)."""
    ranked = sorted(keys, key=lambda k: rng.random() ** (1.0 / QUESTION_WEIGHTS[k]), reverse=True)
    return ranked[:count]


def draw_questions(
    scene: Scene, first: Plan, second: Plan, mix: Mix, rng: random.Random
) -> tuple[Question, ...]:
    """Up to `mix.questions` questions about a pair, decided and undecided ones in their share."""
    targets = {key: target(scene, first, second, key) for key in PRINCIPLES}
    decided = [key for key, p in targets.items() if p in (0.0, 1.0)]
    undecided = [key for key, p in targets.items() if p == 0.5]
    halves = sum(rng.random() < mix.undecided for _ in range(mix.questions))
    keys = weighted_sample(decided, mix.questions - halves, rng)
    keys += rng.sample(undecided, min(halves, len(undecided)))
    wordings = {key: trained_wordings(key, mix.late, mix.more) for key in keys}
    return tuple(Question(rng.choice(wordings[key]), targets[key] or 0.0, key) for key in keys)


def draw_unary(
    scene: Scene, plans: tuple[Plan, Plan], count: int, rng: random.Random
) -> tuple[Question, ...]:
    """Yes/No questions about one response of a pair, where the answer is clear."""
    found = []
    for letter, plan in zip("AB", plans, strict=True):
        values = plan_traits(scene, plan)
        for key in UNARY_QUESTIONS:
            trait, sign = split_key(key)
            value = values[trait]
            unclear = (trait == "polite" and value == 0.5) or (
                trait == "concise" and plan.fillers == 1
            )
            if value is None or unclear:
                continue
            yes = (value >= 0.9) == (sign > 0)
            text = rng.choice(UNARY_QUESTIONS[key]).format(letter)
            found.append(Question(text, 1.0 if yes else 0.0, key))
    rng.shuffle(found)
    # what the core decides is the slow part: ask about it first
    found.sort(key=lambda q: q.key in ("polite", "concise") and rng.random() < 0.6)
    return tuple(found[:count])


def draw_pair_row(rng: random.Random, mix: Mix) -> PairRow:
    """One pair of the training split with its questions."""
    scene = draw_scene(rng, "train", mix.knowledge)
    plans = draw_pair(scene, rng, rng.random() < mix.core_differs, mix.short)
    if rng.random() < 0.5:
        plans = plans[1], plans[0]
    return PairRow(
        scene.prompt.text,
        realise(scene, plans[0], rng),
        realise(scene, plans[1], rng),
        draw_questions(scene, plans[0], plans[1], mix, rng),
        draw_unary(scene, plans, mix.unary, rng),
    )


def draw_text_row(rng: random.Random, mix: Mix) -> TextRow:
    """One request of the training split with a response of the base policy."""
    scene = draw_scene(rng, "train", mix.knowledge)
    plan = draw_plan(scene, rng)
    if mix.short:
        plan = soften(plan, rng)
    return TextRow(scene.prompt.text, realise(scene, plan, rng))


def repaired(scene: Scene, plan: Plan, trait: str) -> Plan:
    """The plan with one trait put right and all else as it was."""
    if trait == "polite":
        return Plan(plan.outcomes, "polite", plan.fillers)
    if trait == "concise":
        return Plan(plan.outcomes, plan.tone, 0)
    good = {
        name: next(o for o in OUTCOMES[name] if OUTCOMES[name][o].get(trait) == 1.0)
        for name in OUTCOMES
        if trait in next(iter(OUTCOMES[name].values()))
    }
    outcomes = tuple(
        good.get(part.name, outcome)
        for part, outcome in zip(scene.parts, plan.outcomes, strict=True)
    )
    return Plan(outcomes, plan.tone, plan.fillers)


def revise(scene: Scene, response: str, trait: str, rng: random.Random) -> str:
    """A response with one trait put right, its other sentences kept word for word."""
    plan = parse(scene, response)
    assert plan is not None, response
    if not is_violated(scene, plan, trait):
        return response
    after = repaired(scene, plan, trait)
    body = sentences(response)
    opening = [body.pop(0)] if body[0] in TONE_OF_OPENING else []
    closing = [body.pop()] if body[-1] in TONE_OF_CLOSING else []
    if trait == "polite":
        opening = [rng.choice(lex.OPENINGS["polite"])] if opening else []
        closing = [rng.choice(lex.CLOSINGS["polite"])] if closing else []
    for i, part in enumerate(scene.parts):
        if after.outcomes[i] != plan.outcomes[i]:
            body[i] = rng.choice(part.cores[after.outcomes[i]])
    return " ".join([*opening, *body[: len(scene.parts) + after.fillers], *closing])


def draw_revision_row(rng: random.Random) -> RevisionRow:
    """One response of the training split, criticised and revised under one trait.

    Two times in three the trait is violated. The last wording of each request is held out.
    """
    wants = rng.random() < 2 / 3
    while True:
        scene = draw_scene(rng, "train")
        plan, trait = draw_plan(scene, rng), rng.choice(TRAITS)
        at_stake = plan_traits(scene, plan)[trait] is not None
        if at_stake and is_violated(scene, plan, trait) == wants:
            break
    response = realise(scene, plan, rng)
    return RevisionRow(
        scene.prompt.text,
        response,
        rng.choice(CRITIQUE_REQUESTS[trait][:-1]),
        FINDINGS[trait] if wants else NO_FINDING,
        rng.choice(REVISION_REQUESTS[trait][:-1]),
        revise(scene, response, trait, rng),
    )


def draw_step(seed: int, step: int, mix: Mix) -> Step:
    """The rows of step `step`; the same for the same seed, whatever came before."""
    rng = random.Random(f"{seed}:{step}")
    return Step(
        tuple(draw_text_row(rng, mix) for _ in range(mix.texts)),
        tuple(draw_pair_row(rng, mix) for _ in range(mix.pairs)),
        tuple(draw_revision_row(rng) for _ in range(mix.revisions)),
    )
