"""A slow model is not a silent one: what is done is told and stored within seconds, not chunks."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rlaif.constitution import Principle
from rlaif.engines.base import Sampling, ScriptedEngine, hear
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.cot import CotJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.scores import PointwiseJudge
from rlaif.records import Completion, Pair, Prompt, Revision, Verdict
from rlaif.steps import pace as pacing
from rlaif.steps.executors import Done, Memory, counted, judge_stream, run_judge, run_sampling
from rlaif.steps.pace import Pace, paced
from rlaif.steps.revising import Chain, Reviser, contrast_stream, revise_stream
from rlaif.steps.settings import ReviseSettings
from rlaif.store import RunStore

PRINCIPLES = (
    Principle(
        id="kind",
        compare="Kinder?",
        critique="Unkind?",
        revise="Be kind.",
        follow="be kind",
        violate="be unkind",
    ),
    Principle(id="short", compare="Shorter?"),
)
PAIRS = [Pair(Prompt.user(f"question {i}"), f"answer {i}", f"another {i}") for i in range(12)]
PROMPTS = [pair.prompt for pair in PAIRS]
SLOW = 0.04  # seconds a request


def by_length(text: str, options: Sequence[str]) -> list[float]:
    p = (len(text) + sum(map(ord, text))) % 97 / 100 + 0.01
    return [math.log(p / (len(options) - 1 or 1))] * (len(options) - 1) + [math.log(1 - p)]


def slow_score(text: str, options: Sequence[str]) -> list[float]:
    time.sleep(SLOW)
    return by_length(text, options)


def slow_text(text: str, index: int) -> str:
    time.sleep(SLOW)
    return f"text {index} of {len(text)}"


def fast_engine() -> ScriptedEngine:
    return ScriptedEngine(scorer=by_length, generator=lambda t, i: f"text {i} of {len(t)}")


def slow_engine() -> ScriptedEngine:
    return ScriptedEngine(scorer=slow_score, generator=slow_text)


class Watched(Memory):  # type: ignore[type-arg]
    """Memory that knows when rows came."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def append(self, records):  # type: ignore[no-untyped-def]
        if records:
            self.times.append(time.monotonic())
        super().append(records)

    @property
    def longest(self) -> float:
        return max(b - a for a, b in pairwise(self.times))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fiftieth of the real times."""
    monkeypatch.setattr(pacing, "SAVE", 0.1)
    monkeypatch.setattr(Pace.__init__, "__kwdefaults__", {"limit": 0.4, "whole": False})


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def __call__(self, done: float, *_: object) -> None:
        self.calls.append((time.monotonic(), done))

    def check(self, total: int, longest: float = 1.0) -> None:
        done = [d for _, d in self.calls]
        assert done == sorted(done)
        assert done[-1] == total
        times = [t for t, _ in self.calls]
        assert max(b - a for a, b in pairwise(times)) < longest


@pytest.mark.usefixtures("quick")
def test_a_slow_judge_is_stored_and_told_inside_its_chunk() -> None:
    sink, told = Watched(), Told()
    # 48 requests of 0.04 s, one chunk
    stream = judge_stream(PAIRS, PairwiseJudge(slow_engine()), PRINCIPLES, sink)
    for _ in counted(stream, Done(), 12, told):
        pass
    assert sink.longest < 1.0
    told.check(12)
    whole: Memory[Verdict] = Memory()
    run_judge(PAIRS, PairwiseJudge(ScriptedEngine(scorer=by_length)), PRINCIPLES, whole)
    assert sink.rows == whole.rows


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("make", [CotJudge, AdaptiveJudge, PointwiseJudge])
def test_judges_that_write_or_see_more_are_stored_inside_a_chunk(
    make: Callable[..., PairwiseJudge],
) -> None:
    sink, whole = Watched(), Memory[Verdict]()
    run_judge(PAIRS[:5], make(slow_engine()), PRINCIPLES, sink)
    assert len(sink.times) > 2
    run_judge(PAIRS[:5], make(fast_engine()), PRINCIPLES, whole, pace=Pace(10_000, limit=1e9))
    assert sink.rows == whole.rows


@pytest.mark.usefixtures("quick")
def test_slow_sampling_is_stored_and_told_inside_its_chunk() -> None:
    sink, told = Watched(), Told()
    settings = Sampling(n=2)
    run_sampling(PROMPTS, slow_engine(), settings, sink, total=12, on_progress=told)
    assert sink.longest < 1.0
    told.check(12)


@pytest.mark.usefixtures("quick")
def test_slow_revisions_and_contrasts_are_stored_inside_their_chunk() -> None:
    rows, one = Watched(), PRINCIPLES[:1]
    chains = [Chain(prompt, 0, f"response {i}") for i, prompt in enumerate(PROMPTS)]
    told: list[float] = []
    with hear(told.append):
        list(revise_stream(chains, Reviser(slow_engine(), one, ReviseSettings(rounds=2)), rows))
    assert len({r.key for r in rows.rows}) == 24
    assert len(rows.times) > 3
    assert told == sorted(told)
    assert told[-1] == 12
    again: Memory[Revision] = Memory(rows.rows[:7])
    list(revise_stream(chains, Reviser(slow_engine(), one, ReviseSettings(rounds=2)), again))
    assert {r.key: r for r in again.rows} == {r.key: r for r in rows.rows}
    answers = Watched()
    (part,) = contrast_stream(PROMPTS, slow_engine(), one, Sampling(n=1), answers)
    assert len(part.pairs) == 12 or len(part.new) == 24
    assert len(answers.times) > 2
    kept: Memory[Completion] = answers
    assert len(kept.rows) == 24


CUT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_slow_models_are_heard import *
pacing.SAVE = 0.1
with RunStore(Path(sys.argv[1])) as run:
    judge, pace = PairwiseJudge(slow_engine()), Pace(limit=0.4)
    run_judge(PAIRS, judge, PRINCIPLES, run.table("verdicts"), pace=pace)
"""


