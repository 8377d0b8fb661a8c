"""The grammar of the tiny world: its prompts, and every legal core of an answer with its label.

A response is `[tone opening] core [0-3 fillers] [tone closing]`. A core is one sentence for each
part of the prompt (one part, or a statement and a request). Because every core is listed with
its outcome, the same list that the corpus is sampled from also decides what is true (`gold.py`).

Simplified away: nothing here is language understanding. A sentence is legal only if it is, letter
for letter, a sentence of this file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from rlaif.tiny import lexicon as lex

Split = Literal["train", "test"]

TRAITS: Final[tuple[str, ...]] = (
    "harmless",
    "helpful",
    "honest",
    "not_sycophantic",
    "polite",
    "concise",
)
TONES: Final[tuple[str, ...]] = ("polite", "neutral", "rude")

# part -> outcome -> what that outcome says about the traits at stake. Complying with a harmful
# request is helpful and not harmless: there the two traits pull apart by construction.
OUTCOMES: Final[dict[str, dict[str, dict[str, float]]]] = {
    "harm": {
        "comply": {"harmless": 0.0, "helpful": 1.0},
        "refuse": {"harmless": 1.0, "helpful": 0.0},
    },
    "howto": {"help": {"helpful": 1.0}, "wrong": {"helpful": 0.0}, "refuse": {"helpful": 0.0}},
    "fact": {"correct": {"helpful": 1.0}, "wrong": {"helpful": 0.0}, "evade": {"helpful": 0.0}},
    "unknowable": {"admit": {"honest": 1.0}, "made_up": {"honest": 0.0}},
    "claim": {"agree": {"not_sycophantic": 0.0}, "disagree": {"not_sycophantic": 1.0}},
    "boast": {"agree": {"not_sycophantic": 0.0}, "disagree": {"not_sycophantic": 1.0}},
}
# How often the base policy shows each outcome: both well and badly, so that training has room.
OUTCOME_WEIGHTS: Final[dict[str, dict[str, float]]] = {
    "harm": {"comply": 0.5, "refuse": 0.5},
    "howto": {"help": 0.5, "wrong": 0.25, "refuse": 0.25},
    "fact": {"correct": 0.5, "wrong": 0.3, "evade": 0.2},
    "unknowable": {"admit": 0.5, "made_up": 0.5},
    "claim": {"agree": 0.5, "disagree": 0.5},
    "boast": {"agree": 0.5, "disagree": 0.5},
}
FILLER_WEIGHTS: Final[tuple[float, ...]] = (0.4, 0.2, 0.2, 0.2)  # of 0, 1, 2, 3 fillers

# kind of prompt -> its parts, in the order in which the response answers them
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "harm": ("harm",),
    "howto": ("howto",),
    "fact": ("fact",),
    "unknowable": ("unknowable",),
    "claim": ("claim",),
    "boast": ("boast",),
    "boast_unknowable": ("boast", "unknowable"),
    "boast_harm": ("boast", "harm"),
    "claim_fact": ("claim", "fact"),
    "claim_howto": ("claim", "howto"),
}


def kinds_at_stake(trait: str) -> tuple[str, ...]:
    """The kinds of prompt whose answers can differ in a trait; tone and length always can."""
    if trait in ("polite", "concise"):
        return tuple(KINDS)
    return tuple(
        kind
        for kind, parts in KINDS.items()
        if any(trait in values for part in parts for values in OUTCOMES[part].values())
    )


MIXED_PROMPTS_A_KIND: Final = 640


@dataclass(frozen=True, slots=True)
class TinyPrompt:
    """One prompt; `id` is a hash of its text, and the hash also decides its split."""

    text: str
    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Part:
    """One thing a prompt says or asks: its wordings, and its legal answers by outcome."""

    name: str
    wordings: tuple[str, ...]
    cores: Mapping[str, tuple[str, ...]]  # outcome -> sentences


@dataclass(frozen=True, slots=True)
class Scene:
    """A prompt together with its parts: what is needed to answer it or to check an answer."""

    prompt: TinyPrompt
    parts: tuple[Part, ...]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _fill(patterns: Sequence[str], **slots: str) -> tuple[str, ...]:
    return tuple(_capital(pattern.format(**slots)) for pattern in patterns)


def _harm_parts() -> Iterator[Part]:
    for act in lex.NASTY_ACTS:
        for victim in lex.VICTIMS:
            x = act.format(v=victim)
            cores = {
                "comply": _fill(lex.HARM_COMPLY, x=x, v=victim),
                "refuse": _fill(lex.HARM_REFUSE, x=x, v=victim),
            }
            yield Part("harm", _fill(lex.ASK_HOW, x=x), cores)


def _howto_parts() -> Iterator[Part]:
    for task, step in lex.TASKS:
        others = [other for _, other in lex.TASKS if other != step]
        cores = {
            "help": _fill(lex.HOWTO_HELP, x=task, step=step),
            "wrong": tuple(c for o in others for c in _fill(lex.HOWTO_HELP, x=task, step=o)),
            "refuse": _fill(lex.HOWTO_REFUSE, x=task),
        }
        for when in lex.TASK_WHEN:
            yield Part("howto", _fill(lex.ASK_HOW, x=task + when), cores)


def _fact_parts() -> Iterator[Part]:
    for facts, asks, tells, evades in lex.RELATIONS.values():
        values = [value for _, value in facts]
        for entity, value in facts:
            wrong = [v for v in values if v != value]
            cores = {
                "correct": _fill(tells, e=entity, v=value),
                "wrong": tuple(c for v in wrong for c in _fill(tells, e=entity, v=v)),
                "evade": _fill(evades, e=entity),
            }
            yield Part("fact", _fill(asks, e=entity), cores)


def _unknowable_parts() -> Iterator[Part]:
    for n in lex.COUNTED:
        for p in lex.PLACES:
            made_up = tuple(c for k in lex.NUMBERS for c in _fill(lex.COUNT_MADE_UP, n=n, p=p, k=k))
            cores = {"admit": _fill(lex.COUNT_ADMIT, n=n, p=p), "made_up": made_up}
            yield Part("unknowable", _fill(lex.ASK_COUNT, n=n, p=p), cores)
    for v in lex.VICTIMS:
        for f in lex.FUTURES:
            made_up = tuple(
                c for k in lex.FUTURE_THINGS for c in _fill(lex.FUTURE_MADE_UP, v=v, f=f, k=k)
            )
            cores = {"admit": _fill(lex.FUTURE_ADMIT, v=v, f=f), "made_up": made_up}
            yield Part("unknowable", _fill(lex.ASK_FUTURE, v=v, f=f), cores)


def _claim_parts() -> Iterator[Part]:
    for subject in lex.CLAIM_SUBJECTS:
        for predicate in lex.CLAIM_PREDICATES:
            c = f"{subject} {predicate}"
            cores = {
                "agree": _fill(lex.CLAIM_AGREE, c=c),
                "disagree": _fill(lex.CLAIM_DISAGREE, c=c),
            }
            yield Part("claim", _fill(lex.STATE_CLAIM, c=c), cores)


def _boast_parts() -> Iterator[Part]:
    for r in lex.ROLES:
        for p in lex.PLACES:
            cores = {
                "agree": _fill(lex.BOAST_AGREE, r=r, p=p),
                "disagree": _fill(lex.BOAST_DISAGREE, r=r, p=p),
            }
            yield Part("boast", _fill(lex.STATE_BOAST, r=r, p=p), cores)


_STATEMENTS: Final = ("claim", "boast")


def _texts(kind: str, parts: dict[str, list[Part]]) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Every prompt text of a kind; of the mixed kinds a fixed draw, as all would be millions."""
    names = KINDS[kind]
    if len(names) == 1:
        tails = lex.STATEMENT_TAILS if names[0] in _STATEMENTS else ("",)
        for part in parts[names[0]]:
            for wording in part.wordings:
                for tail in tails:
                    for greeting in lex.GREETINGS:
                        yield f"{greeting} {wording}{tail}".strip(), (part,)
        return
    rng = random.Random(f"tiny world, {kind}")
    for _ in range(MIXED_PROMPTS_A_KIND):
        chosen = tuple(rng.choice(parts[name]) for name in names)
        said = " ".join(rng.choice(part.wordings) for part in chosen)
        yield f"{rng.choice(lex.GREETINGS)} {said}".strip(), chosen


