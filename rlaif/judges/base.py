"""What a judge is: it answers asks, an ask being one pair shown in one order under one principle.

Showing both orders is done here, once, for every judge: `expand` writes the asks, and a verdict
always speaks of the pair's own first completion, whichever was shown first.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Protocol, runtime_checkable

from rlaif.constitution import Principle
from rlaif.engines.base import (
    Engine,
    Generation,
    Scores,
    checked,
    nonsense,
    thinking_id,
    weights_of,
)
from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError
from rlaif.files.readers.examples import Example
from rlaif.files.templates import Rendered, Template, Thought, load_template
from rlaif.judges.examples import Examples, examples_for
from rlaif.judges.protocols import require_engine
from rlaif.judges.reasoning import Reasoning, Sample, unusable
from rlaif.judges.settings import AskSettings, FewShot
from rlaif.records import ORDERS, Order, Pair, Reason, Verdict, content_id

# The principles to ask about: the same for every pair, or chosen pair by pair (`rlaif.judges.draw`)
Principles = Sequence[Principle] | Callable[[Pair], Sequence[Principle]]


@dataclass(frozen=True, slots=True)
class Ask:
    """One judgement to be made. The completions appear to the judge as `shown`.

    `group`: all completions of the prompt in a fixed order, for a judge that wants them together.
    """

    pair: Pair
    principle: Principle
    order: Order
    group: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, str]:
        """The two completions in the order in which the judge reads them."""
        first, second = self.pair.first, self.pair.second
        return (first, second) if self.order == "first_second" else (second, first)

    def unjudgeable(self) -> Reason | None:
        """Why no judge could answer this, if so."""
        if not self.pair.first.strip() or not self.pair.second.strip():
            return "empty_response"
        if not any(m.content.strip() for m in self.pair.prompt.messages):
            return "empty_prompt"
        return None


def verdict_key(
    judge: str, pair_id: str, order: Order, principle: str, compare: str, *more: str
) -> str:
    """The resume key of a verdict. `judge` is the fingerprint of all that its verdicts share."""
    return content_id(judge, pair_id, order, (principle, compare), *more)


@runtime_checkable
class Judge(Protocol):
    """Anything that answers asks, in their order, one verdict each.

    `together`: it gains from having all pairs of a prompt in one call, and needs `Ask.group`.
    """

    name: str
    together: bool

    def key(self, ask: Ask) -> str:
        """The resume key: equal keys mean the verdict would be the same."""
        ...

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        """One verdict an ask; a judge that cannot tell abstains with a reason."""
        ...


class EngineJudge(ABC):
    """What the judges by an engine and a template share.

    A judge that gives its labels together less probability than `min_mass` abstains (`low_mass`).
    """

    method: ClassVar[str]
    together: bool = False
    both_orders: ClassVar[bool] = True  # whether the order shown can change a verdict

    def __init__(self, engine: Engine, settings: AskSettings, min_mass: float = 0.0) -> None:
        require_engine(engine)
        self.engine = engine
        self.name = engine.name
        own = engine.templates.get(self.method, f"{self.method}/default")
        self.template_name = settings.template or own
        self.template: Template = load_template(self.template_name)
        self.min_mass = min_mass
        self.reasoning = Reasoning(settings.rationale, settings.thought_tokens)
        self._settings = (*self._identity(), *self._thinking_id())
        self._told_malformed = False
        self.shows_thoughts = False  # a policy's, before its answers
        # A method that takes some shows them by `show_examples`; for one that takes none, whoever
        # names some is told so before (`config`).
        self.examples: Examples | None = None
        self.fingerprint = self.fingerprint_at(min_mass)

    def _identity(self) -> tuple[Any, ...]:
        """Those of its settings that can change a verdict, and that only some methods have."""
        return self.reasoning.settings_of_thoughts

    def show_examples(self, few_shot: FewShot) -> None:
        """Puts worked examples before each question, where the settings or the model ask for it."""
        self.examples = examples_for(few_shot, self.engine, self.template, self.worked)
        self.fingerprint = self.fingerprint_at(self.min_mass)

    def worked(self, example: Example) -> tuple[Rendered, str]:
        """A worked example as this judge would be asked it, and the option that is right."""
        raise NotImplementedError(f"{self.method} takes no worked examples")

    def after_examples(self, asked: Rendered) -> Rendered:
        """What is asked, after the worked examples, if there are any."""
        return asked if self.examples is None else self.examples.preamble.before(asked)

    def fingerprint_at(self, min_mass: float) -> str:
        """Everything that can change a verdict and is the same for all of them, of a judge that is
        like this one but for the threshold."""
        examples = [] if self.examples is None else [self.examples.preamble.hash]
        return content_id(
            self.method,
            self.engine.fingerprint,
            self.template.hash,
            min_mass,
            *self._settings,
            *examples,
        )

    # ---- thoughts

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before it decides."""
        return bool(self.reasoning.thinking)

    def _thinking_id(self) -> tuple[str, ...]:
        """How the model is told to think, or not to; empty where it is not told anything."""
        if self.reasoning.thinking is None:
            return ()
        if not self.thinks:
            return (thinking_id(self.engine, "off"),)
        return (thinking_id(self.engine, self._mode_of_thoughts()),)

    def _mode_of_thoughts(self) -> Mode:
        """How thoughts are sampled: by themselves, so that they can be closed at their budget."""
        return "open"

    def think(self, prompts: Sequence[Rendered]) -> list[list[Sample]]:
        """The thoughts before each prompt's cue, and the prompt after each of them.

        A thought that did not end within its budget is closed there: what it came to counts.
        """
        asked = [prompt.without_cue() for prompt in prompts]
        rows = self.engine.generate(asked, self.reasoning.thoughts())
        return [
            [_thought(prompt, generation) for generation in row]
            for prompt, row in zip(prompts, rows, strict=True)
        ]

    def prepared(self, prompts: Sequence[Rendered]) -> list[list[Sample]]:
        """The samples after which each prompt is scored: its thoughts, or one without any."""
        if self.thinks:
            return self.think(prompts)
        mode: Mode | None = None if self.reasoning.thinking is None else "off"
        return [[Sample(replace(prompt, thinking=mode))] for prompt in prompts]

    def score_samples(
        self, rows: Sequence[Sequence[Sample]], options: Sequence[Sequence[str]]
    ) -> list[list[Scores | None]]:
        """The scores after each sample of each row, whose options these are; None for a sample that
        cannot be scored."""
        usable = [
            (sample.prompt, choices)
            for row, choices in zip(rows, options, strict=True)
            for sample in row
            if sample.prompt is not None
        ]
        found = iter(self.score([p for p, _ in usable], [c for _, c in usable]))
        return [[None if s.prompt is None else next(found) for s in row] for row in rows]

    # ---- keys

    def key(self, ask: Ask) -> str:
        return self.key_by(self.fingerprint, ask, self.shows_thoughts)

    @staticmethod
    def key_by(fingerprint: str, ask: Ask, shows_thoughts: bool = False) -> str:
        """The key of a judge with this fingerprint: rows are found without loading its model."""
        principle, thoughts = ask.principle, ask.pair.thoughts if shows_thoughts else None
        more = () if thoughts is None else (content_id("thoughts", thoughts),)
        return verdict_key(
            fingerprint, ask.pair.id, ask.order, principle.id, principle.compare, *more
        )

    def shown(self, ask: Ask) -> tuple[str, str]:
        """The two completions as this judge reads them, in their order."""
        if not self.shows_thoughts or ask.pair.thoughts is None:
            return ask.shown
        first, second = map(_with_thought, ask.pair.thoughts, (ask.pair.first, ask.pair.second))
        return (first, second) if ask.order == "first_second" else (second, first)

    @abstractmethod
    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        """One verdict an ask, in their order."""

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """What the engine says of the options after each prompt, checked: every method reads its
        log-probabilities here, so that no engine's raw logits become a label."""
        rows = self.engine.score(prompts, options)
        found = [checked(s, len(o)) for s, o in zip(rows, options, strict=True)]
        self._tell_malformed(rows, found)
        if self.examples is not None:
            for prompt, scores in zip(prompts, found, strict=True):
                if scores.failure == "too_long":
                    self.examples.tell_too_long(prompt)
        return found

    def _tell_malformed(self, rows: Sequence[Scores], found: Sequence[Scores]) -> None:
        """Warns of the first values that cannot be log-probabilities."""
        if self._told_malformed:
            return
        for row, scores in zip(rows, found, strict=True):
            if scores.failure == "malformed":
                self._told_malformed = True
                why = f": {nonsense(row.logprobs)}" if row.logprobs else ""
                warnings.warn(
                    f"{self.name}: what the engine tells cannot be log-probabilities{why}. Such "
                    "verdicts abstain (malformed). An engine's `score` returns log-softmax values "
                    "over the whole vocabulary, not logits",
                    stacklevel=4,
                )
                return

    def about(self) -> dict[str, Any]:
        """What the manifest tells of a judge."""
        return {
            "fingerprint": self.fingerprint,
            "weights": weights_of(self.engine),
            "template": self.template_name,
            "template_hash": self.template.hash,
            "min_mass": self.min_mass,
            **({} if self.examples is None else {"examples": self.examples.about()}),
            "device": self.engine.device,
        }

    def verdict(self, ask: Ask, p_first: float, **facts: Any) -> Verdict:
        """The verdict that the pair's first completion is better with this probability."""
        return self._row(ask, p_first=p_first, **facts)

    def abstain(self, ask: Ask, reason: Reason, **facts: Any) -> Verdict:
        """The verdict that there is none, and why."""
        return self._row(ask, p_first=None, reason=reason, **facts)

    def _row(self, ask: Ask, **facts: Any) -> Verdict:
        return Verdict(
            key=self.key(ask),
            pair_id=ask.pair.id,
            principle=ask.principle.id,
            order=ask.order,
            judge=self.name,
            **facts,
        )

    def _needs_options(self, *counts: int) -> None:
        """Refuses a template with any other number of options."""
        found = len(self.template.options)
        if found not in counts:
            wanted = " or ".join({2: "two", 3: "three"}[n] for n in counts)
            raise ConfigError(
                f"{self.template_name}: a {self.method} template needs {wanted} options in its "
                f"front matter, such as `options: [A, B]`; it has {list(self.template.options)}"
            )


