"""What strangers' reward functions do wrong: each is one paragraph that names the function."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import ConfigError, RlaifError, TrainingError
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.rl.group import train_group
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.rollout import Episode
from rlaif.training.rl.scorers import FunctionScorer, checked_labels, load_function, score_all

PROMPTS = [Prompt.user(text) for text in ("one", "two", "three")]
TEXTS = ["a", "bb", "ccc"]
IDS = np.array([1], np.int32)


def score(body: str, tmp_path: Path, monkeypatch, name: str = "rewards") -> list[float | None]:
    """What a module's function with this body gives, found by its name as in a config."""
    source = "import sys\ndef score(prompts, completions):\n"
    source += "".join(f"    {line}\n" for line in body.splitlines())
    return run(source, tmp_path, monkeypatch, name)


def run(source: str, tmp_path: Path, monkeypatch, name: str = "rewards") -> list[float | None]:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return load_function(f"{name}:score").score(PROMPTS, TEXTS, [True] * 3)


EXPECTED = "one number a completion"

# what a function does, and what the paragraph must say of it
WRONG = {
    "a dict": ("return {'reward': [1.0, 2.0, 3.0]}", "dict"),
    "a dict of as many": ("return {t: 1.0 for t in completions}", "dict"),
    "a string": ("return '123'", "str"),
    "bytes": ("return b'123'", "bytes"),
    "a set": ("return {1.0, 2.0, 3.0}", "set"),
    "None": ("return None", "None"),
    "nothing": ("pass", "None"),
    "a number": ("return 1.0", "float"),
    "a generator that raises": ("return (1 / 0 for _ in completions)", "ZeroDivisionError"),
    "a coroutine": ("async def late(): return [1.0]\nreturn late()", "coroutine"),
    "too few": ("return [1.0]", "1 scores for 3 completions"),
    "too many": ("return [1.0] * 4", "4 scores for 3 completions"),
    "endless": ("import itertools\nreturn itertools.repeat(1.0)", "more than 3"),
    "NaN": ("return [1.0, float('nan'), 2.0]", "nan"),
    "inf": ("return [1.0, float('inf'), 2.0]", "inf"),
    "minus inf": ("return [1.0, -float('inf'), 2.0]", "-inf"),
    "too large": ("return [1.0, 10 ** 400, 2.0]", "too large"),
    "booleans": ("return [True, False, True]", "True"),
    "numpy booleans": ("import numpy\nreturn numpy.array([True, False, True])", "True"),
    "strings": ("return ['1.0', '2.0', '3.0']", "'1.0'"),
    "a list of lists": ("return [[1.0], [2.0], [3.0]]", "[1.0]"),
    "a matrix": ("import numpy\nreturn numpy.ones((3, 2))", "[1.0, 1.0]"),
    "complex numbers": ("return [1j, 2j, 3j]", "1j"),
    "raises": ("return [1 / 0 for _ in completions]", "ZeroDivisionError"),
    "raises an assertion": ("assert False, 'never'", "AssertionError: never"),
    "raises without words": ("raise KeyError", "KeyError"),
    "recurses": ("return score(prompts, completions)", "RecursionError"),
    "raises of many lines": ("raise ValueError('a\\n\\nb\\n' * 50)", "ValueError"),
    "exits": ("sys.exit(3)", "exit"),
    "exits in peace": ("sys.exit()", "exit"),
    "quits": ("raise SystemExit('bye')", "exit"),
}


def one_paragraph(error: RlaifError, name: str = "rewards:score") -> str:
    text = str(error)
    assert name in text
    assert "\n" not in text
    assert len(text) < 900
    return text


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_said_in_one_paragraph(tmp_path, monkeypatch, case):
    body, said = WRONG[case]
    with pytest.raises(TrainingError) as caught:
        score(body, tmp_path, monkeypatch)
    text = one_paragraph(caught.value)
    assert said in text
    assert EXPECTED in text


@pytest.mark.parametrize("case", ["raises", "exits"])
def test_the_line_is_named(tmp_path, monkeypatch, case):
    with pytest.raises(TrainingError, match=r"rewards\.py, line 3"):
        score(WRONG[case][0], tmp_path, monkeypatch)


RIGHT = {
    "a list": "return [1.0, 2, None]",
    "a tuple": "return (1.0, 2, None)",
    "a generator": "return (x for x in (1.0, 2, None))",
    "objects": "import numpy\nreturn numpy.array([1.0, 2, None], dtype=object)",
}


@pytest.mark.parametrize("case", list(RIGHT))
def test_none_is_an_abstention(tmp_path, monkeypatch, case):
    assert score(RIGHT[case], tmp_path, monkeypatch) == [1.0, 2.0, None]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_numbers_of_every_make_are_the_same_numbers(values):
    prompts, texts, ended = [PROMPTS[0]] * len(values), ["a"] * len(values), [True] * len(values)
    for made in (
        values,
        np.array(values),
        np.array(values, np.float32),
        list(np.array(values, np.float32)),
        torch.tensor(values),
        list(torch.tensor(values)),
    ):
        found = FunctionScorer(lambda *_, made=made: made).score(prompts, texts, ended)
        assert found == values
        assert all(type(x) is float and math.isfinite(x) for x in found)