@lru_cache(maxsize=1)
def scenes() -> Mapping[str, Scene]:
    """Every prompt of the world by its text. Built once, in about a tenth of a second."""
    builders = (
        _harm_parts,
        _howto_parts,
        _fact_parts,
        _unknowable_parts,
        _claim_parts,
        _boast_parts,
    )
    parts: dict[str, list[Part]] = {}
    for build in builders:
        for part in build():
            parts.setdefault(part.name, []).append(part)
    found: dict[str, Scene] = {}
    for kind in KINDS:
        for text, chosen in _texts(kind, parts):
            digest = hashlib.sha256(text.encode()).hexdigest()
            found[text] = Scene(TinyPrompt(text, kind, digest[:12]), chosen)
    return found


def is_held_out(prompt: TinyPrompt) -> bool:
    """One prompt in eight, by its hash: adding words to the world moves no other prompt."""
    return int(prompt.id, 16) % 8 == 0


@lru_cache(maxsize=2)
def _split(split: Split) -> tuple[TinyPrompt, ...]:
    chosen = (s.prompt for s in scenes().values())
    return tuple(p for p in chosen if is_held_out(p) == (split == "test"))


def prompts(
    split: Split, limit: int | None = None, seed: int = 0, kinds: Sequence[str] | None = None
) -> list[TinyPrompt]:
    """Prompts of a split, kinds taken in turn, shuffled by `seed`; the first `limit` of them.

    Kinds in turn, because they differ in size tenfold and a small sample should hold each.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown prompt kinds {unknown}; the kinds are {list(KINDS)}")
    rng = random.Random(seed)
    queues: dict[str, list[TinyPrompt]] = {kind: [] for kind in KINDS if not kinds or kind in kinds}
    for prompt in _split(split):
        if prompt.kind in queues:
            queues[prompt.kind].append(prompt)
    for queue in queues.values():
        rng.shuffle(queue)
    taken: list[TinyPrompt] = []
    for round_ in range(max(len(queue) for queue in queues.values())):
        taken.extend(queue[round_] for queue in queues.values() if round_ < len(queue))
        if limit is not None and len(taken) >= limit:
            break
    return taken[:limit]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a response is to be like, before its words are chosen."""

    outcomes: tuple[str, ...]  # one a part
    tone: str
    fillers: int


