"""Code of people's own, named in a config: examples run, an edit judges anew, faults are told."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from rlaif import Pair, PairwiseJudge, Prompt
from rlaif.cli.app import app
from rlaif.cli.last_word import last_word
from rlaif.config import load_config
from rlaif.engines.base import ScriptedEngine, transcript
from rlaif.engines.load import load_engine
from rlaif.engines.settings import ENGINES
from rlaif.errors import ConfigError, DataError
from rlaif.files import own
from rlaif.files.readers import read_pairs
from rlaif.files.readers.settings import PairReading
from rlaif.judges.base import Ask, Judge
from rlaif.judges.load import judge_class
from rlaif.judges.methods import METHODS
from rlaif.judges.settings import PairwiseSettings
from rlaif.store import RunStore
from rlaif.training.rl.scorers import load_function

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ROWS = [
    {"prompt": "Say yes.", "chosen": "Yes.", "rejected": "Yes, with very great pleasure indeed."},
    {"prompt": "Say no.", "chosen": "No, I would rather not.", "rejected": "No."},
]
SETTINGS = ("--set", "judge.principles=[no-harm]", "--set", "judge.min_mass=0")


@contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """As in a process of its own in the folder: none of its modules is known from before."""
    here, path, writes = Path.cwd(), [*sys.path], sys.dont_write_bytecode
    os.chdir(folder)
    sys.dont_write_bytecode = True  # what is edited within a second would be taken for the same
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:], sys.dont_write_bytecode = path, writes
        for name, module in [*sys.modules.items()]:
            if str(folder) in (getattr(module, "__file__", None) or ""):
                del sys.modules[name]


def rlaif(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What a command says."""
    with fresh(folder):
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    told = "" if done.exception is None else last_word(done.exception)[0]
    assert (done.exit_code != 0) == fails, done.output + told
    return done.output + told


def in_a_process(folder: Path, *arguments: str) -> str:
    """The same in a real process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from rlaif.cli import main; main()", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000"},
    )
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder with the examples, and pairs."""
    for file in EXAMPLES.glob("extending_*"):
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module of one's own into the working folder, anew each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str, name: str = "mine") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def label(project: Path, *arguments: str, by: Callable[..., str] = rlaif) -> str:
    return by(project, "label", "--pairs", "pairs.jsonl", *SETTINGS, "--out", "run", *arguments)


def test_the_example_judge_judges_and_an_edited_one_judges_anew(project: Path) -> None:
    judge = ("--method", "extending_judge:Shorter")
    assert "4 verdicts (4 new)" in label(project, *judge, by=in_a_process)
    with RunStore(project / "run", read_only=True) as store:
        rows = store.table("preferences").read()
    assert [round(row.p_first, 3) for row in rows] == [round(7 / 9, 3), round(2 / 8, 3)]
    assert "4 verdicts (0 new)" in rlaif(project, "label", "--out", "run")
    source = (project / "extending_judge.py").read_text()
    (project / "extending_judge.py").write_text(source.replace("+ 1 for", "+ 2 for"))
    assert "4 verdicts (4 new)" in rlaif(project, "label", "--out", "run")
    # A run is whole: without the file, it goes on with its copy.
    (project / "extending_judge.py").unlink()
    assert "4 verdicts (0 new)" in rlaif(project, "label", "--out", "run")


def test_a_jury_may_have_a_judge_of_ones_own(project: Path) -> None:
    (project / "jury.yaml").write_text(
        "jury:\n- {name: ours, method: extending_judge:Shorter}\n"
        "- {name: tiny, model: tiny, min_mass: 0}\njudge: {principles: [no-harm]}\n"
    )
    said = rlaif(project, "label", "-c", "jury.yaml", "--pairs", "pairs.jsonl", "--out", "jury")
    assert "8 verdicts (8 new)" in said


def test_a_module_beside_the_config_is_found(project: Path, tmp_path: Path) -> None:
    beside = tmp_path / "configs"
    beside.mkdir()
    (project / "extending_judge.py").rename(beside / "extending_judge.py")
    (beside / "c.yaml").write_text("judge: {method: 'extending_judge:Shorter'}\n")
    assert "4 verdicts (4 new)" in label(project, "-c", "configs/c.yaml")


def test_the_example_engine_scores_as_the_model_that_it_wraps(project: Path) -> None:
    plain = label(project, "--judge", "tiny")
    ours = label(project, "--judge", "tiny", "--set", "judge.engine=extending_engine:load")
    assert "4 verdicts (4 new)" in plain
    assert "4 verdicts (4 new)" in ours  # its code is part of the keys
    assert "4 verdicts (0 new)" in rlaif(project, "label", "--out", "run")
    with RunStore(project / "run", read_only=True) as store:
        rows = store.table("verdicts").read()
    assert len(rows) == 8
    said: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        said.setdefault((row.pair_id, row.order), []).append(row.p_first)
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in said.values())


