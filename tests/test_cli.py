"""The commands as a user types them, on real parts: the embedded model, real files."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.errors import ConfigError, DataError, EngineError, RlaifError
from rlaif.files import resources
from rlaif.store import RunStore

RUNNER = CliRunner()
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COMMANDS = [
    "run",
    "sample",
    "label",
    "revise",
    "contrast",
    "export",
    "train reward",
    "train dpo",
    "train ppo",
    "eval winrate",
    "eval audit",
    "report",
    "constitution check",
    "constitution show",
    "constitution diff",
    "constitution explain",
    "constitution what-if",
    "constitution import",
    "constitution schema",
    "config check",
    "config schema",
    "init",
]


def run(*arguments: str) -> str:
    """Runs a command in this process; errors come out as they are raised."""
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_pairs(path: Path, n: int = 4) -> None:
    rows = []
    for i in range(n):
        prompt = f"\n\nHuman: Tell me about thing {i}.\n\nAssistant:"
        rows.append({"chosen": f"{prompt} It is good.", "rejected": f"{prompt} No, number {i}."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"Example: rlaif {command}" in " ".join(run(*command.split(), "--help").split())


def test_help_costs_no_heavy_import() -> None:
    """0.2 s of processor time on an idle core; wall time would fail on a busy machine."""
    assert min(_cpu_seconds_of_help() for _ in range(3)) < 0.6


def _cpu_seconds_of_help() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = "from rlaif.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_label_and_label_again(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    first = run("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "runs/a")
    assert "4 pairs read" in first
    assert "16 verdicts (16 new)" in first
    again = run("label", "--out", "runs/a")
    assert "16 verdicts (0 new)" in again


def test_label_by_another_method(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    options = ("--method", "cot", "--set", "judge.rationale.max_new_tokens=8", "--out", "runs/a")
    output = run("label", "--pairs", "pairs.jsonl", "--judge", "tiny", *options)
    assert "16 verdicts (16 new)" in output
    assert "16 of 16 verdicts after a text of the judge's own" in output
    manifest = json.loads((tmp_path / "runs/a/manifest.json").read_text())
    assert manifest["judge"]["method"] == "cot"
    stage = manifest["stages"]["label"]
    assert stage["reasoned_verdicts"] == 16
    assert stage["reasoning_tokens"] == stage["generated_tokens"] > 0
    rows = RunStore(tmp_path / "runs/a", read_only=True).table("verdicts").read()
    assert all(len(v.rationales) == 1 for v in rows)
    # One order is enough where a completion is scored by itself.
    output = run("label", "--out", "runs/a", "--set", "judge.method=rubric")
    assert "8 verdicts (8 new)" in output
    assert "unknown" not in output


def test_labels_that_the_judge_would_hardly_write_are_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    command = ("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--set", "judge.min_mass=0")
    for template, warned in (("pairwise/tiny", False), ("pairwise/default", True)):
        said = run(*command, "--out", "r", "--set", f"judge.template={template}")
        words = " ".join((said + capfd.readouterr().err).split())
        assert ("had less than half of the judge's probability" in words) is warned
        found = json.loads((tmp_path / "r/evaluation/labels.json").read_text())
        assert (found["mass_under_half"] > 0.5) is warned


def test_another_threshold_of_mass_judges_nothing_again(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    given = (
        "--pairs",
        "pairs.jsonl",
        "--judge",
        "tiny",
        "--set",
        "threads=1",
        "--set",
        "judge.template=pairwise/default",
    )
    masses = {}
    for value in ("0", "0.2", "1", "0"):  # from all, by some and none, back to all
        sets = ("--set", f"judge.min_mass={value}")
        new = 16 if not masses else 0
        assert f"16 verdicts ({new} new)" in run("label", *given, "--out", "r", *sets)
        if not (tmp_path / f"fresh-{value}").exists():
            run("label", *given, "--out", f"fresh-{value}", *sets)
        preferences = [
            RunStore(tmp_path / name, read_only=True).table("preferences").read()
            for name in ("r", f"fresh-{value}")
        ]
        assert preferences[0] == preferences[1]
        fresh = RunStore(tmp_path / f"fresh-{value}", read_only=True).table("verdicts").read()
        rows = RunStore(tmp_path / "r", read_only=True).table("verdicts").read()
        by_key = {row.key: row for row in rows}
        assert [by_key[row.key] for row in fresh] == fresh
        masses[value] = sum(row.reason == "low_mass" for row in fresh)
    assert masses["0"] == 0 < masses["1"] == 16


def test_editing_one_principle_of_sixteen_judges_a_sixteenth(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    text = (resources.folder("constitutions") / "sixteen.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    arguments = ("label", "--pairs", "pairs.jsonl", "--constitution", "mine.yaml", "--out", "r")
    assert "128 verdicts (128 new)" in run(*arguments)  # 4 pairs, 16 principles, both orders
    edited = text.replace("compare: Which response", "compare: Which of the two responses", 1)
    assert edited != text
    (tmp_path / "mine.yaml").write_text(edited)
    assert "128 verdicts (8 new)" in run(*arguments)
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["stages"]["label"]["new_rows"] == 8
    (tmp_path / "mine.yaml").write_text(text)
    assert "128 verdicts (0 new)" in run(*arguments)  # the old verdicts are still there


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small = [
        "prompts.limit=40",
        "evaluate.prompts.limit=20",
        "train.reward.epochs=1",
        "train.dpo.epochs=1",
        "preferences.min_margin=0.0",
        "preferences.principle_margin=0.0",
        "train.reward.held_out=0.3",
    ]
    options = [x for s in small for x in ("--set", s)]
    run("run", "--config", "demo", "--out", str(folder / "r"), *options)
    return folder / "r"


def test_a_whole_run_leaves_everything(whole_run: Path) -> None:
    for name in (
        "run.yaml",
        "manifest.json",
        "summary.json",
        "report.html",
        "models/dpo/model.safetensors",
        "models/reward/model.safetensors",
        "evaluation/winrate.json",
        "evaluation/policies.json",
        "evaluation/audit.json",
    ):
        assert (whole_run / name).is_file(), name
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["target_trait"] == "harmless"
    assert summary["labels"]["pairs"] == len(RunStore(whole_run, read_only=True).table("pairs"))
    assert set(summary["policies"]) == {"base", "dpo"}
    assert set(summary["seconds"]) == {"sample", "label", "reward", "dpo", "evaluate", "total"}
    stages = json.loads((whole_run / "manifest.json").read_text())["stages"]
    wanted = {"sample", "label", "audit", "reward", "dpo", "evaluate", "model-written"}
    assert set(stages) == wanted


def test_a_whole_run_again_does_nothing_anew(whole_run: Path) -> None:
    before = json.loads((whole_run / "manifest.json").read_text())["stages"]
    weights = (whole_run / "models/dpo/model.safetensors").stat().st_mtime_ns
    run("run", "--out", str(whole_run))
    after = json.loads((whole_run / "manifest.json").read_text())["stages"]
    assert {name: stage["new_rows"] for name, stage in after.items()} == dict.fromkeys(after, 0)
    assert {n: s["seconds"] for n, s in after.items()} == {
        n: s["seconds"] for n, s in before.items()
    }
    assert (whole_run / "models/dpo/model.safetensors").stat().st_mtime_ns == weights


def test_the_trained_policy_answers_as_any_model(whole_run: Path) -> None:
    output = run("sample", "--policy", str(whole_run / "models/dpo"), "--limit", "3", "--out", "x")
    assert "6 completions of 3 prompts" in output


def test_export_is_read_back_by_datasets(whole_run: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    run("export", str(whole_run), "preferences.jsonl")
    rows = load_dataset(
        "json", data_files="preferences.jsonl", split="train", cache_dir=str(tmp_path)
    )
    table = RunStore(whole_run, read_only=True).table("preferences")
    wanted = [p for p in table.read() if p.status == "preferred"]
    assert len(rows) == len(wanted) > 0
    assert rows[0]["chosen"][0]["content"] == wanted[0].chosen
    assert all(0.5 < p <= 1 for p in rows["p_chosen"])


def test_from_python_as_the_readme_shows(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    from rlaif import Constitution, PairwiseJudge, label_pairs, load_engine, read_pairs

    judge = PairwiseJudge(load_engine("tiny"))
    labels = label_pairs(list(read_pairs("pairs.jsonl")), judge, Constitution.load("harmless"))
    assert len(labels) == 4
    assert all(label.verdicts == 4 for label in labels)


def test_a_new_project_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "next: cd mine" in run("init", "mine")
    monkeypatch.chdir(tmp_path / "mine")
    said = run("config", "check", "config.yaml", "try.yaml")
    assert "config.yaml: fine" in said
    assert "try.yaml: fine" in said
    assert "fine" in run("constitution", "check", "constitutions/mine.yaml")
    assert "2 prompts" in run("sample", "--config", "try.yaml", "--limit", "2")
    real = load_config("config.yaml")
    toy = load_config("try.yaml")
    assert (real.prompts.path, real.evaluate.prompts.path) == ("prompts.txt", "held_out.txt")
    assert real.train.dpo is not None
    assert toy.train.dpo is not None
    assert real.train.dpo.learning_rate <= 1e-6 < 1e-5 < toy.train.dpo.learning_rate
    assert real.train.dpo.bf16
    assert real.threads is None
    assert real.sampling.max_new_tokens > toy.sampling.max_new_tokens
    texts = [Path(name).read_text().splitlines() for name in ("prompts.txt", "held_out.txt")]
    assert not {*texts[0]} & {*texts[1]}
    with pytest.raises(DataError, match="exists and is not empty"):
        run("init", ".")


def test_a_config_that_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run("config", "check", "real")
    assert "prompts.path: no such file or folder: prompts.txt" in str(error.value)
    assert "evaluate.prompts.path: no such file or folder: held_out.txt" in str(error.value)
    more = "policy: {model: ./gone}\njudge: {template: mine.j2}\ntrain: {ppo: {reward: 'my:f'}}\n"
    (tmp_path / "mine.yaml").write_text(more)
    with pytest.raises(ConfigError) as error:
        run("config", "check", "mine.yaml")
    for name in ("policy.model", "judge.template", "train.ppo.reward"):
        assert f"\n  {name}: " in str(error.value)


SMALL_RUN = ("--set", "prompts.limit=24", "--set", "evaluate.prompts.limit=4")


def test_run_says_what_it_is_about_to_do() -> None:
    said = " ".join(run("run", "--set", "train.limits=null", *SMALL_RUN).split())
    told = (
        "run: sample → label → audit → train reward → train dpo → evaluate → report "
        "the embedded world's prompts; constitution harmless;"
    )
    assert said.startswith(f"{told} policy tiny; judge tiny; into runs/run")


def test_another_policy_on_the_embedded_worlds_prompts_is_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "other"
    shutil.copytree(resources.TINY_WEIGHTS, model)
    quick = ("--limit", "2", "--set", "sampling.max_new_tokens=4")
    for there, warned in ((True, False), (False, True)):
        if not there:
            (model / "rlaif.json").unlink()
        result = RUNNER.invoke(app, ["sample", "--policy", str(model), "--out", "r", *quick])
        assert result.exit_code == 0, result.output
        words = " ".join((result.output + capfd.readouterr().err).split())
        assert ("which only its own model knows" in words) is warned


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["label", "--pairs", "no.jsonl", "--out", "r"], DataError, "no.jsonl"),
        (["label", "--out", "r"], DataError, "nothing to label"),
        (["run", "--config", "demoo"], ConfigError, "Did you mean 'demo'"),
        (
            ["run", "--constitution", "harmles", "--out", "r"],
            ConfigError,
            "Did you mean 'harmless'",
        ),
        (["label", "--set", "jugde.model=x", "--out", "r"], ConfigError, "Did you mean 'judge'"),
        (["train", "dpo", "--out", "r"], DataError, "run `rlaif label` first"),
        (["eval", "winrate", "--out", "r"], DataError, "run `rlaif train dpo` first"),
        (["report", "nowhere"], DataError, "nowhere"),
        (["export", "nowhere", "x.jsonl"], DataError, "nowhere"),
        (["constitution", "show", "harmless", "--prompt", "x"], ConfigError, "no principle x"),
    ],
)
def test_wrong_calls_get_a_clear_error(
    arguments: list[str], error: type[RlaifError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(*arguments)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(EngineError, match="no/such/model"):
        run("label", "--pairs", "pairs.jsonl", "--judge", "no/such/model", "--out", "r")


def test_a_malformed_line_stops_unless_skipping_is_allowed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"chosen": "cut o')
    arguments = ("label", "--pairs", "pairs.jsonl", "--out", "r")
    with pytest.raises(DataError, match=r"pairs.jsonl:5: .*--skip-bad 1"):
        run(*arguments)
    assert "4 pairs read" in run(*arguments, "--skip-bad", "1")
    (line,) = (tmp_path / "r" / "rejected-read.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "pairs.jsonl:5"


def test_errors_are_a_line_and_exit_code_2(tmp_path: Path) -> None:
    program = "from rlaif.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "report", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real hh-rlhf file is not beside this checkout")
def test_real_pairs_are_read_and_every_odd_line_is_named() -> None:
    source = SHARED / "hh_rlhf" / "harmless-base-test.jsonl.gz"
    from rlaif.files.readers import read_pairs

    odd = []
    pairs = list(read_pairs(source, on_bad=odd.append))
    assert len(pairs) == 2307
    assert [row.source.rpartition(":")[2] for row in odd] == [
        "1255",
        "1689",
        "1951",
        "1953",
        "2037",
    ]
    empty = [p for p in pairs if not p.first.strip() or not p.second.strip()]
    assert len(empty) == 4
