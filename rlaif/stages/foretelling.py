"""`rlaif label --dry-run`: what labelling would ask, and what that would cost. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlaif.config import Config
from rlaif.judges.base import Judge
from rlaif.judges.load import make_judge
from rlaif.records import Verdict
from rlaif.stages.jury import Juror, jurors
from rlaif.stages.labelling import nothing_to_label, read
from rlaif.stages.run import READ_PAIRS, Reporter, Run, began
from rlaif.steps.foretelling import (
    CountingEngine,
    Forecast,
    Rate,
    counting,
    foretell,
    rate_of_a_sample,
)
from rlaif.store import RunStore

_ENOUGH = 100  # requests of an earlier labelling, for a rate


def foretell_labels(config: Config, reporter: Reporter) -> None:
    """Tells, judge by judge, what `rlaif label` with this config would ask and what it would take.

    The pairs of a file are read into a folder that is removed again; nothing of the run changes.
    """
    root = Path(config.out)
    there = RunStore.open_readonly(root) if os.path.isdir(root) else None
    if there is not None and config.date is None:
        config = config.model_copy(update={"date": began(there)})
    heavy = any(j.engine != "http" for j in (config.jury or [config.judge]))
    with (
        TemporaryDirectory(prefix="rlaif-dry-run-") as folder,
        RunStore(folder) as store,
        Run(config, store, reporter, local_models=heavy) as run,
    ):
        if config.pairs is not None:
            read(run)
        source = store if config.pairs is not None or there is None else there
        if not len(source.table("pairs")):
            raise nothing_to_label(replace(run, store=source))
        for juror in jurors(run):
            for line in _told(run, juror, source, there):
                reporter.say(line)
            run.release(juror.section)
    reporter.say("dry run: nothing was stored")


def _told(run: Run, juror: Juror, source: RunStore, there: RunStore | None) -> Iterator[str]:
    """What one judge would be asked."""
    engine = run.engine(juror.section)
    counter = counting(engine)
    asker = make_judge(counter, juror.section)
    total = len(source.table("pairs"))
    pairs = chain.from_iterable(source.table("pairs").iter_batches(READ_PAIRS))
    with run.reporter.progress(juror.title("count"), total) as progress:
        found = foretell(
            pairs,
            asker,
            counter,
            run.asked(),
            _finder(there),
            orders=juror.orders,
            chunk=run.config.chunk,
            on_pairs=lambda done: progress(done, total),
        )
    manifest = {} if there is None else there.read_manifest()
    earlier = _earlier(manifest, juror, asker.fingerprint)
    yield (
        f"{juror.name or juror.section.model}: {total:,} pairs, {found.verdicts:,} verdicts, of "
        f"which {found.known:,} are stored and {found.missing.total():,} to judge"
    )
    if not found.missing:
        return
    if found.known:
        yield "  of " + ", ".join(f"{name} {n:,}" for name, n in found.missing.most_common())
    yield f"  {_tokens(found, counter, earlier)}"
    price = _price(juror, found)
    if price is not None:
        yield f"  money: about {price:,.4g} at the prices of the config's http section"
    yield f"  {_seconds(run, juror, found, earlier)}"


def _finder(there: RunStore | None) -> Callable[[Sequence[str]], Mapping[str, Verdict]]:
    return (lambda _: {}) if there is None else there.table("verdicts").finder()


def _earlier(manifest: Mapping[str, Any], juror: Juror, fingerprint: str) -> Rate | None:
    """What the run's last labelling by this very judge took; None of a jury, whose jurors are not
    timed one by one."""
    stage = (manifest.get("stages") or {}).get("label") or {}
    if juror.name is not None or (manifest.get("judge") or {}).get("fingerprint") != fingerprint:
        return None
    if not stage.get("seconds") or stage.get("requests", 0) < _ENOUGH:
        return None
    return Rate(float(stage["seconds"]), stage)


def _tokens(found: Forecast, counter: CountingEngine, earlier: Rate | None) -> str:
    usage = found.usage
    if counter.encoder is None:
        if earlier is not None and earlier.usage.get("requests"):
            each = earlier.usage["submitted_tokens"] / earlier.usage["requests"]
            usage.submitted_tokens = round(usage.requests * each)
            how = "as many a request as the last time"
        else:
            how = "told from the length of the texts: the server's tokenizer is not here"
        text = f"{usage.requests:,} requests, about {usage.submitted_tokens:,} tokens ({how})"
    elif found.exact:
        text = f"{usage.requests:,} requests, {usage.submitted_tokens:,} tokens submitted"
        if usage.bound_tokens:
            text += f", {usage.bound_tokens:,} to compute"
    else:
        text = f"at most {usage.requests:,} requests, {usage.submitted_tokens:,} tokens submitted"
    if usage.generated_tokens:
        text += f"; at most {usage.generated_tokens:,} tokens written"
    return text


def _price(juror: Juror, found: Forecast) -> float | None:
    """Money; None where no price is known. Each label of a server is one token that it writes."""
    http = juror.section.http
    if juror.section.engine != "http":
        return None
    if not (http.price_per_million_input or http.price_per_million_output):
        return None
    written = found.usage.generated_tokens or found.usage.requests
    return (
        found.usage.submitted_tokens * http.price_per_million_input
        + written * http.price_per_million_output
    ) / 1e6


def _seconds(run: Run, juror: Juror, found: Forecast, earlier: Rate | None) -> str:
    from rlaif.report.formats import duration

    if earlier is not None:
        rate, how = earlier, "at the rate of this run's last labelling"
    elif juror.section.engine == "http":
        return "seconds: not known: the server was not asked, as that is paid for"
    else:
        judge: Judge = run.judge(juror.section)
        engine = run.engine(juror.section)
        sample = rate_of_a_sample(judge, engine, found.sample)
        if sample is None:
            return "seconds: not known"
        rate = sample
        how = f"at the rate of a sample, timed for {rate.seconds:.1f} s on {engine.device}"
    seconds = rate.seconds_of(found.usage, exact=found.exact)
    if seconds is None:
        return "seconds: not known"
    workers = " by one worker on this machine" if run.config.executor == "ray" else ""
    return f"about {duration(seconds)}{workers}, {how}"