def test_the_example_reader_reads_and_counts_what_makes_no_pair(project: Path) -> None:
    rows = [
        {"q": "How are you?", "a": ["Well.", "Bad."], "votes": [3, 1]},
        {"q": "And you?", "a": ["Well.", "Bad."], "votes": [0, 0]},
    ]
    (project / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = rlaif(
        project,
        "label",
        "--pairs",
        "votes.jsonl",
        "--format",
        "extending_reader:pairs",
        "--method",
        "extending_judge:Shorter",
        *SETTINGS,
        "--out",
        "votes",
    )
    assert "1 pairs read" in said
    assert "no_pair" in said
    with RunStore(project / "votes", read_only=True) as store:
        (pair,) = store.table("pairs").read()
    assert (pair.first, pair.second, pair.label) == ("Well.", "Bad.", 0.75)


def test_the_example_template_is_taken(project: Path) -> None:
    judge = PairwiseJudge(
        load_engine("tiny", device="cpu"),
        PairwiseSettings(template=str(project / "extending_template.j2"), min_mass=0.0),
    )
    (verdict,) = judge.judge([ask()])
    assert verdict.p_first is not None
    assert "<first>\nYes?\n</first>" in transcript(judge.render(ask()))


def test_the_example_reward_scores(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    scorer = load_function("extending_reward:short")
    prompts = [Prompt.user("Hi?")] * 3
    assert scorer.score(prompts, ["a b", "", "c"], [True] * 3) == [0.5, None, 1.0]


# ------------------------------------------------------------------------------ what is wrong

GOOD = """
from rlaif import Verdict
class J:
    name, together = "j", False
    def key(self, ask): return "k"
    def judge(self, asks):
        return [Verdict("k", a.pair.id, a.principle.id, a.order, "j", 0.5) for a in asks]
"""


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ('    def key(self, ask): return "k"\n', "key"),
        ("judge(self, asks)", "judge"),
        (', together = "j", False', "together"),
        ('name, together = "j", False', "together"),
    ],
)
def test_a_class_that_lacks_something_is_told_what(module, taken: str, named: str) -> None:
    other = {"judge(self, asks)": "jugde(self, asks)", ', together = "j", False': ' = "j"'}
    module(GOOD.replace(taken, other.get(taken, "    pass\n" if "def" in taken else "pass")))
    with pytest.raises(ConfigError, match=rf"mine:J: expected a Judge, got J, .*no .*{named}"):
        judge_class("mine:J")(ScriptedEngine())


def test_a_judge_without_a_name_is_told_so(module) -> None:
    module(GOOD.replace('name, together = "j", False', "together = False"))
    with pytest.raises(ConfigError, match="mine:J: expected a Judge, got J, which has no name"):
        judge_class("mine:J")(ScriptedEngine())


WRONG = {
    "too few": ("return []", "expected a list of 1 verdicts"),
    "none": ("return None", "got None"),
    "no verdicts": ("return [0.5 for a in asks]", "verdict 1 is 0.5, and no Verdict"),
    "no probability": (
        'return [Verdict("k", a.pair.id, a.principle.id, a.order, "j", 1.5) for a in asks]',
        "p_first=1.5: expected a probability",
    ),
    "not a number": (
        'return [Verdict("k", a.pair.id, a.principle.id, a.order, "j", float("nan")) '
        "for a in asks]",
        "p_first=nan",
    ),
    "another's": (
        'return [Verdict("k", "x", a.principle.id, a.order, "j", 0.5) for a in asks]',
        "in the order of asks",
    ),
    "raises": ("return [1 / 0]", r"raised ZeroDivisionError.* in mine\.py, line 7"),
    "exits": ("raise SystemExit(3)", "asked the process to exit"),
}


def ask() -> Ask:
    from rlaif.judges.own import _PROBE

    return _PROBE


