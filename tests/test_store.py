"""The store keeps every row once, whatever is killed, cut off, full or damaged."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import DataError
from rlaif.records import ORDERS, Completion, Message, Pair, Preference, Prompt, Verdict
from rlaif.store import RunStore, Table, write_json
from rlaif.store.schemas import SCHEMAS


def verdict(i: int, p: float | None = None) -> Verdict:
    key = f"{i:020x}"
    if i % 7 == 3:
        return Verdict(key, f"pair{i // 4}", "calm", ORDERS[i % 2], "j", None, reason="too_long")
    p = (i % 10) / 10 if p is None else p
    return Verdict(key, f"pair{i // 4}", "calm", ORDERS[i % 2], "j", p, -0.1 * i, -0.2, 0.9)


def verdicts(n: int, start: int = 0) -> list[Verdict]:
    return [verdict(i) for i in range(start, start + n)]


PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Grüße ≻ 你好 \0\n")), "a.jsonl:3")
PAIR = Pair(PROMPT, "b", "", 1.0, "a.jsonl:3")
SAMPLES: dict[str, list[Any]] = {
    "prompts": [PROMPT, Prompt.user("")],
    "completions": [Completion("k1", PROMPT.id, "tiny", 0, "hello", "stop", 3)],
    "pairs": [PAIR, Pair(Prompt.user("?"), "x", "y")],
    "verdicts": verdicts(8),
    "preferences": [
        Preference(PAIR, "preferred", 0.75, ("a", "b"), (0.5, 1.0), 4, 1),
        Preference(Pair(Prompt.user("?"), "x", "y"), "abstained", None),
    ],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_record_reads_back_equal(tmp_path: Path, name: Any) -> None:
    with RunStore(tmp_path) as run:
        table = run.table(name)
        table.append(SAMPLES[name])
    table = RunStore.open_readonly(tmp_path).table(name)
    assert table.read() == SAMPLES[name]
    assert len(table) == len(table.keys()) == len(SAMPLES[name])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1) | st.none() | st.just(math.pi / 4), max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(1, 50),
)
def test_any_split_into_appends_reads_back_the_same(
    ps: list[float | None], cuts: list[int], size: int
) -> None:
    rows = [
        Verdict(str(i), "p", "é", "first_second", "j", p, reason="low_mass" if p is None else None)
        for i, p in enumerate(ps)
    ]
    bounds = sorted({0, *(min(c, len(rows)) for c in cuts), len(rows)})
    with tempfile.TemporaryDirectory() as folder, RunStore(folder) as run:
        table = run.table("verdicts")
        for low, high in pairwise(bounds):
            table.append(rows[low:high])
        assert table.read() == rows
        assert table.keys() == {row.key for row in rows}
        batches = list(table.iter_batches(size))
        assert [row for batch in batches for row in batch] == rows
        assert all(0 < len(batch) <= size for batch in batches)


def test_not_a_number_and_infinity_are_kept_apart_from_missing(tmp_path: Path) -> None:
    row = Verdict("k", "p", "a", "first_second", "j", 0.5, math.nan, -math.inf, None)
    with RunStore(tmp_path) as run:
        run.table("verdicts").append([row])
        (back,) = run.table("verdicts").read()
    assert back.logprob_first is not None
    assert math.isnan(back.logprob_first)
    assert back.logprob_second == -math.inf
    assert back.mass is None


def test_a_key_written_twice_is_read_once_and_the_first_wins(tmp_path: Path) -> None:
    for name, p in (("a", 0.25), ("b", 0.75)):
        with RunStore(tmp_path / name) as run:
            run.table("verdicts").append([verdict(i, p) for i in (0, 1, 1, 2)])
            run.table("verdicts").append([verdict(i, p) for i in (2, 4)])
    # As when the folders of two machines are joined.
    for shard in (tmp_path / "b" / "verdicts").iterdir():
        number, _, rest = shard.name.partition("-")
        shard.rename(tmp_path / "a" / "verdicts" / f"{int(number) + 2:06d}-{rest}")
    table = RunStore.open_readonly(tmp_path / "a").table("verdicts")
    assert table.read() == [verdict(i, 0.25) for i in (0, 1, 2, 4)]
    assert len(table) == 4
    assert table.to_arrow(["p_first"]).column("p_first").to_pylist() == [0.25] * 4


def test_others_read_the_shards_as_plain_parquet(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        table.append(verdicts(5))
        table.append(verdicts(5, start=5))
        folder = table.folder
        assert table.to_arrow().equals(pq.read_table(folder))
        assert table.to_arrow(["judge", "order"]).column_names == ["judge", "order"]
    datasets = pytest.importorskip("datasets")
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert loaded["key"] == [row.key for row in verdicts(10)]


def test_names_that_do_not_exist_are_named_with_the_nearest(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        with pytest.raises(DataError, match="Did you mean 'verdicts'"):
            run.table("verdict")  # type: ignore[call-overload]
        with pytest.raises(DataError, match="Did you mean 'p_first'"):
            run.table("verdicts").to_arrow(["p_frist"])


def test_an_append_is_all_or_nothing(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("prompts")
        table.append([])
        with pytest.raises(DataError, match="valid Unicode"):
            table.append([Prompt.user("good"), Prompt.user("bad \ud800")])
        assert not list(table.folder.glob("*"))
        assert not list(table.folder.glob(".*"))


# ---------------------------------------------------------------------------- one writer


HOLD = """
import sys, time
from rlaif.store import RunStore
with RunStore(sys.argv[1], command="rlaif label --config demo"):
    print("ready", flush=True)
    time.sleep(60)
