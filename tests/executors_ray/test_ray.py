"""Labelling on a real Ray, started here: the same rows as in this process, whoever dies."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.constitution import Principle
from rlaif.engines.base import Engine, Sampling, ScriptedEngine
from rlaif.engines.load import load_engine
from rlaif.errors import ConfigError, EngineError
from rlaif.judges.draw import Draw
from rlaif.judges.load import judge_class, make_judge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import JudgeSettings, PairwiseSettings
from rlaif.records import ORDERS, Completion, Pair, Prompt, Verdict
from rlaif.stages.running import about_judge
from rlaif.steps.executors import Asking, Memory, Model, Work, run_judge, run_sampling
from rlaif.steps.executors_ray import OnRay
from rlaif.steps.settings import RaySettings
from rlaif.store import RunStore

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

PRINCIPLES = (
    Principle(id="kind", compare="Which response is kinder?"),
    Principle(id="short", compare="Which response is shorter?"),
)
PAIRS = [
    Pair(Prompt.user(f"Tell me about thing {i}."), "It is good.", f"No, number {i}.")
    for i in range(24)
]
WORKERS = RaySettings(workers=2)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers import this file by its path; four CPUs, because two actors on two would hang.
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def tiny_judge(notes: Path | None = None, seconds: float = 0.0) -> PairwiseJudge:
    """The embedded judge, which writes down its process and takes its time."""
    import torch

    torch.set_num_threads(1)
    judge = PairwiseJudge(load_engine("tiny"), PairwiseSettings(min_mass=0.0))
    if notes is None:
        return judge
    (notes / str(os.getpid())).touch()
    score = judge.engine.score

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return score(*arguments)

    judge.engine.score = slowly  # type: ignore[method-assign]
    return judge


def about(judge: PairwiseJudge) -> dict[str, Any]:
    return {"fingerprint": judge.fingerprint}


def judging(
    pairs: Sequence[Pair], load: Any, sink: Any, about: Any = about, chunk: int = 64
) -> Work[Pair, Verdict]:
    """What the workers make of pairs, under the two principles in both orders."""
    asking = Asking(PRINCIPLES, ORDERS, together=False, limit=0.01)
    return OnRay(chunk, WORKERS).judge(pairs, Model(load, load, about), asking, sink)


@pytest.fixture(scope="module")
def local() -> dict[str, Verdict]:
    memory: Memory[Verdict] = Memory()
    run_judge(PAIRS, tiny_judge(), PRINCIPLES, memory, chunk=5)
    return {row.key: row for row in memory.rows}


def assert_same(rows: Sequence[Verdict], local: dict[str, Verdict]) -> None:
    assert len(rows) == len(local)  # nothing twice
    assert {row.key for row in rows} == set(local)  # nothing lost
    for row in rows:
        assert row.p_first == pytest.approx(local[row.key].p_first, abs=1e-4)
        assert (row.pair_id, row.principle, row.order) == (
            local[row.key].pair_id,
            local[row.key].principle,
            local[row.key].order,
        )


def test_a_worker_killed_half_way_changes_nothing(
    tmp_path: Path, local: dict[str, Verdict]
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    parts, killed = [], 0
    with RunStore(tmp_path / "run") as run:
        load = partial(tiny_judge, notes, 0.3)
        sink = run.table("verdicts")
        work = judging(PAIRS, load, sink, chunk=2)
        for part in work.stream:
            parts.append(part)
            if not killed:
                killed = int(next(notes.iterdir()).name)
                os.kill(killed, signal.SIGKILL)
        rows = sink.read()
    assert len(list(notes.iterdir())) > 2, "nobody took the place of the one that was killed"
    assert [p for part in parts for p in part.items] == PAIRS
    assert [row for part in parts for row in part.rows] == rows  # written in the order of the pairs
    assert_same(rows, local)
    assert work.about() == {"fingerprint": tiny_judge().fingerprint}
    assert work.spent()["requests"] >= len(local) // 2


def test_a_run_may_start_here_and_end_there_and_the_other_way_round(
    tmp_path: Path, local: dict[str, Verdict]
) -> None:
    with RunStore(tmp_path / "a") as run:
        sink = run.table("verdicts")
        run_judge(PAIRS[:9], tiny_judge(), PRINCIPLES, sink, chunk=3)
        parts = list(judging(PAIRS, tiny_judge, sink, chunk=5).stream)
        assert sum(len(part.new) for part in parts) == len(local) - 9 * 4
        assert_same(sink.read(), local)
        assert_same([row for part in parts for row in part.rows], local)
    with RunStore(tmp_path / "b") as run:
        sink = run.table("verdicts")
        list(judging(PAIRS[9:], tiny_judge, sink).stream)
        done = run_judge(PAIRS, tiny_judge(), PRINCIPLES, sink, chunk=4)
        assert (done.new_rows, done.old_rows) == (9 * 4, 15 * 4)
        assert_same(sink.read(), local)


def by_length(text: str, options: Sequence[str]) -> list[float]:
    """Log-probabilities that depend on the whole text."""
    raw = [1.0 + (len(text) * (k + 3)) % 11 for k in range(len(options))]
    return [math.log(0.9 * r / sum(raw)) for r in raw]


def scripted_judge(method: str) -> AnyJudge:
    engine = ScriptedEngine(
        scorer=by_length, generator=lambda text, i: f"{len(text) + i} letters. [[A]]"
    )
    return make_judge(engine, JudgeSettings.model_validate({"method": method, "band": 0.3}))


@pytest.mark.parametrize("method", ["adaptive", "pointwise", "listwise"])
def test_a_method_gives_the_same_verdicts_as_in_this_process(method: str) -> None:
    pairs = [
        Pair(Prompt.user(f"question {i // 3}"), "x" * (3 + i % 3), "y" * (3 + (i + 1) % 3))
        for i in range(9)
    ]
    draw = Draw(PRINCIPLES)
    here: Memory[Verdict] = Memory()
    there: Memory[Verdict] = Memory()
    run_judge(pairs, scripted_judge(method), draw, here, chunk=64)
    there.append(here.rows[:5])
    load, together = partial(scripted_judge, method), judge_class(method).together
    asking = Asking(draw, ORDERS, together, limit=0.01)
    work = OnRay(2, WORKERS).judge(pairs, Model(load, load, about_judge), asking, there)
    parts = list(work.stream)
    assert sorted(there.rows, key=lambda v: v.key) == sorted(here.rows, key=lambda v: v.key)
    assert [row for part in parts for row in part.rows] == here.rows


def broken() -> PairwiseJudge:
    raise EngineError("the weights are not there: check the path")


def test_an_error_of_a_worker_arrives_as_it_was_raised() -> None:
    memory: Memory[Verdict] = Memory()
    with pytest.raises(EngineError, match="the weights are not there: check the path"):
        list(judging(PAIRS, broken, memory).stream)


def test_more_gpus_than_there_are_is_refused() -> None:
    memory: Memory[Verdict] = Memory()
    asking = Asking(PRINCIPLES, ORDERS, together=False, limit=0.01)
    model = Model(tiny_judge, tiny_judge, about)
    executor = OnRay(workers=RaySettings(workers=1, gpus=64))
    with pytest.raises(ConfigError, match="to have 64 GPUs, but the Ray cluster has"):
        list(executor.judge(PAIRS, model, asking, memory).stream)


def scripted() -> Engine:
    return ScriptedEngine(generator=lambda text, i: f"{text}#{i}")


def nothing(_: Engine) -> dict[str, Any]:
    return {}


def test_samples_are_those_of_this_process() -> None:
    prompts = [Prompt.user(f"q{i}") for i in range(10)]
    here: Memory[Completion] = Memory()
    there: Memory[Completion] = Memory()
    run_sampling(prompts, scripted(), Sampling(n=2), here, chunk=3)
    there.append(here.rows[:7])
    policy = Model(scripted, scripted, nothing)
    for _ in OnRay(3, WORKERS).sample(prompts, policy, Sampling(n=2), there).stream:
        pass
    assert sorted(there.rows, key=lambda c: c.key) == sorted(here.rows, key=lambda c: c.key)


OWN_JUDGE = """
from rlaif import Verdict
class Shorter:
    name, together = "shorter", False
    def key(self, ask): return ask.pair.id
    def judge(self, asks):
        out = []
        for a in asks:
            first, second = len(a.pair.first), len(a.pair.second)
            p = second / (first + second)
            out.append(Verdict("k", a.pair.id, a.principle.id, a.order, self.name, p))
        return out
