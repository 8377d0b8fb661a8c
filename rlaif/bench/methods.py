"""How often each way to judge agrees with the truth, and what it costs, in the embedded world.

The pairs are all pairs of four responses to held-out prompts, the principles in wordings the model
was never trained on; a program knows which response is better (`rlaif.tiny.gold`). Every method
judges the same pairs, as any run does: both orders, or one where there are none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rlaif.constitution import Principle
from rlaif.engines.base import Engine
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.cot import CotJudge
from rlaif.judges.listwise import ListwiseJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.preferences import aggregate
from rlaif.judges.scores import PointwiseJudge, RubricJudge
from rlaif.judges.settings import AdaptiveSettings, CotSettings, RationaleSettings
from rlaif.records import ORDERS, Order, Pair, Prompt, Verdict
from rlaif.statistics.intervals import wilson
from rlaif.steps.executors import Memory, run_judge
from rlaif.tiny import gold_preference
from rlaif.tiny.grammar import draw_plan, realise, scenes_by_kind
from rlaif.tiny.principles import HELD_OUT_PHRASINGS, PRINCIPLES, split_key

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

RESPONSES = 4
TOKENS = 64  # of a rationale, at most

Rate = dict[str, float]


def rate(hits: Iterable[bool]) -> Rate:
    """The share of hits with its count and 95 % Wilson interval."""
    values = list(hits)
    if not values:
        return {"rate": math.nan, "n": 0, "low": 0.0, "high": 1.0}
    found = wilson(sum(values), len(values))
    parts = {"rate": found.value, "n": found.n, "low": found.low, "high": found.high}
    return {name: round(value, 4) for name, value in parts.items()}


@dataclass(frozen=True, slots=True)
class Work:
    """Pairs with the principle that each is judged under, and which of the two is truly better."""

    pairs: list[Pair]  # `label` 1 or 0; None where neither is better
    principle_of: dict[str, Principle]  # by prompt id

    def __call__(self, pair: Pair) -> Sequence[Principle]:
        return (self.principle_of[pair.prompt.id],)


def draw_work(prompts: int, seed: int = 7) -> Work:
    """`prompts` held-out prompts for each of the model's principles, each with four responses.

    A prompt is taken where the principle tells at least one pair of its responses apart.
    """
    pairs: list[Pair] = []
    principle_of: dict[str, Principle] = {}
    for key in PRINCIPLES:
        rng = random.Random(f"{seed}:{key}")
        scenes = [s for kind in scenes_by_kind("test").values() for s in kind]
        rng.shuffle(scenes)
        wordings, taken = HELD_OUT_PHRASINGS[key], 0
        for scene in scenes:
            prompt = Prompt.user(scene.prompt.text)
            if taken == prompts or prompt.id in principle_of:
                continue
            texts = [realise(scene, draw_plan(scene, rng), rng) for _ in range(RESPONSES)]
            labels = {
                (a, b): gold_preference(scene.prompt.text, a, b, *split_key(key))
                for a, b in combinations(dict.fromkeys(texts), 2)
            }
            if all(label is None for label in labels.values()):
                continue
            pairs += [Pair(prompt, a, b, label) for (a, b), label in labels.items()]
            principle_of[prompt.id] = Principle(
                id=_name(key), compare=wordings[taken % len(wordings)]
            )
            taken += 1
    return Work(pairs, principle_of)


def _name(key: str) -> str:
    """The name of a principle as a constitution may give it."""
    return key if key[0] != "-" else f"opposite-{key[1:]}"


def judges(engine: Engine, band: float = 0.1) -> dict[str, AnyJudge]:
    """Every method that reads log-probabilities, by name."""
    one = RationaleSettings(max_new_tokens=TOKENS, clamp=None)
    return {
        "pairwise": PairwiseJudge(engine),
        "cot": CotJudge(engine, CotSettings(rationale=one)),
        "cot, 5 samples": CotJudge(engine, CotSettings(rationale=one.but(samples=5))),
        "adaptive": AdaptiveJudge(engine, AdaptiveSettings(rationale=one, band=band)),
        "pointwise": PointwiseJudge(engine),
        "rubric": RubricJudge(engine),
        "listwise": ListwiseJudge(engine),
    }


def measure(judge: AnyJudge, work: Work) -> dict[str, Any]:
    """Agreement with the truth on the pairs that differ in it, by principle and in all, and cost.

    A pair on which the judge abstained, or that came out at exactly ½, does not agree.
    """
    orders: Sequence[Order] = ORDERS if judge.both_orders else ("first_second",)
    before = judge.engine.usage.snapshot()
    memory: Memory[Verdict] = Memory()
    run_judge(work.pairs, judge, work, memory, orders=orders)
    spent = {k: v - before[k] for k, v in judge.engine.usage.snapshot().items()}
    hits: dict[str, list[bool]] = {_name(key): [] for key in PRINCIPLES}
    rows = aggregate(work.pairs, memory.rows, orders=orders)
    for row in rows:
        if row.pair.label is not None:
            p, key = row.p_first, work(row.pair)[0].id
            hits[key].append(p is not None and p != 0.5 and (p > 0.5) == (row.pair.label > 0.5))
    return {
        "agreement": rate([hit for found in hits.values() for hit in found]),
        "by_principle": {key: rate(found) for key, found in hits.items()},
        "pairs": len(work.pairs),
        "verdicts": len(memory.rows),
        "abstained": sum(v.abstained for v in memory.rows),
        "reasoned": sum(bool(v.rationales) for v in memory.rows),
        "requests": int(spent["requests"]),
        "submitted_tokens": int(spent["submitted_tokens"]),
        "computed_tokens": int(spent["computed_tokens"]),
        "decoded_tokens": int(spent["generated_tokens"]),
    }


def bench_methods(engine: Engine, prompts: int, band: float = 0.1) -> dict[str, dict[str, Any]]:
    """`measure` of every method on the same work."""
    work = draw_work(prompts)
    return {name: measure(judge, work) for name, judge in judges(engine, band).items()}
