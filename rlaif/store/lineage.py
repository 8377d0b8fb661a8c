"""What each thing in a run was made from, and so what stands on something that has changed since.

A stage records, beside its rows, the content of all that it read: hashes of the pairs, the labels
and the models, and what the config said of principles, rules and judge. What is recorded is
compared with what is there now; times of change are never looked at.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.errors import DataError
from rlaif.files.small import is_file, read_bytes, read_object
from rlaif.records import content_id
from rlaif.store import RunStore
from rlaif.store.people import People
from rlaif.store.places import unread

Facts = Mapping[str, Any]  # an id, or what the config says, by the name of an input

PAIRS, LABELS, EVALUATION, AUDIT = "pairs", "preferences", "evaluation", "audit"
ATTACKS, BEST_OF_N, MODEL_WRITTEN = "attacks", "best-of-n", "model-written"
# What the audit fitted, and what it fitted it on: labels before any temperature.
TEMPERATURE, RAW = "temperature", "labels before a temperature"
PEOPLE = "decisions"  # what people decided about pairs
ASKED = {
    "principles": "the principles",
    "rule": "the rule that makes labels of verdicts",
    "judge": "the judge",
    "people": "what people's decisions do to labels",
    "learner": "the model that was taught to judge",
    "prompts": "the prompts",
    "policy": "the policy",
    "sampling": "the sampling settings",
    "source": "the pairs' source",
    "demonstrations": "the demonstrations",
    "evaluate": "what is evaluated",
    "model_written": "the model-written evaluations that are asked",
}
_TITLES = {
    PAIRS: "the pairs",
    LABELS: "the labels",
    AUDIT: "the audit",
    ATTACKS: "the attacks",
    EVALUATION: "the evaluation (win rates, KL, samples)",
    BEST_OF_N: "best-of-n",
    MODEL_WRITTEN: "the model-written evaluations",
    TEMPERATURE: "the audit's temperature",
    RAW: "the labels before the temperature",
    PEOPLE: "what people decided",
}
_MANY = (PAIRS, LABELS, RAW)
_FILES = {
    AUDIT: "audit.json",
    ATTACKS: "attacks.json",
    EVALUATION: "policies.json",
    BEST_OF_N: "best-of-n.json",
    MODEL_WRITTEN: "model-written.json",
    TEMPERATURE: "temperature.json",
}


def model(name: str) -> str:
    """The product that a training stage makes."""
    return f"models/{name}"


def title(product: str) -> str:
    """What people call a product."""
    return _TITLES.get(product, product)


@dataclass(frozen=True, slots=True)
class Stale:
    """A product that stands on something that has changed since, and what that is."""

    product: str
    reasons: tuple[str, ...]
    after: tuple[str, ...] = ()  # those of its inputs that are out of date too

    @property
    def text(self) -> str:
        return f"{title(self.product)}: {'; '.join(self.reasons)}"


# ------------------------------------------------------------------------------ what is there now


def contents(store: RunStore) -> dict[str, str]:
    """A hash of each product that others are made from, as it lies in the run now."""
    found = {}
    if len(store.table("pairs")):
        found[PAIRS] = _hash(
            sorted(key for keys in store.table("pairs").key_batches() for key in keys)
        )
    if len(store.table("preferences")):
        rows = store.table("preferences").to_arrow(["pair_id", "status", "p_first"])
        columns = (rows[name].to_pylist() for name in rows.schema.names)
        found[LABELS] = _hash(map(repr, zip(*columns, strict=True)))
    decided = People(store.root).labels()
    if decided:
        found[PEOPLE] = _hash(map(repr, sorted(decided.items())))
    temperature = store.path("evaluation", _FILES[TEMPERATURE])
    if is_file(temperature):
        said = read_object(temperature, "`rlaif eval audit`")
        found[TEMPERATURE] = content_id("temperature", said.get("value"))
        found[RAW] = _raw(store)
    for key in filter(is_file, sorted(store.path("models").glob("*/run.key"))):
        said = read_bytes(key, DataError).decode(errors="replace")
        found[model(key.parent.name)] = said.strip()
    return found


def _raw(store: RunStore) -> str:
    """Of the labels as they were, or are, without a temperature and without people's word."""
    asked = ["pair_id", "status", "p_first", "p_raw", "status_judged", "p_judged"]
    rows = store.table("preferences").to_arrow(asked)
    columns = (rows[name].to_pylist() for name in asked)
    return _hash(
        repr((pair, alone or status, raw if raw is not None else q if alone else p))
        for pair, status, p, raw, alone, q in zip(*columns, strict=True)
    )


def _hash(lines: Iterable[str]) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()[:20]


def present(store: RunStore, product: str) -> bool:
    """Whether a product lies in the run; one of tables and models has contents, or has not."""
    name = product.partition(" ")[0]
    if name in _FILES:
        return store.path("evaluation", _FILES[name]).is_file()
    return product in (PAIRS, LABELS) or store.path(product, "run.key").is_file()


def state(store: RunStore, manifest: Mapping[str, Any]) -> str:
    """A hash of all that a report shows."""
    return content_id(contents(store), manifest.get("made"), manifest.get("asked"))


# ------------------------------------------------------------------------------- what was recorded


