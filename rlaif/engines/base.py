"""What an engine is: two batch verbs, and a few facts about itself.

`generate` writes completions, `score` returns the log-probability of each option after each prompt.
Scoring decodes nothing: a label is a prefill. Both take the whole batch at once, so that an engine
may share the prefixes of its prompts, and both return results in the order of the requests.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from pydantic import Field, model_validator

from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError, EngineError
from rlaif.files.settings import Section, Seed
from rlaif.files.templates import Rendered
from rlaif.records import content_id

Failure = Literal["too_long", "not_finite", "missing_label", "malformed"]
ROUNDING = 1e-6  # nats by which rounding may lift a log-probability above 0
MOST_MASS = 1.01  # what rounding may make of probabilities that sum to 1


class SamplingSettings(Section):
    """How completions are sampled."""

    n: int = Field(default=2, ge=1)
    """Completions a prompt. All pairs of different ones are judged."""
    temperature: float = Field(default=1.0, ge=0)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with at least this probability."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest completion in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of it."""
    seed: Seed = 7
    """A fixed seed gives the same text whatever the batch, but where rounding tips a token."""


class Sampling(SamplingSettings):
    """How to sample, as an engine takes it. Everything here can change the text, so all of it is in
    the resume key.

    With a thought, `max_new_tokens` may be 0: then the thought alone is sampled, and ends where the
    model ends it.
    """

    max_new_tokens: int = Field(default=256, ge=0)
    """Longest completion in tokens; 0 only with a thought."""
    seed: int = Field(default=7, ge=0)
    """As in a config; an online trainer derives one for each step, of up to 60 bits."""
    thinking: int | None = Field(default=None, ge=0)
    """Tokens that a thought before the answer may have, on top of `max_new_tokens`; 0 keeps the
    model from thinking, None leaves that to its chat template."""

    @model_validator(mode="after")
    def _some_token(self) -> Self:
        if not self.max_new_tokens and not self.thinking:
            raise ValueError("max_new_tokens must be at least 1 where no thought is sampled, got 0")
        return self

    @property
    def limit(self) -> int:
        """Most tokens of a completion, its thought included."""
        return self.max_new_tokens + (self.thinking or 0)

    @property
    def mode(self) -> Mode | None:
        """How prompts are rendered: a thought that is sampled alone is begun for the model."""
        if self.thinking is None:
            return None
        return "off" if not self.thinking else "on" if self.max_new_tokens else "open"

    def asking(self, prompts: Sequence[Rendered]) -> list[Rendered]:
        """The prompts as they are rendered for this sampling; one that says so itself stays."""
        if self.mode is None:
            return list(prompts)
        return [p if p.thought or p.thinking else Rendered(p.messages, self.mode) for p in prompts]

    def settings(self) -> dict[str, Any]:
        """All of it, as keys and manifests take it: `thinking` only where it is set, so that rows
        from before there was any keep their keys."""
        return {k: v for k, v in self.model_dump().items() if k != "thinking" or v is not None}


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion. `finish_reason`: "stop" (end token or stop string), "length", "too_long",
    or "not_finite" where the model's logits were no numbers; the text is then empty.

    `ids` are all tokens sampled, those of the end included, where the engine knows them: a text
    does not tell which tokens it was.

    A text that is none, because it has half a character (a lone surrogate) that no file can hold,
    becomes an empty one of finish reason "malformed": it costs its own row, not the chunk.

    `thought` is what a model that thinks said before its answer, which `text` is. One that did not
    come to an answer has an empty text. Of a thought sampled alone `ids` are the thought's own.
    """

    text: str
    finish_reason: str
    tokens: int
    ids: tuple[int, ...] = ()
    thought: str = ""

    def __post_init__(self) -> None:
        if not all(map(is_text, (self.text, self.finish_reason, self.thought))):
            object.__setattr__(self, "text", "")
            object.__setattr__(self, "thought", "")
            object.__setattr__(self, "finish_reason", "malformed")


def is_text(text: str) -> bool:
    """Whether UTF-8 can write it: a lone surrogate, as JSON may have it, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def weights_of(engine: Any) -> str:
    """Hash of an engine's model alone: the same however it is run, where the engine tells it."""
    weights = getattr(engine, "weights", None)
    return str(engine.fingerprint if weights is None else weights)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (nats) of the options after one prompt, and their total probability.

    `failure` is set instead when the prompt does not fit the context, a value is not finite, a
    server does not tell an option's probability (`missing_label`), or the values cannot be
    log-probabilities (`malformed`).
    """

    logprobs: tuple[float, ...]
    failure: Failure | None = None

    @property
    def mass(self) -> float:
        """Probability that the model goes on with one of the options."""
        return math.fsum(math.exp(x) for x in self.logprobs)


def number(value: object) -> float | None:
    """A real number as a float, however long; None for anything else, a boolean too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:  # 10**400, as JSON may have it
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def nonsense(logprobs: Iterable[object]) -> str | None:
    """Why these cannot be log-probabilities of events that exclude one another; None if they can.

    Raw logits are the usual reason: their softmax looks like a label and means nothing. Values that
    are not finite are another fault, and no concern of this function.
    """
    total = 0.0
    for given in logprobs:
        value = number(given)
        if value is None:
            return f"{given!r} is no number"
        if value > ROUNDING and value < math.inf:
            return f"{value:g} is above 0, as no log-probability is"
        total += math.exp(min(value, 0.0)) if value < math.inf else 0.0
    return f"the probabilities sum to {total:.4g}" if total > MOST_MASS else None


