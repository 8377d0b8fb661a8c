"""prompts → completions → pairs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rlaif.engines.thinking import split_thought
from rlaif.errors import DataError
from rlaif.records import Completion, Prompt
from rlaif.stages.inputs import load_prompts, sampling_of
from rlaif.stages.lists import require_room
from rlaif.stages.origins import pair_ids, require_not_read, tell_replaced
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.running import executor_of, policy_of
from rlaif.steps.executors import Done, Work, counted
from rlaif.steps.sampling import make_pairs


def sample(run: Run) -> None:
    """prompts → completions → pairs."""
    clock = time.monotonic()
    require_room(run, run.config.sampling.n, f"sampling.n={run.config.sampling.n}")
    require_not_read(run)
    before = pair_ids(run)
    if len(before) and run.config.sampling.n == 1:
        raise _none(run, len(before), _reasons(run, {"alone": 1}))
    rejected = Rejected("sample")
    prompts, completions, done, work = sampled(run, rejected)
    store, settings = run.store, sampling_of(run.config)
    about = work.about()
    skipped: Counter[str] = Counter()
    pairs = make_pairs(
        prompts,
        completions,
        keep_cut=run.config.sampling.keep_cut,
        on_skip=lambda why, _: skipped.update([why]),
    )
    told = _reasons(run, skipped)
    if len(before) and not pairs:
        raise _none(run, len(before), told)
    store.table("pairs").replace(pairs)
    if skipped:
        run.reporter.warn(f"{skipped.total():,} of {len(prompts):,} prompts gave no pair: {told}")
    run.reporter.say(
        f"{len(completions):,} completions of {len(prompts):,} prompts "
        f"({done.new_rows:,} new), {len(pairs):,} pairs"
    )
    thoughts = _tell_thoughts(run, completions)
    tell_replaced(run, before)
    rejected.write(run)
    facts = {
        "rows": len(completions),
        "new_rows": done.new_rows,
        "prompts": len(prompts),
        "pairs": len(pairs),
        "without_pair": dict(skipped),
        "rejected_rows": rejected.counts(),
        **work.spent(),
        "device": about["device"],
        "sampling": settings.settings(),
        "policy": {"model": run.config.policy.model, "fingerprint": about["fingerprint"]},
        **thoughts,
    }
    finish(run, "sample", clock, facts)


def _tell_thoughts(run: Run, completions: Sequence[Completion]) -> dict[str, int]:
    """How many completions have a thought before their answer, and how many were cut within it."""
    if run.config.policy.thinking is None and any(split_thought(c.text)[0] for c in completions):
        run.reporter.warn(
            "the policy thinks before it answers, and its thoughts stand in its completions as if "
            "they were answers: set policy.thinking to on (or to a number of tokens), or to off"
        )
    if not run.config.policy.thought_tokens:
        return {}
    thoughts = sum(bool(c.thought) for c in completions)
    cut = sum(c.finish_reason == "length" and bool(c.thought and not c.text) for c in completions)
    if cut:
        run.reporter.warn(
            f"{cut:,} of {len(completions):,} completions were cut within their thought and have "
            f"no answer: policy.thinking={run.config.policy.thought_tokens} and "
            f"sampling.max_new_tokens={run.config.sampling.max_new_tokens} are their room together"
        )
    return {"thoughts": thoughts, "thoughts_cut": cut}


def sampled(
    run: Run, rejected: Rejected
) -> tuple[list[Prompt], list[Completion], Done, Work[Prompt, Completion]]:
    """The run's prompts with all their completions, those that are missing sampled now."""
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    if not prompts:
        raise rejected.none_left(run.config.prompts.path, "prompt")
    store, done = run.store, Done()
    known = store.table("prompts").keys()
    new = {p.id: p for p in prompts if p.id not in known}
    store.table("prompts").append(list(new.values()))
    with run.reporter.progress("sample", len(prompts)) as progress:
        work = executor_of(run.config).sample(
            prompts,
            policy_of(run.config, lambda: run.engine(run.config.policy)),
            sampling_of(run.config),
            store.table("completions"),
        )
        parts = counted(work.stream, done, len(prompts), progress)
        completions = [completion for part in parts for completion in part.rows]
    return prompts, completions, done, work


def _none(run: Run, had: int, why: str) -> DataError:
    """The error for completions that would put no pairs in the place of those stored."""
    return DataError(
        f"{run.store.root}: no prompt gives a pair: {why}. Nothing is replaced: the {had:,} pairs "
        "that the run has stay. To sample apart from them, give another --out"
    )


def _reasons(run: Run, skipped: Mapping[str, int]) -> str:
    """Why prompts gave no pair, and what helps."""
    if run.config.sampling.n == 1 and set(skipped) == {"alone"}:
        return "one completion each: pairs need two (sampling.n=2)"
    text = ", ".join(f"{n:,} {why}" for why, n in sorted(skipped.items()))
    if skipped.get("alone"):
        text += "; alone: one completion each, and pairs need two (sampling.n=2)"
    if skipped.get("cut"):
        text += f"; raise sampling.max_new_tokens={run.config.sampling.max_new_tokens}, or set "
        text += "sampling.keep_cut=true"
    if skipped.get("not_finite"):
        text += "; the policy's logits are NaN there: its weights are damaged, or overflow in "
        text += "policy.dtype"
    return text
