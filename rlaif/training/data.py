"""Preferences as token ids, and the plan of who is trained on when.

The plan is a pure function of lengths, seed and step size: which pairs a step holds does not depend
on how the step is cut into micro-batches or shared among processes. That makes a resumed run equal
to an uninterrupted one, and a run on two processes equal to a run on one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from rlaif.engines.thinking import Mode
from rlaif.engines.tokens import Encoder, Ids
from rlaif.engines.trie import Ints
from rlaif.errors import TrainingError
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.records import Pair, Preference, Prompt, content_id

# Why a row cannot be trained on. Rows are refused by name and counted, never cut.
Refusal = Literal["too_long", "empty_response", "empty_prompt", "identical", "cut"]
Cut = Collection[tuple[str, str]]  # (prompt id, text) of completions that had no end
# The tokens that completions were sampled as, by (prompt id, text); see `Completion.ids`.
Sampled = Mapping[tuple[str, str], Sequence[int]]

_STOPS = 64  # tokens that a stop string may stand in
_CHUNK = 8  # steps that are sorted by length together: less padding, still a fresh mix every epoch


@dataclass(frozen=True, slots=True)
class Samples:
    """How completions were sampled, where that is known: which of them a length limit cut off, and
    the tokens that they were."""

    cut: Cut = ()
    tokens: Sampled = field(default_factory=dict)

    def key(self) -> list[Any]:
        """What a trainer's resume key takes of it."""
        known = sorted((*name, list(ids)) for name, ids in self.tokens.items())
        return [sorted(self.cut), *([content_id("sampled", known)] if known else [])]


class Trainable(Protocol):
    """What a step of training is made of."""

    @property
    def length(self) -> int:
        """Tokens to compute for it."""
        ...

    @property
    def weight(self) -> float:
        """What its loss counts for in the mean of a step."""
        ...


class OfAPair(Protocol):
    """What is known of a pair: a preference, a question to a judge."""

    @property
    def pair(self) -> Pair: ...


R = TypeVar("R", bound=Trainable)
P = TypeVar("P", bound=OfAPair)


@dataclass(frozen=True, slots=True)
class Row:
    """One preferred pair, tokenised. `p` is the soft label P(chosen is better), in (½, 1]."""

    pair_id: str
    prompt_id: str
    prompt: Ids
    chosen: Ids
    rejected: Ids
    p: float
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def row_key(row: Row) -> str:
    """What a pair's reference log-probabilities are known by: its tokens."""
    return content_id(row.prompt.tolist(), row.chosen.tolist(), row.rejected.tolist())


@dataclass(frozen=True, slots=True)
class Refused:
    """The pairs that were left out, by reason."""

    pairs: dict[Refusal, list[str]] = field(default_factory=dict)

    def add(self, reason: Refusal, pair_id: str) -> None:
        self.pairs.setdefault(reason, []).append(pair_id)

    def as_dict(self) -> dict[str, Any]:
        """Counts, and the ids by which the pairs can be found."""
        return {reason: {"n": len(ids), "pairs": ids} for reason, ids in self.pairs.items()}

    def __str__(self) -> str:
        parts = (f"{len(ids)} {reason} (first: {ids[0]})" for reason, ids in self.pairs.items())
        return ", ".join(parts) or "none"