def checked(scores: Scores, options: int) -> Scores:
    """What an engine says of a number of options, if it can be so; else why it cannot.

    EngineError when it speaks of another number of options.
    """
    if scores.failure is not None:
        return scores
    if len(scores.logprobs) != options:
        raise EngineError(
            f"an engine told {len(scores.logprobs)} log-probabilities of {options} options: "
            "`score` owes one for each, in their order"
        )
    values = [number(x) for x in scores.logprobs]
    if any(value is not None and not math.isfinite(value) for value in values):
        return Scores((), "not_finite")
    if nonsense(scores.logprobs) is not None:
        return Scores((), "malformed")
    return Scores(tuple(min(value, 0.0) for value in values if value is not None))


@dataclass(slots=True)
class Usage:
    """Tokens since the engine was made: as submitted, as computed, and as decoded.

    `bound_tokens` is the fewest that scoring could have computed: the distinct prefixes of each
    call's requests, but for what the first shares with the end of the call before; 0
    where an engine cannot know it.

    `cost` is money, in the currency of the prices given to an engine that is paid for.
    """

    requests: int = 0
    submitted_tokens: int = 0
    computed_tokens: int = 0
    bound_tokens: int = 0
    generated_tokens: int = 0
    cost: float = 0.0

    def snapshot(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


@runtime_checkable
class Engine(Protocol):
    """One model, ready to generate and to score."""

    name: str
    max_length: int  # tokens of context
    device: str
    usage: Usage
    templates: dict[str, str]  # the model's own prompt templates by judge method, often empty

    @property
    def fingerprint(self) -> str:
        """Hash of weights, config, tokenizer and chat template: part of resume keys."""
        ...

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        """`sampling.n` completions of each prompt, in the order of the prompts.

        Sample i of a prompt depends on the prompt, the seed and i only: on the batch at most by
        the rounding of its numbers.
        """
        ...

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """Log P(option | prompt) of each option, options of several tokens included.

        Options exclude one another: where one's tokens begin another's, it does not count it.
        """
        ...

    def close(self) -> None:
        """Frees the model. The engine cannot be used afterwards."""
        ...


@runtime_checkable
class Thinker(Protocol):
    """An engine whose model can be told to think, or not to.

    `closes_thoughts`: it can sample a thought alone, and go on after it (`Rendered.thought`).
    """

    closes_thoughts: bool

    def thinking_id(self, mode: Mode) -> str:
        """A hash of how that is told: part of the keys of rows sampled so. EngineError where the
        model cannot."""
        ...


def closes_thoughts(engine: Engine) -> bool:
    """Whether an engine can end a thought at its budget and go on from there: a server cannot."""
    return isinstance(engine, Thinker) and engine.closes_thoughts


def thinking_id(engine: Engine, mode: Mode) -> str:
    """The engine's `thinking_id`; ConfigError for an engine that has none, or that cannot close a
    thought that is to be sampled alone (`open`)."""
    if mode == "open" and isinstance(engine, Thinker) and not engine.closes_thoughts:
        raise ConfigError(
            f"{engine.name}: a server cannot be made to end a thought at its budget and tell the "
            "labels' probabilities after it: with `thinking`, set the judge's method to `text`, "
            "or run the model on engine hf or vllm"
        )
    if not isinstance(engine, Thinker):
        raise ConfigError(
            f"{engine.name}: this engine cannot tell its model to think or not to (it has no "
            "`thinking_id`): set `thinking` to null"
        )
    return engine.thinking_id(mode)


class Watched:
    """An engine whose calls `tell` how far they are and may be broken off there by an exception.

    Its rows depend on their batch in the last bits, so that it is given the same batches again.
    """


_Listener = Callable[[float], None]
_listener: ContextVar[_Listener | None] = ContextVar("rlaif_listener", default=None)


def tell(share: float) -> None:
    """Says how much of the call in progress is done, from 0 to 1, to whoever hears it.

    For an engine whose calls may take long. What is told is shown to people and decides nothing.
    """
    listener()(share)


def listener() -> Callable[[float], None]:
    """The one who hears `tell` now; without one, it does nothing."""
    return _listener.get() or (lambda _: None)


@contextmanager
def hear(listener: Callable[[float], None]) -> Iterator[None]:
    """Gives what is told inside to `listener`, which may tell it on to who heard before."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


ScoreFunction = Callable[[str, Sequence[str]], Sequence[float]]
GenerateFunction = Callable[[str, int], str]


def transcript(prompt: Rendered) -> str:
    """A prompt as plain text, for scripted engines and messages to people."""
    return "\n".join(f"{m.role}: {m.text}" for m in prompt.messages)


@dataclass
class ScriptedEngine:
    """An engine whose answers a test decides, by functions of the prompt's text.

    `scorer(text, options)` returns log-probabilities; `generator(text, sample_index)` a completion.
    A prompt longer than `max_length` words fails as `too_long`, as a real engine's would. Asked for
    thoughts alone, `generator` makes those.
    """

    scorer: ScoreFunction | None = None
    generator: GenerateFunction | None = None
    name: str = "scripted"
    max_length: int = 1_000_000
    device: str = "cpu"
    usage: Usage = field(default_factory=Usage)
    templates: dict[str, str] = field(default_factory=dict)
    closes_thoughts: bool = True

    @property
    def fingerprint(self) -> str:
        return content_id("scripted", self.name)

    def thinking_id(self, mode: Mode) -> str:
        return mode

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        if self.generator is None:
            raise ConfigError("this scripted engine was given no generator")
        out = []
        for prompt in prompts:
            texts = [self.generator(transcript(prompt), i) for i in range(sampling.n)]
            alone = sampling.mode == "open"
            out.append(
                [
                    Generation("" if alone else t, "stop", len(t.split()) + 1, thought=t * alone)
                    for t in texts
                ]
            )
        return out

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        if self.scorer is None:
            raise ConfigError("this scripted engine was given no scorer")
        out = []
        for prompt, choices in zip(prompts, options, strict=True):
            text = transcript(prompt)
            self.usage.requests += 1
            self.usage.submitted_tokens += len(text.split())
            if len(text.split()) > self.max_length:
                out.append(Scores((), "too_long"))
                continue
            out.append(Scores(tuple(self.scorer(text, choices))))
        return out

    def close(self) -> None:
        pass
