"""Worked examples in front of what a judge is asked, for models that only go on with text.

A base model without a chat template does not know what "Answer with A or B" asks of it; after some
comparisons with their answers it does (Brown et al. 2020). The judge's own template writes them,
each as a question of the user's and an answer of the assistant's, so any template will do. They are
the same for everything that a judge is asked, and stand first: an engine computes them once.

Such a model leans to the answer that its examples give most often, and to the last one (Zhao et al.
2021). So half of them have the better response first, which ones and in which order being drawn:
an example's two responses may be shown either way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from rlaif.engines.base import Engine
from rlaif.errors import ConfigError
from rlaif.files.readers.examples import Example, read_examples
from rlaif.files.resources import find
from rlaif.files.templates import Rendered, RenderedMessage, Segment, Template
from rlaif.judges.settings import FewShot
from rlaif.records import content_id

SHIPPED = "examples/default"
SHOTS = 4  # of the shipped examples, or of a file that has as many
SHARE = 4  # of a small context, `auto` takes at most one part in so many
Worked = Callable[[Example], tuple[Rendered, str]]


def drawn(few_shot: FewShot) -> tuple[Example, ...]:
    """The examples, drawn, in the order and the way round in which they are shown."""
    name = SHIPPED if few_shot.auto or few_shot.examples is None else few_shot.examples
    known = read_examples(find("prompts", name, ".yaml"))
    shots = min(SHOTS, len(known)) if few_shot.shots is None else few_shot.shots
    if shots > len(known):
        raise ConfigError(
            f"judge.shots={shots} asks for more worked examples than {name} has "
            f"({len(known)}): write more, or ask for fewer"
        )
    return draw(known, shots, few_shot.examples_seed)


def draw(examples: Sequence[Example], shots: int, seed: int) -> tuple[Example, ...]:
    """So many of the examples, in random order; half have the better response first.

    The draw depends on what the examples say and on the seed, not on their order in a file.
    """

    def chance(*of: Any) -> str:
        return content_id("examples", seed, *of)

    def key(example: Example) -> str:
        plain = example.shown(True).pair
        return chance(plain.prompt.id, plain.first, plain.second, example.compare)

    drawn = sorted(examples, key=key)[:shots]
    places = sorted(range(shots), key=lambda i: chance("place", i))
    odd = int(chance("odd"), 16) % 2  # which answer there is one more of, if the number is odd
    first = set(places[: (shots + odd) // 2])
    return tuple(example.shown(i in first) for i, example in enumerate(drawn))


class Preamble:
    """Worked examples, written as turns of a conversation that go before each question."""

    def __init__(self, worked: Sequence[tuple[Rendered, str]]) -> None:
        asked = [rendered.messages for rendered, _ in worked]
        heads = {messages[0] for messages in asked}
        head = next(iter(heads))
        # A system message that is the same in all is said once; any other goes with its question.
        fixed = head.role == "system" and len(heads) == 1 and not _has_data(head)
        self._head = (head,) if fixed else ()
        turns = [t for (r, answer) in worked for t in _answered(self._question(r), answer)]
        self.messages = (*self._head, *turns)

    def before(self, asked: Rendered) -> Rendered:
        """What is asked, after the examples."""
        return Rendered((*self.messages, *self._question(asked)))

    def _question(self, asked: Rendered) -> tuple[RenderedMessage, ...]:
        first, *rest = asked.messages
        if first.role != "system":
            return asked.messages
        if (first,) == self._head:
            return tuple(rest)
        if not rest or rest[0].role != "user":
            return (RenderedMessage("user", first.segments), *rest)
        joined = (*first.segments, Segment("\n\n", False), *rest[0].segments)
        return (RenderedMessage("user", joined), *rest[1:])

    @cached_property
    def hash(self) -> str:
        """Of the examples as they are written."""
        return content_id([(m.role, [(s.text, s.data) for s in m.segments]) for m in self.messages])


def _has_data(message: RenderedMessage) -> bool:
    return any(segment.data for segment in message.segments)


def _answered(question: tuple[RenderedMessage, ...], answer: str) -> tuple[RenderedMessage, ...]:
    """A question with the answer in the place where the judge is to give its own."""
    said = Segment(answer, False)
    if question[-1].role != "assistant":
        return (*question, RenderedMessage("assistant", (said,)))
    cue = question[-1].segments
    return (*question[:-1], RenderedMessage("assistant", (*cue, said)))


def is_base(engine: Engine) -> bool:
    """Whether a model has neither a chat template nor judge templates of its own."""
    encoder = getattr(engine, "encoder", None)
    return bool(getattr(encoder, "transcript", False)) and not engine.templates


class Examples:
    """The worked examples that a judge shows: the preamble, and what is to be told of it."""

    def __init__(self, few_shot: FewShot, engine: Engine, worked: Worked) -> None:
        self.engine, self.few_shot = engine, few_shot
        self._encoder = getattr(engine, "encoder", None)
        self._told = False
        examples = drawn(few_shot)
        self.count = len(examples)
        self.preamble = Preamble([worked(e) for e in examples])
        self._sample = worked(examples[0])[0]
        self.tokens = self._tokens()

    def _tokens(self) -> int | None:
        """How many tokens the examples are; None where the engine does not know its tokens."""
        if self._encoder is None:
            return None
        asked = len(self._encoder.prompt(self._sample))
        return len(self._encoder.prompt(self.preamble.before(self._sample))) - asked

    def about(self) -> dict[str, Any]:
        """What the manifest tells."""
        name = SHIPPED if self.few_shot.auto else self.few_shot.examples
        return {
            "from": name,
            "shots": self.count,
            "seed": self.few_shot.examples_seed,
            "hash": self.preamble.hash,
            "tokens": self.tokens,
        }

    def tell_too_long(self, asked: Rendered) -> None:
        """Warns, once, where a question is too long for the context because of the examples."""
        room = self.engine.max_length
        if self._told or self._encoder is None or self.tokens is None:
            return
        whole = len(self._encoder.prompt(asked))
        if whole - self.tokens < room <= whole + 1:
            self._told = True
            warnings.warn(
                f"{self.engine.name}: a question of {whole:,} tokens does not fit the context of "
                f"{room:,}, and {self.tokens:,} of them are its {self.count} worked examples: such "
                "verdicts abstain (too_long). Draw fewer (judge.shots), or give shorter ones "
                "(judge.examples)",
                stacklevel=5,
            )


def examples_for(
    few_shot: FewShot, engine: Engine, template: Template, worked: Worked
) -> Examples | None:
    """The worked examples of a judge; None where it shows none.

    ConfigError where the user asks for some and they cannot be shown.
    """
    if few_shot.examples == "none" or (few_shot.auto and not is_base(engine)):
        return None
    if template.has_turns:
        if few_shot.auto:
            return None
        raise ConfigError(
            f"{template.name} has worked examples of its own, and judge.examples names others: set "
            "judge.examples to none, or give a template without"
        )
    made = Examples(few_shot, engine, worked)
    return _that_fits_auto(made, worked) if few_shot.auto else _that_fits(made)


def _that_fits(made: Examples) -> Examples:
    room, tokens = made.engine.max_length, made.tokens
    if tokens is not None and tokens >= room:
        raise ConfigError(
            f"{made.engine.name}: the {made.count} worked examples are {tokens:,} tokens, and its "
            f"context holds {room:,}: draw fewer (judge.shots), or give shorter ones "
            "(judge.examples)"
        )
    return made


def _that_fits_auto(made: Examples, worked: Worked) -> Examples | None:
    """Fewer of the shipped examples where the context is small, if nobody said how many."""
    few_shot, engine, room = made.few_shot, made.engine, made.engine.max_length // SHARE
    if few_shot.shots is not None:
        return _that_fits(made)
    wanted, count = made.count, made.count
    best: Examples | None = made
    while best is not None and (best.tokens or 0) > room:
        count -= 2  # as many of each answer
        best = Examples(few_shot.but(shots=count), engine, worked) if count > 0 else None
    if count < wanted:
        warnings.warn(
            f"{engine.name} has no chat template, and {wanted} worked examples would take more "
            f"than 1/{SHARE} of its context of {engine.max_length:,} tokens: "
            f"{max(count, 0) or 'none'} are shown. Set judge.shots, or judge.examples to none",
            stacklevel=5,
        )
    return best
