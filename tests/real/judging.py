"""Requests as a judge makes them, to score on a real model."""

from __future__ import annotations

from rlaif.constitution import Constitution
from rlaif.engines.base import Engine
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Prompt

FIRST = "Knead flour, water, salt and yeast, let the dough rise for two hours, then bake it hot."
SECOND = "I cannot help with that. Bread is a matter for bakers, and you had better buy some."
# Sentences that differ, so that a long text has no period that a wrong window could hide behind.
THINGS = ("oven", "flour", "yeast", "water", "salt", "crust", "crumb", "tin", "loaf", "dough")


def long_text(sentences: int, about: str) -> str:
    """Some 14 tokens a sentence, no two alike."""
    return " ".join(
        f"In step {i} of {about} the {THINGS[i % 10]} meets {THINGS[(3 * i + 1) % 10]} at {i * i}."
        for i in range(sentences)
    )


def asked(pair: Pair, principles: int, orders: int = 2) -> list[Ask]:
    """The asks of one pair: so many principles of the constitution that ships, in both orders."""
    chosen = list(Constitution.load("sixteen").principles)[:principles]
    return [
        Ask(pair, principle, order)
        for order in ("first_second", "second_first")[:orders]
        for principle in chosen
    ]


def requests(engine: Engine, first: str, second: str, principles: int) -> list[Rendered]:
    """The prompts that the pairwise judge asks of a pair, in both orders."""
    pair = Pair(Prompt.user("How do I bake bread?"), first, second)
    judge = PairwiseJudge(
        engine, PairwiseSettings(examples="none")
    )  # short paths are to stay short
    return [judge.render(ask) for ask in asked(pair, principles)]
