"""What a report is made of, read from a run directory. A stage not run has simply no files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rlaif.errors import DataError
from rlaif.evaluation.labels import Cube, Floats
from rlaif.files.small import Shape, misfit, read_bytes, read_json, read_object, read_text, reason
from rlaif.files.yamlfile import parse_yaml
from rlaif.judges.base import grouped, verdict_key
from rlaif.judges.listwise import group_id, listed
from rlaif.records import ORDERS, Pair
from rlaif.store import RunStore, Superseded, lineage
from rlaif.store.people import of_pair
from rlaif.tiny.gold import gold, principle_trait
from rlaif.tiny.grammar import TRAITS

Json = dict[str, Any]
JOINT = " · "  # between a principle and a juror; neither has a space in it


EVALUATE = "`rlaif eval winrate`"
_POLICIES: dict[Any, Shape] = {str: {"traits": {str: object}, "and_legal": {str: {}}}}
_SAMPLES: list[Shape] = [{}]
WIN_RATE: dict[Any, Shape] = {"at_stake": {"trait": str}, "judge": {"models": [str]}}
LEADERBOARD: dict[Any, Shape] = {
    "standings": [{"policy": str, "rating": {}}],
    "comparisons": [{"a": str, "b": str, "by_principle": {str: object}}],
    "differences": [{"a": str, "b": str}],
}
WATCH: dict[Any, Shape] = {
    "constitution": {"name": str},
    "policies": {str: {"by_principle": {str: object}}},
}
MODEL_WRITTEN: dict[Any, Shape] = {
    "policies": {str: {str: {}}},
    "changes": {str: {str: {}}},
}
# Of a reward model and of a judge; PPO's is a number.
_METRICS: dict[str, Shape] = {"held_out": {}}


def read_training(path: Path) -> list[Json]:
    """The steps of a training log; a last line cut by a kill is left out."""
    if not os.path.lexists(path):
        return []
    rows = []
    lines = read_bytes(path, DataError).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not JSON ({reason(error)})") from error
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def number(value: Any) -> float | None:
    """A finite number, out of a plain one or of {"value": …}; None for everything else."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


