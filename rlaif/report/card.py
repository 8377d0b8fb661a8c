"""The card of an exported data set or of a trained model: its README.md.

What somebody needs to judge it by: the principles in full, who judged, what an audit says of the
labels, what they are not good for, and how to cite it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlaif.errors import DISTRIBUTION
from rlaif.files.small import read_object
from rlaif.report.audit import table
from rlaif.report.formats import count, duration, percent, printable
from rlaif.store import RunStore

Json = Mapping[str, Any]
_TASKS = {"reward": "text-classification", "judge": "text-generation"}


def dataset_card(store: RunStore, kind: str, about: str, rows: int, columns: Sequence[str]) -> str:
    """The card of rows exported from a run."""
    manifest = store.read_manifest()
    name = _constitution(manifest).get("name") or "labels"
    head = {
        "pretty_name": f"{name}: {kind}",
        "tags": ["rlaif", "preference", "trl"],
        "configs": [{"config_name": "default", "data_files": "data/train-*.parquet"}],
    }
    lines = [
        *_front(head),
        f"# {printable(str(name))}: {kind}",
        "",
        f"{count(rows)} rows: {about}. Columns: {', '.join(f'`{c}`' for c in columns)}.",
        "They are people's, given in `rlaif view`."
        if kind == "people"
        else "Labels are a model's, under the principles below; nobody checked each of them.",
        "",
        *_principles(manifest),
        *_judge(manifest),
        *_audit(store),
        *_limits(),
        *_cite(manifest, f"{name}: {kind}"),
    ]
    return "\n".join(lines)


def model_card(store: RunStore, product: str) -> str:
    """The card of a model that a run trained: of `models/dpo`, `product` is `dpo`."""
    manifest = store.read_manifest()
    stage: Json = (manifest.get("stages") or {}).get(product) or {}
    base, name = str(stage.get("model") or ""), _constitution(manifest).get("name") or "a run"
    head: dict[str, Any] = {"tags": ["rlaif", product]}
    head["library_name"] = "transformers"
    head["pipeline_tag"] = _TASKS.get(product, "text-generation")
    if base and not Path(base).exists() and base != "tiny":
        head["base_model"] = base
    lines = [
        *_front(head),
        f"# {printable(base) or 'A model'}, trained by {product} on {printable(str(name))}",
        "",
        *_training(stage, base),
        *_evaluation(store, product),
        *_principles(manifest),
        *_judge(manifest),
        *_audit(store),
        *_limits(),
        *_cite(manifest, f"{product} on {name}"),
    ]
    return "\n".join(lines)


def _front(head: Mapping[str, Any]) -> Iterator[str]:
    yield "---"
    yield yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True).rstrip()
    yield "---"


def _constitution(manifest: Json) -> Json:
    found: Json = manifest.get("labelled") or manifest.get("constitution") or {}
    return found


def _cell(text: object) -> str:
    """A text in a table of Markdown: on one line, and no cell's end within."""
    return " ".join(printable(str(text)).split()).replace("|", "\\|")


def _principles(manifest: Json) -> Iterator[str]:
    said = _constitution(manifest)
    if not said:
        return
    yield "## Constitution"
    yield ""
    yield (
        f"`{printable(str(said.get('name')))}`, version {said.get('version')}, hash "
        f"`{said.get('hash')}`."
    )
    yield ""
    principles = said.get("principles") or ()
    ranked = any(one.get("tier") is not None for one in principles)
    yield f"| id | asked |{' tier |' if ranked else ''} weight |"
    yield f"|---|---|{'---|' if ranked else ''}---|"
    for one in principles:
        asked = one.get("compare") or one.get("critique") or one.get("follow") or ""
        tier = f" {one.get('tier') or 'last'} |" if ranked else ""
        yield f"| {_cell(one.get('id'))} | {_cell(asked)} |{tier} {one.get('weight', 1):g} |"
    yield ""


