"""The judge that is read: for servers that tell no log-probabilities.

It writes a text, and the last verdict in it counts, if it is one that was offered. There is no
hunting for a letter elsewhere: a text without a verdict, or with another one at its end, abstains
(`unparsable`), and so does one that was cut (`cut`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlaif.engines.base import Engine, Generation, closes_thoughts
from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, EngineJudge
from rlaif.judges.reasoning import Sample, facts_of, unusable, verdict_of
from rlaif.judges.settings import TextSettings
from rlaif.records import Reason, Verdict

_MOST = 40  # characters between the brackets of what may be meant as a verdict


class TextJudge(EngineJudge):
    """Judges pairs by the verdict it writes: 1, 0, or ½ for a third option, which is a tie.

    p is the mean over `rationale.samples` texts, which are kept with the verdict; without samples
    it is a hard label. The template's options stand in brackets, such as `[[A]]`.
    """

    method = "text"

    def __init__(self, engine: Engine, settings: TextSettings | None = None) -> None:
        settings = settings or TextSettings()
        # There is no probability to clamp: a sample is a vote.
        super().__init__(engine, settings.but(rationale=settings.rationale.but(clamp=None)))
        self._needs_options(2, 3)
        self.shows_thoughts = settings.show_thoughts
        self.sampling = self.reasoning.sampling(self.template.stop)
        self._pattern = verdict_pattern(self.template.options, self.template_name)

    def _identity(self) -> tuple[Any, ...]:
        return (self.reasoning.settings,)

    def render(self, ask: Ask) -> Rendered:
        """The exact prompt of an ask."""
        first, second = self.shown(ask)
        return self.template.render(
            messages=ask.pair.prompt.messages,
            first=first,
            second=second,
            principle=ask.principle.compare,
        )

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        reasons = [ask.unjudgeable() for ask in asks]
        todo = [ask for ask, reason in zip(asks, reasons, strict=True) if reason is None]
        written = iter(self._written([self.render(ask) for ask in todo]))
        return [
            self.abstain(ask, reason) if reason else self._verdict(ask, next(written))
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _mode_of_thoughts(self) -> Mode:
        """With the answer, by an engine that cannot close a thought, as a server's."""
        return "open" if closes_thoughts(self.engine) else "on"

    def _written(self, prompts: Sequence[Rendered]) -> list[list[Sample]]:
        """The texts after each prompt, each after a thought where the model thinks."""
        if not self.thinks or not closes_thoughts(self.engine):
            rows = self.engine.generate(prompts, self.sampling)
            return [[_sample(Sample(None), g) for g in row] for row in rows]
        samples = self.think(prompts)
        usable = [s.prompt for row in samples for s in row if s.prompt is not None]
        once = self.sampling.but(n=1, thinking=None)
        written = iter(self.engine.generate(usable, once))
        return [
            [s if s.prompt is None else _sample(s, next(written)[0]) for s in row]
            for row in samples
        ]

    def _verdict(self, ask: Ask, samples: Sequence[Sample]) -> Verdict:
        facts = facts_of(samples)
        p = verdict_of([self._p(ask, sample) for sample in samples])
        if isinstance(p, str):
            return self.abstain(ask, p, **facts)
        return self.verdict(ask, p, **facts)

    def _p(self, ask: Ask, sample: Sample) -> float | Reason:
        if sample.fault is not None:
            return sample.fault
        option = last_verdict(sample.rationale or "", self.template.options, self._pattern)
        if option is None:
            return "unparsable"
        if option == 2:
            return 0.5
        return float((option == 0) == (ask.order == "first_second"))


def _sample(before: Sample, written: Generation) -> Sample:
    """The sample that a text makes, after the thought that was before it or came with it.

    A thought is not looked at for a verdict.
    """
    cut = written.finish_reason == "length" and bool(written.thought) and not written.text
    return Sample(
        None,
        unusable(written),
        written.text.strip(),
        written.thought or before.thought,
        before.cut or cut,
        before.tokens + written.tokens,
    )


def verdict_pattern(options: Sequence[str], name: str = "the template") -> re.Pattern[str]:
    """Finds whatever stands in the brackets that all options have.

    ConfigError for options without brackets: a bare letter is found in any prose.
    """
    forms = {
        re.fullmatch(r"(\W+)\w.*?(\W+)", option, re.DOTALL) for option in map(str.strip, options)
    }
    around = {(form[1], form[2]) if form else ("", "") for form in forms}
    if len(around) != 1 or around == {("", "")}:
        raise ConfigError(
            f"{name}: the options of a text template need the same brackets round them, such as "
            f"`options: ['[[A]]', '[[B]]']`; it has {list(options)}"
        )
    ((before, after),) = around
    return re.compile(
        f"{re.escape(before)}(?:(?!{re.escape(before)}).){{0,{_MOST}}}?{re.escape(after)}"
    )


def last_verdict(text: str, options: Sequence[str], pattern: re.Pattern[str]) -> int | None:
    """The index of the option that the text's last verdict names; None for none, or another."""
    found = pattern.findall(text)
    offered = [option.strip() for option in options]
    return offered.index(found[-1]) if found and found[-1] in offered else None