def test_what_it_prints_does_not_mix_with_what_a_command_says(tmp_path, monkeypatch, capsys):
    source = (
        "print('at import')\ndef score(p, c):\n    print('while scoring')\n    return [1.0] * 3\n"
    )
    assert run(source, tmp_path, monkeypatch) == [1.0] * 3
    told = capsys.readouterr()
    assert told.out == ""
    assert "at import" in told.err
    assert "while scoring" in told.err


def test_what_it_changes_stays_as_it_was(tmp_path, monkeypatch):
    body = "prompts.clear()\ncompletions[:] = ['x'] * 9\nreturn [1.0] * 3"
    assert score(body, tmp_path, monkeypatch) == [1.0] * 3
    assert len(PROMPTS) == len(TEXTS) == 3


AT_IMPORT = {
    "raises": ("x = 1\n1 / 0\n", "ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(0)\n", "exit"),
    "syntax": ("x = 1\ndef score(:\n", "SyntaxError"),
    "a missing module": ("\nimport no_such_module_at_all\n", "no_such_module_at_all"),
    "asserts": ("import os\nassert False, 'set the variable X'\n", "set the variable X"),
}


@pytest.mark.parametrize("case", list(AT_IMPORT))
def test_what_fails_at_import_is_said_with_its_line(tmp_path, monkeypatch, case):
    source, said = AT_IMPORT[case]
    with pytest.raises(ConfigError) as caught:
        run(source, tmp_path, monkeypatch, f"broken_{case.replace(' ', '_')}")
    text = one_paragraph(caught.value, f"broken_{case.replace(' ', '_')}:score")
    assert said in text
    assert "line 2" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_here:score", "no_such_module_here"),
        ("rewards", "module:function"),
        (":score", "module:function"),
        ("rewards:", "module:function"),
        ("rewards:scores", "'scores'"),
        ("rewards:number", "'number'"),
        ("..rewards:score", "..rewards"),
        ("a b\0c:score", "module"),
        ("rewards/sub.py:score", "rewards/sub.py"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_config_error(tmp_path, monkeypatch, name, said):
    (tmp_path / "rewards.py").write_text("number = 3\ndef score(p, c): return [1.0] * len(c)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    with pytest.raises(ConfigError) as caught:
        load_function(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ".py, line" not in str(caught.value)


def test_what_is_no_function_is_a_type_error_that_says_what_is():
    with pytest.raises(TypeError, match="prompts and completions"):
        FunctionScorer([1.0, 2.0])  # type: ignore[arg-type]


def test_functions_made_of_one_with_other_arguments_have_keys_of_their_own():
    def scaled(scale, prompts, texts):
        del prompts
        return [scale * len(text) for text in texts]

    keys = {FunctionScorer(partial(scaled, scale)).key for scale in (1.0, 2.0)}
    assert len(keys) == 2
    assert FunctionScorer(partial(scaled, 1.0)).key in keys


@pytest.mark.parametrize("trainer", ["ppo", "grpo"])
def test_a_command_ends_with_the_paragraph_and_not_with_the_functions_status(tmp_path, trainer):
    (tmp_path / "mine.py").write_text("import sys\ndef score(p, c):\n    sys.exit(0)\n")
    command = [
        sys.executable,
        "-c",
        "from rlaif.cli import main; main()",
        "train",
        trainer,
        "--config",
        "demo",
        "--out",
        "run",
        "--reward",
        "mine:score",
        "--steps",
        "1",
        "--set",
        f"train.{trainer}.batch_size=8",
        "--set",
        "prompts.limit=8",
    ]
    if trainer == "ppo":
        command += ["--set", "train.ppo.held_out=null"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr + done.stdout
    assert "mine:score" in done.stderr + done.stdout
    assert "exit" in done.stderr + done.stdout


# ---- scorers and labels of people's own


class Own:
    """A scorer of one's own making."""

    key = "own"

    def __init__(self, gives) -> None:
        self.gives = gives

    def score(self, prompts, completions, ended):
        del prompts, completions, ended
        return self.gives


def test_what_is_no_scorer_is_a_type_error_that_names_the_protocol(tmp_path):
    for train in (train_ppo, train_group):
        for wrong in (lambda _, texts: [1.0] * len(texts), None, "judge", object()):
            with pytest.raises(TypeError, match=r"scorers\.Scorer.*FunctionScorer"):
                train(PROMPTS, "tiny", tmp_path, wrong)


@pytest.mark.parametrize("gives", [[1.0], [1.0] * 9, ["1", "2", "3"], [[1.0]] * 3])
def test_another_scorers_nonsense_is_said(gives):
    episodes = [
        Episode(p, IDS, IDS, t, True, np.zeros(1)) for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    with pytest.raises(TrainingError, match=r"Own\.score gave .* for 3 completions"):
        score_all(Own(gives), episodes)
    assert score_all(Own([1, None, np.float32(2)]), episodes) == [1, None, 2]


@pytest.mark.parametrize("gives", [[], [0.9], [0.9, 0.1], [{"p": 1}], None])
def test_labels_that_are_none_are_said(gives):
    pairs = [Pair(PROMPTS[0], "a", "b")]
    with pytest.raises(TrainingError, match=r"one rlaif\.Preference a pair"):
        checked_labels(lambda _: gives, pairs)
    right = [Preference(pairs[0], "preferred", 0.9)]
    assert checked_labels(lambda _: right, pairs) == right
