"""An error about a name tells what it was for, where it was looked for, and what lies beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_pairs, read_prompts
from rlaif.files.readers.settings import PairReading
from rlaif.files.resources import find


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    return re.sub(r"\s+", " ", str(result.exception) if result.exit_code else result.output)


@pytest.mark.parametrize("asked", ["try.yml", "try", "./try.yml", "my/try.yml"])
def test_a_config_beside_is_offered(asked: str) -> None:
    Path("my").mkdir()
    for name in ("try.yaml", "my/try.yaml"):
        Path(name).write_text("{}")
    with pytest.raises(ConfigError) as error:
        find("configs", asked, ".yaml")
    text = str(error.value)
    assert "no such file" in text
    assert f"Did you mean '{'my/' if asked.startswith('my') else ''}try.yaml'?" in text


def test_shipped_names_are_still_told() -> None:
    with pytest.raises(
        ConfigError, match=r"'xyz'.*no such file.*Choices: demo, learning, real, real-small\."
    ):
        find("configs", "xyz", ".yaml")
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        find("configs", "dem", ".yaml")


def test_status_without_a_run() -> None:
    text = output("status")
    assert "no run directory runs/run" in text
    assert "Otherwise" not in text
    assert "`rlaif run` makes one" in text


def test_status_of_a_new_project_says_what_init_said() -> None:
    made = output("init", "my-project")
    command = "cd my-project && rlaif run --config try.yaml"
    assert f"next: {command}" in made
    assert f"next: {command}" in output("status", "my-project")


def test_a_wrong_column_says_what_it_was_for() -> None:
    Path("p.jsonl").write_text(json.dumps({"q": "a?", "good": "b", "bad": "c"}) + "\n")
    columns = {"prompt": "q", "chosen": "gud", "rejected": "bad"}
    with pytest.raises(DataError, match=r"columns\.chosen: there is no 'gud'"):
        list(read_pairs("p.jsonl", PairReading(columns=columns)))
    with pytest.raises(DataError, match=r"columns\.rejected: .*'bad\.3'"):
        list(
            read_pairs(
                "p.jsonl", PairReading(columns={**columns, "chosen": "good", "rejected": "bad.3"})
            )
        )


@pytest.mark.parametrize("read", [read_pairs, read_prompts])
def test_unknown_columns_name_the_option(read: object) -> None:
    Path("p.jsonl").write_text(json.dumps({"x": "a?", "good": "b", "bad": "c"}) + "\n")
    with pytest.raises(DataError, match="`--column prompt="):
        list(read("p.jsonl"))  # type: ignore[operator]
