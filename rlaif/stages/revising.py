"""prompts → first responses → critiques and revisions; prompts → contrast pairs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlaif.constitution import Constitution, Principle
from rlaif.errors import DataError
from rlaif.evaluation.revisions import violations
from rlaif.files.small import read_json
from rlaif.records import Pair, Preference, Revision
from rlaif.stages.inputs import is_tiny, load_prompts, sampling_of
from rlaif.stages.origins import pair_ids, require_not_read, tell_replaced
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.running import about_engine
from rlaif.stages.sampling import sampled
from rlaif.steps.executors import followed, spent
from rlaif.steps.revising import Reviser, chains_of, contrast_stream, revise_stream
from rlaif.store import RunStore, write_json

CURRENT = ("revisions", "current.json")


def current_revisions(store: RunStore) -> list[Revision]:
    """The rows of the last `revise`, in order. Older ones stay in the store and are not read."""
    path = store.path(*CURRENT)
    keys = read_json(path, "`rlaif revise`", [str])
    if keys is None:
        raise DataError(f"{store.root}: no revisions: run `rlaif revise` first")
    found = store.table("revisions").finder()(keys)
    missing = sum(key not in found for key in keys)
    if missing:
        raise DataError(f"{store.root}: {missing:,} revisions are lost: run `rlaif revise` again")
    return [found[key] for key in keys]


def revise(run: Run) -> None:
    """prompts → first responses → critiques and revisions, a row for every round of every chain."""
    clock = time.monotonic()
    config, rejected = run.config.revise, Rejected("revise")
    principles = _principles(run)
    engine = run.engine(run.config.policy)
    reviser = Reviser(engine, principles, config)
    prompts, completions, _, _ = sampled(run, rejected)
    chains = chains_of(prompts, completions, keep_cut=run.config.sampling.keep_cut)
    if not chains:
        raise DataError("no first response ended by itself: raise sampling.max_new_tokens")
    before = engine.usage.snapshot()
    rows: list[Revision] = []
    new = 0
    with run.reporter.progress("revise", len(chains)) as progress:
        stream = revise_stream(
            chains, reviser, run.store.table("revisions"), chunk=run.config.chunk
        )
        for part in followed(stream, run.config.chunk, len(chains), progress):
            rows += part.rows
            new += len(part.new)
    write_json(run.store.path(*CURRENT), [row.key for row in rows])
    reasons = Counter(row.reason for row in rows if row.reason)
    _tell(run, rows, new, reasons, len(completions) - len(chains))
    rejected.write(run)
    facts = {
        "rows": len(rows),
        "new_rows": new,
        "chains": len(chains),
        "rounds": config.rounds,
        "without_revision": dict(reasons),
        "not_started": len(completions) - len(chains),
        **spent(engine, before),
        "device": engine.device,
        "policy": {"model": run.config.policy.model, **about_engine(engine)},
    }
    finish(run, "revise", clock, facts)
    _measure(run, rows, principles)


def contrast(run: Run) -> None:
    """prompts → the run's pairs, one side asked to follow a principle and the other to violate it.

    They become the run's pairs and preferences, each with the label 1.
    """
    clock = time.monotonic()
    require_not_read(run)
    rejected = Rejected("contrast")
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    engine = run.engine(run.config.policy)
    before = engine.usage.snapshot()
    pairs: list[Pair] = []
    new = 0
    with run.reporter.progress("contrast", len(prompts)) as progress:
        stream = contrast_stream(
            prompts,
            engine,
            _principles(run),
            sampling_of(run.config),
            run.store.table("completions"),
            chunk=run.config.chunk,
        )
        for part in followed(stream, run.config.chunk, len(prompts), progress):
            pairs += part.pairs
            new += len(part.new)
    if not pairs:
        raise DataError("no prompt gave two different whole completions")
    take_pairs(run, pairs)
    rejected.write(run)
    run.reporter.say(f"{len(pairs):,} contrast pairs of {len(prompts):,} prompts")
    finish(
        run,
        "contrast",
        clock,
        {
            "rows": len(pairs),
            "new_rows": new,
            "prompts": len(prompts),
            **spent(engine, before),
            "device": engine.device,
        },
    )


def take_pairs(run: Run, pairs: Sequence[Pair]) -> None:
    """Pairs whose first completion is better become the run's pairs and preferences."""
    before = pair_ids(run)
    run.store.table("pairs").replace(pairs)
    run.store.table("preferences").replace(labelled(pairs))
    tell_replaced(run, before)


def labelled(pairs: Sequence[Pair]) -> list[Preference]:
    """Preferences by the pairs' own labels: no judge was asked."""
    return [Preference(pair, "preferred", pair.label) for pair in pairs]


def _principles(run: Run) -> tuple[Principle, ...]:
    config = run.config.revise
    other = config.constitution
    found = run.constitution if other is None else Constitution.load(other)
    return found.principles if config.principles == "all" else found.select(config.principles)


def _tell(
    run: Run, rows: Sequence[Revision], new: int, reasons: Counter[Any], not_started: int
) -> None:
    run.reporter.say(f"{len(rows):,} rounds ({new:,} new)")
    if reasons:
        told = ", ".join(f"{n:,} {why}" for why, n in sorted(reasons.items()))
        run.reporter.warn(f"{reasons.total():,} rounds left the response as it was: {told}")
    if not_started:
        run.reporter.warn(f"{not_started:,} responses were cut or empty and start no chain")


def _measure(run: Run, rows: Sequence[Revision], principles: Sequence[Principle]) -> None:
    """By the gold checker, where the prompts are the embedded world's and the principles' traits
    are known. Opposites have no violation."""
    from rlaif.tiny import principle_trait

    found = [principle_trait(p.tags) for p in principles]
    traits = sorted({trait for trait, sign in filter(None, found) if sign > 0})
    if not is_tiny(run.config.prompts) or not traits:
        return
    result = violations(rows, traits)
    write_json(run.store.path("evaluation", "revisions.json"), result)
    for trait, c in result.items():
        if c["violated"]:
            shares = ", ".join(f"{n / c['violated']:.0%}" for n in c["fixed"])
            run.reporter.say(f"{trait}: {c['violated']:,} violations, fixed by round: {shares}")