"""
OWN_ENGINE = """
from math import log
from rlaif import ScriptedEngine
def load(model, **options):
    return ScriptedEngine(scorer=lambda text, options: [log(0.7), log(0.2)], name=model)
"""


def test_code_of_ones_own_runs_on_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies beside the config, where neither the workers nor this process have their folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "own_judge_on_ray.py").write_text(OWN_JUDGE)
    (configs / "own_engine_on_ray.py").write_text(OWN_ENGINE)
    (configs / "c.yaml").write_text(
        "judge: {method: 'own_judge_on_ray:Shorter', engine: 'own_engine_on_ray:load', model: m}\n"
        "chunk: 2\nray: {workers: 2}\n"
    )
    rows = [{"prompt": f"q{i}", "chosen": "Yes." * (i + 1), "rejected": "No."} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def label(out: str, *more: str) -> str:
        done = CliRunner().invoke(app, ["label", "--out", out, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    new = ("-c", "configs/c.yaml", "--pairs", "pairs.jsonl", "--set", "judge.principles=[no-harm]")
    assert "8 verdicts (8 new)" in label("there", *new, "--executor", "ray")
    assert "8 verdicts (8 new)" in label("here", *new)
    found = []
    for out in ("there", "here"):
        with RunStore(tmp_path / out, read_only=True) as store:
            found.append(sorted(store.table("verdicts").read(), key=lambda v: v.key))
    assert found[0] == found[1]
    assert "8 verdicts (0 new)" in label("there", "--executor", "local")
    # The run has copies, which the workers find too.
    shutil.rmtree(configs)
    assert "8 verdicts (0 new)" in label("here", "--executor", "ray")
