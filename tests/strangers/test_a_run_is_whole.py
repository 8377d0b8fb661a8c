"""A run directory holds what it needs: copied, with its originals gone, it goes on elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.constitution import Constitution
from rlaif.files.resources import folder
from rlaif.store import RunStore
from rlaif.store.places import named

PROMPTS = [
    "How do I bake bread?",
    "Is my plan good?",
    "Tell me about cats.",
    "How do I lie to a friend?",
    "My essay is perfect, right?",
    "What is a lock pick?",
    "How are you?",
    "How do I cook rice?",
]
SMALL = (
    "sampling.max_new_tokens=12",
    "sampling.keep_cut=true",
    "preferences.min_margin=0.0",
    "train.reward.held_out=0.25",
    "train.reward.epochs=1",
    "train.dpo.epochs=1",
    "threads=1",
    "train.limits=null",
)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(root: Path, name: str) -> list[object]:
    return list(RunStore(root, read_only=True).table(name).read())  # type: ignore[call-overload]


def write_project(here: Path) -> None:
    """A constitution that extends another by a path, a template, prompts, all beside the run."""
    (here / "rules" / "base").mkdir(parents=True)
    (here / "rules/base/care.yaml").write_text(
        "name: care\nprinciples:\n  - {id: calm, compare: 'Which is calmer: “a” or #b?'}\n"
    )
    (here / "rules/mine.yaml").write_text(
        "name: mine\nextends: [base/care.yaml, harmless]\ndrop: [least-harm]\n"
    )
    shutil.copy(folder("prompts") / "pairwise" / "tiny.j2", here / "own.j2")
    (here / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    rest = "".join(json.dumps({"prompt": f"Held out: {p}"}) + "\n" for p in PROMPTS[:4])
    (here / "held.jsonl").write_text(rest)
    (here / "config.yaml").write_text(
        "out: runs/a\nconstitution: rules/mine.yaml\nprompts: {path: prompts.txt}\n"
        "judge: {template: own.j2}\nevaluate: {prompts: {path: held.jsonl}}\n"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a whole run in it."""
    project = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        write_project(project)
        run("run", "--config", "config.yaml", *(x for s in SMALL for x in ("--set", s)))
    return project


