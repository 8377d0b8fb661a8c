"""One way to say a thing: the same options on every command, checks that come before a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import Config
from rlaif.engines import load
from rlaif.errors import ConfigError, DataError, EngineError, RlaifError

RUNNER = CliRunner()


def walk(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every registered command with its words."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}".strip())
    if not getattr(command, "commands", None):
        yield name, command


COMMANDS = dict(walk(typer.main.get_command(app)))
ON_A_RUN = [
    name
    for name in COMMANDS
    if name.split()[0] in ("train", "eval", "run", "sample", "label", "revise", "contrast")
]
NAMES = [*ON_A_RUN, "report", "status", "export"]


def helped(name: str) -> str:
    found = RUNNER.invoke(app, [*name.split(), "--help"], env={"COLUMNS": "160"})
    assert found.exit_code == 0, found.output
    return found.output


def calling(*words: str) -> Any:
    return RUNNER.invoke(app, list(words), catch_exceptions=False)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_no_types_of_python(name: str) -> None:
    text = helped(name)
    assert f"Example: rlaif {name}" in " ".join(text.split())
    types = r"<[\w\[\]| ]+>|\b(TEXT|INTEGER|FLOAT|PATH|BOOLEAN|DIRECTORY)\b|list\[|\bPath\b"
    assert re.findall(types, text.replace("WHAT=PATH", "")) == []
    assert "Undefined" not in text  # the default of what has none
    assert "None" not in text


def test_the_same_option_is_said_the_same_everywhere() -> None:
    said: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for name, command in COMMANDS.items():
        if name.split()[0] in ("bench", "constitution", "config"):
            continue  # they have no run, and options of their own
        for p in command.params:
            if p.param_type_name == "option" and (name, p.opts[0]) != (
                "eval best-of-n",
                "--reward",
            ):
                said[p.opts[0]].add((p.help, p.metavar, str(p.opts)))
    assert {flag for flag, ways in said.items() if len(ways) > 1} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_an_argument_or_an_option(name: str) -> None:
    flags = {p.opts[0]: p for p in COMMANDS[name].params}
    assert "--out" in flags
    (first, *_) = (p for p in COMMANDS[name].params if p.param_type_name == "argument")
    assert (first.metavar, first.required) == ("RUN", False)
    words = [*name.split(), "one", "--out", "two", *(["three"] if name == "export" else [])]
    with pytest.raises(ConfigError, match="two runs are named: one, and two"):
        calling(*words)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", [n for n in ON_A_RUN if n.startswith("train") and n[-3:] != "dpo"])
def test_what_trains_can_be_seeded(name: str) -> None:
    assert "--seed" in helped(name)


@pytest.mark.parametrize("name", ["train ppo", "train grpo", "train rloo", "train online-dpo"])
def test_what_learns_live_takes_prompts_and_a_judge(name: str) -> None:
    text = helped(name)
    for flag in ("prompts", "limit", "skip-bad", "seed", "judge", "policy", "constitution"):
        assert f"--{flag}" in text, flag


def test_defaults_are_those_of_the_config() -> None:
    steps = Config.model_fields["train"].annotation
    assert steps is not None
    text = " ".join(helped("train ppo").split())
    assert re.search(r"--steps .*?\[default: 1000\]", text)
    assert re.search(r"--seed .*?\[default: 7\]", text)
    assert re.search(r"--n .*?\[default: 2\]", " ".join(helped("sample").split()))
    assert re.search(r"--seed .*?\[default: 11\]", " ".join(helped("eval winrate").split()))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("sample --constitution concise", "constitution", "concise"),
        ("eval winrate --judge other", "evaluate.judge.model", "other"),
        ("train ppo --limit 3", "prompts.limit", 3),
        ("train ppo --seed 3", "train.ppo.seed", 3),
        ("train dpo --seed 3", "train.dpo.seed", 3),
        ("run --seed 3", "train.dpo.seed", 3),
        ("run --limit 3", "prompts.limit", 3),
        ("run --pairs p.jsonl --limit 3", "pairs.limit", 3),
    ],
)
def test_options_set_their_keys(
    words: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    for module in ("steps", "train", "evaluate"):
        monkeypatch.setattr(
            f"rlaif.cli.{module}.execute", lambda config, *_, **__: seen.append(config)
        )
    monkeypatch.setattr("rlaif.stages.held_out_section", lambda _: None)
    calling(*words.split())
    found = seen[0]
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


# --------------------------------------------------------- before a model, and nothing left behind

PAIR = '{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}\n'
FAILING: list[tuple[str, type[RlaifError], str]] = [
    ("label --pairs no.jsonl", DataError, "no.jsonl"),
    ("label --pairs ok.jsonl --constitution harmles", ConfigError, "Did you mean 'harmless'"),
    ("label --pairs ok.jsonl --judge no/such/model", EngineError, "no/such/model"),
    ("label --pairs ok.jsonl --set judge.template=no.j2", ConfigError, "no.j2"),
    ("label --pairs ok.jsonl --method text --set judge.template=two.j2", ConfigError, "brackets"),
    ("label --pairs ok.jsonl --set judge.principles=[x]", ConfigError, "no principle x"),
    ("sample --prompts no.txt", DataError, "no.txt"),
    ("sample --policy ./gone", EngineError, "gone"),
    ("run --pairs no.jsonl --set train.dpo=null", DataError, "no.jsonl"),
    ("train ppo --reward nowhere:score", ConfigError, "nowhere"),
    ("train grpo --reward ./gone", ConfigError, "gone"),
    ("train sft --data no.jsonl", DataError, "no.jsonl"),
    ("revise --set revise.template=no.j2", ConfigError, "no.j2"),
    ("eval audit", DataError, "no run directory runs/dem0 (did you mean runs/demo?)"),
    ("eval winrate", DataError, "did you mean runs/demo"),
    ("train dpo", DataError, "did you mean runs/demo"),
    ("label", DataError, "nothing to label"),
    ("report", DataError, "did you mean runs/demo"),
    ("status", DataError, "did you mean runs/demo"),
    ("export x.jsonl", DataError, "did you mean runs/demo"),
]


@pytest.mark.parametrize(("words", "error", "message"), FAILING)
def test_what_is_missing_is_told_before_a_model_and_leaves_nothing(
    words: str, error: type[RlaifError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ok.jsonl").write_text(PAIR)
    Path("two.j2").write_text("---\noptions: [A, B]\n---\n=== user ===\n{{ first }}{{ second }}\n")
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/manifest.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    for at in ("rlaif.stages.run.load_engine", "rlaif.stages.running.load_engine"):
        monkeypatch.setattr(at, lambda *_, **__: pytest.fail("a model was loaded"))
    assert load.load_engine
    with pytest.raises(error, match=re.escape(message)):
        calling(*words.split(), "--out", "runs/dem0")
    assert sorted(Path().rglob("*")) == before


def test_a_model_that_cannot_be_loaded_leaves_no_run(tmp_path: Path) -> None:
    Path("ok.jsonl").write_text(PAIR)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(EngineError):
        calling("label", "--pairs", "ok.jsonl", "--judge", "./empty", "--out", "new/run")
    assert not Path("new").exists()
    Path("old").mkdir()
    with pytest.raises(EngineError):
        calling("label", "--pairs", "ok.jsonl", "--judge", "./empty", "old")
    assert Path("old").is_dir()


def test_bench_judge_works_by_its_defaults() -> None:
    shown = calling("bench", "judge", "--model", "tiny", "--json", "--threads", "1")
    assert shown.exit_code == 0
    assert '"max_abs_diff"' in shown.output
