"""What completions are rewarded by: a reward model, a judge asked live, or a Python function.

A score is a number a completion, or None where the scorer abstains: such episodes are left out of
the update and counted. A scorer's `key` hashes everything that can change its scores.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Pair, Preference, Prompt, content_id

RewardFunction = Callable[[list[Prompt], list[str]], Sequence[float | None]]
Label = Callable[[Sequence[Pair]], Sequence[Preference]]


class Scorer(Protocol):
    """Anything that scores completions."""

    key: str

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        """One score a completion, in their order. `ended`: False where a limit cut it off."""
        ...


def without_reward(
    scores: Sequence[float | None], ended: Sequence[bool], most: float | None
) -> list[float | None]:
    """The scores, those of completions that never ended being `most` at most; None keeps them.

    Never a score in the place of theirs: on a scale that goes below it, that would pay for going
    on to the limit. What the scorer abstained on stays without a score.
    """
    return [
        x if x is None or most is None or end else min(x, most)
        for x, end in zip(scores, ended, strict=True)
    ]


class ModelScorer:
    """The normalised rewards of a reward model's folder."""

    def __init__(self, path: str, *, device: str = "auto") -> None:
        from rlaif.training.models import fingerprint_of
        from rlaif.training.reward import RewardModel

        self._model = RewardModel(path, device=device)
        normalisation = self._model.normalisation
        self.key = content_id("model", fingerprint_of(path), normalisation.gain, normalisation.bias)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        return list(self._model.rewards(prompts, completions, ended))


class FunctionScorer:
    """A Python function of prompts and completions; None or NaN is an abstention.

    `name` stands for it in the resume key, beside the source of its module: a function that reads
    anything else must be renamed when that changes.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        self._function = function
        self._name = name or getattr(function, "__qualname__", type(function).__name__)
        module = inspect.getmodule(function)
        try:
            source = inspect.getsource(module or type(function))
        except (OSError, TypeError):
            source = ""
        self.key = content_id("function", self._name, source)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        found = list(self._function(list(prompts), list(completions)))
        if len(found) != len(ended):
            raise TrainingError(
                f"the reward function {self._name} gave {len(found)} scores for {len(ended)} "
                "completions: it must return one a completion, None where it cannot tell"
            )
        return [None if x is None or math.isnan(x) else float(x) for x in found]


class JudgeScorer:
    """Direct RLAIF (Lee et al. 2023) with a judge of pairs: P(completion ≻ reference's).

    `label` gives a preference a pair, as for a win rate: both orders and the mean over principles
    are its business. `reference` answers a prompt as the policy did before training, and is asked
    once a prompt. Equal texts score ½ unasked; a pair on which the judge abstains has no score.
    """

    def __init__(
        self, label: Label, reference: Callable[[Sequence[Prompt]], Sequence[str]], key: str
    ) -> None:
        self._label, self._reference = label, reference
        self._answers: dict[str, str] = {}
        self.key = content_id("judge", key)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        new = {p.id: p for p in prompts if p.id not in self._answers}
        if new:
            texts = self._reference(list(new.values()))
            self._answers.update(zip(new, texts, strict=True))
        pairs = [
            Pair(prompt, text, self._answers[prompt.id])
            for prompt, text, _ in zip(prompts, completions, ended, strict=True)
        ]
        return label_pairs(self._label, pairs)


class GroupScorer:
    """A judge of pairs over the completions of a prompt: the mean of P(it beats another of them).

    `size` completions in turn are a group, those of one prompt; with None neighbours that have the
    same prompt are, which cannot tell two groups of a prompt that a step holds twice. `rounds`
    bounds the cost: each completion then meets those up to `rounds` places after and before it in
    the group, a ring; None lets all meet all. Equal texts meet with ½ unasked. A meeting on which
    the judge abstains counts for neither, and a completion of no other meeting has no score.
    """

    def __init__(
        self, label: Label, key: str, rounds: int | None = None, size: int | None = None
    ) -> None:
        self._label, self._rounds, self._size = label, rounds, size
        self.key = content_id("group", key, rounds)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        del ended
        meetings = self._meetings(prompts)
        pairs = [Pair(prompts[i], completions[i], completions[j]) for i, j in meetings]
        won: list[list[float]] = [[] for _ in completions]
        for (i, j), p in zip(meetings, label_pairs(self._label, pairs), strict=True):
            if p is not None:
                won[i].append(p)
                won[j].append(1 - p)
        return [math.fsum(x) / len(x) if x else None for x in won]

    def _meetings(self, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
        out, begin = [], 0
        for end in range(1, len(prompts) + 1):
            alike = end < len(prompts) and prompts[end].id == prompts[begin].id
            if alike and (self._size is None or end - begin < self._size):
                continue
            n = end - begin
            most = n // 2 if self._rounds is None else min(self._rounds, n // 2)
            for step in range(1, most + 1):
                around = n // 2 if 2 * step == n else n  # half way round, a meeting comes up twice
                out += [(begin + i, begin + (i + step) % n) for i in range(around)]
            begin = end
        return out


def label_pairs(label: Label, pairs: Sequence[Pair]) -> list[float | None]:
    """P(first is better) of each pair, None where the judge abstains; no pair is asked twice.

    Equal texts have ½ unasked, and so have pairs on which no principle has anything to say.
    """
    asked: dict[tuple[str, str, str], Pair] = {}
    for pair in pairs:
        first, second, name = pair.first, pair.second, pair.prompt.id
        if first != second and (name, second, first) not in asked:
            asked.setdefault((name, first, second), pair)
    labels = label(list(asked.values())) if asked else []
    known: dict[tuple[str, str, str], float | None] = {}
    for (name, first, second), found in zip(asked, labels, strict=True):
        p = None if found.status == "abstained" else _p(found)
        known[name, first, second] = p
        known[name, second, first] = None if p is None else 1 - p
    return [
        0.5 if pair.first == pair.second else known[pair.prompt.id, pair.first, pair.second]
        for pair in pairs
    ]


class DirectScorer:
    """Direct RLAIF (Lee et al. 2023, §3.3): a judge's own score of each completion, no pair.

    `rewards(prompts, texts)` gives one a completion, as `ScoreJudge.rewards` does; None where the
    judge abstains.
    """

    def __init__(
        self,
        rewards: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | None]],
        key: str,
    ) -> None:
        self._rewards = rewards
        self.key = content_id("direct", key)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        del ended  # the judge reads the text alone
        return list(self._rewards(prompts, completions))


def _p(label: Preference) -> float:
    return 0.5 if label.p_first is None else label.p_first  # no principle had anything to say


def load_function(name: str) -> FunctionScorer:
    """The function named `module:function`, the working folder being searched too."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"a reward function is named `module:function`, got '{name}'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"cannot import the reward function's module {module}: {error}") from None
    if not callable(getattr(found, function, None)):
        raise ConfigError(f"{module} has no function '{function}'")
    return FunctionScorer(getattr(found, function), name)