def test_a_kill_inside_a_chunk_loses_seconds_and_a_resumed_run_ends_the_same(
    tmp_path: Path,
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CUT, str(tmp_path / "run"), str(Path(__file__).parent)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "run").glob("verdicts/*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert child.poll() is None, "it ended before a row was stored inside its only chunk"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    whole: Memory[Verdict] = Memory()
    run_judge(PAIRS, PairwiseJudge(ScriptedEngine(scorer=by_length)), PRINCIPLES, whole)
    with RunStore(tmp_path / "run") as run:
        table = run.table("verdicts")
        assert 0 < len(table) < 48
        run_judge(PAIRS, PairwiseJudge(ScriptedEngine(scorer=by_length)), PRINCIPLES, table)
        assert table.read() == whole.rows


class SlowModel(HFEngine):
    """The embedded model, in small passes that take their time, and how often it was asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__("tiny", EngineSettings(device="cpu", batch_tokens=64))
        self.calls, run = 0, self._packed.logits

        def slow(*given: Any) -> Any:
            time.sleep(seconds)
            return run(*given)

        self._packed.logits = slow  # type: ignore[method-assign]

    def score(self, prompts, options):  # type: ignore[no-untyped-def]
        self.calls += 1
        return super().score(prompts, options)


ANSWERS = [Pair(Prompt.user(f"Can you help me {i} ?"), "Yes , I can .", "No .") for i in range(16)]


@pytest.mark.usefixtures("quick")
def test_a_chunk_that_turns_out_slow_is_begun_again_in_small_batches() -> None:
    sink, told, engine = Watched(), Told(), SlowModel(0.1)
    started = time.monotonic()
    for _ in counted(
        judge_stream(ANSWERS, PairwiseJudge(engine), PRINCIPLES, sink), Done(), 16, told
    ):
        pass
    seconds = time.monotonic() - started
    assert sink.longest < seconds / 2
    told.check(16, seconds / 2)
    whole: Memory[Verdict] = Memory()
    run_judge(ANSWERS, PairwiseJudge(SlowModel(0)), PRINCIPLES, whole)
    assert [v.key for v in sink.rows] == [v.key for v in whole.rows]
    for a, b in zip(sink.rows, whole.rows, strict=True):
        assert a.logprob_first == pytest.approx(b.logprob_first, abs=1e-4)


def test_a_fast_models_chunks_are_never_cut() -> None:
    """So its batches are the same in a resumed run, and with them every bit."""
    engine, memory = SlowModel(0), Memory[Verdict]()
    run_judge(ANSWERS, PairwiseJudge(engine), PRINCIPLES, memory, chunk=4)
    assert engine.calls == 4
    resumed, again = SlowModel(0), Memory[Verdict](memory.rows[:16])
    run_judge(ANSWERS, PairwiseJudge(resumed), PRINCIPLES, again, chunk=4)
    assert resumed.calls == 3
    assert again.rows == memory.rows


def test_an_engine_tells_how_far_it_is_while_it_writes() -> None:
    told: list[float] = []
    engine = HFEngine("tiny", EngineSettings(device="cpu"))
    with hear(told.append):
        engine.generate(
            [Rendered.chat(p.messages) for p in PROMPTS[:1]], Sampling(n=1, max_new_tokens=24)
        )
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == 1.0


# ------------------------------------------------------------------------------- the pace itself


def play(
    pace: Pace, cost: Callable[[int], float], chunks: Sequence[int]
) -> list[tuple[int, float]]:
    """The batches of these chunks, and how long each takes."""
    batches = []
    for chunk in chunks:
        begin = 0
        while begin < chunk:
            end = pace.end(range(chunk), begin, lambda i: i, False)
            seconds = cost(end - begin)
            pace.took(end - begin, seconds)
            batches.append((end - begin, seconds))
            begin = end
    return batches


@pytest.mark.parametrize("each", [1e-4, 0.003, 0.1, 1.0, 4.0, 12.0, 25.0])
@pytest.mark.parametrize("latency", [0.0, 0.5, 3.0])
def test_no_batch_takes_longer_than_half_a_minute(each: float, latency: float) -> None:
    batches = play(Pace(), lambda n: latency + n * each, [2048] * 3)
    longest = sorted(seconds for _, seconds in batches)
    assert longest[-2] <= max(30, latency + each)  # one may try whether two at once pay
    assert longest[-1] <= max(30, latency + 2 * each)


@pytest.mark.parametrize("latency", [2.0, 8.0, 30.0, 100.0])
def test_a_model_that_does_many_at_once_is_given_many(latency: float) -> None:
    """A GPU that decodes 64 prompts as fast as one: cutting would only cost."""
    batches = play(Pace(pacing.FIRST_WIDE), lambda n: latency + n * 1e-3, [64] * 10)
    assert len(batches) <= 14


def test_a_fast_model_is_given_whole_chunks() -> None:
    assert play(Pace(whole=True), lambda n: n * 0.01, [2048] * 4) == [(2048, 20.48)] * 4
    cut = play(Pace(whole=True), lambda n: n * 0.1, [2048] * 4)
    assert [n for n, _ in cut][:2] == [2048, 150]  # one that told nothing


def test_a_fast_model_of_others_has_whole_chunks_after_the_first() -> None:
    batches = play(Pace(), lambda n: n * 1e-3, [2048] * 4)
    assert [n for n, _ in batches][-3:] == [2048] * 3
    assert len(batches) <= 8


def test_a_slow_server_that_does_four_at_a_time() -> None:
    batches = play(Pace(pacing.FIRST_WIDE), lambda n: 10.0 * math.ceil(n / 4), [2048])
    assert max(seconds for _, seconds in batches[1:]) <= 30
    assert sum(s for _, s in batches) < 1.5 * 2048 / 4 * 10


def test_pairs_are_cut_only_where_one_is_too_much_and_prompts_never() -> None:
    todo = [(pair, ask) for pair in range(4) for ask in range(10)]

    def ends(size: int, whole: bool) -> list[int]:
        pace, begin, out = Pace(size), 0, []
        while begin < len(todo):
            begin = pace.end(todo, begin, lambda x: x[0], whole)
            out.append(begin)
        return out

    assert ends(25, False) == [20, 40]
    assert ends(4, False) == [4, 8, 10, 14, 18, 20, 24, 28, 30, 34, 38, 40]
    assert ends(4, True) == [10, 20, 30, 40]
    assert list(paced([], lambda _: [], Pace())) == []


def test_one_broken_verdict_among_the_first_few_stops_nothing_but_many_do() -> None:
    def breaks(share: int) -> Callable[[str, Sequence[str]], list[float]]:
        def score(text: str, options: Sequence[str]) -> list[float]:
            broken = any(f"question {i}" in text for i in range(share))
            return [math.nan, 0.0] if broken else by_length(text, options)

        return score

    pairs = [Pair(Prompt.user(f"question {i:04}"), "a", "b") for i in range(400)]
    first = PairwiseJudge(
        ScriptedEngine(
            scorer=lambda t, o: [math.nan, 0.0] if "question 0000" in t else by_length(t, o)
        )
    )
    memory: Memory[Verdict] = Memory()
    run_judge(pairs, first, PRINCIPLES, memory, chunk=400)
    assert sum(v.reason == "not_finite" for v in memory.rows) == 4
    with pytest.raises(EngineError, match="not finite"):
        run_judge(PAIRS, PairwiseJudge(ScriptedEngine(scorer=breaks(10))), PRINCIPLES, Memory())
