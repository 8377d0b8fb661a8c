"""The last word of a command is one paragraph and a status that is not 0, whatever was in its way.

The commands run as a user types them, each in a process of its own, forked from one that has
imported what they need.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError, DataError, RlaifError
from rlaif.files.small import misfit, read_bytes, read_json, refused_by_disk, write_text
from rlaif.store import RunStore

CONFIG = """
out: base
prompts: {path: tiny, limit: 6}
sampling: {n: 2, max_new_tokens: 12, keep_cut: true}
preferences: {min_margin: 0.0}
revise: {rounds: 1, max_new_tokens: 12}
train:
  limits: null
  sft: {data: demos.jsonl, batch_size: 4, checkpoint_every: 1}
  reward: {batch_size: 4, checkpoint_every: 1}
  dpo: {batch_size: 2, checkpoint_every: 1}
  ppo: {steps: 2, batch_size: 4, minibatches: 1, epochs: 1, checkpoint_every: 1, reward: judge}
  online_dpo: {steps: 2, batch_size: 4, checkpoint_every: 1}
evaluate: {prompts: {path: tiny, limit: 4}}
threads: 1
"""
SERVER = """
import json, os, resource, sys
import torch, transformers, pyarrow.parquet, datasets, trl
torch.set_num_threads(1)
import rlaif.stages, rlaif.report.build, rlaif.training.loop, rlaif.training.rl.ppo_run
import rlaif.training.rl.online_dpo, rlaif.training.sft, rlaif.judges.pairwise
from rlaif.cli import main
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    said, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        sys.argv = ["rlaif", *job["arguments"]]
        os.dup2(saying, 1), os.dup2(saying, 2), os.close(saying), os.close(said)
        if job["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    os.close(saying)
    with open(said, "rb") as file, open(job["log"], "wb") as log:
        log.write(file.read())
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Commands:
    """Runs commands in a folder; tells the status and all that was said."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "server.txt").open("w"),
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def __call__(self, line: str, folder: Path, limit: int | None = None) -> tuple[int, str]:
        job = {
            "arguments": shlex.split(line),
            "folder": str(folder),
            "limit": limit,
            "log": str(self.log),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, self.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("server"))
    yield found
    found.process.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A folder with a run in `base`, and what commands need to go on with it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "config.yaml").write_text(CONFIG)
    demo = '{"prompt": "Hello.", "completion": "Hello, dear friend."}\n'
    (folder / "demos.jsonl").write_text(demo * 4)
    (folder / "list.md").write_text("- Which is kinder?\n- Which is truer?\n")
    for line in (
        "sample -c config.yaml",
        "label -o base",
        "revise -o base",
        "train reward -o base",
        "train dpo -o base",
        "eval winrate -o base",
        "report base",
    ):
        status, said = commands(line, folder)
        assert status == 0, said
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "copy", symlinks=True))


def one_paragraph(status: int, said: str) -> None:
    assert status == 2, (status, said)
    assert "Traceback" not in said
    assert "fault of rlaif" not in said
    assert "Exception ignored" not in said
    error = said[said.rindex("error: ") :].strip()
    assert len(error) < 1500
    assert "\n\n" not in error


# ------------------------------------------------------------------------------ a full disk

WRITING = (
    "run -c config.yaml -o new",
    "sample -c config.yaml -o new",
    "label -o base --set judge.min_mass=0.01",
    "revise -o base --set revise.seed=3",
    "train sft -o base",
    "train reward -o base --set train.reward.seed=3",
    "train dpo -o base --set train.dpo.seed=3",
    "train ppo -o base",
    "train online-dpo -o base",
    "train dpo -o base --set train.dpo.seed=4 --set train.dpo.lora.rank=2",
    "eval audit -o base",
    "eval winrate -o base --set evaluate.seed=3",
    "eval best-of-n -o base -n 4",
    "eval attacks -o base --limit 4",
    "report base",
    "export base out.jsonl",
    "export base out.parquet",
    "export base out",
    "export base x.jsonl --what revisions",
    "constitution import list.md new.yaml",
    "init new",
)


@pytest.mark.parametrize("line", WRITING)
def test_a_disk_that_takes_no_more(line: str, commands: Commands, copy: Path) -> None:
    """No file may grow beyond a limit: refused as by a full disk, without being root."""
    for limit in (0, 3_000, 100_000):
        before = {p: p.read_bytes() for p in copy.rglob("*.parquet")}
        status, said = commands(line, copy, limit)
        if status != 0:  # what is small fits
            one_paragraph(status, said)
        assert not limit or all(p.read_bytes() == was for p, was in before.items() if p.exists())
    for made in ("new", "new.yaml"):  # what was small enough is there
        shutil.rmtree(copy / made, ignore_errors=True)
        (copy / made).unlink(missing_ok=True)
    status, said = commands(line, copy)  # and with space there is nothing in the way
    assert status == 0, said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int | None], Path]]:
    """A file system of the size that is asked for; None empties it and takes much."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=100m", "rlaif-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes a superuser")

    def sized(free: int | None) -> Path:
        found = os.statvfs(folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        size = 100 << 20 if free is None else used + free
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
        return folder

    yield sized
    subprocess.run(["umount", "-l", str(folder)], check=True)


def rows_of(run: Path, name: Any) -> list[dict[str, Any]]:
    table = RunStore(run, read_only=True).table(name).to_arrow()
    return sorted(table.to_pylist(), key=lambda row: str(row[table.column_names[0]]))


def test_labelling_goes_on_to_the_same_rows_after_a_full_disk(
    commands: Commands, disk: Callable[[int | None], Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "It is.", "rejected": f"No, {i}."} for i in range(12)]
    line = "label --pairs pairs.jsonl --set chunk=2 --set judge.min_mass=0 --set threads=1 -o run"
    folder = disk(None)
    for where in (tmp_path, folder):
        (where / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert commands(line, tmp_path)[0] == 0
    refused = set()
    for free in range(16_384, 200_000, 12_288):
        shutil.rmtree(disk(None) / "run", ignore_errors=True)
        disk(free)
        status, said = commands(line, folder)
        if status == 0:
            break
        one_paragraph(status, said)
        for shard in (folder / "run").rglob("*.parquet"):
            pq.read_table(shard)  # each is whole
        refused.add(len(list((folder / "run").glob("verdicts/*.parquet"))))
        disk(None)
        status, said = commands(line, folder)
        assert status == 0, said
        for table in ("pairs", "verdicts", "preferences"):
            assert rows_of(folder / "run", table) == rows_of(tmp_path / "run", table)
    assert len(refused) > 2, f"the disk was never full at different moments: {refused}"


@pytest.mark.parametrize("line", ["train dpo -o base --set train.dpo.seed=3", "train ppo -o base"])
def test_training_goes_on_to_the_same_weights_after_a_full_disk(
    line: str,
    commands: Commands,
    copy: Path,
    disk: Callable[[int | None], Path],
) -> None:
    folder = disk(None) / "copy"
    shutil.copytree(copy, folder)
    status, said = commands(line, copy)
    assert status == 0, said
    name = f"base/models/{line.split()[1]}/model.safetensors"
    whole = (copy / name).read_bytes()
    for free in (400_000, 3_000_000):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("ppo", "dpo"))
        disk(free)
        one_paragraph(*commands(line, folder))
        disk(None)
        status, said = commands(line, folder)
        assert status == 0, said
        assert (folder / name).read_bytes() == whole


def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    program = "from rlaif.cli import main; main()"
    for arguments in (["constitution", "show", "harmless"], ["config", "schema"]):
        command = shlex.join([sys.executable, "-c", program, *arguments])
        for redirection, status in (
            (">/dev/full", 2),
            (">&-", 0),
            (">/dev/full 2>/dev/full", 2),
            ("| true", 0),
        ):
            done = subprocess.run(
                ["sh", "-c", f"{command} {redirection}"],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                check=False,
            )
            assert "Traceback" not in done.stderr, (redirection, done.stderr)
            assert "Exception ignored" not in done.stderr
            assert done.returncode == status, (redirection, done.stderr)
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            cwd=tmp_path,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ damaged files


def damaged(path: Path, how: str, was: Any) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    contents: dict[str, Any] = {
        "empty": b"",
        "cut": b'{"a": [1',
        "list": b"[{}]",
        "null": b"null",
        "number": b"3",
        "object": b"{}",
        "infinity": b'{"value": 1e999, "steps": NaN}',
        "huge": b'{"value": 1' + b"0" * 400 + b"}",
        "huger": b'{"v": 1' + b"0" * 5000 + b"}",
        "deep": b"[" * 100_000,
        "utf16": '{"a": 1}'.encode("utf-16"),
        "bytes": b"\xff\xfe\0\x80{",
        "surrogate": b'{"a": "\\ud800"}',
    }
    if how in contents:
        path.write_bytes(contents[how])
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "circle"):
        path.symlink_to(path if how == "circle" else "nowhere")
    else:
        value = {"numbers": 3, "texts": "x", "lists": [1], "nulls": None}[how]
        known = isinstance(was, dict)
        path.write_text(json.dumps(dict.fromkeys(was, value) if known else [value]))


