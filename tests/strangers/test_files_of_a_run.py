"""A run directory among strangers: shards of other tables, killed exports, links, hooks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import DataError
from rlaif.records import Completion, Pair, Preference, Prompt, Verdict
from rlaif.report.build import build_report
from rlaif.report.summary import build_summary
from rlaif.stages import git_commit
from rlaif.store import SCHEMAS, RunStore

PAIRS = [Pair(Prompt.user(f"{i}?"), "x", "y", 1.0) for i in range(4)]
ROWS: dict[str, list[Any]] = {
    "prompts": [p.prompt for p in PAIRS],
    "completions": [Completion("k", PAIRS[0].prompt.id, "tiny", 0, "hello", "stop", 3)],
    "pairs": PAIRS,
    "verdicts": [Verdict("k", PAIRS[0].id, "calm", "first_second", "j", 0.5)],
    "revisions": [],
    "preferences": [Preference(p, "preferred", 0.75, ("a",), (0.75,), 2, 0) for p in PAIRS],
}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
@pytest.mark.parametrize("other", sorted(set(SCHEMAS) - {"revisions"}))
def test_a_shard_of_another_table_is_refused_and_left_where_it_is(
    tmp_path: Path, name: Any, other: Any
) -> None:
    if name == other:
        return
    with RunStore(tmp_path / "a") as run:
        run.table(other).append(ROWS[other])
    (shard,) = (tmp_path / "a" / other).iterdir()
    stray = tmp_path / "b" / name / shard.name
    stray.parent.mkdir(parents=True)
    shutil.copy(shard, stray)
    with pytest.raises(DataError, match=rf"{stray} is of the table '{other}', not '{name}'"):
        RunStore.open_readonly(tmp_path / "b").table(name)
    with RunStore(tmp_path / "b") as run, pytest.raises(DataError, match=f"'{other}'"):
        run.table(name)
    assert stray.exists()


def test_a_shard_from_before_its_last_columns_is_read(tmp_path: Path) -> None:
    """As older versions wrote verdicts; a missing column in the middle is another table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rlaif.store.shards import name_of

    with RunStore(tmp_path) as run:
        run.table("verdicts").append(ROWS["verdicts"])
        (shard,) = run.table("verdicts").folder.iterdir()
    table = pq.read_table(shard)
    younger = ["rationales", "tokens", "thoughts", "thoughts_cut"]
    for left_out, fine in ((younger, True), (["principle"], False)):
        old = pa.Table.from_arrays(
            [table.column(n) for n in table.column_names if n not in left_out],
            names=[n for n in table.column_names if n not in left_out],
        )
        pq.write_table(old, shard)
        shard = shard.rename(shard.with_name(name_of(1, shard)))
        store = RunStore.open_readonly(tmp_path)
        if fine:
            assert store.table("verdicts").read() == ROWS["verdicts"]
        else:
            with pytest.raises(DataError, match="principle"):
                store.table("verdicts")


# ------------------------------------------------------------------------------- exports

