"""What an engine is: two batch verbs, and a few facts about itself.

`generate` writes completions, `score` returns the log-probability of each option after each prompt.
Scoring decodes nothing: a label is a prefill. Both take the whole batch at once, so that an engine
may share the prefixes of its prompts, and both return results in the order of the requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from rlaif.errors import ConfigError, nearest, require_finite_fields
from rlaif.records import content_id
from rlaif.templates import Rendered

Failure = Literal["too_long", "not_finite", "missing_label"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Everything here can change the text, so all of it is in the resume key."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if "" in self.stop:
            raise ConfigError("stop holds an empty string, which would end every completion")
        if self.n < 1 or self.max_new_tokens < 1:
            raise ConfigError(f"n and max_new_tokens must be at least 1, got {self}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"temperature must be ≥ 0 and top_p in (0, 1], got {self}")


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion. `finish_reason`: "stop" (end token or stop string), "length", "too_long".

    `ids` are all tokens sampled, those of the end included, where the engine knows them: a text
    does not tell which tokens it was.
    """

    text: str
    finish_reason: str
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (nats) of the options after one prompt, and their total probability.

    `failure` is set instead when the prompt does not fit the context, a value is not finite, or a
    server does not tell an option's probability (`missing_label`).
    """

    logprobs: tuple[float, ...]
    failure: Failure | None = None

    @property
    def mass(self) -> float:
        """Probability that the model goes on with one of the options."""
        return math.fsum(math.exp(x) for x in self.logprobs)


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


ScoreFunction = Callable[[str, Sequence[str]], Sequence[float]]
GenerateFunction = Callable[[str, int], str]


def transcript(prompt: Rendered) -> str:
    """A prompt as plain text, for scripted engines and messages to people."""
    return "\n".join(f"{m.role}: {m.text}" for m in prompt.messages)


@dataclass
class ScriptedEngine:
    """An engine whose answers a test decides, by functions of the prompt's text.

    `scorer(text, options)` returns log-probabilities; `generator(text, sample_index)` a completion.
    A prompt longer than `max_length` words fails as `too_long`, as a real engine's would.
    """

    scorer: ScoreFunction | None = None
    generator: GenerateFunction | None = None
    name: str = "scripted"
    max_length: int = 1_000_000
    device: str = "cpu"
    usage: Usage = field(default_factory=Usage)
    templates: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_id("scripted", self.name)

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        if self.generator is None:
            raise ConfigError("this scripted engine was given no generator")
        out = []
        for prompt in prompts:
            texts = [self.generator(transcript(prompt), i) for i in range(sampling.n)]
            out.append([Generation(t, "stop", len(t.split()) + 1) for t in texts])
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
            values = tuple(float(x) for x in self.scorer(text, choices))
            finite = all(math.isfinite(x) for x in values)
            out.append(Scores(values) if finite else Scores((), "not_finite"))
        return out

    def close(self) -> None:
        pass


ENGINES = ("hf", "http", "vllm")


def load_engine(model: str, engine: str = "hf", **options: Any) -> Engine:
    """Loads a model: `tiny` (embedded), a folder, or a Hugging Face name.

    Options of `hf`: `device` ("auto", "cpu", "cuda"), `dtype` ("auto", "float32", "bfloat16",
    "float16"), `batch_tokens` (padded tokens a forward pass), `adapter` (a LoRA folder).

    `http` takes the name a server gives to the model; its options are those of `HTTPEngine`, such
    as `base_url`.

    `vllm` takes the options of `hf` and those of `VLLMEngine`, such as `tensor_parallel_size`.
    """
    if engine == "hf":
        from rlaif.engines.hf import HFEngine

        return HFEngine(model, **options)
    if engine == "http":
        from rlaif.engines.http import HTTPEngine

        return HTTPEngine(model, **options)
    if engine == "vllm":
        from rlaif.engines.vllm import VLLMEngine

        return VLLMEngine(model, **options)
    raise ConfigError(f"unknown engine '{engine}'.{nearest(engine, ENGINES)}")
