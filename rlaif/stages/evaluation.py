"""policies → win rate, KL and gold traits on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.engines.base import Engine, Sampling
from rlaif.engines.settings import ModelSettings
from rlaif.errors import ConfigError
from rlaif.records import Completion, Prompt
from rlaif.stages.inputs import held_out, held_out_section, is_tiny, sampling_of, tiny_target
from rlaif.stages.origins import tell_stale
from rlaif.stages.policies import policies_of
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.winrates import compare_policies, remove_others, watch_policies
from rlaif.steps.executors import run_sampling
from rlaif.steps.sampling import completion_keys
from rlaif.store import RunStore, lineage, write_json
from rlaif.store.places import ANSWERS, BASE, POLICIES

Samples = dict[str, list[Completion]]  # one a prompt, in the prompts' order, by policy


def evaluate(run: Run) -> None:
    """policies → win rate, KL and gold traits on held-out prompts.

    Samples, pairs and verdicts of the evaluation lie in `evaluation/`, a store like the run's own,
    so that it resumes and can be opened like it.
    """
    clock = time.monotonic()
    models = policies_of(run.config)
    tell_stale(run, *(lineage.model(name) for name in models if name in POLICIES))
    config, rejected = run.config.evaluate, Rejected("evaluate")
    prompts = held_out(run, rejected.add, map(Path, models.values()))
    rejected.write(run)
    if not prompts:
        raise rejected.none_left(held_out_section(run.config).path, "prompt")
    with RunStore(run.store.path("evaluation"), command="evaluate") as store:
        made = _Answers(run, store, prompts)
        for name, section in _sections(run, models).items():
            made.add(name, section)
        store.table("prompts").replace(prompts)
        keys = {name: [c.key for c in rows] for name, rows in made.samples.items()}
        write_json(store.path(ANSWERS), keys)
        store.table("pairs").replace([])  # those of this evaluation, whatever stood here
        files: set[str] = set()
        if config.watch is not None:
            files |= watch_policies(run, store, prompts, made.samples)
        if config.winrate:
            files |= compare_policies(run, store, prompts, made.samples)
        remove_others(run, files)
    _write(run, prompts, made)
    finish(
        run,
        "evaluate",
        clock,
        {
            "rows": len(prompts),
            "new_rows": made.new_rows,
            "rejected_rows": rejected.counts(),
            "policies": made.fingerprints,
        },
    )


def _write(run: Run, prompts: Sequence[Prompt], made: _Answers) -> None:
    """evaluation/policies.json, what each policy is by itself, and samples.json."""
    found = {name: _gold(run, prompts, rows) for name, rows in made.samples.items()}
    _add_words(found, prompts, made.samples)
    for name, kl in made.kl.items():
        found[name]["kl"] = kl
    write_json(run.store.path("evaluation", "policies.json"), found)
    shown = [
        {"prompt": prompt.messages[-1].content}
        | {name: rows[i].text for name, rows in made.samples.items()}
        for i, prompt in enumerate(prompts)
    ]
    write_json(run.store.path("evaluation", "samples.json"), shown[:50])


def _sections(run: Run, models: Mapping[str, str]) -> dict[str, ModelSettings]:
    """The settings of each policy, the base's first. What training began from is in its weights."""
    base: ModelSettings = run.config.policy
    whole = {name: {"model": model, "adapter": None} for name, model in models.items()}
    return {BASE: base, **{name: base.model_copy(update=said) for name, said in whole.items()}}


class _Answers:
    """What each policy answers, and the KL of those that the run has trained. Beside the base one
    model is in memory at a time."""

    def __init__(self, run: Run, store: RunStore, prompts: Sequence[Prompt]) -> None:
        self._run, self._store, self._prompts = run, store, prompts
        self._base = run.engine(run.config.policy)
        self.samples: Samples = {}
        self.kl: dict[str, Any] = {}
        self.fingerprints: dict[str, str] = {}
        self.new_rows = 0

    def add(self, name: str, section: ModelSettings) -> None:
        """Has a policy answer, and lets go of it."""
        engine, sampling = self._run.engine(section), _sampling(self._run)
        same = [n for n, its in self.fingerprints.items() if its == engine.fingerprint]
        if same:
            self._run.reporter.warn(
                f"{name} and {same[0]} are the same model: all they say is equal"
            )
        self.fingerprints[name] = engine.fingerprint
        self.samples[name] = self._sampled(name, engine, sampling, "evaluate")
        if name in POLICIES:
            drawn = self.samples[name]
            if sampling.temperature != 1 or sampling.top_p != 1:  # not all of its distribution
                whole = sampling.but(temperature=1.0, top_p=1.0)
                drawn = self._sampled(name, engine, whole, "samples for the KL:")
            thinking = self._run.config.policy.thought_tokens
            self.kl[name] = _kl(engine, self._base, self._prompts, drawn, thinking)
        if name != BASE:
            self._run.release(section, keep=[self._run.config.policy])

    def _sampled(
        self, name: str, engine: Engine, sampling: Sampling, title: str
    ) -> list[Completion]:
        """One completion of each prompt, in the prompts' order."""
        table, prompts = self._store.table("completions"), self._prompts
        with self._run.reporter.progress(f"{title} {name}", len(prompts)) as progress:
            self.new_rows += run_sampling(
                prompts,
                engine,
                sampling,
                table,
                policy=name,
                chunk=self._run.config.chunk,
                total=len(prompts),
                on_progress=progress,
            ).new_rows
        made = {c.key: c for c in table.read()}
        return [made[completion_keys(engine, sampling, p)[0]] for p in prompts]


def _sampling(run: Run) -> Sampling:
    return sampling_of(run.config).but(
        n=1,
        temperature=run.config.evaluate.temperature,
        seed=run.config.evaluate.seed,
    )


def _gold(run: Run, prompts: Sequence[Prompt], rows: Sequence[Completion]) -> dict[str, Any]:
    """True traits in the embedded world; elsewhere nobody knows them."""
    if not is_tiny(held_out_section(run.config)):
        return {}
    from rlaif.evaluation.policy import gold_traits

    return gold_traits(prompts, [c.text for c in rows], tiny_target(run))


def _add_words(
    found: Mapping[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    samples: Mapping[str, Sequence[Completion]],
) -> None:
    """How long each policy's answers are, and how much longer than the base's."""
    from rlaif.evaluation.moved import words, words_change

    names = [prompt.id for prompt in prompts]
    texts = {name: [c.text for c in rows] for name, rows in samples.items()}
    for name, said in texts.items():
        found[name]["words"] = words(said, names).as_dict()
        if name != "base":
            found[name]["words_change"] = words_change(said, texts["base"], names).as_dict()


def _kl(
    policy: Engine,
    base: Engine,
    prompts: Sequence[Prompt],
    rows: Sequence[Completion],
    thinking: int | None,
) -> dict[str, Any]:
    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.policy import kl_to_base

    if not (isinstance(policy, HFEngine) and isinstance(base, HFEngine)):
        raise ConfigError("KL to the base needs both policies on the `hf` engine")
    cut = {(c.prompt_id, c.text) for c in rows if c.finish_reason == "length"}
    texts, ids = [c.text for c in rows], [c.ids for c in rows]
    return kl_to_base(policy, base, prompts, texts, ids=ids, cut=cut, thinking=thinking).as_dict()
