"""Texts → evaluation/text.json: what they are like, and how near to what was wanted."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.text import measure, perplexity
from rlaif.files.readers import read_demonstrations
from rlaif.files.readers.settings import AnswerReading
from rlaif.files.readers.texts import Text, read_texts
from rlaif.files.small import read_object
from rlaif.records import content_id
from rlaif.stages.asking import fill
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.store import RunStore, write_json
from rlaif.store.kept import Kept
from rlaif.store.places import ANSWERS

SCORES_FILE = "text-scores.jsonl"


def text(run: Run) -> None:
    """`evaluate.text` → evaluation/text.json: metrics by whose the texts are."""
    clock, settings, rejected = time.monotonic(), run.config.evaluate.text, Rejected("text")
    if settings.path is None:
        texts = list(_of_the_run(run))
    else:
        texts = list(read_texts(settings.path, skip_bad=settings.skip_bad, on_bad=rejected.add))
    if settings.references is not None:
        texts = _with_references(run, texts, settings.references, rejected)
    rejected.write(run)
    if not texts:
        if settings.path is not None:
            raise rejected.none_left(settings.path, "text")
        raise DataError(
            f"{run.store.root}: no texts to measure: run `rlaif sample` first, or name some: "
            "--rows FILE"
        )
    groups: dict[str, list[Text]] = defaultdict(list)
    for one in texts:
        groups[one.group].append(one)
    seed = run.config.evaluate.seed
    found = {}
    with run.reporter.progress("text", len(groups)) as progress:
        for done, (name, rows) in enumerate(groups.items(), 1):
            found[name] = measure(rows, seed=seed)
            progress(done, len(groups))
    if settings.perplexity is not None:
        for name, values in _perplexities(run, groups, settings.perplexity).items():
            found[name]["perplexity"] = values
    out = {
        "groups": found,
        "source": settings.path,
        "references": settings.references,
        "perplexity_of": settings.perplexity,
    }
    write_json(run.store.path("evaluation", "text.json"), out)
    _tell(run, found)
    finish(run, "text", clock, {"rows": len(texts), "rejected_rows": rejected.counts()})


def _of_the_run(run: Run) -> Iterator[Text]:
    """What the run's policies answered to held-out prompts in its last evaluation, or its
    completions. DataError for an evaluation that did not note which answers are its own."""
    evaluation, store = run.store.path("evaluation"), run.store
    names: dict[str, str] | None = None
    if (evaluation / "completions").is_dir():
        store = RunStore.open_readonly(evaluation)
        said = read_object(evaluation / ANSWERS, "`rlaif eval winrate`", {str: [str]})
        if not said:
            raise DataError(
                f"{evaluation}: nothing tells which of its answers are of the last evaluation: run "
                f"`rlaif eval winrate --out {run.store.root}` again, which keeps them"
            )
        names = {key: name for name, keys in said.items() for key in keys}
    prompts = {p.id: p for part in store.table("prompts").iter_batches() for p in part}
    for part in store.table("completions").iter_batches():
        for c in part:
            if names is None or c.key in names:
                yield Text(c.policy, c.text, c.key, prompts[c.prompt_id])


def _with_references(
    run: Run, texts: Sequence[Text], source: str, rejected: Rejected
) -> list[Text]:
    wanted: dict[str, list[str]] = defaultdict(list)
    reading = AnswerReading(skip_bad=run.config.evaluate.text.skip_bad)
    for row in read_demonstrations(source, reading, on_bad=rejected.add):
        wanted[row.prompt.id].append(row.text)
    found = [
        t if t.prompt is None else replace(t, references=tuple(wanted.get(t.prompt.id, ())))
        for t in texts
    ]
    without = sum(not t.references for t in found)
    if without == len(found):
        raise DataError(
            f"{source}: none of its prompts is that of a text: {len(wanted):,} prompts there, "
            f"{len(found):,} texts here. Prompts must be the same, word for word"
        )
    if without:
        run.reporter.warn(f"{without:,} texts without a reference, left out where one is needed")
    return found


def _perplexities(
    run: Run, groups: Mapping[str, Sequence[Text]], model: str
) -> dict[str, dict[str, Any] | None]:
    """The perplexity of each group's texts after their prompts; those that are kept are not
    computed again."""
    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.implicit import Likelihood

    section = run.config.policy.model_copy(update={"model": model, "adapter": None})
    engine = run.engine(section)
    if not isinstance(engine, HFEngine):
        raise ConfigError("a perplexity needs a model on the `hf` engine: set policy.engine to hf")
    likelihood = Likelihood(engine)
    kept = Kept(run.store.path("evaluation", SCORES_FILE))
    asked = {
        content_id(likelihood.key, t.prompt.id, t.text): (t.prompt, t.text)
        for rows in groups.values()
        for t in rows
        if t.prompt is not None and t.prompt.messages and t.text.strip()
    }
    keys = list(asked)

    def made(part: Sequence[int]) -> dict[str, Any]:
        rows = [asked[keys[i]] for i in part]
        values = likelihood.of([p for p, _ in rows], [x for _, x in rows])
        return dict(zip([keys[i] for i in part], values, strict=True))

    fill(run, kept, [[key] for key in keys], made, "perplexity")
    out = {}
    for name, rows in groups.items():
        own = [
            None if t.prompt is None else content_id(likelihood.key, t.prompt.id, t.text)
            for t in rows
        ]
        values = [kept[key] if key is not None and key in asked else None for key in own]
        out[name] = perplexity(values, [t.cluster for t in rows], seed=run.config.evaluate.seed)
    return out


_SHOWN = (
    *("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor"),
    *("bleu", "chrf", "ter"),
)


def _tell(run: Run, found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, x in found.items():
        lines = [f"{name}: {x['n']:,} texts, {x['empty']:,} of them blank"]
        lines.append(f"  words        {_interval(x['words'], '.1f')}")
        lines.append(f"  repetition   {_interval(x['repetition'], '.3f')}")
        diverse = "  ".join(f"{n}: {_number(x[f'distinct_{n}'])}" for n in (1, 2, 3))
        lines.append(f"  distinct-n   {diverse}   MSTTR {_number(x['msttr'])}")
        if "perplexity" in x:
            lines.append(f"  perplexity   {_interval(x['perplexity'], '.2f')}")
        against = x["of_references"]
        for metric in _SHOWN if against else ():
            form = ".1f" if metric in ("bleu", "chrf", "ter") else ".3f"
            lines.append(f"  {metric:<11}  {_interval(against[metric], form)}")
        run.reporter.say("\n".join(lines))
    if any(
        x["of_references"] and not x["of_references"]["meteor_synonyms"] for x in found.values()
    ):
        run.reporter.warn(
            "METEOR without synonyms, as WordNet is not on this machine "
            "(python -m nltk.downloader wordnet): it is lower than with them"
        )


def _interval(x: Mapping[str, float] | None, form: str) -> str:
    if x is None:
        return "not known"
    return f"{x['value']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"