@pytest.mark.parametrize("case", list(WRONG))
def test_what_a_judge_says_is_checked(module, case: str) -> None:
    body, said = WRONG[case]
    module(GOOD[: GOOD.index("        return [Verdict")] + f"        {body}\n")
    judge = judge_class("mine:J")(ScriptedEngine())
    with pytest.raises(ConfigError, match=said) as caught:
        judge.judge([ask()])
    assert "mine:J" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_it_holds_and_its_key_are_part_of_the_rows_keys(module) -> None:
    def key() -> str:
        return judge_class("mine:J")(ScriptedEngine()).key(ask())

    module(GOOD)
    first = key()
    assert key() == first  # however often it is made
    module(GOOD)
    assert key() == first
    module(GOOD.replace('return "k"', 'return "k" + VERSION') + "VERSION = open('v').read()\n")
    Path("v").write_text("1")
    second = key()
    Path("v").write_text("2")
    module(Path("mine.py").read_text())
    assert len({first, second, key()}) == 3
    engine = ScriptedEngine(name="another")
    assert judge_class("mine:J")(engine).key(ask()) != key()


def test_it_is_a_judge_for_everybody(module) -> None:
    module(GOOD)
    judge = judge_class("mine:J")(ScriptedEngine())
    assert isinstance(judge, Judge)
    (verdict,) = judge.judge([ask()])
    assert (verdict.p_first, verdict.key) == (0.5, judge.key(ask()))


def test_an_engine_that_lacks_something_is_told_what(module) -> None:
    module("class E:\n    name, max_length = 'e', 9\ndef load(model, **options): return E()\n")
    with pytest.raises(ConfigError, match=r"mine:load: expected an Engine, got E, .*score, close"):
        load_engine("x", engine="mine:load")


def test_a_malformed_row_is_named_with_its_line(module) -> None:
    module("def pairs(row, where):\n    return [row['missing']]\n")
    Path("p.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:1: the reader mine:pairs raised KeyError"):
        list(read_pairs("p.jsonl", PairReading(format="mine:pairs")))
    module("def pairs(row, where):\n    return [row]\n")
    with pytest.raises(DataError, match=r"p\.jsonl:1: .*made \{'a': 1\}, and no Pair"):
        list(read_pairs("p.jsonl", PairReading(format="mine:pairs")))


def test_a_reader_sees_all_columns_of_a_table(module) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"frage": ["Ja?"], "x": ["a"], "y": ["b"]}), "p.parquet")
    module(
        "from rlaif import Pair, Prompt\ndef pairs(row, where):\n"
        "    return [Pair(Prompt.user(row['frage'], where), row['x'], row['y'])]\n"
    )
    (pair,) = read_pairs("p.parquet", PairReading(format="mine:pairs"))
    assert isinstance(pair, Pair)
    assert (pair.first, pair.second) == ("a", "b")


@pytest.mark.parametrize("kind", ["judge", "engine", "reward", "reader", "template"])
def test_the_page_shows_the_examples_as_they_are(kind: str) -> None:
    (file,) = EXAMPLES.glob(f"extending_{kind}.*")
    page = (ROOT / "docs/extending.md").read_text()
    text = file.read_text()
    code = text[text.index("from ", text.index('"""', 3)) :] if file.suffix == ".py" else text
    assert code.rstrip() in page


# --------------------------------------------------------------- the lists stand in one place


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("judge.method", "pairwize", "unknown method 'pairwize'. Did you mean 'pairwise'?"),
        ("judge.engine", "htpp", "unknown engine 'htpp'. Did you mean 'http'?"),
        ("judge.method", "mine:", "unknown method 'mine:'"),
    ],
)
def test_a_config_names_the_nearest(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[f"{key}='{value}'"])
    assert said in str(caught.value)
    assert "docs/extending.md" in str(caught.value)


def test_a_config_that_names_them_loads_no_torch() -> None:
    code = (
        "import sys; from rlaif.config import load_config; load_config(overrides=["
        "'judge.method=m:J', 'judge.engine=m:e', 'pairs={path: p, format: \"m:r\"}']); "
        "print('torch' in sys.modules, 'm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_schema_and_the_help_read_the_lists() -> None:
    from rlaif.judges.settings import JudgingSettings

    schema = TypeAdapter(JudgingSettings).json_schema()["properties"]
    assert schema["method"]["anyOf"][0]["enum"] == list(METHODS)
    assert schema["engine"]["anyOf"][0]["enum"] == list(ENGINES)
    assert all(judge_class(name).method == name for name in METHODS)


@pytest.mark.parametrize("setting", ["template=x", "thinking=true", "show_thoughts=true"])
def test_what_a_judge_of_ones_own_would_not_hear_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="mine:J"):
        load_config(overrides=["judge.method='mine:J'", f"judge.{setting}"])


def test_a_module_that_is_not_there_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("judge: {method: 'nowhere_at_all:J'}\n")
    said = rlaif(tmp_path, "config", "check", "c.yaml", fails=True)
    assert "judge.method: no module nowhere_at_all for the judge nowhere_at_all:J" in said
    assert own.missing("json:dumps", "judge") is None