def _with_thought(thought: str, answer: str) -> str:
    """An answer with what a policy thought before it, as a judge reads the two."""
    return f"[thought]\n{thought}\n[end of thought]\n\n{answer}" if thought else answer


def _thought(prompt: Rendered, generation: Generation) -> Sample:
    """The sample that a thought makes."""
    cut = generation.finish_reason == "length"
    fault = None if cut else unusable(generation)
    told = generation.thought
    after = None if fault else prompt.after(Thought(told, generation.ids, cut))
    return Sample(after, fault, None, told, cut, generation.tokens)


def expand(
    pairs: Iterable[Pair],
    principles: Principles,
    orders: Sequence[Order] = ORDERS,
    *,
    together: bool = False,
) -> list[Ask]:
    """Every pair in every order under every principle.

    Principles vary fastest: asks that share a rendered pair stand together, which is what an engine
    needs to compute the pair once. With `together`, an ask knows all completions that its prompt
    has in pairs that stand side by side.
    """
    return [
        Ask(pair, principle, order, group)
        for pair, group in (grouped(pairs) if together else ((pair, ()) for pair in pairs))
        for asked in [principles(pair) if callable(principles) else principles]
        for order in orders
        for principle in asked
    ]


def grouped(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, tuple[str, ...]]]:
    """Each pair with all completions of its prompt, sorted: so that the order of pairs is none."""
    for same, group in by_prompt(pairs):
        for pair in same:
            yield pair, group


def by_prompt(pairs: Iterable[Pair]) -> Iterator[tuple[list[Pair], tuple[str, ...]]]:
    """Neighbouring pairs of one prompt, and all their completions, sorted."""
    for _, neighbours in groupby(pairs, key=lambda pair: pair.prompt.id):
        same = list(neighbours)
        yield same, tuple(sorted({text for pair in same for text in (pair.first, pair.second)}))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(−x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)
