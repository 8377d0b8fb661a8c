"""`rlaif bench judge`: from pairs to verdicts, against the least arithmetic and the naive way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlaif.bench.machine import Clock, device_name, matmul_rate, peak_rss_mib, set_threads
from rlaif.bench.plain import PlainEngine
from rlaif.bench.workload import Shape, Workload, trie_of
from rlaif.engines.base import Engine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import EngineSettings
from rlaif.engines.trie import common_prefix
from rlaif.errors import ConfigError, DataError, nearest
from rlaif.records import Verdict
from rlaif.steps.executors import Memory, run_judge

ENGINES = ("hf", "vllm", "plain")


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What was measured: `--json` prints exactly these. Seconds are as `Clock` counts them."""

    pairs_per_s: float
    requests: int
    submitted_tokens: int
    computed_tokens: int
    bound_tokens: int  # the fewest that could have been computed: the distinct prefixes
    share_of_limit: float  # seconds at the machine's matmul rate over the seconds taken
    max_abs_diff: float  # of log-probabilities, from plain passes over a sample of the requests
    seconds: float
    peak_rss_mib: float
    engine: str
    device: str


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """A report, and what stands behind it."""

    report: JudgeReport
    verdicts: list[Verdict]  # in the order of the asks
    operations: float  # floating-point operations that the distinct tokens need
    rate: float  # of square matrix products, a second
    wall_seconds: float
    checked: int  # requests compared with plain passes


def bench_judge(
    model: str,
    workload: Workload,
    settings: EngineSettings | None = None,
    *,
    engine: str = "hf",
    threads: int | None = None,
    check: int = 32,
) -> JudgeRun:
    """Loads an engine, warms it up, and times the judging of a workload.

    `engine` names it as `load` does. `check` requests are judged again by plain passes. `threads`:
    one by default on a CPU.
    """
    settings = settings or EngineSettings()
    threads = set_threads(threads, settings.device)
    loaded = load(model, engine, settings)
    device, dtype = loaded.device, settings.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    rate = matmul_rate(device, dtype, threads)
    _judged(loaded, workload.warm_up())
    before = loaded.usage.snapshot()
    clock = Clock(one_core=device == "cpu" and threads == 1)
    verdicts = _judged(loaded, workload)
    taken = clock.read()
    used = {k: int(v - before[k]) for k, v in loaded.usage.snapshot().items()}
    rate = max(rate, matmul_rate(device, dtype, threads))
    trie = trie_of(workload.judge(loaded), workload.asks())
    warm = trie_of(workload.warm_up().judge(loaded), workload.warm_up().asks())
    # Both begin as every chat does.
    kept = common_prefix(trie.first_way(), warm.path_to(len(warm) - 1))
    operations = Shape.of(model).operations(trie)
    peak, where = peak_rss_mib(), device_name(device)
    loaded.close()  # a GPU may not have room for the model twice
    report = JudgeReport(
        pairs_per_s=len(workload.pairs) / taken["seconds"],
        requests=used["requests"],
        submitted_tokens=used["submitted_tokens"],
        computed_tokens=used["computed_tokens"],
        bound_tokens=len(trie) - kept,
        share_of_limit=operations / rate / taken["seconds"],
        max_abs_diff=_difference(
            model, workload, verdicts, check, EngineSettings(device=device, dtype=dtype)
        ),
        seconds=taken["seconds"],
        peak_rss_mib=peak,
        engine=engine,
        device=where,
    )
    checked = min(check, len(verdicts))
    return JudgeRun(report, verdicts, operations, rate, taken["wall_seconds"], checked)


def load(model: str, engine: str, settings: EngineSettings) -> Engine:
    """The engine to be measured; `plain` is the naive way."""
    if engine not in ENGINES:
        raise ConfigError(f"no engine '{engine}' to measure.{nearest(engine, ENGINES)}")
    if engine == "plain":
        return PlainEngine(model, settings)
    return load_engine(model, settings.but(engine=engine))


def _judged(engine: Engine, workload: Workload) -> list[Verdict]:
    """The verdicts of a workload, by the way every label goes, into memory."""
    memory: Memory[Verdict] = Memory()
    run_judge(workload.pairs, workload.judge(engine), workload.principles, memory)
    failed = [v.reason for v in memory.rows if v.reason]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(memory.rows)} requests were not judged ({failed[0]}), so this "
            f"would measure less than asked. {engine.name} has a context of "
            f"{engine.max_length:,} tokens: take a model with a longer one, or other pairs"
        )
    return memory.rows


def _difference(
    model: str,
    workload: Workload,
    verdicts: Sequence[Verdict],
    check: int,
    settings: EngineSettings,
) -> float:
    """The largest |Δ log p| from plain passes over `check` requests drawn by a fixed seed."""
    chosen = np.random.default_rng(0).permutation(len(verdicts))[:check]
    if not len(chosen):
        return float("nan")
    asks, plain = workload.asks(), PlainEngine(model, settings)
    expected = workload.judge(plain).judge([asks[i] for i in chosen])
    plain.close()
    return max(
        float(np.abs(_logprobs(verdicts[i]) - _logprobs(e)).max())
        for i, e in zip(chosen, expected, strict=True)
    )


def _logprobs(verdict: Verdict) -> npt.NDArray[np.float64]:
    return np.array([verdict.logprob_first, verdict.logprob_second], np.float64)