EXPORT = """
import os, signal, sys
seen, last = 0, int(sys.argv[2])
armed = False
def hook(event, arguments):
    global seen
    if armed and event.split(".")[0] in ("os", "shutil", "open", "ctypes"):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from rlaif.records import Pair, Preference, Prompt
from rlaif.files.writers import _put
from pathlib import Path
target = Path(sys.argv[1])
aside = target.with_name(".aside-new")
(aside / "saved").mkdir(parents=True, exist_ok=True)
(aside / "saved" / "state.json").write_text("new")
armed = True
_put(aside, target)
armed = False
print(seen)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux only")
def test_a_killed_folder_export_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """A kill before each thing that is done to the file system while the folder is put in place."""
    target = tmp_path / "rows"
    finished, kills = False, 0
    for last in range(1, 60):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / "state.json").write_text("old")
        done = subprocess.run([sys.executable, "-c", EXPORT, str(target), str(last)], check=False)
        assert (target / "state.json").read_text() in ("old", "new"), last
        if done.returncode == 0:
            finished = True
            assert (target / "state.json").read_text() == "new"
            break
        assert done.returncode == -signal.SIGKILL
        kills += 1
    assert finished
    assert kills >= 2


def test_a_folder_is_written_over_by_a_whole_export_only(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from rlaif.files.writers import export_preferences

    target = tmp_path / "rows"
    for n in (4, 2):
        export_preferences(ROWS["preferences"][:n], target)
        assert len(datasets.load_from_disk(str(target))) == n
    broken = [
        *ROWS["preferences"],
        Preference(Pair(Prompt.user("\ud800"), "x", "y"), "preferred", 1.0),
    ]
    with pytest.raises(DataError):
        export_preferences(broken, target)
    assert len(datasets.load_from_disk(str(target))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_what_a_killed_export_left_is_cleared_and_a_live_one_is_not(tmp_path: Path) -> None:
    from rlaif.files.writers import export_preferences

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getppid()):
        left = tmp_path / f".rows.aside-{pid}"
        left.mkdir()
        (left / "rows.arrow").write_bytes(b"half")
    export_preferences(ROWS["preferences"], tmp_path / "rows")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".rows.aside-{os.getppid()}", "rows"]


# ------------------------------------------------------------------------------- the lock


@pytest.mark.parametrize("there", ["file", "nothing", "folder", "itself"])
def test_the_lock_follows_no_link(tmp_path: Path, there: str) -> None:
    target, run = tmp_path / "target", tmp_path / "run"
    run.mkdir()
    lock = run / ".lock"
    if there == "file":
        target.write_text("precious")
    if there == "folder":
        target.mkdir()
    lock.symlink_to(lock if there == "itself" else target)
    with pytest.raises(DataError, match=r"\.lock is a link.*remove it"), RunStore(run):
        pass
    assert there != "file" or target.read_text() == "precious"
    assert there != "nothing" or not target.exists()


def test_a_lock_that_is_no_file_is_explained(tmp_path: Path) -> None:
    for make in (os.mkdir, os.mkfifo):
        run = tmp_path / make.__name__
        run.mkdir()
        make(run / ".lock")
        with pytest.raises(DataError, match=r"\.lock"), RunStore(run):
            pass


# ------------------------------------------------------------------------------- git


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("a\n")
    git(folder, "add", "a.txt")
    git(folder, "commit", "-qm", "one")
    monkeypatch.chdir(folder)
    return folder


def test_the_commit_and_its_changes_are_told(repository: Path) -> None:
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    assert git_commit() == commit
    os.utime(repository / "a.txt", (1, 1))  # touched, not changed
    assert git_commit() == commit
    (repository / "new.txt").write_text("untracked\n")
    assert git_commit() == commit
    (repository / "a.txt").write_text("b\n")
    assert git_commit() == commit + "+"
    git(repository, "add", "a.txt")
    assert git_commit() == commit + "+"
    git(repository, "commit", "-qm", "two")
    git(repository, "tag", "-am", "v", "v1")
    assert git_commit() == "v1"


def test_nothing_of_a_repository_is_run(repository: Path) -> None:
    """What git runs by a repository's own settings while it looks for changes: here none may."""
    ran = repository.parent / "ran"
    script = repository.parent / "script"
    script.write_text(f'#!/bin/sh\necho "$0 $@" >> {ran}\ncat\n')
    script.chmod(0o755)
    hooks = repository.parent / "hooks"
    hooks.mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "query-watchman", "post-checkout"):
        shutil.copy(script, repository / ".git" / "hooks" / name)
        shutil.copy(script, hooks / name)
    (repository / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    inner = repository / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "b.txt").write_text("b\n")
    git(inner, "add", "b.txt")
    git(inner, "commit", "-qm", "inner")
    git(repository, "add", "inner", ".gitattributes")
    git(repository, "commit", "-qm", "two")
    settings = {
        "core.fsmonitor": script,
        "core.hooksPath": hooks,
        "core.pager": script,
        "filter.evil.clean": script,
        "filter.evil.smudge": script,
        "filter.evil.required": "true",
        "filter.evil.process": script,
        "diff.external": script,
        "diff.evil.textconv": script,
        "diff.evil.command": script,
        "core.sshCommand": script,
        "core.editor": script,
        "alias.describe": f"!{script}",
        "gpg.program": script,
        "core.askPass": script,
        "filter.a=b.clean": script,
    }
    for where in (repository, inner):
        for name, value in settings.items():
            git(where, "config", name, str(value))
    os.utime(repository / "a.txt", (1, 1))
    os.utime(inner / "b.txt", (1, 1))
    ran.unlink(missing_ok=True)
    commit = git_commit()
    assert not ran.exists(), ran.read_text()
    assert commit is not None
    (repository / "a.txt").write_text("b\n")  # the same length, so that it must be read
    ran.unlink(missing_ok=True)
    commit = git_commit()
    assert not ran.exists(), ran.read_text()
    assert commit is not None
    assert commit.endswith("+")


def test_outside_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None


# ------------------------------------------------------------------------------- readers


def test_a_report_is_written_beside_writers_that_start_and_replace(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        run.table("pairs").append(PAIRS)
    stop, errors = threading.Event(), []

    def write() -> None:
        try:
            while not stop.is_set():
                with RunStore(tmp_path) as run:
                    run.table("pairs").replace(PAIRS)
                    run.table("preferences").replace(ROWS["preferences"])
                    run.update_manifest("run", {"seed": 7})
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            build_summary(tmp_path)
            build_report(tmp_path)
    finally:
        stop.set()
        writer.join()
    assert not errors
    assert json.loads((tmp_path / "summary.json").read_text())["labels"]["pairs"] == 4
    assert not [p for p in tmp_path.iterdir() if "aside" in p.name]