class RowEncoder:
    """Conversations as token ids, exactly as the engines write them.

    `end` is the id that ends the assistant's turn, `ends` are all that generation stops at. Text is
    data: nothing in it becomes a special token. In a completion, tokens that were added to the
    vocabulary and are not special (`<think>`, marks of tools) are tokens, as a policy says them.

    `thinking`: the tokens that a thought of the policy may have, 0 where it is told not to think;
    None leaves that to its chat template. What was sampled after a thought is learnt with it.
    """

    def __init__(
        self,
        encoder: Encoder,
        end: int,
        ends: Collection[int] = (),
        thinking: int | None = None,
    ) -> None:
        self.encoder, self.end, self.thinking = encoder, end, thinking
        self.mode: Mode | None = None if thinking is None else "on" if thinking else "off"
        if self.mode == "on":
            _ = encoder.marks  # refuses a model that cannot think
        self._end = np.array([end], np.int32)
        self._ends = frozenset((end, *ends))

    def sequence(
        self, prompt: Prompt, text: str, ended: bool = True, ids: Sequence[int] = ()
    ) -> tuple[Ids, Ids]:
        """The ids of a prompt and of a completion, with the end of turn where it `ended`.

        `ids` are those that the completion was sampled as, if they are known. They are taken as
        they are, its own end token included, if they are of this tokenizer, which shows in the
        text they make; else the text is tokenised. A prompt that ends with the assistant leaves its
        turn open, for engines and here: the completion goes on in that turn, and no template's
        tokens come between the two.

        Of a policy that thinks, a text that nobody sampled is an answer without a thought, and
        stands where the policy is told not to think; if it begins with the mark of a thought, the
        thought is part of it.
        """
        before = self.prompt(prompt)
        if len(ids) and (kept := self._sampled(text, ids)) is not None:
            if ended and kept[-1:] and kept[-1] in self._ends:
                return before, np.array(kept, np.int32)
            return before, np.concatenate([np.array(kept, np.int32), self._end[: int(ended)]])
        asked, mode = Rendered.chat(prompt.messages).messages, self.mode
        if mode == "on":
            mode, text = self._unsampled(text)
            before = self.encoder.prompt(Rendered(asked, mode))
        said: tuple[Segment, ...] = (Segment(text, True, own=True),)
        if asked and asked[-1].role == "assistant":
            mode = mode and "off"  # a turn that was begun cannot begin with a thought
            asked, said = asked[:-1], (*asked[-1].segments, *said)
        turns = Rendered((*asked, RenderedMessage("assistant", said)), mode)
        whole = self.encoder.prompt(turns, begun=True)
        # A tokenizer of words takes a space at the prompt's end over to the completion's first
        # word: the completion starts where the two part.
        shared = min(len(before), len(whole))
        unlike = np.flatnonzero(before[:shared] != whole[:shared])
        at = int(unlike[0]) if len(unlike) else shared
        completion = whole[at:]
        return whole[:at], np.concatenate([completion, self._end]) if ended else completion

    def telling(self, thinking: int | None) -> RowEncoder:
        """The same, of a policy that is told to think, or not to."""
        return RowEncoder(self.encoder, self.end, self._ends, thinking)

    def prompt(self, prompt: Prompt) -> Ids:
        """The ids of a prompt, up to where the policy begins."""
        return self.encoder.prompt(Rendered.chat(prompt.messages, self.mode))

    def _unsampled(self, text: str) -> tuple[Mode, str]:
        """How a thinking policy's prompt is rendered before a text that nobody sampled, and the
        text as it goes on there."""
        begin = self.encoder.marks.begin.strip()
        if not text.lstrip().startswith(begin):
            return "off", text
        if self.encoder.opens_thoughts:
            return "on", text.lstrip().removeprefix(begin).lstrip("\n")
        return "on", text

    def _sampled(self, text: str, ids: Sequence[int]) -> list[int] | None:
        """The sampled ids without what a stop string took away; None if they do not make the text.

        An end token among them, the last, stays.
        """
        if not all(0 <= i < len(self.encoder.tokenizer) for i in ids):
            return None
        for n in range(len(ids), max(-1, len(ids) - _STOPS), -1):
            if self.mode == "on":
                found = self.encoder.said(ids[:n], (), "on").text
            else:
                found = self.encoder.decode(ids[:n])
            if self.encoder.transcript:
                found = found.removeprefix(" ")
            if found == text:
                return list(ids[:n])
            if len(found) < len(text):
                break
        return None


def end_of_turn(tokenizer: Any, ends: Collection[int]) -> int:
    """The id that follows an assistant's words in the chat template, if generation stops at it.

    Chat models stop at their end of turn, which often is not the tokenizer's end of sequence.
    """
    if tokenizer.chat_template:
        mark = "Q7f3aQ"
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # templates raise what they like
            text = ""
        after = tokenizer.encode(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)
        if after and after[0] in ends:
            return int(after[0])
    if tokenizer.eos_token_id is None:
        if not ends:
            raise TrainingError(
                "the model has no end-of-sequence token: set eos_token in its tokenizer_config.json"
            )
        return min(ends)
    return int(tokenizer.eos_token_id)


def preferred(preferences: Iterable[Preference]) -> list[Preference]:
    """The rows with a chosen completion; TrainingError when there are none."""
    rows = list(preferences)
    kept = [p for p in rows if p.status == "preferred"]
    if not rows:
        raise TrainingError("no preferences to train on: label some pairs first")
    if not kept:
        ties = sum(p.status == "tie" for p in rows)
        raise TrainingError(
            f"none of the {len(rows)} preferences is 'preferred' ({ties} ties, "
            f"{len(rows) - ties} abstained): lower preferences.min_margin, or ask a stronger judge"
        )
    return kept


def encode_rows(
    preferences: Iterable[Preference],
    encoder: RowEncoder,
    max_length: int,
    cut: Cut = (),
    sampled: Sampled | None = None,
    *,
    policy: bool = False,
) -> tuple[list[Row], Refused]:
    """Tokenised rows, and what was refused. `cut` names completions that never ended.

    `sampled` are the tokens of completions, where they are known. A `policy` does not learn from
    pairs that prefer what never ended to what did: that would pay for going on to the limit.
    """
    rows, refused = [], Refused()
    unended = frozenset(cut)
    for preference in preferences:
        pair, chosen, rejected = preference.pair, preference.chosen, preference.rejected
        if not chosen.strip() or not rejected.strip():
            refused.add("empty_response", pair.id)
            continue
        if chosen == rejected:
            refused.add("identical", pair.id)
            continue
        prompt_id = pair.prompt.id
        if policy and (prompt_id, chosen) in unended and (prompt_id, rejected) not in unended:
            refused.add("cut", pair.id)
            continue
        (before, good), (other, bad) = (
            encoder.sequence(
                pair.prompt,
                text,
                (prompt_id, text) not in unended,
                (sampled or {}).get((prompt_id, text), ()),
            )
            for text in (chosen, rejected)
        )
        if len(other) < len(before):  # they part at different places: share the shorter prompt
            before, good = other, np.concatenate([before[len(other) :], good])
        elif len(before) < len(other):
            bad = np.concatenate([other[len(before) :], bad])
        row = Row(pair.id, prompt_id, before, good, bad, preference.p_chosen)
        if row.length > max_length:
            refused.add("too_long", pair.id)
        else:
            rows.append(row)
    if not rows:
        raise TrainingError(
            f"every pair was refused: {refused}. Sequences may have {max_length} tokens; "
            "raise max_length if the model's context allows"
        )
    return rows, refused