KINDS = (
    "empty",
    "cut",
    "list",
    "null",
    "number",
    "object",
    "infinity",
    "huge",
    "huger",
    "deep",
    "utf16",
    "bytes",
    "surrogate",
    "folder",
    "pipe",
    "dangling",
    "circle",
    "numbers",
    "texts",
    "lists",
    "nulls",
)


class Silent:
    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "run.yaml",
        "summary.json",
        "evaluation/policies.json",
        "evaluation/winrate.json",
        "evaluation/samples.json",
        "evaluation/labels.json",
        "evaluation/audit.json",
        "models/dpo/metrics.json",
        "models/dpo/training.jsonl",
        "models/reward/metrics.json",
    ],
)
def test_a_report_of_damaged_files_names_them(name: str, copy: Path) -> None:
    from rlaif.stages import write_report

    path = copy / "base" / name
    was = json.loads(path.read_text()) if path.suffix == ".json" and path.exists() else None
    if path.name == "winrate.json":
        was["at_stake"] = {"trait": "harmless"}  # as of a run whose prompts are of that world
    for how in KINDS:
        damaged(path, how, was)
        start, told = time.monotonic(), path.name
        try:
            write_report(copy / "base", Silent())  # type: ignore[arg-type]
        except RlaifError as error:
            told = str(error)
        assert path.name in told, (how, told)
        assert len(told) < 600
        assert time.monotonic() - start < 10


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_report_of_any_change_to_a_file_is_written_or_refused(
    project: Path, data: st.DataObject
) -> None:
    """One value somewhere in a JSON file of the run becomes another."""
    from rlaif.stages import write_report

    run = project / "base"
    names = [
        "manifest.json",
        "evaluation/policies.json",
        "evaluation/winrate.json",
        "evaluation/samples.json",
        "models/dpo/metrics.json",
    ]
    path = run / data.draw(st.sampled_from(names))
    whole = path.read_text()
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    content = json.loads(whole)
    walk(content)
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(VALUES)
    try:
        path.write_text(json.dumps(content))
        write_report(run, Silent())  # type: ignore[arg-type]
    except RlaifError:
        pass  # as it should where the value has another shape
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("manifest.json", "label -o base"),
        ("run.yaml", "label -o base"),
        ("models/dpo/metrics.json", "train dpo -o base"),
        ("models/dpo/run.key", "train dpo -o base"),
        ("models/dpo/training.jsonl", "train dpo -o base --set train.dpo.seed=5"),
        ("evaluation/labels.json", "train reward -o base --set train.limits={}"),
        ("revisions/current.json", "export base x.jsonl --what revisions"),
    ],
)
def test_a_command_on_damaged_files_ends_with_a_paragraph(
    name: str, line: str, commands: Commands, copy: Path
) -> None:
    path = copy / "base" / name
    was = json.loads(path.read_text()) if path.suffix == ".json" else None
    kinds = ["folder", "pipe", "list", "bytes", "texts"]
    for how in kinds[:4] if "train" in line else [*kinds, "cut", "deep", "nulls"]:
        damaged(path, how, was)
        status, said = commands(line, copy)
        if status != 0:
            one_paragraph(status, said)


