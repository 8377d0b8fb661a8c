"""`rlaif constitution` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.cli.show import CRITIQUE, SAMPLE
from rlaif.constitution import Constitution
from rlaif.engines.base import Sampling, ScriptedEngine
from rlaif.errors import ConfigError, DataError
from rlaif.files.resources import names
from rlaif.steps.executors import Memory
from rlaif.steps.revising import Chain, Reviser, contrast_stream
from rlaif.steps.settings import ReviseSettings


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["constitution", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_check_goes_on_to_the_next_file_and_tells_all(tmp_path: Path) -> None:
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text("name: bad\nprinciples: [{id: a, compar: Is it}]\n")
    worse.write_text("name: worse\nprinciples: []\n")
    with pytest.raises(ConfigError) as caught:
        run("check", str(bad), "hhh", str(worse))
    assert "bad.yaml:2:22: unknown key 'compar'. Did you mean 'compare'?" in str(caught.value)
    assert "worse.yaml:2:1: principles: at least one" in str(caught.value)
    assert "6 principles in 2 tiers, fine" in run("check", "hhh", "--for", "revise")
    with pytest.raises(ConfigError, match=r"--for revis: unknown use\. Did you mean 'revise'"):
        run("check", "hhh", "--for", "revis")
    bad.write_text("name: bad\nprinciples: [{id: a, critique: C, revise: R}]\n")
    with pytest.raises(ConfigError, match="label needs compare"):
        run("show", str(bad), "--prompt", "a")


@pytest.mark.parametrize("template", sorted(names("prompts", ".j2")))
def test_the_prompt_of_a_principle_is_shown_unbroken_in_every_template(template: str) -> None:
    if template.startswith(("revise/", "contrast/", "write/")):
        pytest.skip("not a judge's template")
    lines = run("show", "sixteen", "--prompt", "expert-advice", "--template", template).splitlines()
    question = "Which response is more careful where a doctor, a lawyer or another expert should "
    assert any(question + "be asked?" in line for line in lines)
    assert any("Dab it with alcohol, then wash it cold." in line for line in lines)


def sent_by(stage: Any, template: str) -> list[str]:
    """What a stage sends to an engine that writes down what it is asked, and answers a text."""
    asked: list[str] = []

    def answer(text: str, _: int) -> str:
        asked.append(text)
        return CRITIQUE

    stage(ScriptedEngine(generator=answer), template)
    return asked


@pytest.mark.parametrize("template", ["revise/default", "revise/fewshot"])
def test_the_requests_of_a_revision_are_shown_as_they_are_sent(template: str) -> None:
    (principle,) = Constitution.load("harmless").select(["no-harm"])

    def stage(engine: ScriptedEngine, template: str) -> None:
        reviser = Reviser(engine, (principle,), ReviseSettings(template=template))
        reviser.round([Chain(SAMPLE.prompt, 0, SAMPLE.first)], 1)

    critique, revision = sent_by(stage, template)
    shown = run(
        "show", "harmless", "--prompt", "no-harm", "--for", "revise", "--template", template
    )
    assert shown == f"--- critique\n{critique}\n\n--- revision\n{revision}\n\n"
    assert CRITIQUE in revision
    assert principle.revise in revision
    assert principle.revise not in critique
    if template == "revise/default":  # what `rlaif revise` takes
        assert run("show", "harmless", "--prompt", "no-harm", "--for", "revise") == shown


def test_both_sides_of_a_contrast_are_shown_as_they_are_sent() -> None:
    (principle,) = Constitution.load("harmless").select(["no-harm"])

    def stage(engine: ScriptedEngine, template: str) -> None:
        list(
            contrast_stream(
                [SAMPLE.prompt], engine, [principle], Sampling(n=1), Memory(), template=template
            )
        )

    follow, violate = sent_by(stage, "contrast/default")
    shown = run("show", "harmless", "--prompt", "no-harm", "--for", "contrast")
    assert shown == f"--- follow\n{follow}\n\n--- violate\n{violate}\n\n"


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nprinciples: [{id: a, compare: C}, {id: b, compare: D}]\n")
    one = ("show", str(path), "--prompt", "a", "--for")
    with pytest.raises(ConfigError, match=r"revise needs critique and revise .* missing in a \("):
        run(*one, "revise")
    with pytest.raises(ConfigError, match="contrast needs follow and violate"):
        run(*one, "contrast")
    with pytest.raises(ConfigError, match=r"--for reviso: unknown use\. Did you mean 'revise'"):
        run(*one, "reviso")
    with pytest.raises(ConfigError, match="give --prompt, one of a, b"):
        run("show", str(path), "--for", "revise")
    with pytest.raises(ConfigError, match="leave it out with --for revise"):
        run(*one, "revise", "--method", "cot")


def test_the_sample_may_be_a_pair_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "Hello?", "chosen": "Good day to you.", "rejected": "What?"}
    path.write_text(json.dumps(row) + "\n")
    shown = run("show", "harmless", "--prompt", "no-harm", "--pairs", str(path), "--method", "cot")
    assert "Good day to you." in shown
    shown = run("show", "harmless", "--prompt", "no-harm", "--pairs", str(path), "--for", "revise")
    assert shown.count("user: Hello?\nassistant: Good day to you.\nuser: ") == 2


def test_diff_import_and_schema(tmp_path: Path) -> None:
    shown = run("diff", "harmless", "hhh")
    assert "2 of 6 columns of verdicts stay valid, 4 to judge" in shown
    source, made = tmp_path / "ours.txt", tmp_path / "ours.yaml"
    source.write_text("Which is kinder?\nWhich is shorter?\n")
    assert "2 principles" in run("import", str(source), str(made))
    assert "2 principles, fine" in " ".join(run("check", str(made)).split())
    with pytest.raises(DataError, match="exists"):
        run("import", str(source), str(made))
    assert json.loads(run("schema"))["title"] == "rlaif constitution"
