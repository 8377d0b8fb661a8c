"""What completions are rewarded by: a reward model, a judge asked live, or a Python function.

A score is a number a completion, or None where the scorer abstains: such episodes are left out of
the update and counted. A scorer's `key` hashes everything that can change its scores.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from rlaif.errors import ConfigError, RlaifError, TrainingError
from rlaif.files.own import did, load, shown
from rlaif.files.own.keys import function_key, source_of
from rlaif.records import Pair, Preference, Prompt, content_id

if TYPE_CHECKING:
    from rlaif.training.rl.rollout import Episode

Label = Callable[[Sequence[Pair]], Sequence[Preference]]
Spent = Callable[[], float]  # tokens that the judge has been given so far


@dataclass(frozen=True, slots=True)
class Labels:
    """What gives a policy's pairs their preferences while it learns.

    `key` hashes all that decides them. `spent` tells the judge's tokens so far, for the journal.
    """

    label: Label
    key: str
    spent: Spent | None = None


class RewardFunction(Protocol):
    """What `train.ppo.reward: module:function` names: scores completions.

    It gets a prompt for each completion, and returns one number a completion, in their order; None
    where it cannot tell, which leaves that one out of the update.
    """

    def __call__(
        self, prompts: list[Prompt], completions: list[str], /
    ) -> Sequence[float | None]: ...


class Scorer(Protocol):
    """Anything that scores completions."""

    key: str

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        """One score a completion, in their order. `ended`: False where a limit cut it off."""
        ...


def check_scorer(scorer: Any) -> None:
    """TypeError for what is no `Scorer`, a bare function for one."""
    if not (isinstance(getattr(scorer, "key", None), str) and hasattr(scorer, "score")):
        raise TypeError(
            "a scorer has a `key`, a str, and `score(prompts, completions, ended)` "
            f"(rlaif.training.rl.scorers.Scorer), got {shown(scorer)}: a Python function of "
            "prompts and completions becomes one by FunctionScorer(function)"
        )


def checked_scores(scorer: Scorer, found: Sequence[Any], n: int) -> list[float | None]:
    """What any scorer gave; TrainingError unless it is one number or None a completion."""
    strange = [x for x in found if x is not None and not isinstance(x, Real)]
    if len(found) != n or strange:
        what = f"the score {shown(strange[0])}" if strange else f"{len(found)} scores"
        raise TrainingError(
            f"{type(scorer).__name__}.score gave {what} for {n} completions: it must return one "
            "number a completion, None where it cannot tell"
        )
    return list(found)


def score_all(scorer: Scorer, episodes: Sequence[Episode]) -> list[float | None]:
    """One score an episode, in order."""
    if not episodes:
        return []
    prompts, texts = [e.prompt for e in episodes], [e.text for e in episodes]
    found = scorer.score(prompts, texts, [e.ended for e in episodes])
    return checked_scores(scorer, found, len(episodes))


def checked_labels(label: Label, pairs: Sequence[Pair]) -> Sequence[Preference]:
    """What `label` says of the pairs; TrainingError unless that is one `Preference` a pair."""
    given: Any = label(pairs) if pairs else []
    found = list(given) if isinstance(given, Iterable) else [given]
    strange = [x for x in found if not isinstance(x, Preference)]
    if len(found) != len(pairs) or strange:
        what = shown(strange[0]) if strange else f"{len(found)} labels"
        raise TrainingError(
            f"the labels of {len(pairs)} pairs came back as {what}: a label function returns one "
            "rlaif.Preference a pair, in their order"
        )
    return found


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

    def score_and_spread(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[tuple[float, float]]:
        """The scores, each with the standard deviation of those by the heads of the ensemble.

        ConfigError where the reward model has none: `train.reward.trunk: frozen` makes one.
        """
        found = self._model.ensemble(prompts, completions, ended)
        spread = found[:, 1:].std(axis=1, ddof=1)
        return list(zip(found[:, 0].tolist(), spread.tolist(), strict=True))


class FunctionScorer:
    """A Python function of prompts and completions; None is an abstention.

    In the resume key stand the source of its module, its code and, by content, all that it holds
    and reads when the scorer is made: values of a closure, `self`, arguments of a partial, globals
    (`rlaif.files.own.keys`). What has no content to read, such as a connection, is refused
    with a ConfigError unless there is a `name`, which stands for it: a function whose connection,
    or whose files read later, have changed is given another name. What the function prints goes to
    stderr. What it raises, ending the process included, or returns that is not one number or None
    a completion, becomes a TrainingError that names it.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        if not callable(function):
            raise TypeError(
                f"a reward function takes lists of prompts and completions, got {shown(function)}"
            )
        self._function = function
        self._name = name or _name_of(function)
        content, unread = function_key(function)
        if unread and not name:
            raise ConfigError(
                f"the reward function {self._name} holds what no resume key can tell from another "
                f"of its kind: {', '.join(unread[:3])}{', …' * (len(unread) > 3)}. Give it a name, "
                "as FunctionScorer(function, name='helpful-v1'), and another one when what it "
                "holds changes: under an equal key a finished policy is not trained again"
            )
        source = source_of(inspect.getmodule(_innermost(function)) or type(function))
        self.key = content_id("function", name or "", source, content)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        n = len(ended)
        try:
            with redirect_stdout(sys.stderr):
                returned: Any = self._function(list(prompts), list(completions))
                values = self._listed(returned, n)
        except RlaifError:
            raise
        except (Exception, SystemExit) as error:
            raise self._wrong(did(error, _file_of(self._function))) from error
        if len(values) != n:
            endless = len(values) > n and not hasattr(returned, "__len__")
            count = f"more than {n}" if endless else len(values)
            raise self._wrong(f"gave {count} scores for {n} completions")
        return [self._number(x, i) for i, x in enumerate(values)]

    def _listed(self, returned: Any, n: int) -> list[Any]:
        """What was returned as a list, of an endless one no more than n + 1."""
        if inspect.iscoroutine(returned):
            returned.close()
        if isinstance(returned, str | bytes | Mapping | Set) or not isinstance(returned, Iterable):
            raise self._wrong(f"returned {shown(returned)} ({type(returned).__name__})")
        listed = getattr(returned, "tolist", None)
        rows = listed() if listed is not None else returned
        if not isinstance(rows, Iterable):
            raise self._wrong(f"returned {shown(rows)} ({type(returned).__name__})")
        return list(rows) if hasattr(rows, "__len__") else list(islice(rows, n + 1))

    def _number(self, x: Any, i: int) -> float | None:
        """A score, or None; what is neither is refused, with the place it has in the list."""
        inner = getattr(x, "item", None)  # a number of numpy's, or a tensor of one
        value = inner() if inner is not None and getattr(x, "ndim", 1) == 0 else x
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real):
            raise self._wrong(f"gave completion {i + 1} the score {shown(value)}")
        try:
            found = float(value)
        except OverflowError:
            raise self._wrong(f"gave completion {i + 1} a score too large for a float") from None
        if not math.isfinite(found):
            raise self._wrong(f"gave completion {i + 1} the score {found}")
        return found

    def _wrong(self, what: str) -> TrainingError:
        return TrainingError(
            f"the reward function {self._name} {what}. It gets a list of prompts and a list of as "
            "many completions, and must return one number a completion (finite, no bool), None "
            "where it cannot tell"
        )


def _innermost(function: Any) -> Any:
    return _innermost(function.func) if isinstance(function, partial) else function


def _name_of(function: Any) -> str:
    if isinstance(function, partial):
        return f"{_name_of(function.func)}{function.args}{sorted(function.keywords.items())}"
    return str(getattr(function, "__qualname__", type(function).__name__))


def _file_of(function: Any) -> str:
    code = getattr(_innermost(function), "__code__", None)
    return getattr(code, "co_filename", "")


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
    labels = checked_labels(label, list(asked.values()))
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
    return FunctionScorer(load(name, "reward function"), name)