def _judge(manifest: Json) -> Iterator[str]:
    said: Json = manifest.get("judge") or {}
    jury: Json = said.get("jury") or {}
    rows = jury or ({"judge": said} if said else {})
    if not rows:
        return
    yield "## Judge"
    yield ""
    yield "| | model | method | template, hash | fingerprint |"
    yield "|---|---|---|---|---|"
    for name, one in rows.items():
        template = f"{one.get('template') or '–'}, {one.get('template_hash') or '–'}"
        cells = (name, one.get("model"), one.get("method"), template, one.get("fingerprint"))
        yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""
    labels: Json = ((manifest.get("stages") or {}).get("label") or {}).get("preferences") or {}
    if labels:
        yield "Labels: " + ", ".join(f"{n:,} {status}" for status, n in labels.items()) + "."
    rule: Json = ((manifest.get("made") or {}).get("preferences") or {}).get("rule") or {}
    if rule:
        told = ", ".join(f"{key} {value}" for key, value in sorted(rule.items()))
        yield f"Verdicts became labels by: {printable(told)}."
    yield ""


def _audit(store: RunStore) -> Iterator[str]:
    yield "## Audit of the labels"
    yield ""
    audit = read_object(store.path("evaluation", "audit.json"), "`rlaif eval audit`")
    if audit:
        yield "```"
        yield table(audit)
        yield "```"
    else:
        yield "None was made of these labels: `rlaif eval audit` makes one."
    yield ""


def _training(stage: Json, base: str) -> Iterator[str]:
    facts = [
        ("begun from", f"`{printable(base)}`" if base else None),
        ("rows", count(stage["rows"]) if stage.get("rows") else None),
        ("steps", count(stage["steps"]) if stage.get("steps") else None),
        ("labels", stage.get("labels")),
        ("time", duration(stage["seconds"]) if stage.get("seconds") else None),
    ]
    known = [f"{name} {value}" for name, value in facts if value is not None]
    if known:
        yield f"Trained: {', '.join(known)}."
        yield ""


def _evaluation(store: RunStore, product: str) -> Iterator[str]:
    """Its win rate and what it does to the traits that were measured, falls too."""
    policies = read_object(store.path("evaluation", "policies.json"), "`rlaif eval winrate`")
    mine, base = policies.get(product) or {}, policies.get("base") or {}
    name = "winrate" if product == "dpo" else f"winrate-{product}"
    rate = read_object(store.path("evaluation", f"{name}.json"), "`rlaif eval winrate`")
    if not mine and not rate:
        return
    yield "## Evaluation"
    yield ""
    if rate.get("value") is not None:
        yield (
            f"Win rate against where it began: {percent(rate['value'])} "
            f"({percent(rate.get('low'))} – {percent(rate.get('high'))})."
        )
        yield ""
    traits = {t: v for t, v in (mine.get("traits") or {}).items() if t in base.get("traits", {})}
    if traits:
        yield "| trait | before | after |"
        yield "|---|---|---|"
        for trait, after in traits.items():
            yield f"| {_cell(trait)} | {_share(base['traits'][trait])} | {_share(after)} |"
        yield ""


def _share(found: Any) -> str:
    return percent(found.get("value") if isinstance(found, Mapping) else found)


def _limits() -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        "- A label says which response one judge prefers under these principles, not which is true "
        "or good. Where the audit knows the truth it says how often they part."
    )
    yield (
        "- What no principle asks for may fall while what they ask for rises: measure it before "
        "you use what was trained on this."
    )
    yield (
        "- Prompts and responses may be offensive or wrong: they are what was there to be judged, "
        "the rejected responses too."
    )
    yield "- Its licence is that of the prompts and of the models that wrote and judged it."
    yield ""


def _cite(manifest: Json, title: str) -> Iterator[str]:
    versions: Json = (manifest.get("run") or {}).get("versions") or {}
    version = versions.get("rlaif") or "unknown version"
    yield "## How to cite"
    yield ""
    yield "```bibtex"
    yield "@misc{rlaif_labels,"
    yield f"  title = {{{printable(title)}}},"
    note = f"Made with rlaif ({DISTRIBUTION} {version}), constitution hash"
    yield f"  note = {{{note} {_constitution(manifest).get('hash')}}},"
    yield "}"
    yield "```"
    yield ""
    told = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    if told:
        yield f"Versions: {told}."