def made(store: RunStore, products: Mapping[str, Iterable[str]]) -> dict[str, Facts]:
    """The manifest's record with these products in it: what each of their inputs is now."""
    manifest = store.read_manifest()
    now = {**(manifest.get("asked") or {}), **contents(store)}
    new = {product: {name: now.get(name) for name in of} for product, of in products.items()}
    return {**(manifest.get("made") or {}), **new}


def stale(store: RunStore, manifest: Mapping[str, Any] | None = None) -> list[Stale]:
    """What stands on something that has changed, in the order in which it would be made again."""
    manifest = store.read_manifest() if manifest is None else manifest
    record: Mapping[str, Facts] = manifest.get("made") or {}
    if not record:
        return []
    now = {**(manifest.get("asked") or {}), **contents(store)}
    found: dict[str, Stale] = {}
    for product in sorted(record, key=rank):
        if not present(store, product) or (product in (PAIRS, LABELS) and product not in now):
            continue
        reasons = list(_reasons(record[product], now, found))
        if reasons:
            after = tuple(name for name in record[product] if name in found)
            found[product] = Stale(product, tuple(dict.fromkeys(reasons)), after)
    return list(found.values())


def _reasons(of: Facts, now: Facts, found: Mapping[str, Stale]) -> Iterator[str]:
    for name, then in of.items():
        if name in found:
            yield f"made from {title(name)}, out of date too"
        elif name in ASKED:
            if name in now and differ(then, now[name]):
                yield from _told(name, then, now[name])
        elif name not in now and then is None:
            continue  # nobody had decided a pair, and nobody has since
        elif name not in now:
            yield f"{title(name)} {'are' if name in _MANY else 'is'} no longer there"
        elif now[name] != then:
            yield f"{title(name)} {'have' if name in _MANY else 'has'} changed since"


def differences(one: Facts, other: Facts) -> list[str]:
    """What the config said otherwise when the other run's product was made, option by option."""
    common = [name for name in one if name in other and name in ASKED]
    changed = [name for name in common if differ(one[name], other[name])]
    return [line for name in changed for line in _told(name, one[name], other[name])]


def differ(then: Any, now: Any) -> bool:
    """Whether the config says something else. A setting that did not exist yet when a product was
    made, and is null or off now, says nothing else."""
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        return bool(then != now)
    new = (value for key, value in now.items() if key not in then)
    return any(now.get(key) != value for key, value in then.items()) or any(new)


def _told(name: str, then: Any, now: Any) -> Iterator[str]:
    """What the config says otherwise than before, option by option."""
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        yield f"{ASKED[name]} changed"
        return
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if name == "principles":
        for key in changed:
            how = (
                "is new" if key not in then else "is left out" if key not in now else "was reworded"
            )
            yield f"principle {key} {how}"
        if not changed:
            yield "the principles stand in another order"
        return
    shown = ", ".join(
        f"{key} {_value(then.get(key))} → {_value(now.get(key))}" for key in changed[:4]
    )
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    yield f"{ASKED[name]} changed ({shown}{more})"


def _value(found: Any) -> str:
    text = "none" if found is None else str(found)
    return text if len(text) <= 60 else text[:57] + "…"


def rank(product: str) -> tuple[int, str]:
    """Where in the flow of data a product stands: pairs, labels, models, what is measured."""
    first = [PAIRS, TEMPERATURE, LABELS, AUDIT, "models/reward", "models/sft"]
    if product in first:
        return first.index(product), product
    return len(first) + (not product.startswith("models/")), product


def changed_files(store: RunStore, manifest: Mapping[str, Any]) -> list[str]:
    """Files of the config that have changed since a command took them into the run."""
    return unread(manifest.get("inputs") or {}, store.root)


def remedy(product: str, found: Iterable[Stale], store: RunStore) -> str:
    """The command to begin with, so that a product is made again of what is up to date."""
    by = {one.product: one for one in found}
    while product in by and by[product].after:
        product = by[product].after[0]
    return command(product, store)


def removed(store: RunStore, manifest: Mapping[str, Any]) -> list[str]:
    """What was made once and is no longer there; each with why, and what makes it again."""
    of = {AUDIT: ", which was of other labels"}
    # The audit makes the temperature, so it is told once.
    made = [one for one in manifest.get("made") or {} if one != TEMPERATURE]
    gone = [one for one in made if not present(store, one)]
    return [
        f"{title(one)}{of.get(one, '')}; to make it again: {command(one, store)}"
        for one in sorted(gone, key=rank)
    ]


def command(product: str, store: RunStore) -> str:
    """What makes a product again. Pairs that were read from a file are read by `label`."""
    name, manifest = product.removeprefix("models/"), store.read_manifest()
    pairs = "label" if "source" in (manifest.get("asked") or {}) else "sample"
    labels = (manifest.get("made") or {}).get(LABELS)
    if labels is not None and "judge" not in labels:  # no judge was asked: pairs of `contrast`
        pairs = "contrast"
    verb = {
        PAIRS: pairs,
        LABELS: "label",
        AUDIT: "eval audit",
        TEMPERATURE: "eval audit",
        EVALUATION: "eval winrate",
        BEST_OF_N: "eval best-of-n",
        MODEL_WRITTEN: "eval model-written",
    }.get(product, "eval attacks" if product.startswith(ATTACKS) else f"train {name}")
    return f"rlaif {verb} --out {shlex.quote(str(store.root))}"
