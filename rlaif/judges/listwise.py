"""The listwise judge: all completions of a prompt in one view, ranked by which is best.

The log-probabilities of the labels after one prefill are those of the first choice. Under
Plackett–Luce (Luce 1959; Plackett 1975) they are the completions' log-strengths, so that
p(i ≻ j) = p_i / (p_i + p_j), and sorting by them is the likeliest ranking.

A liking for a place in the list is taken out by showing the list in every cyclic rotation: each
completion then stands in each place once, and whatever a place adds to a log-probability is the
same for all. The two orders of an ask are the list forwards and backwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from rlaif.engines.base import Engine, Scores
from rlaif.errors import ConfigError
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, EngineJudge, sigmoid, verdict_key
from rlaif.judges.reasoning import Sample, facts_of
from rlaif.judges.settings import ListwiseSettings
from rlaif.records import Prompt, Reason, Verdict, content_id

group_id = lru_cache(maxsize=4_096)(lambda group: content_id("group", group))
_View = tuple[str, tuple[str, ...], str]  # prompt id, completions as listed first, principle
# completions as shown, what was written before the labels, and their scores
_Seen = tuple[tuple[str, ...], Sample, Scores | None]


class ListwiseJudge(EngineJudge):
    """Judges the completions of a prompt together; `Ask.group` says which they are.

    A list has at most as many completions as the template has labels.
    """

    method = "listwise"
    together = True

    def __init__(self, engine: Engine, settings: ListwiseSettings | None = None) -> None:
        settings = settings or ListwiseSettings()
        self.rotations = settings.rotations
        super().__init__(engine, settings, settings.min_mass)
        if len(self.template.options) < 2:
            raise ConfigError(
                f"{self.template_name}: a listwise template needs labels in its front matter, such "
                f"as `options: [A, B, C, D]`; it has {list(self.template.options)}"
            )

    def _identity(self) -> tuple[Any, ...]:
        return self.rotations, *super()._identity()

    @staticmethod
    def key_by(fingerprint: str, ask: Ask, shows_thoughts: bool = False) -> str:  # noqa: ARG004
        principle, group = ask.principle, group_id(group_of(ask))
        return verdict_key(
            fingerprint, ask.pair.id, ask.order, principle.id, principle.compare, group
        )

    def render(self, prompt: Prompt, texts: Sequence[str], principle: str) -> Rendered:
        """The exact prompt for a list of completions in this order."""
        return self.template.render(
            messages=prompt.messages, responses=list(texts), principle=principle
        )

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        views: dict[_View, Prompt] = {}
        for ask in asks:
            if ask.unjudgeable() is None:
                views.setdefault(_view(ask), ask.pair.prompt)
        lists = [(view, shown) for view in views for shown in self._rotations(view[1])]
        prompts = [self.render(views[view], shown, view[2]) for view, shown in lists]
        options = [self.template.options[: len(shown)] for _, shown in lists]
        samples = self.prepared(prompts)
        scores = self.score_samples(samples, options)
        found: dict[_View, list[_Seen]] = {view: [] for view in views}
        for (view, shown), row, after in zip(lists, samples, scores, strict=True):
            found[view] += [(shown, *one) for one in zip(row, after, strict=True)]
        strengths = {view: self._strengths(rows) for view, rows in found.items()}
        written = {view: facts_of([s for _, s, _ in rows]) for view, rows in found.items()}
        return [self._verdict(ask, strengths, written) for ask in asks]

    def _rotations(self, texts: tuple[str, ...]) -> list[tuple[str, ...]]:
        n, most = len(texts), len(self.template.options)
        if n > most:
            raise ConfigError(
                f"{n} completions of one prompt, but {self.template_name} has {most} labels: "
                "sample fewer, or give a template with more options"
            )
        count = min(self.rotations or n, n)
        starts = [i * n // count for i in range(count)]  # evenly spaced
        return [texts[start:] + texts[:start] for start in starts]

    def _strengths(self, rows: Iterable[_Seen]) -> tuple[dict[str, float], float, Reason | None]:
        """Mean log-probability of each completion over the rotations, and over the thoughts of a
        judge that thinks; their mass, and any fault."""
        values: dict[str, list[float]] = {}
        masses = []
        for shown, sample, scores in rows:
            if scores is None:
                return {}, math.nan, sample.fault or "cut"
            if scores.failure:
                return {}, math.nan, scores.failure
            masses.append(scores.mass)
            for text, value in zip(shown, scores.logprobs, strict=True):
                values.setdefault(text, []).append(value)
        mass = math.fsum(masses) / len(masses)
        means = {text: math.fsum(found) / len(found) for text, found in values.items()}
        centre = math.fsum(means.values()) / len(means)
        low: Reason | None = "low_mass" if mass < self.min_mass else None
        return {text: mean - centre for text, mean in means.items()}, mass, low

    def _verdict(
        self,
        ask: Ask,
        found: dict[_View, tuple[dict[str, float], float, Reason | None]],
        written: dict[_View, dict[str, Any]],
    ) -> Verdict:
        reason = ask.unjudgeable()
        if reason is not None:
            return self.abstain(ask, reason)
        strengths, mass, why = found[_view(ask)]
        facts = written[_view(ask)]
        if not strengths:
            return self.abstain(ask, why or "not_finite", **facts)
        first, second = strengths[ask.pair.first], strengths[ask.pair.second]
        facts = facts | {"score_first": first, "score_second": second, "mass": mass}
        if why is not None:
            return self.abstain(ask, why, **facts)
        return self.verdict(ask, sigmoid(first - second), **facts)


def group_of(ask: Ask) -> tuple[str, ...]:
    """The completions listed for an ask, sorted: the pair's own where nobody named the others.

    Empty ones are left out: nothing can be said of them.
    """
    return listed({ask.pair.first, ask.pair.second, *ask.group})


def listed(texts: Iterable[str]) -> tuple[str, ...]:
    """Those of a prompt's completions that can be judged, each once, sorted."""
    return tuple(sorted({text for text in texts if text.strip()}))


def _view(ask: Ask) -> _View:
    """What an ask has to be shown: the list forwards or backwards, and the principle.

    It depends on which of the two is shown first, so that the mirrored pair in the other order, the
    same question, sees the same list.
    """
    group, (first, second) = group_of(ask), ask.shown
    listed = group if first <= second else group[::-1]
    return ask.pair.prompt.id, listed, ask.principle.compare
