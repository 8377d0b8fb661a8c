"""How fast labels go through everything but the model: an engine that costs nothing stands in.

Measured: pairs read from the store, asks, keys, prompts rendered, verdicts made, stored and
aggregated, label quality, preferences written. Not measured: writing the pairs beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rlaif.bench.machine import peak_rss_mib
from rlaif.config import Config
from rlaif.constitution import Principle
from rlaif.engines.base import Scores, ScriptedEngine
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.metrics import LabelQuality
from rlaif.files.templates import Rendered
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.records import ORDERS, Pair, Prompt
from rlaif.stages import READ_PAIRS, prefer_stream
from rlaif.steps.executors import judge_stream
from rlaif.store import RunStore

PRINCIPLES = tuple(
    Principle(id=f"principle-{i:02d}", compare=f"Which response is better in respect {i}?")
    for i in range(16)
)
WORDS = "The answer depends on what you have at hand and how much time there is for it. "


class NullEngine(ScriptedEngine):
    """Says the same of every prompt and reads none."""

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        del options
        self.usage.requests += len(prompts)
        return [Scores((-0.4, -1.2))] * len(prompts)


def pipeline(
    verdicts: int, out: Path, *, principles: int = len(PRINCIPLES), chunk: int = 64
) -> dict[str, Any]:
    """Labels made-up pairs of about a thousand characters under `principles`, in both orders.

    Rounded up to whole pairs. Seconds are processor seconds, which a busy neighbour does not
    change; `wall_seconds` are on the clock.
    """
    if verdicts < 1 or not 1 <= principles <= len(PRINCIPLES):
        raise ConfigError(
            f"at least 1 verdict and 1 to {len(PRINCIPLES)} principles: got {verdicts} and "
            f"{principles}"
        )
    asked, config = PRINCIPLES[:principles], Config(chunk=chunk)
    judge, quality = PairwiseJudge(NullEngine()), LabelQuality()
    with RunStore(out, command="rlaif bench pipeline") as store:
        if len(store.table("verdicts")):
            raise DataError(f"{out} holds verdicts already: name a new run directory")
        store.table("pairs").replace(_pairs(-(-verdicts // (len(asked) * len(ORDERS)))))
        wall, cpu = time.perf_counter(), time.process_time()
        pairs = chain.from_iterable(store.table("pairs").iter_batches(READ_PAIRS))
        judged = judge_stream(pairs, judge, asked, store.table("verdicts"), chunk=chunk)
        store.table("preferences").replace(prefer_stream(config, judged, asked, ORDERS, quality))
        found = quality.result()
        seconds, waited = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "verdicts": found["verdicts"],
        "pairs": found["pairs"],
        "principles": len(asked),
        "verdicts_per_s": round(found["verdicts"] / seconds, 1),
        "seconds": round(seconds, 3),
        "wall_seconds": round(waited, 3),
        "peak_rss_mib": round(peak_rss_mib(), 1),
    }


def _pairs(count: int) -> Iterator[Pair]:
    for i in range(count):
        prompt = Prompt.user(f"Question {i}: how is it done? {WORDS * 3}")
        yield Pair(prompt, f"Answer {i}. {WORDS * 5}", f"Another answer {i}. {WORDS * 4}", 1.0)
