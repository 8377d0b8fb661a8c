"""What a stage leaves behind beside its rows: the manifest, run.yaml, rejected rows."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rlaif.config import to_yaml
from rlaif.engines.base import Usage
from rlaif.errors import DISTRIBUTION, DataError
from rlaif.files.readers import BadRow
from rlaif.files.small import write_text
from rlaif.report.card import model_card
from rlaif.stages.inputs import tiny_target
from rlaif.stages.origins import about_constitution, asked, record_inputs
from rlaif.stages.run import Run
from rlaif.store import RunStore
from rlaif.store.places import keep


@dataclass
class Rejected:
    """Input rows that could not be used: told, counted, and kept in rejected-STAGE.jsonl."""

    stage: str
    rows: list[BadRow] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        self.rows.append(row)

    def counts(self) -> dict[str, int]:
        return dict(Counter(row.reason for row in self.rows))

    @property
    def reasons(self) -> str:
        """How many rows were left out for which reason."""
        counts = {why: n for why, n in sorted(self.counts().items()) if why != "contradicts"}
        return ", ".join(f"{n:,} {why}" for why, n in counts.items())

    def none_left(self, source: str, what: str) -> DataError:
        """The error for a source of which nothing is left to work with."""
        why = f": {self.reasons}" if self.reasons else ""
        return DataError(f"{source}: no usable {what} in it{why}")

    def _tell(self, run: Run, most: int = 12) -> None:
        opposed = [row for row in self.rows if row.reason == "contradicts"]
        left = [row for row in self.rows if row.reason != "contradicts"]
        self._tell_some(
            run,
            opposed,
            most,
            "rows say the opposite of an earlier row of the same two responses; such a pair is "
            "kept once, with the mean of what its rows say",
        )
        self._tell_some(run, left, most, f"rows not used: {self.reasons}")

    def _tell_some(self, run: Run, rows: list[BadRow], most: int, what: str) -> None:
        if not rows:
            return
        opposed = rows[0].reason == "contradicts"
        shown = [f"  {r.source}: {r.detail if opposed else r.reason}" for r in rows[:most]]
        if len(rows) > most:
            file = f"rejected-{self.stage}.jsonl"
            shown.append(f"  … and {len(rows) - most:,} more in {file}")
        run.reporter.warn(f"{len(rows):,} {what}\n" + "\n".join(shown))

    def write(self, run: Run) -> None:
        """Tells of them, and keeps one JSON line a row in the run directory, or no file."""
        if not run.main:
            return
        self._tell(run)
        path = run.store.path(f"rejected-{self.stage}.jsonl")
        if self.rows:
            lines = (json.dumps(asdict(row), ensure_ascii=False) for row in self.rows)
            write_text(path, "\n".join(lines) + "\n")
        else:
            path.unlink(missing_ok=True)


def finish(run: Run, stage: str, started: float, facts: Mapping[str, Any]) -> None:
    """Writes the stage's section of the manifest: the last thing a stage does.

    Seconds of a stage that only found its work done already are those of the run that did it.
    """
    if not run.main:
        return
    seconds = round(time.monotonic() - started, 2)
    stages = dict(run.store.read_manifest().get("stages", {}))
    old = stages.get(stage, {})
    if facts.get("new_rows") == 0 and old:
        seconds = old.get("seconds", seconds)
        spent = {k: old[k] for k in Usage.__slots__ if k in old}
        if spent:
            spent["spent_on"] = old.get("spent_on") or old.get("new_rows")  # rows
        facts = {**facts, **spent}
    stages[stage] = {"seconds": seconds, **facts}
    run.store.update_manifest("stages", stages)
    record_inputs(run, stage)
    if stage == "evaluate":  # what was measured stands on the cards of all that was trained
        for config in run.store.path("models").glob("*/config.json"):
            _write_card(run.store, config.parent.name)
    else:
        _write_card(run.store, stage)


def _write_card(store: RunStore, product: str) -> None:
    """The README.md of a model that a stage of this name trained, if it did."""
    folder = store.path("models", product)
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        write_text(folder / "README.md", model_card(store, product))


class Steps:
    """What a stage does with each line of a training: it counts them, shows how far it is, and
    tells of its alarms, each once."""

    def __init__(self, run: Run, name: str, progress: Callable[..., Any]) -> None:
        self._run, self._name, self._progress = run, name, progress
        self.now = 0  # steps that this process has made
        self._told: set[str] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.now += 1
        for name in row["alarms"].keys() - self._told:
            self._run.reporter.warn(f"{self._name} step {row['step']}: {row['alarms'][name]}")
        self._told.update(row["alarms"])
        self._progress(row["step"], row["total_steps"])


def told_kl(name: str, metrics: Mapping[str, Any], unit: str) -> str:
    """The KL of a method's last steps in words, with its estimator: k1, the mean log-ratio, may
    fall below 0 by chance; k3 never does (Schulman 2020). GRPO's is k3, RLOO's and ours k1."""
    k1, k3 = metrics["kl"], metrics.get("kl_k3")
    if k3 is not None:
        value, what = k3, f"k3; k1: {k1:z.2f}"
    else:
        value, what = k1, "k3" if name == "grpo" else "k1: by chance it may fall below 0"
    return f"the KL to the reference is {value:z.2f} nats {unit} ({what})"


def describe(run: Run) -> None:
    """run.yaml and the manifest's head: what is run, with which versions, from which commit."""
    store = run.store
    kept = keep(run.config, store.root, store.read_manifest().get("inputs") or {})
    # The record goes first: without it nobody knows what the `./` of a run.yaml are seen from.
    store.update_manifest("inputs", kept.record(store.root))
    store.update_manifest("asked", asked(run, kept))
    write_text(store.path("run.yaml"), to_yaml(kept.data))
    for name in kept.changed:
        run.reporter.warn(f"{name} has changed since this run took it, and is taken as it is now")
    for name in kept.too_large:
        run.reporter.warn(
            f"{name} is too large to keep a copy in {store.root}: a copied run needs it"
        )
    store.update_manifest("constitution", about_constitution(run))
    target = tiny_target(run)
    store.update_manifest(
        "run",
        {
            "versions": versions(),
            "git_commit": git_commit(),
            "seed": run.config.sampling.seed,
            "target_trait": None if target is None else ("-" if target[1] < 0 else "") + target[0],
            "date": str(run.config.date),
            "machine": platform.machine(),
            "device": run.config.policy.device,
        },
    )


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for name in ("rlaif", "torch", "transformers", "trl", "datasets"):
        try:
            found[name] = version(DISTRIBUTION if name == "rlaif" else name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the folder the command runs in, with `+` when it has changes.

    Nothing that the repository asks for is run: no hook, monitor, filter, pager or transport, nor
    those of repositories inside it. It may be somebody else's.
    """
    try:
        commit = _git("describe", "--always", "--abbrev=12").strip()
        names = _git("config", "-z", "--name-only", "--get-regexp", "^filter[.]", ok=(0, 1))
        filters = {name.rpartition(".")[0] for name in names.split("\0") if name}
        off = {f"{f}.{key}": "" for f in filters for key in ("clean", "smudge", "process")}
        off |= {f"{f}.required": "false" for f in filters}
        asked = ("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", "--name-only")
        changes = _git(*asked, "HEAD", "--", ":/", settings=off)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return (commit + ("+" if changes else "")) or None


def _git(
    *arguments: str, ok: tuple[int, ...] = (0,), settings: Mapping[str, str] | None = None
) -> str:
    """What git says, with these settings in the place of the repository's."""
    given = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    found = {"core.fsmonitor": "false", "core.hooksPath": os.devnull, **(settings or {})}
    environment = {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_PAGER": "cat",
        "GIT_CONFIG_COUNT": str(given + len(found)),
    }
    for i, (key, value) in enumerate(found.items(), given):
        environment |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    done = subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=5,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode not in ok:
        raise subprocess.CalledProcessError(done.returncode, "git")
    return done.stdout
