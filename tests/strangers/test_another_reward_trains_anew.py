"""Another reward function never returns the policy of an earlier one; the same one resumes."""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif import tiny
from rlaif.errors import ConfigError
from rlaif.records import Prompt
from rlaif.training.rl.group import train_group
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer, load_function
from rlaif.training.rl.settings import GRPOSettings, PPOSettings
from rlaif.training.settings import Runtime

Reward = Callable[[list[Prompt], list[str]], list[float]]


class Weighted:
    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, _: list[Prompt], texts: list[str]) -> list[float]:
        return [float(self.weight) * len(text) for text in texts]

    def other(self, prompts: list[Prompt], texts: list[str]) -> list[float]:
        return self(prompts, texts)


class Slotted(Weighted):
    __slots__ = ("sign",)

    def __init__(self, sign: int) -> None:
        super().__init__(1)
        self.sign = sign


def closed_over(weight: Any) -> Reward:
    return lambda _, texts: [float(weight) * len(text) for text in texts]


def with_default(weight: Any) -> Reward:
    def score(_: list[Prompt], texts: list[str], weight: Any = weight) -> list[float]:
        return [float(weight) * len(text) for text in texts]

    return score


def with_keyword_default(weight: Any) -> Reward:
    def score(_: list[Prompt], texts: list[str], *, weight: Any = weight) -> list[float]:
        return [float(weight) * len(text) for text in texts]

    return score


def with_attribute(weight: Any) -> Reward:
    def score(_: list[Prompt], texts: list[str]) -> list[float]:
        return [score.weight * len(text) for text in texts]  # type: ignore[attr-defined]

    score.weight = weight  # type: ignore[attr-defined]
    return score


def decorated(weight: Any) -> Reward:
    @functools.wraps(closed_over)
    def score(prompts: list[Prompt], texts: list[str]) -> list[float]:
        return closed_over(weight)(prompts, texts)

    return score


def times(weight: Any, _: list[Prompt], texts: list[str]) -> list[float]:
    return [float(weight) * len(text) for text in texts]


def of_a_class_made_anew(weight: Any) -> Reward:
    """As a cell of a notebook that is run again after an edit."""
    made = type("Made", (), {"weight": weight, "__call__": lambda self, *_: [self.weight] * 2})
    return made()  # type: ignore[no-any-return]


MAKERS: dict[str, Callable[[Any], Reward]] = {
    "instances": Weighted,
    "slots": Slotted,
    "methods": lambda w: Weighted(w).other,
    "partials": lambda w: functools.partial(times, w),
    "keywords": lambda w: functools.partial(times, weight=w),
    "partial objects": lambda w: functools.partial(times, Weighted(w)),
    "closures": closed_over,
    "defaults": with_default,
    "keyword defaults": with_keyword_default,
    "attributes": with_attribute,
    "decorated": decorated,
    "caches": lambda w: functools.cache(closed_over(w)),
    "classes": of_a_class_made_anew,
    "nested": lambda w: closed_over(Weighted([{"a": (w,)}])),
}
VALUES = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.booleans(),
    st.none(),
    st.binary(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.sets(st.text(max_size=2)),
    st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=2),
)


@pytest.mark.parametrize("kind", MAKERS)
@given(one=VALUES, other=VALUES)
def test_a_key_tells_what_a_function_holds(kind: str, one: Any, other: Any) -> None:
    make = MAKERS[kind]
    first, again, second = (FunctionScorer(make(x)).key for x in (one, one, other))
    assert first == again
    assert (first == second) == (repr(one) == repr(other) or (one == other and one in (set(), {})))


def test_lambdas_of_one_script_are_told_apart() -> None:
    keys = {
        FunctionScorer(lambda _, c: [float(len(x)) for x in c]).key,
        FunctionScorer(lambda _, c: [-float(len(x)) for x in c]).key,
        FunctionScorer(lambda _, c: [float(len(x)) + 1 for x in c]).key,
        FunctionScorer(lambda _, c: [float(x.count("a")) for x in c]).key,
        FunctionScorer(lambda _, c: [float(x.count("b")) for x in c]).key,
        FunctionScorer(lambda _, c: [0.0 for _ in c]).key,
        FunctionScorer(lambda _, c: [-0.0 for _ in c]).key,
        FunctionScorer(lambda _, c: [(lambda _: 1.0)(x) for x in c]).key,
        FunctionScorer(lambda _, c: [(lambda _: 2.0)(x) for x in c]).key,
    }
    assert len(keys) == 9
    named = {FunctionScorer(f, "short").key for f in (closed_over(1), closed_over(2))}
    assert len(named) == 2


def test_arrays_and_models_are_read_by_their_weights() -> None:
    rows = [
        np.array([1.0, 2.0]),
        np.array([1.0, 3.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, 3.0]),
    ]
    rows.append(torch.tensor([[0.0, 1.0, 2.0]])[0, 1:])  # a part of a storage
    keys = [FunctionScorer(Weighted(x)).key for x in rows]
    assert keys[2] == keys[4]
    assert len(set(keys)) == 4
    nets = [torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()) for _ in range(2)]
    assert len({FunctionScorer(Weighted(net)).key for net in nets}) == 2
    nets[0].load_state_dict(nets[1].state_dict())
    assert len({FunctionScorer(Weighted(net)).key for net in nets}) == 1