"""


# The two functions above, for processes that need not load pytest.
ROWS = "from rlaif.records import ORDERS, Verdict\n" + "".join(map(getsource, (verdict, verdicts)))


def start(code: str, *args: str) -> subprocess.Popen[str]:
    """A Python process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", ROWS + code, *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> int:
    process.kill()
    process.communicate()
    return process.returncode


def test_a_second_writer_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    holder = start(HOLD, str(tmp_path))
    try:
        with pytest.raises(DataError) as refused, RunStore(tmp_path):
            pass
        for part in (str(holder.pid), socket.gethostname(), "rlaif label --config demo", "since 2"):
            assert part in str(refused.value)
        assert RunStore.open_readonly(tmp_path).table("verdicts").read() == []
    finally:
        assert kill(holder) == -signal.SIGKILL
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid  # stale, and no lock
    with RunStore(tmp_path) as run:
        run.table("verdicts").append(verdicts(1))
        with pytest.raises(DataError, match="already being written"), RunStore(tmp_path):
            pass
    with RunStore(tmp_path):
        pass


FORK = """
import os, sys, time
from rlaif.store import RunStore
run = RunStore(sys.argv[1])
run.__enter__()
if os.fork() == 0:
    print("ready", flush=True)
    time.sleep(10)
    os._exit(0)
time.sleep(60)
"""


