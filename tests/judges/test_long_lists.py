"""Lists longer than a listwise judge has labels: refused before any work, wherever they begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError

LISTS = ("--set", "judge.method=listwise", "--set", "judge.min_mass=0")
DEFAULT = ("--set", "judge.template=listwise/default")  # 16 labels; the embedded model's own has 4


def run(*arguments: str) -> None:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pairs(*counts: int, empty: int = 0) -> tuple[str, ...]:
    """A file of pairs whose prompts have so many completions each, and the option that reads it."""
    rows = []
    for i, n in enumerate(counts):
        answers = [f"No {j}." for j in range(n)] + [" "] * empty
        rows += [
            {"prompt": f"Question\n{i}?", "chosen": answers[0], "rejected": other}
            for other in answers[1:]
        ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--pairs", "pairs.jsonl", "--format", "trl")


def nothing_judged() -> bool:
    """A command that failed before any judgement leaves no run behind."""
    return not Path("r").exists()


def test_pairs_of_a_prompt_with_too_many_completions_are_refused_before_any_is_judged() -> None:
    given = pairs(2, 17, 3, 18)  # the third prompt would be judged before the last one fails
    with pytest.raises(ConfigError) as caught:
        run("label", *given, "--out", "r", *LISTS, *DEFAULT, "--set", "chunk=1")
    said = str(caught.value)
    assert "2 prompts have more completions than the judge's template listwise/default has" in said
    assert "labels (16); the most, 18, prompt " in said
    assert ": Question 3?\n" in said
    assert "a method other than listwise" in said
    assert nothing_judged()
    run(
        "label",
        *given,
        "--out",
        "r",
        "--set",
        "judge.method=rubric",
        "--set",
        "judge.template=null",
        "--set",
        "judge.min_mass=0",
    )


def test_as_many_as_there_are_labels_are_judged_and_empty_ones_take_none() -> None:
    run("label", *pairs(4, empty=1), "--out", "r", *LISTS)
    with pytest.raises(ConfigError, match=r"template listwise/tiny has labels \(4\); the most, 5"):
        run("label", *pairs(5), "--out", "s", *LISTS)


def test_a_juror_is_named() -> None:
    jury = "jury=[{name: quick}, {name: lists, method: listwise}]"
    with pytest.raises(
        ConfigError,
        match=r"(?s)1 prompt has .* juror lists's .*give the juror",
    ):
        run("label", *pairs(5), "--out", "r", "--set", jury)
    assert nothing_judged()  # by neither


def test_a_template_of_ones_own_decides() -> None:
    Path("six.j2").write_text(
        '---\noptions: ["A", "B", "C", "D", "E", "F"]\n---\n=== user ===\n'
        "{% for r in responses %}{{ r }}\n{% endfor %}{{ principle }}"
    )
    own = ("--set", "judge.template=six.j2")
    run("label", *pairs(6), "--out", "r", *LISTS, *own)
    with pytest.raises(ConfigError, match=r"six\.j2 has labels \(6\); the most, 7"):
        run("label", *pairs(7), "--out", "s", *LISTS, *own)


def test_sampling_more_than_can_be_judged_is_refused_before_it_begins() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.n=5 puts 5 completions .* has 4 labels"):
        run("sample", "--prompts", "tiny", "--limit", "2", "-n", "5", "--out", "r", *LISTS)
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (
            "grpo",
            "train.grpo={group: 5, batch_size: 60}",
            r"train\.grpo\.group=5 puts 5 completions",
        ),
        ("rloo", "train.rloo={group: 4, against: reference}", r"rloo\.group=4 puts 5 completions"),
        ("ppo", "train.ppo={reward: judge, samples: 4}", r"ppo\.samples=4 puts 5 completions"),
    ],
)
def test_so_are_groups_of_a_policy_that_learns(stage: str, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("train", stage, "--out", "r", *LISTS, "--set", given)
    assert not Path("r/models").exists()
