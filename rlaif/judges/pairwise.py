"""The pairwise judge: P(first ≻ second) from the log-probabilities of two option labels.

Bai et al. 2022 (Constitutional AI, §4.1): show the conversation, both responses and a principle,
and take the softmax over the log-probabilities of the two labels. Nothing is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rlaif.engines.base import Engine, Scores
from rlaif.errors import ConfigError
from rlaif.judges.base import Ask, verdict_key
from rlaif.records import Reason, Verdict, content_id
from rlaif.templates import Rendered, Template, load_template


class PairwiseJudge:
    """Judges pairs with an engine's `score`.

    `template`: a path or shipped name; None takes the model's own, else `pairwise/default`.
    `min_mass`: a judge that gives the two labels together less probability abstains (`low_mass`).
    """

    def __init__(
        self, engine: Engine, *, template: str | None = None, min_mass: float = 0.1
    ) -> None:
        name = template or engine.templates.get("pairwise", "pairwise/default")
        self.engine = engine
        self.template: Template = load_template(name)
        if len(self.template.options) != 2:
            raise ConfigError(
                f"{name}: a pairwise template needs two options in its front matter, "
                f"such as `options: [A, B]`; it has {list(self.template.options)}"
            )
        self.template_name = name
        self.min_mass = min_mass
        self.name = engine.name
        # Everything that can change a verdict and is the same for all of them.
        self.fingerprint = content_id("pairwise", engine.fingerprint, self.template.hash, min_mass)

    def key(self, ask: Ask) -> str:
        principle = ask.principle
        return verdict_key(
            self.fingerprint, ask.pair.id, ask.order, principle.id, principle.compare
        )

    def render(self, ask: Ask) -> Rendered:
        """The exact prompt of an ask."""
        first, second = ask.shown
        return self.template.render(
            messages=ask.pair.prompt.messages,
            first=first,
            second=second,
            principle=ask.principle.compare,
        )

    def _render_all(self, asks: Sequence[Ask]) -> list[Rendered]:
        """`render` of each ask; neighbours that show the same pair are rendered together."""
        out: list[Rendered] = []
        for _, group in groupby(asks, key=lambda ask: (id(ask.pair), ask.order)):
            same = list(group)
            first, second = same[0].shown
            out += self.template.render_each(
                "principle", [ask.principle.compare for ask in same],
                messages=same[0].pair.prompt.messages, first=first, second=second,
            )  # fmt: skip
        return out

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        reasons = [ask.unjudgeable() for ask in asks]
        open_asks = [a for a, reason in zip(asks, reasons, strict=True) if reason is None]
        options = [self.template.options] * len(open_asks)
        scores = iter(self.engine.score(self._render_all(open_asks), options))
        return [
            self._abstain(ask, reason) if reason else self._verdict(ask, next(scores))
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _verdict(self, ask: Ask, scores: Scores) -> Verdict:
        if scores.failure:
            return self._abstain(ask, scores.failure)
        shown_first, shown_second = scores.logprobs
        if ask.order == "first_second":
            first, second = shown_first, shown_second
        else:
            first, second = shown_second, shown_first
        # softmax over two log-probabilities is the logistic function of their difference
        p_first = _sigmoid(first - second)
        low = scores.mass < self.min_mass
        return Verdict(
            key=self.key(ask),
            pair_id=ask.pair.id,
            principle=ask.principle.id,
            order=ask.order,
            judge=self.name,
            p_first=None if low else p_first,
            logprob_first=first,
            logprob_second=second,
            mass=scores.mass,
            reason="low_mass" if low else None,
        )

    def _abstain(self, ask: Ask, reason: Reason) -> Verdict:
        return Verdict(
            key=self.key(ask),
            pair_id=ask.pair.id,
            principle=ask.principle.id,
            order=ask.order,
            judge=self.name,
            p_first=None,
            reason=reason,
        )


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)
