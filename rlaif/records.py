"""The words of the project: what flows from a prompt to a preference.

Frozen, slotted dataclasses, because millions of them cross the process. Ids are hashes of content,
so the same text has the same id in every run and on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Order = Literal["first_second", "second_first"]
ORDERS: tuple[Order, Order] = ("first_second", "second_first")

# Why a judge could not tell. An abstention is stored and counted, never averaged, never guessed.
Reason = Literal[
    "too_long",
    "not_finite",
    "low_mass",
    "missing_label",
    "malformed",  # what the engine told cannot be log-probabilities
    "empty_response",
    "empty_prompt",
    "cut",  # a text of its own that a limit cut off
    "unparsable",  # a text of its own without a verdict
    "filtered",  # the provider refuses to answer
]


# Made once: `json.dumps` with options makes an encoder a call, which costs more than the encoding.
_to_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def content_id(*parts: Any) -> str:
    """A 20-digit hexadecimal SHA-256 prefix (80 bits) of the parts as canonical JSON."""
    text = _to_json(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def _kept_id() -> Any:
    """The slot of an id that is computed when first asked for: hot paths ask many times."""
    return field(default=None, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's next turn. `source` names where it was read."""

    messages: tuple[Message, ...]
    source: str = ""
    _id: str | None = _kept_id()

    @property
    def id(self) -> str:
        if self._id is None:
            kept = content_id("prompt", messages_to_json(self.messages))
            object.__setattr__(self, "_id", kept)
            return kept
        return self._id

    @classmethod
    def user(cls, text: str, source: str = "") -> Prompt:
        """A conversation of one user turn."""
        return cls((Message("user", text),), source)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. `index` counts the samples of a prompt under one policy."""

    key: str  # resume key: hashes everything that can change the text
    prompt_id: str
    policy: str
    index: int
    text: str
    finish_reason: str  # "stop" | "length" | "too_long" | "not_finite" | …: Generation's
    tokens: int  # generated tokens, the end-of-sequence token included
    ids: tuple[int, ...] = ()  # those tokens; empty where the engine did not tell
    thought: str = ""  # of a policy that thinks, before the answer, which `text` is

    @property
    def id(self) -> str:
        return content_id("completion", self.prompt_id, self.policy, self.index, self.text)


def mirrored(pair_id: str) -> str:
    """The id of the same pair with its completions exchanged."""
    return pair_id[1:] if pair_id.startswith("~") else "~" + pair_id


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt. `label` is a known P(first is better), e.g. a human's.

    `thoughts` are what a policy that thinks thought before the two, where it did.

    The id does not depend on which completion stands first, but for a leading `~`: so a pair and
    its mirror are recognised as one, and `verdict.swap()` can name the mirrored pair.
    """

    prompt: Prompt
    first: str
    second: str
    label: float | None = None
    source: str = ""
    thoughts: tuple[str, str] | None = None
    _id: str | None = _kept_id()

    @property
    def id(self) -> str:
        if self._id is None:
            low, high = sorted((self.first, self.second))
            base = content_id("pair", self.prompt.id, low, high)
            kept = base if self.first <= self.second else "~" + base
            object.__setattr__(self, "_id", kept)
            return kept
        return self._id

    def swap(self) -> Pair:
        """The same pair with the completions, and the label, exchanged. swap∘swap = identity."""
        label = None if self.label is None else 1.0 - self.label
        thoughts = None if self.thoughts is None else self.thoughts[::-1]
        return replace(self, first=self.second, second=self.first, label=label, thoughts=thoughts)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation and the answer to learn from it."""

    prompt: Prompt
    text: str

    @property
    def id(self) -> str:
        return content_id("demonstration", self.prompt.id, self.text)


@dataclass(frozen=True, slots=True)
class Verdict:
    """P(first ≻ second | pair, principle, order, judge): one judgement, never overwritten.

    `p_first` always speaks of the *pair's* first completion, whichever was shown first; `order`
    says which that was. It is None exactly when `reason` says why the judge abstained.
    `logprob_first`, `logprob_second` are the log-probabilities (nats) of the two option labels,
    `mass` the probability the judge gave to the offered labels together. `score_first`,
    `score_second` are the completions' own scores, from a judge that gives any; `rationales` what
    the judge wrote before it decided, `tokens` how many it decoded for that. `thoughts` are those
    of a judge that thinks, read by nobody for a verdict, and `thoughts_cut` how many of them were
    closed at their budget.
    """

    key: str  # resume key: hashes everything that can change the verdict
    pair_id: str
    principle: str
    order: Order
    judge: str
    p_first: float | None
    logprob_first: float | None = None
    logprob_second: float | None = None
    mass: float | None = None
    reason: Reason | None = None
    score_first: float | None = None
    score_second: float | None = None
    rationales: tuple[str, ...] = ()
    tokens: int = 0
    thoughts: tuple[str, ...] = ()
    thoughts_cut: int = 0

    def __post_init__(self) -> None:
        if (self.p_first is None) == (self.reason is None):
            raise ValueError("a verdict has either p_first or a reason to abstain, and not both")

    @property
    def abstained(self) -> bool:
        return self.reason is not None

    def swap(self) -> Verdict:
        """The same judgement, told of the mirrored pair. swap∘swap = identity."""
        other: Order = "second_first" if self.order == "first_second" else "first_second"
        return replace(
            self,
            pair_id=mirrored(self.pair_id),
            order=other,
            p_first=None if self.p_first is None else 1.0 - self.p_first,
            logprob_first=self.logprob_second,
            logprob_second=self.logprob_first,
            score_first=self.score_second,
            score_second=self.score_first,
        )


# Why nothing can be made of a text that a model wrote.
Unusable = Literal["too_long", "cut", "filtered", "malformed", "not_finite"]
# Why a round of revision came to nothing: the response stays as it was.
RevisionReason = Literal[Unusable, "empty"]


@dataclass(frozen=True, slots=True)
class Revision:
    """One round of critique → revision: what it started from, and every step.

    `revision` is None exactly when `reason` says what failed. `sample` is the first response's
    index among its prompt's, `round` counts from 1, `tokens` are those decoded.
    """

    key: str  # resume key: hashes everything that can change the texts
    prompt: Prompt
    policy: str
    sample: int
    round: int
    principle: str
    response: str
    critique: str
    revision: str | None
    reason: RevisionReason | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if (self.revision is None) == (self.reason is None):
            raise ValueError("a round has either a revision or a reason for none, and not both")


PreferenceStatus = Literal["preferred", "tie", "abstained"]
# Why a pair has no label: the reason that most of its verdicts abstained for; fewer of a jury than
# its quorum could tell; or it has not been judged in every order.
PreferenceReason = Reason | Literal["quorum", "unjudged"]


@dataclass(frozen=True, slots=True)
class Preference:
    """A pair with its aggregated soft label.

    `p_first` is None exactly when every principle abstained or was masked; `p_raw` is what it was
    before a temperature (`preferences.temperature`), None where there was none. Only `preferred`
    rows have a chosen and a rejected completion; a tie never pretends to. `reason` says why an
    `abstained` row has no label. `people` is the share of people's votes for the first, where they
    had a word in the label (`preferences.people`), else None; then `status_judged` and `p_judged`
    are the label of the verdicts alone.
    """

    pair: Pair
    status: PreferenceStatus
    p_first: float | None
    principles: tuple[str, ...] = ()  # those that counted
    p_principles: tuple[float, ...] = ()
    verdicts: int = 0
    abstained: int = 0
    reason: PreferenceReason | None = None
    p_raw: float | None = None
    people: float | None = None
    status_judged: PreferenceStatus | None = None
    p_judged: float | None = None

    @property
    def by_verdicts(self) -> tuple[PreferenceStatus, float | None]:
        """The status and P(first is better) of the verdicts, without people's word."""
        if self.status_judged is None:
            return self.status, self.p_first
        return self.status_judged, self.p_judged

    @property
    def first_is_chosen(self) -> bool:
        if self.status != "preferred" or self.p_first is None:
            raise ValueError(f"pair {self.pair.id} is a {self.status}: it has no chosen completion")
        return self.p_first > 0.5

    @property
    def chosen(self) -> str:
        return self.pair.first if self.first_is_chosen else self.pair.second

    @property
    def rejected(self) -> str:
        return self.pair.second if self.first_is_chosen else self.pair.first

    def swap(self) -> Preference:
        """The same label, told of the mirrored pair. swap∘swap = identity, up to rounding."""
        told = ("p_first", "p_raw", "people", "p_judged")
        known = {name: p for name in told if (p := getattr(self, name)) is not None}
        return replace(
            self,
            pair=self.pair.swap(),
            p_principles=tuple(1.0 - p for p in self.p_principles),
            **{name: 1.0 - p for name, p in known.items()},
        )

    @property
    def p_chosen(self) -> float:
        """The soft label seen from the chosen completion: in (0.5, 1]."""
        p = self.p_first if self.first_is_chosen else None
        return p if p is not None else 1.0 - float(self.p_first or 0.0)


def messages_to_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The chat form that Transformers, TRL and every API read."""
    return [{"role": m.role, "content": m.content} for m in messages]
