"""What judging would cost, counted before it is done: requests, tokens, and how fast they would go.

The judge is asked as it would be, over an engine that counts the tokens of each prompt and computes
nothing. Where it writes nothing before its labels, requests and tokens are exactly those that the
run then submits; what it would write is known by its limit only.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlaif.engines.base import Engine, Generation, Sampling, Scores, Thinker, Usage, weights_of
from rlaif.engines.thinking import Mode
from rlaif.engines.trie import build, common_prefix
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, Judge, Principles
from rlaif.records import Order, Pair, Verdict
from rlaif.steps.executors import asks_by_key, judging_chunks

BYTES_A_TOKEN = 4.0  # of a server's tokenizer, which is not here
SAMPLE_SECONDS = 5.0  # of a timed sample, after one batch that warms up
_SAMPLE_PAIRS = 64  # kept to be sampled from


class CountingEngine:
    """An engine that counts what it is asked and answers without a model.

    Its labels are all equally probable, and its texts empty. `exact`: the tokens are those of the
    engine's own tokenizer; a server's are told from the length of the texts. `written` says whether
    it was asked to write; then `usage.generated_tokens` is the most that it may write, and each
    prompt that is asked about a written text counts with the longest that this can be.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.max_length, self.device = engine.name, engine.max_length, engine.device
        self.templates, self.fingerprint = engine.templates, engine.fingerprint
        self.weights = weights_of(engine)
        self.usage = Usage()
        self.encoder: Any = getattr(engine, "encoder", None)
        self.written = 0  # tokens at most of the text that was asked for last
        self._last_path: Any = np.zeros(0, np.int32)

    @property
    def exact(self) -> bool:
        """Whether the tokens are counted, and none of them is yet to be written."""
        return self.encoder is not None and not self.written

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """Counts the prompts; every option is as probable as the others."""
        self.usage.requests += len(prompts)
        paths, out = list[Any](), list[Scores]()
        for prompt, choices in zip(prompts, options, strict=True):
            length = self._tokens(prompt) + self.written
            self.usage.submitted_tokens += length
            too_long = False
            if self.encoder is not None:
                encoded = self.encoder.options(choices)
                too_long = length + max(map(len, encoded), default=0) > self.max_length
                if not too_long:
                    ids = self.encoder.prompt(prompt)
                    paths += [np.concatenate([ids, option[:-1]]) for option in encoded]
            even = tuple([-math.log(len(choices))] * len(choices))
            out.append(Scores((), "too_long") if too_long else Scores(even))
        self._count_bound(paths)
        return out

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        """Counts the prompts and the most tokens that may be written after them."""
        self.usage.requests += len(prompts)
        self.usage.submitted_tokens += sum(map(self._tokens, sampling.asking(prompts)))
        self.usage.generated_tokens += len(prompts) * sampling.n * sampling.limit
        self.written = sampling.limit
        nothing = Generation("", "stop", 0, thought="")
        return [[nothing] * sampling.n for _ in prompts]

    def close(self) -> None:
        self.engine.close()

    def _tokens(self, prompt: Rendered) -> int:
        if self.encoder is not None:
            return len(self.encoder.prompt(prompt))
        return round(sum(len(m.text.encode()) for m in prompt.messages) / BYTES_A_TOKEN)

    def _count_bound(self, paths: Sequence[Any]) -> None:
        """The distinct prefixes of a call, but for what its first shares with the call before."""
        distinct = list({path.tobytes(): path for path in paths}.values())
        if distinct:
            trie = build(distinct)
            self.usage.bound_tokens += len(trie) - common_prefix(trie.first_way(), self._last_path)
            self._last_path = trie.path_to(len(trie) - 1)


class CountingThinker(CountingEngine):
    """The same of an engine whose model can be told to think, or not to."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.closes_thoughts: bool = engine.closes_thoughts

    def thinking_id(self, mode: Mode) -> str:
        """The engine's own."""
        found: Thinker = self.engine  # type: ignore[assignment]
        return found.thinking_id(mode)


def counting(engine: Engine) -> CountingEngine:
    """An engine that counts what this one would be asked."""
    return CountingThinker(engine) if isinstance(engine, Thinker) else CountingEngine(engine)


@dataclass
class Forecast:
    """What one judge would be asked of some pairs: verdicts in all, those stored, those missing by
    principle, and what the missing ones come to. `sample` are some of the asks that are missing."""

    verdicts: int = 0
    known: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    exact: bool = True
    sample: list[Ask] = field(default_factory=list)


def foretell(
    pairs: Iterable[Pair],
    judge: Judge,
    engine: CountingEngine,
    principles: Principles,
    find: Callable[[Sequence[str]], Mapping[str, Verdict]],
    *,
    orders: Sequence[Order],
    chunk: int,
    on_pairs: Callable[[int], None] = lambda _: None,
) -> Forecast:
    """What `judge`, made with `engine`, would be asked: in the chunks in which it would be, as what
    requests share depends on them. `find` finds the verdicts that are stored."""
    found, done, sampled = Forecast(usage=engine.usage), 0, 0
    for part in judging_chunks(pairs, chunk, together=judge.together):
        asks = asks_by_key(part, judge, principles, orders)
        known = find(list(asks))
        todo = [ask for key, ask in asks.items() if key not in known]
        found.verdicts += len(asks)
        found.known += len(asks) - len(todo)
        found.missing.update(ask.principle.id for ask in todo)
        if todo:
            judge.judge(todo)
        if sampled < _SAMPLE_PAIRS:
            found.sample += todo
            sampled += len({ask.pair.id for ask in todo})
        done += len(part)
        on_pairs(done)
    found.exact = engine.exact
    return found


@dataclass(frozen=True, slots=True)
class Rate:
    """Work that took some seconds, and what an engine's `Usage` counted of it."""

    seconds: float
    usage: Mapping[str, float]

    def seconds_of(self, usage: Usage, *, exact: bool) -> float | None:
        """How long other work takes at this rate: by the tokens that have to be computed where
        they are known, else by requests. None where there is nothing to compare."""
        for name in ("bound_tokens", "submitted_tokens", "requests")[0 if exact else 2 :]:
            if self.usage.get(name) and getattr(usage, name):
                return float(self.seconds * getattr(usage, name) / self.usage[name])
        return None


def rate_of_a_sample(
    judge: Judge, engine: Engine, asks: Sequence[Ask], seconds: float = SAMPLE_SECONDS
) -> Rate | None:
    """The rate of a real judge on some asks, until this many seconds have passed: the first batch
    warms up and is not timed. None without an ask. Nothing is stored."""
    batches = _by_pairs(asks)
    if not batches:
        return None
    judge.judge(batches[0])
    before, start = engine.usage.snapshot(), time.perf_counter()
    for batch in batches[1:] or batches:
        judge.judge(batch)
        if time.perf_counter() - start >= seconds:
            break
    passed, after = time.perf_counter() - start, engine.usage.snapshot()
    return Rate(passed, {name: after[name] - before[name] for name in after})


def _by_pairs(asks: Sequence[Ask], most: int = 8) -> list[list[Ask]]:
    """The asks in batches of a few pairs; a prompt's pairs stay together."""
    batches: list[list[Ask]] = []
    seen: set[str] = set()
    for ask in asks:
        new = ask.pair.id not in seen
        if not batches or (new and len({a.pair.id for a in batches[-1]}) >= most):
            batches.append([])
        seen.add(ask.pair.id)
        batches[-1].append(ask)
    return batches
