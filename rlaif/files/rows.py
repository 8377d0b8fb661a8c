"""Labels as the rows that trainers and tools read: what `rlaif export --what` names.

TRL's types are those of https://huggingface.co/docs/trl/dataset_formats. Where a row is a
completion, one that stands in several pairs is one row, with the mean of what its pairs say of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rlaif.records import Message, Preference, Prompt, content_id, messages_to_json

Row = dict[str, Any]
Again = Callable[[], Iterable[Preference]]  # the preferences, from their beginning each time

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Kind:
    """One form of export: its rows, their columns, and what it is for.

    `rows` reads the preferences, twice where it has to, and counts what it leaves out. `schema` is
    None of nested rows, which are written as JSONL only.
    """

    about: str
    rows: Callable[[Again, Counter[str]], Iterator[Row]]
    schema: pa.Schema | None


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return messages_to_json(prompt.messages)


def _said(text: str) -> list[dict[str, str]]:
    return messages_to_json([Message("assistant", text)])


def _preferred(preferences: Again, counts: Counter[str]) -> Iterator[Preference]:
    """Those with a chosen response; the others are counted by their status."""
    for preference in preferences():
        counts[preference.status] += 1
        if preference.status == "preferred":
            yield preference


# ---------------------------------------------------------------------------------- rows of pairs


def _explicit(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for p in _preferred(preferences, counts):
        yield {
            "prompt": _turns(p.pair.prompt),
            "chosen": _said(p.chosen),
            "rejected": _said(p.rejected),
            "p_chosen": p.p_chosen,
            "pair_id": p.pair.id,
        }


def _implicit(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for p in _preferred(preferences, counts):
        before = _turns(p.pair.prompt)
        yield {
            "chosen": [*before, *_said(p.chosen)],
            "rejected": [*before, *_said(p.rejected)],
            "p_chosen": p.p_chosen,
            "pair_id": p.pair.id,
        }


def _openai(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for p in _preferred(preferences, counts):
        yield {
            "input": {"messages": _turns(p.pair.prompt), "tools": [], "parallel_tool_calls": True},
            "preferred_output": _said(p.chosen),
            "non_preferred_output": _said(p.rejected),
        }


def _argilla(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    """A record a pair, ties and abstentions too: they are what people are best asked about."""
    for p in preferences():
        counts[p.status] += 1
        value = None if p.p_first is None else "first" if p.p_first > 0.5 else "second"
        value = "tie" if p.status == "tie" else value  # without p, where no principle had a say
        suggestion = {"value": value, "agent": "rlaif"}
        if p.p_first is not None:
            suggestion["score"] = max(p.p_first, 1 - p.p_first)  # type: ignore[assignment]
        metadata = {"status": p.status, "source": p.pair.source, "verdicts": p.verdicts}
        if p.p_first is not None:
            metadata["p_first"] = p.p_first
        yield {
            "id": p.pair.id,
            "fields": {
                "prompt": _turns(p.pair.prompt),
                "first": p.pair.first,
                "second": p.pair.second,
            },
            "metadata": {**metadata, **{f"p_{n}": v for n, v in _opinions(p)}},
            "suggestions": {"preference": suggestion} if value is not None else {},
            "responses": {},
            "vectors": {},
        }


def _opinions(preference: Preference) -> Iterator[tuple[str, float]]:
    yield from zip(preference.principles, preference.p_principles, strict=True)


# ---------------------------------------------------------------------------- rows of completions


@dataclass(slots=True)
class _Mean:
    """What pairs say of a completion: the sum of P(it is better), and how many say something."""

    total: float = 0.0
    n: int = 0

    @property
    def value(self) -> float:
        return self.total / self.n


def _each(
    preferences: Iterable[Preference],
) -> Iterator[tuple[str, Prompt, str, float]]:
    """Both completions of each pair with a label: key, prompt, text, P(it is the better one), ½ of
    a tie."""
    for p in preferences:
        first = 0.5 if p.status == "tie" else p.p_first
        if first is not None:
            for text, value in ((p.pair.first, first), (p.pair.second, 1 - first)):
                yield content_id(p.pair.prompt.id, text), p.pair.prompt, text, value


def _means(preferences: Iterable[Preference]) -> dict[str, _Mean]:
    found: dict[str, _Mean] = {}
    for key, _, _, value in _each(preferences):
        mean = found.setdefault(key, _Mean())
        mean.total += value
        mean.n += 1
    return found


def _completions(
    preferences: Again, counts: Counter[str], ties: bool = False
) -> Iterator[tuple[Prompt, str, float]]:
    """Each completion once, with the mean of what its pairs say; without `ties`, of the preferred
    pairs alone."""

    def labelled() -> Iterator[Preference]:
        for p in preferences():
            if p.status == "preferred" or (ties and p.status == "tie"):
                yield p

    counts.update(p.status for p in preferences())
    means = _means(labelled())
    for key, prompt, text, _ in _each(labelled()):
        mean = means.pop(key, None)  # the first time that it comes
        if mean is not None:
            yield prompt, text, mean.value


def _unpaired(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for prompt, text, p in _completions(preferences, counts):
        if p == 0.5:
            counts["neither better nor worse"] += 1
            continue
        yield {"prompt": _turns(prompt), "completion": _said(text), "label": p > 0.5, "p": p}


def _rewards(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for prompt, text, p in _completions(preferences, counts, ties=True):
        yield {"prompt": _turns(prompt), "completion": _said(text), "reward": p}


def _best(preferences: Again, counts: Counter[str]) -> Iterator[tuple[Prompt, str, float]]:
    """The best completion of each prompt, if it is preferred on average."""
    best: dict[str, float] = {}
    for prompt, _, p in _completions(preferences, Counter()):
        best[prompt.id] = max(best.get(prompt.id, 0.5), p)
    for prompt, text, p in _completions(preferences, counts):
        if p > 0.5 and best.get(prompt.id) == p:
            del best[prompt.id]  # of equals, the first one
            yield prompt, text, p


def _sft(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for prompt, text, p in _best(preferences, counts):
        yield {"prompt": _turns(prompt), "completion": _said(text), "p": p}


def _openai_sft(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    for prompt, text, _ in _best(preferences, counts):
        yield {"messages": [*_turns(prompt), *_said(text)]}


def _prompts(preferences: Again, counts: Counter[str]) -> Iterator[Row]:
    seen: set[str] = set()
    for p in preferences():
        if p.pair.prompt.id in seen:
            counts["repeated"] += 1
            continue
        seen.add(p.pair.prompt.id)
        yield {"prompt": _turns(p.pair.prompt), "source": p.pair.prompt.source}


def _columns(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


_P, _TEXT = pa.float64(), pa.string()
KINDS = {
    "preferences": Kind(
        "TRL's preference rows, prompt apart, with the soft label `p_chosen`",
        _explicit,
        _columns(prompt=TURNS, chosen=TURNS, rejected=TURNS, p_chosen=_P, pair_id=_TEXT),
    ),
    "implicit": Kind(
        "the same with the prompt within chosen and rejected (implicit prompt)",
        _implicit,
        _columns(chosen=TURNS, rejected=TURNS, p_chosen=_P, pair_id=_TEXT),
    ),
    "unpaired": Kind(
        "TRL's unpaired preferences, for KTO: a completion and whether it is better",
        _unpaired,
        _columns(prompt=TURNS, completion=TURNS, label=pa.bool_(), p=_P),
    ),
    "sft": Kind(
        "prompt and completion for supervised training: the best one of each prompt",
        _sft,
        _columns(prompt=TURNS, completion=TURNS, p=_P),
    ),
    "prompts": Kind(
        "prompts alone, for online training", _prompts, _columns(prompt=TURNS, source=_TEXT)
    ),
    "rewards": Kind(
        "a completion and a reward to regress on: the mean P that it is the better one",
        _rewards,
        _columns(prompt=TURNS, completion=TURNS, reward=_P),
    ),
    "argilla": Kind("records for Argilla, with the label as a suggestion (JSONL)", _argilla, None),
    "openai": Kind("OpenAI's preference fine-tuning (JSONL)", _openai, None),
    "openai-sft": Kind("OpenAI's supervised fine-tuning (JSONL)", _openai_sft, None),
}