def thinking_key(thinking: int | None) -> list[Any]:
    """What a trainer's resume key takes of the policy's thinking: nothing where it is not set."""
    return [] if thinking is None else [["thinking", thinking]]


def weigh_by_prompt(rows: Sequence[Row]) -> list[Row]:
    """The rows, each weighing 1 / (pairs of its prompt): InstructGPT's 1/C(K, 2)."""
    from rlaif.training.losses import pair_weights

    weights = pair_weights([row.prompt_id for row in rows]).tolist()
    return [replace(row, weight=w) for row, w in zip(rows, weights, strict=True)]


def split_by_prompt(rows: Sequence[P], share: float, seed: int) -> tuple[list[P], list[P]]:
    """(training, held out): no prompt is on both sides. Stable when other prompts come and go."""
    if not 0 <= share < 1:
        raise TrainingError(f"held_out must be a share in [0, 1), got {share}")
    ids = {row.pair.prompt.id for row in rows}
    order = sorted(ids, key=lambda prompt_id: content_id("held out", seed, prompt_id))
    n = round(share * len(ids)) if len(ids) > 1 else 0
    out = set(order[: min(max(n, 1), len(ids) - 1)] if share else ())
    kept = [row for row in rows if row.pair.prompt.id not in out]
    return kept, [row for row in rows if row.pair.prompt.id in out]


def by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Row indices grouped by prompt, in order of appearance."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.prompt_id].append(i)
    return list(groups.values())


def plan_steps(
    elements: Sequence[Sequence[int]], lengths: Sequence[int], *, size: int, epochs: int, seed: int
) -> list[list[list[int]]]:
    """The elements (lists of row indices) of every step of every epoch.

    Each epoch sees each element once. Its steps hold `size` elements, or fewer by an even share:
    a last step of two elements would be all noise. Elements of like length go together.
    """
    if size < 1 or epochs < 1:
        raise TrainingError(f"batch size and epochs must be at least 1, got {size} and {epochs}")
    longest = np.array([max(lengths[i] for i in element) for element in elements])
    random = np.random.default_rng(seed)
    plan = []
    for _ in range(epochs):
        shares = np.array_split(random.permutation(len(elements)), -(-len(elements) // size))
        steps: list[list[list[int]]] = []
        for i in range(0, len(shares), _CHUNK):
            chunk = np.concatenate(shares[i : i + _CHUNK])
            ordered = chunk[np.argsort(longest[chunk], kind="stable")]
            parts = np.array_split(ordered, len(shares[i : i + _CHUNK]))
            steps += [[list(elements[k]) for k in part] for part in parts]
        plan += [steps[i] for i in random.permutation(len(steps))]
    return plan


@dataclass(frozen=True)
class Plan(Generic[R]):
    """A map-style data set whose items are the micro-batches of one process, in training order.

    A step is cut into `parts` micro-batches for each of `world` processes. `collate(rows, total)`
    makes the tensors; `total` is the weight of the whole step, over which the loss is averaged.
    """

    rows: Sequence[R]
    steps: Sequence[Sequence[Sequence[int]]]
    collate: Callable[[Sequence[R], float], dict[str, Any]]
    parts: int = 1
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        smallest = min(len(step) for step in self.steps)
        if smallest < self.parts * self.world:
            raise TrainingError(
                f"a step of {smallest} elements cannot be shared among {self.world} processes x "
                f"{self.parts} micro-batches: lower gradient_accumulation, or label more pairs"
            )

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __getitem__(self, i: int) -> dict[str, Any]:
        step = self.steps[i // self.parts]
        total = sum(self.rows[j].weight for element in step for j in element)
        return self.collate(self.rows_of(i), total)

    def rows_of(self, i: int) -> list[R]:
        """The rows of this process's i-th micro-batch."""
        step = self.steps[i // self.parts]
        pieces = np.array_split(np.arange(len(step)), self.parts * self.world)
        piece = pieces[self.rank + self.world * (i % self.parts)]
        return [self.rows[j] for k in piece for j in step[k]]


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of at most `budget` padded tokens (or one sequence), longest first.

    Longest first: if memory runs out, it does so at once.
    """
    batches: list[list[int]] = []
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad(sequences: Sequence[Ints], filler: int) -> tuple[Any, Any]:
    """Right-padded ids (B, T) and attention mask (B, T). The mask alone says what is real."""
    import torch

    T = max(map(len, sequences))
    ids = np.full((len(sequences), T), filler, np.int64)
    mask = np.zeros((len(sequences), T), np.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
