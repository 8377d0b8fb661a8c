"""Model-written evaluations of a run's policies: before training, and after it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.engines.base import Engine, Sampling, checked
from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError
from rlaif.evaluation.model_written import (
    Answered,
    beyond,
    changes,
    from_logprobs,
    from_samples,
    results,
)
from rlaif.evaluation.settings import ModelWrittenSettings
from rlaif.files.readers.model_written import Item, item_of, read_model_written
from rlaif.files.small import write_text
from rlaif.files.templates import Rendered
from rlaif.records import content_id
from rlaif.stages.asking import fill
from rlaif.stages.policies import trained_policies
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.steps.executors import run_sampling
from rlaif.steps.sampling import completion_keys
from rlaif.store import RunStore, write_json
from rlaif.store.kept import Kept
from rlaif.tiny import sycophancy

SCORES_FILE = "model-written-scores.jsonl"
_NAME = 32  # letters of a test's name that leave room for its numbers beside it


def model_written(run: Run) -> None:
    """`evaluate.model_written` → evaluation/model-written.json, and what came of each question in
    evaluation/model-written-items.jsonl. The policy, and the run's trained ones beside it."""
    clock, settings, rejected = time.monotonic(), run.config.evaluate.model_written, Rejected("mwe")
    if settings.path is None:
        raise ConfigError(
            "no evaluation is named: give --rows FILE, such as persona/*.jsonl of "
            "github.com/anthropics/evals"
        )
    items = list(_items(settings, rejected))
    rejected.write(run)
    if not items:
        raise rejected.none_left(settings.path, "question")
    answered, new_rows = {}, 0
    with RunStore(run.store.path("evaluation"), command="model-written") as store:
        ask = _scored if settings.by == "probability" else _sampled
        for name in ("base", *trained_policies(run.store)):
            section = run.config.policy
            if name != "base":
                trained = str(run.store.path("models", name))
                section = section.model_copy(update={"model": trained, "adapter": None})
            answered[name], new = ask(run, store, name, run.engine(section), items)
            new_rows += new
            if name != "base":
                run.release(section, keep=[run.config.policy])
    found: dict[str, Any] = {
        "by": settings.by,
        "source": settings.path,
        "per_file": settings.per_file,
        "policies": {name: results(items, rows) for name, rows in answered.items()},
        "changes": {
            name: changes(items, answered["base"], rows)
            for name, rows in answered.items()
            if name != "base"
        },
    }
    write_json(run.store.path("evaluation", "model-written.json"), found)
    _write_items(run, items, answered)
    _tell(run, found)
    rows = {"rows": len(items), "new_rows": new_rows, "rejected_rows": rejected.counts()}
    finish(run, "model-written", clock, rows)


def _items(settings: ModelWrittenSettings, rejected: Rejected) -> Iterator[Item]:
    """The questions of the files that are named, or of the embedded world."""
    if settings.path == "tiny" and not Path("tiny").is_file():
        for test in sycophancy.TESTS:
            for where, row in sycophancy.rows(test, settings.per_file):
                yield item_of(where, row, test, settings.cue or "")
        return
    yield from read_model_written(
        str(settings.path),
        cue=settings.cue,
        limit=settings.per_file,
        skip_bad=settings.skip_bad,
        on_bad=rejected.add,
    )


def _scored(
    run: Run, store: RunStore, name: str, engine: Engine, items: Sequence[Item]
) -> tuple[list[Answered], int]:
    """By the log-probabilities of the answers; those that are kept are not asked for again."""
    kept = Kept(store.path(SCORES_FILE))
    # After a chat template's own words an answer has no space before it; after others it has.
    bare = not getattr(getattr(engine, "encoder", None), "transcript", False)
    options = [
        [a.strip() if bare and not item.has_cue else a for a in item.answers] for item in items
    ]
    mode: Mode | None = None if run.config.policy.thought_tokens is None else "off"
    keys = [
        content_id("model-written", engine.fingerprint, item.prompt.id, offered, mode)
        for item, offered in zip(items, options, strict=True)
    ]

    def made(part: Sequence[int]) -> dict[str, Any]:
        asked = [Rendered.chat(items[i].prompt.messages, mode) for i in part]
        rows = engine.score(asked, [options[i] for i in part])
        said = [checked(s, len(options[i])) for i, s in zip(part, rows, strict=True)]
        return {keys[i]: s.failure or list(s.logprobs) for i, s in zip(part, said, strict=True)}

    new = sum(key not in kept for key in set(keys))
    fill(run, kept, [[key] for key in keys], made, f"model-written: {name}")
    values = [kept[key] for key in keys]
    found = [Answered(None, reason=v) if isinstance(v, str) else from_logprobs(v) for v in values]
    return found, new


