"""Supervised fine-tuning by TRL's trainer: the likelihood of given answers, and of nothing else.

The rows are encoded as everywhere else, so that text stays text and answers end as chat models end
theirs. A row that does not fit is left out and counted, never cut. All epochs are one sequence of
rows to TRL, so that resuming is skipping.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from trl import SFTConfig, SFTTrainer

from rlaif.engines.faster import apply
from rlaif.errors import TrainingError
from rlaif.records import Demonstration, Preference, content_id
from rlaif.training.before import keeps_the_model
from rlaif.training.by_trl import IN_ORDER, fit
from rlaif.training.data import Cut, Refused, Sampled, Samples, thinking_key
from rlaif.training.loop import argument_values, finish, prepare
from rlaif.training.models import Loaded, Start, add_lora, save_model
from rlaif.training.private import one_gpu
from rlaif.training.settings import Runtime, SFTSettings


@dataclass(frozen=True, slots=True)
class SFTResult:
    """Where the policy lies, and how training went. `metrics` is what metrics.json holds."""

    path: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


@keeps_the_model
def train_sft(
    demonstrations: Sequence[Demonstration],
    model: str | Start,
    out: str | Path,
    settings: SFTSettings = SFTSettings(),
    *,
    samples: Samples = Samples(),
    runtime: Runtime = Runtime(),
) -> SFTResult:
    """Trains a policy on answers and writes it to `out` as a complete model folder.

    The loss is the mean of −log π over the answers' tokens of a step. An answer of a policy that
    thinks is learnt with the thought that it was sampled with, one from elsewhere without.
    `samples`: how answers were sampled, where that is known. What a length limit cut off gets no
    end of turn; tokens are learnt as they were sampled, and text without any is tokenised.
    """
    folder, start = Path(out), Start.of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = one_gpu(SFTConfig(**argument_values(settings, runtime, folder), **_UNTOUCHED))
    ids = [d.id for d in demonstrations]
    key = content_id(
        "sft",
        start.fingerprint,
        ids,
        settings.key(),
        *samples.key(),
        *thinking_key(start.thinking),
    )
    done = prepare(folder, key, runtime.resume, (start.model, start.adapter))
    if done is not None:
        return SFTResult(folder, done["steps"], done["seconds"], done)

    loaded = start.load(**settings.precision)
    loaded.model.to(arguments.device)
    apply.train(loaded.model, arguments.device)
    rows, refused = encode(demonstrations, loaded, settings.max_length, samples.cut, samples.tokens)
    if settings.lora is not None:
        add_lora(loaded, settings.lora, "policy", settings.seed, merge=settings.merge)
    filler = {**rows[0], "labels": [-100] * len(rows[0]["labels"])}
    journal = fit(SFTTrainer, arguments, loaded, rows, settings, runtime, _STATISTICS, filler)
    made = None
    if arguments.process_index == 0:
        save_model(loaded, folder, lora=settings.lora is not None, merge=settings.merge)
        made = {
            **journal.summary(),
            "rows": len(rows),
            "refused": refused.as_dict(),
            "notes": loaded.notes,
            "settings": settings.key(),
        }
    metrics = finish(folder, made)
    return SFTResult(folder, metrics["steps"], metrics["seconds"], metrics)


_STATISTICS = {"mean_token_accuracy": "token_accuracy", "entropy": "entropy"}
# TRL is kept from doing anything to rows that are ready.
_UNTOUCHED: dict[str, Any] = {
    **IN_ORDER,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "packing": False,
}


def encode(
    demonstrations: Sequence[Demonstration],
    loaded: Loaded,
    max_length: int | None,
    cut: Cut = (),
    sampled: Sampled | None = None,
) -> tuple[list[dict[str, list[int]]], Refused]:
    """`input_ids` and `labels` of each answer, −100 where nothing is learnt; what was refused."""
    rows, refused, most = [], Refused(), loaded.limit(max_length)
    unended = frozenset(cut)
    for d in demonstrations:
        if not d.text.strip():
            refused.add("empty_response", d.id)
            continue
        ended = (d.prompt.id, d.text) not in unended
        known = (sampled or {}).get((d.prompt.id, d.text), ())
        before, answer = loaded.encoder.sequence(d.prompt, d.text, ended, known)
        if len(before) + len(answer) > most:
            refused.add("too_long", d.id)
            continue
        ids = np.concatenate([before, answer]).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * len(before) + answer.tolist()})
    if not rows:
        raise TrainingError(
            f"no answer to train on: {refused}. Sequences may have {most} tokens; raise max_length "
            "if the model's context allows"
        )
    return rows, refused


def best_answers(preferences: Sequence[Preference]) -> list[Demonstration]:
    """The completion of each prompt that its preferences rank best: FeedME's rows.

    Ranked by the mean of P(it is better) over its pairs; those on which the judge abstained do not
    count. A prompt without one preferred pair has no best. Of equals the first is taken.
    """
    prompts = {p.pair.prompt.id: p.pair.prompt for p in preferences if p.status == "preferred"}
    won: dict[str, dict[str, list[float]]] = {name: {} for name in prompts}
    for preference in preferences:
        pair, p = preference.pair, preference.p_first
        if pair.prompt.id in prompts and preference.status != "abstained":
            p = 0.5 if p is None else p
            won[pair.prompt.id].setdefault(pair.first, []).append(p)
            won[pair.prompt.id].setdefault(pair.second, []).append(1 - p)
    best = {
        name: max(texts, key=lambda text: math.fsum(texts[text]) / len(texts[text]))
        for name, texts in won.items()
    }
    return [Demonstration(prompts[name], text) for name, text in best.items()]