class Run:
    """A run directory, read lazily: columns first, texts only of the pairs that are shown."""

    def __init__(self, path: Path, people: Mapping[str, float] | None = None) -> None:
        """`people`: P(first is better) by pair, to be known in the place of the pairs' labels."""
        self.path, self.people = path, people
        self.store = RunStore.open_readonly(path)
        self.manifest: Json = self.store.read_manifest()
        config = path / "run.yaml"
        self.config = read_text(config, DataError) if os.path.lexists(config) else ""
        self.label_audit: Json = self.evaluation("labels", "`rlaif label`")
        self.audit: Json = self.evaluation("audit", "`rlaif eval audit`")
        self.policies: Json = self.evaluation("policies", EVALUATE, _POLICIES)
        self.win_rate: Json = self.evaluation("winrate", EVALUATE, WIN_RATE)
        samples = path / "evaluation" / "samples.json"
        self.samples: list[Json] = [s for s in read_json(samples, EVALUATE, _SAMPLES) or [] if s]

    def evaluation(self, name: str, made_by: str, shape: Mapping[Any, Shape] | None = None) -> Json:
        """What a file of `evaluation/` says; empty where it was not written."""
        found: Json = read_object(self.path / "evaluation" / f"{name}.json", made_by, shape)
        return {key: value for key, value in found.items() if value is not None}

    def training(self, stage: str) -> tuple[list[Json], Json]:
        """(steps, final metrics) of a training stage; both empty when it was not run."""
        folder = self.path / "models" / stage
        shape = _METRICS if stage in ("judge", "reward") else None
        metrics = read_object(folder / "metrics.json", f"`rlaif train {stage}`", shape)
        return read_training(folder / "training.jsonl"), metrics

    @property
    def stages(self) -> dict[str, Json]:
        """What each stage that was run said about itself; `read` is that of pairs from a file."""
        read = {"read": self.manifest["read"]} if self.manifest.get("read") else {}
        stages = self.manifest.get("stages") or {}
        return {**read, **{name: said for name, said in stages.items() if said is not None}}

    @property
    def about(self) -> Json:
        """Versions, commit, seed, device, target trait."""
        return self.manifest.get("run") or self.manifest

    @property
    def target(self) -> tuple[str, int] | None:
        """The trait the constitution is about, and -1 where it asks for the opposite."""
        trait = self.about.get("target_trait")
        return (trait.removeprefix("-"), -1 if trait.startswith("-") else 1) if trait else None

    @property
    def options(self) -> Json:
        """The resolved config."""
        path = self.path / "run.yaml"
        found = parse_yaml(self.config, str(path)).data or {}
        wrong = misfit(found, {"policy": {"model": str}})
        if wrong:
            raise DataError(f"{path}: {wrong}. Remove it and run a stage with --config again")
        return dict(found)

    @cached_property
    def principles(self) -> tuple[str, ...]:
        """Ids in the constitution's order; without a manifest, those that were judged."""
        known = tuple(p["id"] for p in self._principles)
        if known:
            return known
        return tuple(pc.unique(self._verdicts["principle"]).to_pylist())

    @property
    def constitution(self) -> Json:
        """Its name, version, hash and principles, as they were when the labels were made."""
        return self.manifest.get("labelled") or self.manifest.get("constitution") or {}

    @cached_property
    def out_of_date(self) -> list[str]:
        """What stands on something that has changed since, and why."""
        stale = [one.text for one in lineage.stale(self.store, self.manifest)]
        files = lineage.changed_files(self.store, self.manifest)
        gone = [f"no longer there: {text}" for text in lineage.removed(self.store, self.manifest)]
        return stale + gone + [f"{name} has changed since the run took it" for name in files]

    @property
    def _principles(self) -> list[Json]:
        return self.constitution.get("principles") or []

    @cached_property
    def _pairs(self) -> pa.Table:
        return self.store.table("pairs").to_arrow(["id", "label", "prompt_source"])

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of each pair, by its id."""
        batches = self.store.table("pairs").iter_batches()
        return [pair.prompt.id for batch in batches for pair in batch]

    @cached_property
    def _verdicts(self) -> pa.Table:
        columns = ["key", "pair_id", "principle", "order", "p_first", "mass", "reason"]
        return self.store.table("verdicts").to_arrow(columns)

    @cached_property
    def labelled(self) -> Floats:
        """P(first) that the pairs came with, such as people's; NaN where there is none."""
        if self.people is not None:
            ids = self._pairs["id"].to_pylist()
            said = (of_pair(self.people, i) for i in ids)
            return np.array([math.nan if p is None else p for p in said], dtype=np.float64)
        return _floats(self._pairs["label"])

    @cached_property
    def known(self) -> Floats:
        """P(first) as known beforehand: by the pairs' own labels, else by the world's truth."""
        if np.isfinite(self.labelled).any() or self.target is None:
            return self.labelled
        return self._truth(*self.target)

    @property
    def known_from(self) -> str | None:
        """Where `known` is from: `people`, `pairs`, whose own labels it is, or `gold`."""
        if self.people is not None:
            return "people"
        if np.isfinite(self.labelled).any():
            return "pairs"
        return None if self.target is None else "gold"

    def known_of(self, principle: str) -> Floats:
        """As `known`, but by the world's truth of this principle where it has one of its own."""
        if np.isfinite(self.labelled).any():
            return self.labelled
        name = principle.partition(JOINT)[0]
        tags = next((p.get("tags") or () for p in self._principles if p["id"] == name), ())
        try:
            found = principle_trait(tags)
        except ValueError:  # a tag of a world that this version does not know
            found = None
        return self._truth(*found) if found else self.known

    def _truth(self, trait: str, sign: int) -> Floats:
        gaps = self._gaps(trait)
        return np.where(np.isfinite(gaps) & (gaps != 0), (gaps * sign > 0).astype(float), np.nan)

    @cached_property
    def tied(self) -> NDArray[np.bool_]:
        """Pairs of which `known` has no side because neither is better: a person's label of ½, or
        the world's truth (no gap, the trait not at stake, an illegal response)."""
        if self.known_from != "gold" or self.target is None:
            return np.asarray(self.known == 0.5, dtype=bool)
        return np.asarray(self._gaps(self.target[0]) == 0, dtype=bool)

    def _gaps(self, trait: str) -> Floats:
        return self._gold_gaps.get(trait, np.full(len(self._pairs), np.nan))

    @cached_property
    def _gold_gaps(self) -> dict[str, Floats]:
        """By trait: the gold value of each pair's first completion less that of its second.

        0 where a trait is not at stake or a completion is illegal, NaN where the prompt is from
        outside.
        """
        gaps = {trait: np.full(len(self._pairs), np.nan) for trait in TRAITS}
        sources = pc.starts_with(self._pairs["prompt_source"], "tiny:").fill_null(False)
        if not pc.any(sources).as_py():
            return gaps
        for i, pair in self.read_pairs(np.flatnonzero(sources.to_numpy()).tolist()).items():
            prompt = pair.prompt.messages[-1].content
            try:
                first, second = gold(prompt, pair.first).traits, gold(prompt, pair.second).traits
            except KeyError:
                continue
            for trait in TRAITS:
                a, b = first[trait], second[trait]
                gaps[trait][i] = 0.0 if a is None or b is None else a - b
        return gaps

    @cached_property
    def preference(self) -> Floats:
        """Aggregated P(first), one a pair; NaN where there is none."""
        return _floats(self._preferences["p_first"])

    @cached_property
    def raw(self) -> Floats:
        """As `preference`, before the temperature that the labels are at, if they are at one."""
        before = _floats(self._preferences["p_raw"])
        return np.where(np.isfinite(before), before, self.judged)

    @cached_property
    def judged(self) -> Floats:
        """As `preference`, by the verdicts alone where people had a word in the label."""
        alone = pc.is_valid(self._preferences["status_judged"]).to_numpy()
        return np.where(alone, _floats(self._preferences["p_judged"]), self.preference)

    @cached_property
    def judged_statuses(self) -> list[str | None]:
        """As `statuses`, by the verdicts alone."""
        alone: list[str | None] = self._preferences["status_judged"].to_pylist()
        return [one or label for one, label in zip(alone, self.statuses, strict=True)]

    @property
    def temperature(self) -> float | None:
        """The temperature that the labels are at; None for none."""
        found = number((self.stages.get("label") or {}).get("temperature"))
        at_one = self._preferences["p_raw"].null_count < len(self._preferences)
        return found if at_one else None  # labels of `contrast` took the place of such

    @cached_property
    def preferred(self) -> Floats:
        """As `preference`, but NaN for ties: what training is given."""
        chosen = pc.equal(self._preferences["status"], "preferred").fill_null(False).to_numpy()
        return np.where(chosen, self.preference, np.nan)

    @cached_property
    def statuses(self) -> list[str | None]:
        """preferred, tie or abstained, one a pair; None where it was not labelled."""
        found: list[str | None] = self._preferences["status"].to_pylist()
        return found

    @cached_property
    def _preferences(self) -> pa.Table:
        """One row a pair, null where it has no preference."""
        columns = ["pair_id", "status", "p_first", "p_raw", "status_judged", "p_judged"]
        found = self.store.table("preferences").to_arrow(columns)
        ids = found["pair_id"].combine_chunks()
        return found.take(pc.index_in(self._pairs["id"], value_set=ids))

    @cached_property
    def cube(self) -> Cube:
        """The verdicts of this run's pairs, principles and judge, or jurors, as arrays."""
        table = self._verdicts
        axes = [
            pc.index_in(table[column], value_set=pa.array(values, pa.string()))
            for column, values in (
                ("pair_id", self._pairs["id"].to_pylist()),
                ("principle", self.principles),
                ("order", ORDERS),
            )
        ]
        codes = np.stack([a.fill_null(-1).to_numpy() for a in axes])
        rows = np.flatnonzero((codes >= 0).all(axis=0))
        names = self.principles
        if self.jury:
            names = tuple(f"{p}{JOINT}{juror}" for p in self.principles for juror in self.jury)
            juror = self._jurors_of(table.take(rows))
            codes[1, rows] = codes[1, rows] * len(self.jury) + juror
            rows = rows[juror >= 0]
        shape = (len(self._pairs), len(names), len(ORDERS))
        flat = np.ravel_multi_index(tuple(codes[:, rows]), shape)
        if np.unique(flat).size < flat.size:
            judge = self.manifest.get("judge") or {}
            order = np.argsort(self._given_by(judge, table.take(rows)), kind="stable")
            rows, flat = rows[order], flat[order]  # where two rows meet, the last one stays
        p, mass = np.full(shape, np.nan), np.full(shape, np.nan)
        p.flat[flat] = _floats(table["p_first"])[rows]
        mass.flat[flat] = _floats(table["mass"])[rows]
        reason = np.full(shape, "", dtype=object)
        reason.flat[flat] = table["reason"].fill_null("judged").to_numpy()[rows]
        return Cube(names, p, mass, reason, self.rule.get("orders", "mean"))

    @property
    def rule(self) -> Json:
        """What the config said of how labels are made of verdicts, when these were made."""
        made = (self.manifest.get("made") or {}).get(lineage.LABELS) or {}
        return made.get("rule") or {}

    @property
    def jury(self) -> Json:
        """What the manifest says of each juror; empty where one judge labelled."""
        return (self.manifest.get("judge") or {}).get("jury") or {}

    def _jurors_of(self, verdicts: pa.Table) -> NDArray[np.int64]:
        """The number of the juror that gave each row, -1 for those of none."""
        found = np.full(len(verdicts), -1, dtype=np.int64)
        for i, judge in enumerate(self.jury.values()):
            found[self._given_by(judge, verdicts)] = i
        return found

    def _given_by(self, judge: Json, verdicts: pa.Table) -> NDArray[np.bool_]:
        """Which rows a judge of the manifest would give under its principles.

        A run keeps the verdicts of a principle's former wording and of a former judge.
        """
        fingerprint, lists = str(judge.get("fingerprint")), judge.get("method") == "listwise"
        wording = {p["id"]: str(p.get("compare")) for p in self._principles}
        columns = (verdicts[n].to_pylist() for n in ("key", "pair_id", "principle", "order"))
        return np.array(
            [
                key
                == verdict_key(
                    fingerprint,
                    pair,
                    order,
                    principle,
                    wording.get(principle, "None"),
                    *([self._groups.get(pair, "")] if lists else []),
                )
                for key, pair, principle, order in zip(*columns, strict=True)
            ],
            dtype=bool,
        )

    @cached_property
    def _groups(self) -> dict[str, str]:
        """By pair, the id of all completions of its prompt: a part of the keys of `listwise`."""
        pairs = chain.from_iterable(self.store.table("pairs").iter_batches())
        return {pair.id: group_id(listed(group)) for pair, group in grouped(pairs)}

    def read_pairs(self, rows: Sequence[int]) -> dict[int, Pair]:
        """The pairs of these row numbers, their texts included; the others pass by in batches."""
        wanted = set(rows)
        everything = enumerate(chain.from_iterable(self.store.table("pairs").iter_batches()))
        found = {i: pair for i, pair in everything if i in wanted}
        ids = self._pairs["id"]
        if any(i >= len(ids) or ids[i].as_py() != pair.id for i, pair in found.items()):
            raise Superseded(f"the pairs of {self.path} were replaced while they were read")
        return found


def _floats(column: pa.ChunkedArray) -> Floats:
    """A column as floats, null as NaN."""
    values: Floats = column.cast(pa.float64()).to_numpy()
    return values