def _sampled(
    run: Run, store: RunStore, name: str, engine: Engine, items: Sequence[Item]
) -> tuple[list[Answered], int]:
    """By what is written; answers that the store has are not sampled again."""
    settings = run.config.evaluate.model_written
    sampling = Sampling(
        n=settings.samples,
        temperature=run.config.evaluate.temperature,
        max_new_tokens=settings.answer_tokens,
        seed=run.config.evaluate.seed,
        thinking=run.config.policy.thought_tokens,
    )
    prompts = [item.prompt for item in items]
    table = store.table("completions")
    with run.reporter.progress(f"model-written: {name}", len(items)) as progress:
        new = run_sampling(
            prompts,
            engine,
            sampling,
            table,
            policy=name,
            chunk=run.config.chunk,
            total=len(items),
            on_progress=progress,
        ).new_rows
    keys = [completion_keys(engine, sampling, prompt) for prompt in prompts]
    wanted = {key for row in keys for key in row}
    made = {c.key: c.text for part in table.iter_batches() for c in part if c.key in wanted}
    found = [
        from_samples(item, [made[key] for key in row])
        for item, row in zip(items, keys, strict=True)
    ]
    return found, new


def _write_items(
    run: Run, items: Sequence[Item], answered: Mapping[str, Sequence[Answered]]
) -> None:
    lines = []
    for i, item in enumerate(items):
        row = {
            "test": item.test,
            "source": item.prompt.source,
            "question": item.prompt.messages[0].content,
            "answers": item.answers,
            "matching": sorted(item.matching),
            "policies": {
                name: {"p": rows[i].p, "mass": rows[i].mass, "reason": rows[i].reason}
                for name, rows in answered.items()
            },
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(run.store.path("evaluation", "model-written-items.jsonl"), "".join(lines))


def _tell(run: Run, found: Mapping[str, Any]) -> None:
    for name, moved in found["changes"].items():
        told = _rows({test: [_signed(moved[test])] for test in beyond(moved)})
        if told:
            run.reporter.say(
                f"{name} against base, the changes beyond their intervals (points of "
                "P(matching)):\n" + "\n".join(told)
            )
    for name, tests in found["policies"].items():
        head = f"{name}, in %: P(matching), by lot, likeliest matches"
        run.reporter.say("\n".join([head, *_table(tests)]))
        abstained = sum(x["abstained"] for x in tests.values())
        if abstained:
            run.reporter.warn(f"{name}: {abstained:,} questions without an answer, left out")
        low = [test for test, x in tests.items() if (x["mass_under_half"] or 0) > 0.5]
        if low:
            run.reporter.warn(
                f"{name} would mostly say something else than the answers offered, in {len(low)} "
                f"of {len(tests)} tests: what stands here is how it leans between them. Give a cue "
                "(--set evaluate.model_written.cue=...), or ask by sampling"
            )


def _table(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return _rows({test: _cells(found) for test, found in tests.items()})


def _rows(table: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal of 80 columns: where a name and its cells are wider, they
    stand below it."""
    width = max((len(name) for name in table if len(name) <= _NAME), default=0)
    found = []
    for name, cells in table.items():
        if len(name) <= width and len(cells) == 1:
            found.append(f"  {name:<{width}}  {cells[0]}")
        else:
            found += [f"  {name}", *(f"    {cell}" for cell in cells)]
    return found


def _cells(found: Mapping[str, Any]) -> list[str]:
    if "correlation" in found or "female" in found:
        r, female = found["correlation"], found["female"]
        told = "not known" if r is None else f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        return [
            f"a woman's pronoun {_percent(female)}",
            f"correlation with the occupation's {told}",
        ]
    if found["probability"] is None:
        return ["not known"]
    rate, chance = found["rate"]["value"], found["chance"]
    told = f"{_percent(found['probability'])}  {100 * chance:3.0f}  {100 * rate:5.1f}"
    return [f"{told}  n={found['n']:,}"]


def _percent(x: Mapping[str, float]) -> str:
    return f"{100 * x['value']:5.1f} [{100 * x['low']:5.1f}, {100 * x['high']:5.1f}]"


def _signed(x: Mapping[str, float]) -> str:
    return f"{100 * x['value']:+.1f} [{100 * x['low']:+.1f}, {100 * x['high']:+.1f}]"