def test_a_fork_of_the_writer_does_not_hold_the_lock(tmp_path: Path) -> None:
    """As the workers of a data loader, which may outlive a writer that was killed."""
    holder = start(FORK, str(tmp_path))
    with pytest.raises(DataError, match=str(holder.pid)), RunStore(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with RunStore(tmp_path) as run:
        run.table("verdicts").append(verdicts(1))


def test_the_lock_is_that_of_versions_before_filelock(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="already being written by another process"):
            RunStore(tmp_path).__enter__()
        file.write('{"pid": 7, "host": "h", "command": "rlaif label", "started": "2026-01-02"}')
        file.flush()
        with pytest.raises(DataError, match=r"process 7 on h \(`rlaif label`, since 2026-01-02\)"):
            RunStore(tmp_path).__enter__()
    with (
        RunStore(tmp_path),
        (tmp_path / ".lock").open("r+") as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match=r"without locks.*local disk"), RunStore(tmp_path):
        pass


def test_only_an_open_run_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run directory"):
        RunStore.open_readonly(tmp_path / "none")
    with RunStore(tmp_path / "run") as run:
        pass
    for store in (run, RunStore.open_readonly(tmp_path / "run")):
        for write in (
            lambda s=store: s.table("verdicts").append(verdicts(1)),
            lambda s=store: s.table("verdicts").replace(verdicts(1)),
            lambda s=store: s.update_manifest("a", {}),
        ):
            with pytest.raises(DataError, match="not open for writing"):
                write()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"), RunStore(tmp_path / "file"):
        pass


def test_a_reader_beside_the_writer_sees_whole_shards(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        seen = RunStore.open_readonly(tmp_path).table("verdicts")
        for n in range(1, 4):
            run.table("verdicts").append(verdicts(5, start=5 * (n - 1)))
            assert seen.read() == verdicts(5 * n)


# ---------------------------------------------------------------------------- kills

# Both scripts fork from a process that has everything loaded, so that the kills fall into the work.
WARM = """
import os, random, signal, sys, tempfile, time
from pathlib import Path
from rlaif.store import RunStore
with tempfile.TemporaryDirectory() as folder, RunStore(folder) as run:
    run.table("verdicts").append(verdicts(8))
    run.table("verdicts").read()
print("ready", flush=True)
"""

# 40 times: do what is missing of 4000 rows, two a shard as a stage does, until the kill.
KILLS = """
rng, killed = random.Random(11), 0
def shards():
    return len(list(Path(sys.argv[1], "verdicts").glob("*.parquet")))

for _ in range(40):
    child = os.fork()
    if child == 0:
        with RunStore(sys.argv[1]) as run:
            table = run.table("verdicts")
            done = table.keys()
            todo = [v for v in verdicts(4000) if v.key not in done]
            for i in range(0, len(todo), 2):
                table.append(todo[i : i + 2])
        os._exit(0)
    before = shards()
    patient = rng.random() < 0.9
    while patient and shards() == before:  # some kills strike before the first write
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
sys.exit(killed)
"""


def test_40_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    process = start(WARM + KILLS, str(tmp_path))
    process.communicate()
    assert process.returncode >= 25
    assert 0 < len(RunStore.open_readonly(tmp_path).table("verdicts")) < 4000
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        assert not list(table.folder.glob(".*"))
        assert not (table.folder / "damaged").exists()
        done = table.keys()
        table.append([v for v in verdicts(4000) if v.key not in done])
        assert table.read() == verdicts(4000)


# Forks; each child dies at its nth call that changes the disk, before or after it. Exits with the
# number of moments there were.
DIE_AT = """
def arm(moment):
    left = [moment]
    def tick():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def dying(call):
        def wrapped(*args, **kwargs):
            tick()
            result = call(*args, **kwargs)
            tick()
            return result
        return wrapped
    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, dying(getattr(os, name)))

for moment in range(100):
    child = os.fork()
    if child == 0:
        with RunStore(Path(sys.argv[1]) / str(moment)) as run:
            table = run.table("verdicts")
            if sys.argv[2] == "shards":
                table.append(verdicts(2)); table.append(verdicts(2, start=2))
            elif sys.argv[2] == "base":
                table.replace(verdicts(4))
            else:
                table.replace(verdicts(2)); table.append(verdicts(2, start=2))
            arm(moment)
            table.replace(verdicts(3, start=10))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
sys.exit(moment)
"""


@pytest.mark.parametrize("before", ["shards", "base", "both"])
def test_a_replacement_killed_at_each_step_leaves_the_old_or_the_new(
    tmp_path: Path, before: str
) -> None:
    process = start(WARM + DIE_AT, str(tmp_path), before)
    process.communicate()
    assert 6 <= process.returncode < 100
    old, new = verdicts(4), verdicts(3, start=10)
    seen = []
    for moment in range(process.returncode + 1):
        path = tmp_path / str(moment)
        rows = RunStore.open_readonly(path).table("verdicts").read()
        seen.append(rows == new)
        assert rows in (old, new)
        with RunStore(path) as run:  # the next writer sees the same, and clears up
            table = run.table("verdicts")
            assert table.read() == rows
            assert pq.read_table(table.folder).num_rows == len(rows)
            table.append(verdicts(1, start=20))
            assert table.read() == rows + verdicts(1, start=20)
    assert seen == sorted(seen)  # old up to some moment, new from then on
    assert {False, True} == set(seen)


def test_a_replacement_takes_the_place_of_all(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("preferences")
        table.append(SAMPLES["preferences"])
        for rows in (SAMPLES["preferences"][:1], [], SAMPLES["preferences"]):
            table.replace(iter(rows))
            assert table.read() == rows
            assert len(list(table.folder.iterdir())) == 1


class Interrupted(BaseException):
    """Stands for Ctrl-C, so that a real one still ends the tests."""


def test_an_interrupt_leaves_the_shard_or_nothing(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    rng = random.Random(5)
    rows = verdicts(200)
    outcomes = set()
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for n in range(60):
            with RunStore(tmp_path / str(n)) as run:
                table = run.table("verdicts")
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 5e-3))
                    table.append(rows)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    pass
            with RunStore(tmp_path / str(n)) as run:
                found = run.table("verdicts").read()
            assert found in ([], rows)
            outcomes.add(len(found))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert outcomes  # which of the two depends on the machine's speed


# ---------------------------------------------------------------------------- damage


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["shard", "base"])
@pytest.mark.parametrize("damage", [cut_off, flip_a_byte, empty])
def test_a_damaged_shard_is_named_set_aside_and_done_again(
    tmp_path: Path, damage: Any, kind: str
) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        (table.append if kind == "shard" else table.replace)(verdicts(50))
        table.append(verdicts(50, start=50))
        shard = min(table.folder.iterdir())
    damage(shard)
    with pytest.raises(DataError, match=f"{shard}.*again"):
        RunStore.open_readonly(tmp_path).table("verdicts")
    with RunStore(tmp_path) as run:
        known = "50" if damage is flip_a_byte else "unknown"
        with pytest.warns(RuntimeWarning, match=f"{shard}.*{known}"):
            table = run.table("verdicts")
        assert table.read() == verdicts(50, start=50)
        assert (table.folder / "damaged" / f"{shard.name}.damaged").exists()
        done = table.keys()
        table.append([v for v in verdicts(100) if v.key not in done])
        assert sorted(table.read(), key=lambda v: v.key) == verdicts(100)
    assert RunStore.open_readonly(tmp_path).table("verdicts").keys() == {
        v.key for v in verdicts(100)
    }


@pytest.mark.parametrize("kind", ["shard", "base"])
def test_no_flipped_byte_changes_a_row_unnoticed(tmp_path: Path, kind: str) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        (table.append if kind == "shard" else table.replace)(verdicts(50))
        (shard,) = table.folder.iterdir()
    whole = shard.read_bytes()
    rng = random.Random(3)
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shard.write_bytes(data)
        try:
            rows = RunStore.open_readonly(tmp_path).table("verdicts").read()
        except DataError:
            continue
        raise AssertionError(f"read {len(rows)} rows from a damaged shard")


def test_a_name_stands_for_one_content(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        run.table("verdicts").append(verdicts(5))
        run.table("preferences").replace(SAMPLES["preferences"])
        (base,) = (tmp_path / "preferences").iterdir()
        run.table("preferences").replace(SAMPLES["preferences"][:1])
    shards = sorted(tmp_path.glob("*/*.parquet"))
    assert len(shards) == 2
    assert base not in shards  # not overwritten: who reads it reads on, or is told
    for shard in shards:
        digest = hashlib.sha256(shard.read_bytes()).hexdigest()
        assert shard.stem.rpartition("-")[2] == digest[:16]


def test_reading_beside_a_replacement_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = SAMPLES["preferences"]
    with RunStore(tmp_path) as run:
        run.table("preferences").replace(rows)
        seen = RunStore.open_readonly(tmp_path).table("preferences")
        plain, times = seen._live, 0

        def replaced_meanwhile() -> list[Path]:
            nonlocal times
            found, times = plain(), times - 1
            if times >= 0:
                run.table("preferences").replace(rows)
            return found

        monkeypatch.setattr(seen, "_live", replaced_meanwhile)
        for read, found in (
            (seen.keys, {row.pair.id for row in rows}),
            (seen.read, rows),
            (seen.__len__, len(rows)),
        ):
            times = 3
            assert read() == found
            assert times < 0


# ---------------------------------------------------------------------------- stores of before


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A store as it was written while shards were sealed in their footer (commit 2909231)."""
    return Path(shutil.copytree(Path(__file__).parent / "store_of_before", tmp_path / "run"))


def rows_of(root: Path) -> dict[str, list[Any]]:
    store = RunStore.open_readonly(root)
    return {name: store.table(name).read() for name in SCHEMAS}  # type: ignore[call-overload]


def test_a_store_of_before_is_read_and_gone_on_with(before: Path) -> None:
    old = rows_of(before)
    pair, other = old["pairs"]
    assert [len(rows) for rows in old.values()] == [2, 1, 2, 2, 1, 2]
    assert pair == Pair(
        Prompt(PROMPT.messages[:1] + pair.prompt.messages[1:], "a.jsonl:3"),
        "b",
        "",
        1.0,
        "a.jsonl:3",
    )
    assert old["prompts"] == [pair.prompt, Prompt.user("?")]
    assert old["completions"] == [
        Completion("k1", pair.prompt.id, "tiny", 0, "hello", "stop", 3, (1, 2, 3), "Hm.")
    ]
    assert [v.p_first for v in old["verdicts"]] == [0.75, None]
    assert old["preferences"][0] == Preference(
        pair, "preferred", 0.75, ("a", "b"), (0.5, 1.0), 4, 1
    )
    with RunStore(before) as run:
        assert run.read_manifest() == {"stages": {"label": {"rows": 2}}}
        run.table("verdicts").append(verdicts(3))
        run.table("preferences").replace(old["preferences"][:1])
        run.table("pairs").replace([other])
    new = rows_of(before)
    assert new == old | {
        "verdicts": old["verdicts"] + verdicts(3),
        "preferences": old["preferences"][:1],
        "pairs": [other],
    }
    assert len(list(before.glob("p*/*.parquet"))) == 3


def test_no_flipped_byte_changes_a_row_of_before_unnoticed(before: Path) -> None:
    shards, rng = sorted(before.glob("*/*.parquet")), random.Random(4)
    assert len(shards) == 7
    for i in range(140):
        shard = shards[i % len(shards)]
        whole = shard.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shard.write_bytes(data)
        with pytest.raises(DataError, match=f"damaged shard {shard}"):
            rows_of(before)
        shard.write_bytes(whole)


def test_a_text_that_looks_like_a_seal_is_only_a_text(tmp_path: Path) -> None:
    rows = [Prompt.user(f"rlaif.sha256{end}{'0' * 64}") for end in ("", ":", "\x18@")]
    with RunStore(tmp_path) as run:
        run.table("prompts").append(rows)
    table = RunStore.open_readonly(tmp_path).table("prompts")
    assert table.read() == rows
    (shard,) = table.folder.iterdir()
    columns = pq.read_metadata(shard).row_group(0)
    stored = [columns.column(i).statistics for i in range(columns.num_columns)]
    assert max(r.messages[0].content for r in rows) in [s.max for s in stored if s]


def test_a_shard_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        run.table("prompts").append([PROMPT])
        (shard,) = run.table("prompts").folder.iterdir()
    shard.unlink()
    shard.mkdir()
    with pytest.raises(DataError, match=f"cannot read {shard}.*permissions"):
        RunStore.open_readonly(tmp_path).table("prompts")


def test_damage_that_comes_while_the_run_is_open_is_named(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        table.append(verdicts(50))
        (shard,) = table.folder.iterdir()
        cut_off(shard)
        with pytest.raises(DataError, match=f"damaged shard {shard}"):
            table.keys()


# ---------------------------------------------------------------------------- a full disk


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def small_files(tmp_path: Path) -> Iterator[Path]:
    """No file may grow beyond 100 KiB: refused like a full disk, without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("disk", ["full_disk", "small_files"])
def test_a_full_disk_is_explained_and_loses_nothing(
    request: pytest.FixtureRequest, disk: str
) -> None:
    path = request.getfixturevalue(disk)
    noise = random.Random(1)
    big = [Prompt.user(noise.randbytes(2000).hex()) for _ in range(300)]
    with RunStore(path / "run") as run:
        table: Table[Prompt] = run.table("prompts")
        table.append(big[:10])
        for write in (table.append, table.replace):
            with pytest.raises(DataError, match="What was written before is kept"):
                write(big)
            assert table.read() == big[:10]
            assert not list(table.folder.glob(".*"))
        table.append(big[10:20])
        with pytest.raises(DataError, match="cannot write"):
            run.update_manifest("huge", {"text": [p.messages[0].content for p in big]})
        assert run.read_manifest() == {}
    with RunStore(path / "run") as run:
        assert run.table("prompts").read() == big[:20]


def test_a_disk_too_full_for_the_lock_does_not_leave_it_taken(full_disk: Path) -> None:
    with RunStore(full_disk / "run"):
        pass
    filler = full_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    for _ in range(2):
        with pytest.raises(DataError, match="cannot write"), RunStore(full_disk / "run"):
            pass
    filler.unlink()
    with RunStore(full_disk / "run"):
        pass


def test_a_table_kept_from_before_writes_after_what_came_in_between(tmp_path: Path) -> None:
    run = RunStore(tmp_path)
    with run:
        table = run.table("verdicts")
        table.append(verdicts(1))
    with RunStore(tmp_path) as other:
        for i in range(3):
            other.table("verdicts").append(verdicts(1, start=5 + i))
        other.table("verdicts").replace(verdicts(2, start=10))
    with run:
        table.append(verdicts(1, start=20))
        assert run.table("verdicts").read() == [*verdicts(2, start=10), *verdicts(1, start=20)]


# ---------------------------------------------------------------------------- the rest


def test_the_manifest_is_written_section_by_section(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        assert run.read_manifest() == {}
        run.update_manifest("label", {"rows": 3, "abstained": {"too_long": 1}})
        run.update_manifest("sample", {"rows": 2})
        run.update_manifest("label", {"rows": 4})
        assert run.read_manifest() == {"label": {"rows": 4}, "sample": {"rows": 2}}
        text = run.path("manifest.json").read_text()
        assert text.index('"label"') < text.index('"sample"')
        run.path("manifest.json").write_text("{")
        with pytest.raises(DataError, match=r"manifest\.json: not JSON"):
            run.read_manifest()


@pytest.mark.parametrize("value", [{"a": math.nan}, {"a": {1, 2}}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(
    tmp_path: Path, value: Any
) -> None:
    path = tmp_path / "evaluation" / "winrate.json"
    write_json(path, {"value": 1, "é": 2})
    with pytest.raises(DataError, match=r"winrate\.json"):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"value": 1, "é": 2}
    assert list(path.parent.iterdir()) == [path]


def test_verdicts_pass_through_the_store_fast_and_in_bounded_memory(tmp_path: Path) -> None:
    """20,000 rows a second is the project's promise for store and aggregation together."""
    n, size = 100_000, 10_000
    rows = verdicts(n)
    began = time.process_time()
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        for i in range(0, n, size):
            table.append(rows[i : i + size])
        assert len(table.keys()) == n
        before, peak, read = pa.total_allocated_bytes(), 0, 0
        for batch in table.iter_batches(2_000):
            read += len(batch)
            peak = max(peak, pa.total_allocated_bytes() - before)
        seconds = time.process_time() - began
        assert read == n
        assert n / seconds > 20_000
        assert peak < table.to_arrow().nbytes / 3


# ---------------------------------------------------------------------------- rows by key


def test_rows_are_found_by_key_wherever_they_stand(tmp_path: Path) -> None:
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        assert table.finder()(["nothing"]) == {}
        for start in range(0, 60, 10):
            table.append(verdicts(10, start))
        table.append([verdict(3, 0.99)])  # written twice: the first row wins
        find = table.finder()
        table.append(verdicts(5, 100))  # later than the finder: not seen by it
        keys = [verdict(i).key for i in (59, 3, 17, 102, 0)]
        assert find([*keys, "unknown"]) == {verdict(i).key: verdict(i) for i in (59, 3, 17, 0)}
        assert table.finder()(keys)[verdict(102).key] == verdict(102)


def test_keys_with_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.store import keyindex
    from rlaif.store import table as tables

    def all_alike(keys: Any) -> Any:
        return np.zeros(len(keys), np.int64)

    monkeypatch.setattr(keyindex, "hashes_of", all_alike)
    monkeypatch.setattr(tables, "hashes_of", all_alike)
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        table.append([*verdicts(8), verdict(2)])
        table.append(verdicts(8, 4))
        assert table.finder()([verdict(9).key, "x"]) == {verdict(9).key: verdict(9)}
        assert table.read() == verdicts(12)
        assert len(table) == 12


def test_shards_from_before_a_column_was_added_are_read_with_it_empty(tmp_path: Path) -> None:
    old, new = (
        verdicts(8),
        [
            Verdict(
                "new",
                "p",
                "calm",
                "first_second",
                "j",
                0.6,
                score_first=7.5,
                score_second=2.0,
                rationales=("A is calmer.", "é"),
                tokens=12,
                thoughts=("Hm.", ""),
                thoughts_cut=1,
            )
        ],
    )
    with RunStore(tmp_path) as run:
        table = run.table("verdicts")
        table.schema, whole = pa.schema(list(table.schema)[:10]), table.schema
        table.append(old)
        table.schema = whole
        table.append(new)
        assert table.read() == old + new
        found = table.finder()([old[2].key, "new"])
        assert found == {old[2].key: old[2], "new": new[0]}
        assert table.to_arrow(["tokens", "p_first"])["tokens"].to_pylist() == [None] * 8 + [12]
        assert len(table.to_arrow()) == 9
    names = [pq.read_schema(shard).names for shard in sorted(table.folder.glob("*.parquet"))]
    assert [len(n) for n in names] == [10, 16]
