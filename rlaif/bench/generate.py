"""`rlaif bench generate`: completions of real prompts a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.bench.judge import load
from rlaif.bench.machine import Clock, device_name, peak_rss_mib, set_threads
from rlaif.engines.base import Generation, Sampling
from rlaif.engines.settings import EngineSettings
from rlaif.errors import DataError
from rlaif.files.templates import Rendered
from rlaif.records import Prompt


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What was measured: `--json` prints exactly these. Seconds are as `Clock` counts them."""

    tokens_per_s: float  # generated
    prompts_per_s: float  # with all their samples
    prompts: int
    samples: int  # a prompt
    submitted_tokens: int
    computed_tokens: int
    generated_tokens: int
    seconds: float
    peak_rss_mib: float
    engine: str
    device: str


def bench_generate(
    model: str,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    settings: EngineSettings | None = None,
    *,
    engine: str = "hf",
    threads: int | None = None,
) -> GenerateReport:
    """Loads an engine, warms it up on a prompt of other words, and times `sampling` of prompts."""
    settings = settings or EngineSettings()
    threads = set_threads(threads, settings.device)
    loaded = load(model, engine, settings)
    loaded.generate([Rendered.chat(Prompt.user("Say something.").messages)], sampling)
    rendered = [Rendered.chat(prompt.messages) for prompt in prompts]
    before = loaded.usage.snapshot()
    clock = Clock(one_core=loaded.device == "cpu" and threads == 1)
    completions = loaded.generate(rendered, sampling)
    taken = clock.read()
    used = {k: int(v - before[k]) for k, v in loaded.usage.snapshot().items()}
    _refuse_too_long(completions, loaded.max_length)
    peak, where = peak_rss_mib(), device_name(loaded.device)
    loaded.close()
    return GenerateReport(
        tokens_per_s=used["generated_tokens"] / taken["seconds"],
        prompts_per_s=len(prompts) / taken["seconds"],
        prompts=len(prompts),
        samples=sampling.n,
        submitted_tokens=used["submitted_tokens"],
        computed_tokens=used["computed_tokens"],
        generated_tokens=used["generated_tokens"],
        seconds=taken["seconds"],
        peak_rss_mib=peak,
        engine=engine,
        device=where,
    )


def _refuse_too_long(completions: Sequence[Sequence[Generation]], context: int) -> None:
    missing = sum(samples[0].finish_reason == "too_long" for samples in completions)
    if missing:
        raise DataError(
            f"{missing} of {len(completions)} prompts do not fit the context of {context:,} "
            "tokens, so this would measure less than asked. Take a model with a longer one"
        )