# ------------------------------------------------------------------------------ names and inputs

LONG = "x" * 300


@pytest.mark.parametrize(
    "line",
    [
        "label --pairs {} -o run",
        "sample --prompts {}.txt -o run",
        "sample --prompts {}/{} -o run",
        "sample -o {}",
        "label -c {}",
        "sample --set constitution={}.yaml -o run",
        "label -o base --set judge.template={}",
        "label -o base --set judge.model={}",
        "export base {}.jsonl",
        "export base {}",
        "export {} x.jsonl",
        "report {}",
        "init {}",
        "constitution import {}.md n.yaml",
        "constitution import list.md {}.yaml",
        "constitution check {}",
        "train sft -o base --set train.sft.data={}.jsonl",
        "train dpo -o base --set policy.model={}",
        "train ppo -o base --set train.ppo.reward={}:f",
    ],
)
def test_names_that_no_file_can_have(line: str, commands: Commands, copy: Path) -> None:
    one_paragraph(*commands(line.replace("{}", LONG), copy))


@pytest.mark.parametrize(
    "line",
    [
        "label --pairs f.jsonl -o run",
        "sample --prompts f.txt -o run",
        "label --pairs f.parquet -o run",
        "train sft -o base --set train.sft.data=f.jsonl",
        "constitution check f.yaml",
        "config check f.yaml",
        "constitution import f.md n.yaml",
        "label -o base --set judge.template=f.j2",
        "init f",
    ],
)
def test_inputs_that_are_no_files_of_their_kind(line: str, commands: Commands, copy: Path) -> None:
    name = next(word for word in line.replace("=", " ").split() if word.split(".")[0] == "f")
    path = copy / name
    for how in ("folder", "pipe", "dangling", "circle", "utf16", "bytes", "deep", "empty"):
        damaged(path, how, None)
        if line == "init f" and how == "folder":
            continue
        status, said = commands(line, copy)
        if status == 0:
            assert how in ("empty", "deep"), said  # a prompt of brackets is a prompt
        else:
            one_paragraph(status, said)