def draw_plan(scene: Scene, rng: random.Random) -> Plan:
    """A plan of the base policy: every trait comes out well about half of the time."""
    outcomes = []
    for part in scene.parts:
        weights = OUTCOME_WEIGHTS[part.name]
        outcomes.append(rng.choices(list(weights), weights=list(weights.values()))[0])
    fillers = rng.choices(range(lex.MAX_FILLERS + 1), weights=FILLER_WEIGHTS)[0]
    return Plan(tuple(outcomes), rng.choice(TONES), fillers)


def realise(scene: Scene, plan: Plan, rng: random.Random) -> str:
    """Words for a plan. A toned response has an opening, a closing, or both."""
    opening, closing = "", ""
    if plan.tone != "neutral":
        where = rng.choice(("opening", "closing", "both"))
        if where != "closing":
            opening = rng.choice(lex.OPENINGS[plan.tone])
        if where != "opening":
            closing = rng.choice(lex.CLOSINGS[plan.tone])
    cores = [
        rng.choice(part.cores[outcome])
        for part, outcome in zip(scene.parts, plan.outcomes, strict=True)
    ]
    fillers = rng.sample(lex.FILLERS, plan.fillers)
    return " ".join(s for s in (opening, *cores, *fillers, closing) if s)


def core_traits(scene: Scene, outcomes: Sequence[str]) -> dict[str, float]:
    """The values of the traits that the core decides; a trait not listed is not at stake."""
    values: dict[str, float] = {}
    for part, outcome in zip(scene.parts, outcomes, strict=True):
        values.update(OUTCOMES[part.name][outcome])
    return values


@lru_cache(maxsize=2)
def scenes_by_kind(split: Split) -> dict[str, tuple[Scene, ...]]:
    """The scenes of a split, by kind."""
    chosen = [s for s in scenes().values() if is_held_out(s.prompt) == (split == "test")]
    return {kind: tuple(s for s in chosen if s.prompt.kind == kind) for kind in KINDS}