def test_what_cannot_be_read_needs_a_name() -> None:
    with socket.socket() as connection:
        for function in (
            Weighted(connection),
            closed_over(connection),
            Weighted(connection).other,
            functools.partial(times, connection),
        ):
            with pytest.raises(ConfigError, match=r"of type socket.*FunctionScorer.*name="):
                FunctionScorer(function)
            FunctionScorer(function, "by the socket")
        with pytest.raises(ConfigError, match=r"weight \(of type socket\)"):
            FunctionScorer(closed_over(connection))
    FunctionScorer(Weighted(threading.Lock()))  # holds nothing
    around: list[Any] = []
    around.append(around)
    assert FunctionScorer(closed_over(around)).key == FunctionScorer(closed_over(around)).key


# ---- between processes

SCRIPT = """
import sys, functools, re, decimal, pathlib
from dataclasses import dataclass
from rlaif.training.rl.scorers import FunctionScorer
WORDS = {"apple", "pear", "plum", "fig", "cherry"}
SCALE = float(sys.argv[1])
@dataclass
class R:
    words: frozenset
    pattern: object = re.compile("a+")
    where: object = pathlib.Path("x")
    def __call__(self, p, c): return [helper(x) for x in c]
def helper(x): return SCALE * sum(w in x for w in WORDS)
class Base:
    def __init__(self): super().__init__()
    def __call__(self, p, c): return [float(x in {"a", "b", "c", "d"}) for x in c]
for f in (lambda p, c: [float(x in {"a", "b", "c", "d"}) for x in c], R(frozenset(WORDS)),
          functools.partial(R(frozenset("abc")), None), Base(), Base().__call__,
          lambda p, c: [helper(x) for x in c]):
    print(FunctionScorer(f).key)
"""


def keys_of(script: str, *arguments: str, seed: str = "0", stdin: bool = False) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-" if stdin else script, *arguments],
        capture_output=True,
        text=True,
        input=script if stdin else None,
        timeout=120,
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]]),
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_keys_are_equal_between_processes_and_follow_globals(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one, again = (keys_of(str(script), "1", seed=seed) for seed in ("1", "2"))
    assert one == again
    assert len(set(one)) == 6
    other = keys_of(str(script), "2")
    changed = [a != b for a, b in zip(one, other, strict=True)]
    assert changed == [False, True, True, False, False, True]  # what reads SCALE


def test_a_function_defined_anew_where_there_is_no_file() -> None:
    body = "from rlaif.training.rl.scorers import FunctionScorer\nW = {}\n"
    body += "def score(p, c): return [{}len(x) * W for x in c]\nprint(FunctionScorer(score).key)\n"
    bodies = [body.replace("{}", w, 1).replace("{}", s) for w in ("1", "2") for s in ("", "-")]
    keys = keys_of("".join(bodies), stdin=True)
    assert len(set(keys)) == 4
    assert keys_of("".join(bodies), stdin=True, seed="7") == keys


def test_a_module_and_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from rlaif.training.rl.scorers import load_function\n"
    script += "print(load_function('mine:score').key)\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import helpers\nfrom far import scaled\n"
        "def score(p, c): return [helpers.weight(x) + scaled(x) for x in c]\n"
    )
    (tmp_path / "deep.py").write_text("W = 1\n")
    (tmp_path / "far.py").write_text("import deep\ndef scaled(x): return deep.W\n")
    (tmp_path / "helpers.py").write_text("import deep\ndef weight(x): return 1.0\n")
    keys = keys_of(script, stdin=True)
    assert keys_of(script, stdin=True, seed="9") == keys
    for name in ("deep", "far", "helpers", "mine"):
        text = (tmp_path / f"{name}.py").read_text()
        (tmp_path / f"{name}.py").write_text(
            text.replace("1", "12").replace("scaled(x) for", "-scaled(x) for")
        )
        if name == "far":
            text = (tmp_path / "far.py").read_text()
            (tmp_path / "far.py").write_text(text.replace("deep.W", "-deep.W"))
        keys += keys_of(script, stdin=True)
    assert len(set(keys)) == 5


def test_no_key_holds_an_address() -> None:
    scorer = FunctionScorer(functools.partial(times, Weighted(1)))
    assert re.fullmatch(r"[0-9a-f]{20}", scorer.key)
    assert load_function("math:fsum").key == load_function("math:fsum").key


# ---- training


@pytest.mark.parametrize("trainer", ["ppo", "grpo"])
def test_another_reward_trains_another_policy(tmp_path: Path, trainer: str) -> None:
    prompts = [Prompt.user(p.text) for p in tiny.prompts("train", limit=4)]
    steps = []

    def fit(weight: float) -> None:
        before = len(steps)
        scorer = FunctionScorer(lambda _, c: [weight * len(x) for x in c])
        if trainer == "ppo":
            train_ppo(
                prompts,
                "tiny",
                tmp_path,
                scorer,
                PPOSettings(steps=1, batch_size=4, max_new_tokens=8, minibatches=1, epochs=1),
                runtime=Runtime("cpu", on_log=steps.append),
            )
        else:
            train_group(
                prompts,
                "tiny",
                tmp_path,
                scorer,
                GRPOSettings(steps=1, batch_size=4, group=2, max_new_tokens=8),
                runtime=Runtime("cpu", on_log=steps.append),
            )
        counts.append(len(steps) - before)

    counts: list[int] = []
    for weight in (1.0, -1.0, -1.0):
        fit(weight)
    assert counts == [1, 1, 0]