@pytest.mark.parametrize(
    "line",
    [
        "eval best-of-n -o base -n 99999999999999999999",
        "eval best-of-n -o base -n 0",
        "eval best-of-n -o base -n 2 --limit -1",
        "eval attacks -o base --limit 0",
        "label -o base --set threads=2147483648",
        "label -o base --set chunk=0",
        "label -o base --limit 99999999999999999999",
        "train reward -o base --set train.reward.lora.rank=9223372036854775807",
        "sample -o base --set sampling.seed=99999999999",
        "sample -o base --set sampling.n=yes",
    ],
)
def test_numbers_that_are_no_sizes(line: str, commands: Commands, copy: Path) -> None:
    status, said = commands(line, copy)
    if "Usage:" in said:  # the option itself has a least value
        assert status == 2
    else:
        one_paragraph(status, said)


@pytest.mark.parametrize(
    "line",
    [
        "train dpo -o base --set policy.model=base/models/dpo",
        "train reward -o base --set train.reward.model=base/models/reward/../reward",
        "train dpo -o base --set policy.adapter=base/models/dpo/adapter",
        "train ppo -o base --set policy.model=base/models/ppo",
        "train online-dpo -o base --set policy.model=base/models/online-dpo",
        "train sft -o base --set policy.model=base/models/sft",
        "train grpo -o base --set policy.model=base/models/grpo --set train.grpo.steps=1",
    ],
)
def test_training_does_not_write_over_what_it_starts_from(
    line: str, commands: Commands, copy: Path
) -> None:
    named = copy / line.split()[1 + line.split().index("--set")].partition("=")[2]
    if not named.exists():
        shutil.copytree(copy / "base" / "models" / "dpo", named)
    if named.name == "adapter":  # a whole model is no adapter, but a folder that lies there
        (named / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    weights = (named / "model.safetensors").read_bytes()
    status, said = commands(line, copy)
    one_paragraph(status, said)
    assert named.name == "adapter" or "write over it" in said
    assert (named / "model.safetensors").read_bytes() == weights


# ------------------------------------------------------------------------------ the parts


def test_a_shape_is_what_it_says() -> None:
    shape = {"a": float, "b": {str: [str]}, "c": {}}
    assert misfit({"a": 1, "b": {"x": ["y", None]}, "c": {"d": 1}, "e": []}, shape) == ""
    assert misfit({"a": None, "b": None}, shape) == ""
    assert misfit({"a": True}, shape) == "'a': expected a number, got a truth value"
    assert misfit({"b": {"x": ["y", 3]}}, shape) == "'b.x[1]': expected a text, got a number"
    assert misfit({"c": []}, shape) == "'c': expected an object, got a list"
    assert misfit([], shape) == "expected an object, got a list"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(ConfigError, match="name a file"):
        read_bytes(tmp_path / "p", ConfigError)
    with pytest.raises(DataError, match="name a file"):
        read_json(tmp_path / "p", "it")


def test_what_a_disk_refuses_is_known_in_every_library(tmp_path: Path) -> None:
    """PyTorch and safetensors have errors of their own for it."""
    import safetensors.torch
    import torch

    found = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (
        lambda: torch.save({"a": torch.zeros(50_000)}, tmp_path / "a.pt"),
        lambda: safetensors.torch.save_file({"a": torch.zeros(50_000)}, tmp_path / "a.st"),
        lambda: (tmp_path / "a.txt").write_text("a" * 50_000),
        lambda: write_text(tmp_path / "b.txt", "a" * 50_000),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            write()
        except Exception as error:
            found.append(refused_by_disk(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == [True] * 4
    assert not refused_by_disk(ValueError("code: 283"))
    assert not (tmp_path / "b.txt").exists()


def test_a_fault_of_ours_is_told_shortly_and_at_length_when_asked(tmp_path: Path) -> None:
    program = (
        "import rlaif.config as c\n"
        "c.schema = lambda: {}['no such key']\n"
        "from rlaif.cli import main\nmain()\n"
    )
    for asked in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program, "config", "schema"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "RLAIF_TRACEBACK": asked},
            check=False,
        )
        assert done.returncode == 1
        assert "error: KeyError: 'no such key'. This is a fault of rlaif" in done.stderr
        assert "RLAIF_TRACEBACK=1" in done.stderr
        assert ("Traceback" in done.stderr) == (asked == "1")