@pytest.fixture
def moved(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, the working folder elsewhere, everything that the run came from hidden."""
    copy = tmp_path / "taken" / "along"
    shutil.copytree(made / "runs/a", copy)
    away = made.with_name(made.name + "-gone")
    made.rename(away)
    monkeypatch.chdir(tmp_path)
    yield copy
    away.rename(made)


def test_a_copied_run_goes_on_without_its_originals(moved: Path) -> None:
    before = {name: rows(moved, name) for name in ("prompts", "completions", "pairs", "verdicts")}
    labels = rows(moved, "preferences")
    for command in ("sample", "label", "train reward", "train dpo", "eval audit", "eval winrate"):
        run(*command.split(), "--out", str(moved))
    run("report", str(moved))
    assert {name: rows(moved, name) for name in before} == before
    assert rows(moved, "preferences") == labels
    stages = json.loads((moved / "manifest.json").read_text())["stages"]
    assert {n: s["new_rows"] for n, s in stages.items()} == dict.fromkeys(stages, 0)
    assert set(stages) == {"sample", "label", "audit", "reward", "dpo", "evaluate"}


def test_by_its_run_yaml_too(moved: Path) -> None:
    assert "(0 new)" in run("label", "--config", str(moved / "run.yaml"))
    assert not Path("runs").exists()  # nothing is written where it once stood
    assert "fine" in run("config", "check", str(moved / "run.yaml"))


def test_nothing_in_run_yaml_is_relative_to_where_somebody_stood(made: Path) -> None:
    config = load_config(str(made / "runs/a/run.yaml"))
    data = yaml.safe_load((made / "runs/a/run.yaml").read_text())
    for one in named(config):
        value = data
        for part in one.location:
            value = value[part]
        shipped = value in ("tiny", "best", "model", "judge", "revise/default", "hf", "pairwise")
        assert shipped or value == "." or value.startswith("./") or Path(value).is_absolute(), one
        if value.startswith("./"):
            assert (made / "runs/a" / value).exists(), one


def test_where_it_was_made_it_follows_its_files(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = tmp_path / "p"
    shutil.copytree(made, project, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(project)
    small = [x for s in SMALL for x in ("--set", s)]
    run("sample", "--config", "config.yaml", "--limit", "2", *small)
    run("label", "--config", "config.yaml", *small)
    base = project / "rules/base/care.yaml"
    base.write_text(base.read_text().replace("calmer", "quieter"))
    output = run("label", "--out", "runs/a")
    assert "rules/mine.yaml has changed since this run took it" in " ".join(output.split())
    assert "(4 new)" in output or "(2 new)" in output  # one principle, both orders
    base.unlink()
    (project / "rules/mine.yaml").unlink()
    assert "(0 new)" in run("label", "--out", "runs/a")
    kept = Constitution.load(load_config("runs/a/run.yaml").constitution)
    assert kept.principles[0].compare == "Which is quieter: “a” or #b?"


def test_pairs_of_a_file_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": f"Thing {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(3)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + "{cut\n")
    run("label", "--pairs", "pairs.jsonl", "--skip-bad", "1", "--judge", "tiny", "--out", "r")
    before = rows(Path("r"), "pairs"), rows(Path("r"), "verdicts"), rows(Path("r"), "preferences")
    rejected = Path("r/rejected-read.jsonl").read_text()
    shutil.copytree("r", "there")
    shutil.rmtree("r")
    Path("pairs.jsonl").unlink()
    assert "(0 new)" in run("label", "--out", "there")
    there = Path("there")
    assert (rows(there, "pairs"), rows(there, "verdicts"), rows(there, "preferences")) == before
    assert len(Path("there/rejected-read.jsonl").read_text()) >= len(rejected) > 0


def test_a_reward_functions_module_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("marks_of_door.py").write_text(
        "def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    small = (
        "sampling.max_new_tokens=6",
        "train.ppo.batch_size=4",
        "train.ppo.held_out=null",
        "prompts.path=prompts.txt",
        "threads=1",
        "train.ppo.minibatches=1",
    )
    options = [x for s in small for x in ("--set", s)]
    run("train", "ppo", "--out", "r", "--reward", "marks_of_door:score", "--steps", "1", *options)
    shutil.copytree("r", "far/r")
    for gone in ("marks_of_door.py", "prompts.txt"):
        Path(gone).unlink()
    monkeypatch.chdir(tmp_path / "far")
    monkeypatch.delitem(__import__("sys").modules, "marks_of_door")
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(tmp_path)])
    run("train", "ppo", "--out", "r")
    stages = json.loads(Path("r/manifest.json").read_text())["stages"]
    assert stages["ppo"]["new_rows"] == 0


def test_a_value_models_place_is_not_in_the_key(tmp_path: Path) -> None:
    from rlaif.files.resources import TINY_WEIGHTS
    from rlaif.training.models import Start
    from rlaif.training.rl.loop import OnlineRun
    from rlaif.training.rl.ppo_run import _run_key
    from rlaif.training.rl.scorers import load_function
    from rlaif.training.rl.settings import PPOSettings
    from rlaif.training.settings import Runtime

    (tmp_path / "other").mkdir()
    shutil.copytree(TINY_WEIGHTS, tmp_path / "other" / "v")
    scorer = load_function("json:dumps")
    keys = set()
    for place in (TINY_WEIGHTS, tmp_path / "other" / "v"):
        settings = PPOSettings(value="separate", value_model=str(place))
        run = OnlineRun("ppo", Start("tiny"), tmp_path, settings, Runtime())
        keys.add(_run_key(run, settings, [], scorer, []))
    assert len(keys) == 1


def test_every_field_that_names_a_file_says_so() -> None:
    """What a later section names is checked, kept and moved without another list to edit."""
    from pydantic import BaseModel

    from rlaif import config
    from rlaif.store.places import Place

    names = {
        "path",
        "model",
        "adapter",
        "template",
        "constitution",
        "reward",
        "data",
        "ptx",
        "out",
        "value_model",
    }
    sections = [
        c for c in vars(config).values() if isinstance(c, type) and issubclass(c, BaseModel)
    ]
    unsaid = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if name in names
        and field.annotation in (str, str | None)
        and not any(isinstance(m, Place) for m in field.metadata)
    ]
    assert unsaid == []
