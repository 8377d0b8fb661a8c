"""Direct preference optimisation on soft labels (Rafailov et al. 2023).

No second model is kept: the reference's log-probabilities of every chosen and rejected completion
are computed once before the first step (with LoRA: with the adapter off), and saved with the run.
They are computed as the loss computes the policy's, in its precision and in the micro-batches of
the first epoch, so that every reward is exactly 0 until something is learnt: in bfloat16, another
way through the same model is tenths of a nat away on a long completion.
TRL's trainer takes hard labels only and folds its losses into one 330-line method, so this is a
loss and a collator for our loop instead; the losses that only TRL has go by its trainer
(`dpo_trl.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlaif.records import Preference
from rlaif.training.before import keeps_the_model
from rlaif.training.data import (
    Plan,
    Row,
    Samples,
    encode_rows,
    preferred,
    row_key,
    thinking_key,
)
from rlaif.training.models import Start, add_lora, save_model
from rlaif.training.settings import TRL_LOSSES, DPOLoss, DPOSettings, Runtime

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from rlaif.training.loop import PairLoss
    from rlaif.training.models import Loaded

# log π_ref of a pair's chosen and rejected completion, by `row_key`
Reference = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class DPOResult:
    """Where the policy lies, and how training went. `metrics` is what metrics.json holds."""

    path: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


@keeps_the_model
def train_dpo(
    preferences: Sequence[Preference],
    model: str | Start,
    out: str | Path,
    settings: DPOSettings = DPOSettings(),
    *,
    samples: Samples = Samples(),
    runtime: Runtime = Runtime(),
) -> DPOResult:
    """Trains a policy on preferences and writes it to `out` as a complete model folder.

    A loss of `TRL_LOSSES` is computed by TRL, on hard labels: soft ones raise ConfigError.
    `samples`: how the completions were sampled, where that is known. What a length limit cut off
    gets no end of turn, and is not preferred to what ended; tokens are trained on as they were
    sampled, and text without any is tokenised.
    """
    from rlaif.engines.faster import apply
    from rlaif.training.loop import finish, prepare, run_key, training_arguments

    kept, folder, start = preferred(preferences), Path(out), Start.of(model)
    if settings.loss in TRL_LOSSES:
        from rlaif.training.dpo_trl import check_hard

        check_hard(kept, settings.loss)
        settings = settings.but(share_prompt=False)  # its trainer computes the prompt twice
    arguments = training_arguments(settings, runtime, folder)
    chosen = [*settings.own().values(), *samples.key(), *thinking_key(start.thinking)]
    key = run_key("dpo", start.model, start.adapter, kept, settings, chosen)
    done = prepare(folder, key, runtime.resume, (start.model, start.adapter))
    if done is not None:
        return DPOResult(folder, done["steps"], done["seconds"], done)

    loaded = start.load(**settings.precision)
    loaded.model.to(arguments.device)
    apply.train(loaded.model, arguments.device)
    limit = loaded.limit(settings.max_length)
    rows, refused = encode_rows(
        kept, loaded.encoder, limit, samples.cut, samples.tokens, policy=True
    )
    if settings.lora is not None:
        add_lora(loaded, settings.lora, "policy", settings.seed, merge=settings.merge)
    settings = _sharing(loaded, rows, settings)
    made = {
        **_fit(loaded, rows, settings, arguments, runtime),
        "pairs": len(rows),
        "refused": refused.as_dict(),
        "notes": loaded.notes,
        "settings": {**settings.key(), **settings.own()},
    }
    main = arguments.process_index == 0
    if main:
        save_model(loaded, folder, lora=settings.lora is not None, merge=settings.merge)
    metrics = finish(folder, made if main else None)
    return DPOResult(folder, metrics["steps"], metrics["seconds"], metrics)


def _sharing(loaded: Loaded, rows: Sequence[Row], settings: DPOSettings) -> DPOSettings:
    """The settings, without sharing a pair's prompt where the model cannot; the notes say why."""
    from rlaif.training.shared import why_not

    if not settings.share_prompt or not (reason := why_not(loaded, rows)):
        return settings
    loaded.notes.append(f"the prompt of a pair is computed twice: {reason}")
    return settings.but(share_prompt=False)


def _fit(
    loaded: Loaded,
    rows: Sequence[Row],
    settings: DPOSettings,
    arguments: TrainingArguments,
    runtime: Runtime,
) -> dict[str, Any]:
    """Trains `loaded.model` in place, by our loss or TRL's trainer; see `run_loop`."""
    from rlaif.training.loop import make_plan, run_loop

    out = Path(arguments.output_dir).parent
    if settings.loss in TRL_LOSSES:
        from rlaif.training.dpo_trl import fit_dpo

        return fit_dpo(loaded, rows, settings, runtime, out).summary()
    alone = [[i] for i in range(len(rows))]
    first = collator(loaded.filler, None, settings.share_prompt)
    plan = make_plan(rows, alone, first, settings, arguments)
    reference = reference_logprobs(loaded, plan, out, settings.epochs, settings.bf16)
    collate = collator(loaded.filler, reference, settings.share_prompt)
    loss = pair_loss(
        cast("DPOLoss", settings.loss), settings.beta, settings.label_noise, settings.nll
    )
    return run_loop(loaded, rows, alone, collate, loss, settings, arguments, runtime)


def pair_loss(name: DPOLoss, beta: float, noise: float, nll: float = 0.0) -> PairLoss:
    """The loss of a batch of B pairs, whose tensors hold the B chosen, then the B rejected."""
    from rlaif.training.losses import dpo_logits, dpo_loss

    def compute(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        policy, tokens = pair_logprobs(model, batch)
        reference = batch["reference"]
        chosen, rejected = policy.chunk(2)
        h = dpo_logits(chosen, rejected, *reference.chunk(2))
        h_token = dpo_logits(*(policy / tokens).chunk(2), *(reference / tokens).chunk(2))
        losses = dpo_loss(name, h, h_token, beta=beta, p=batch["p"], noise=noise)
        if nll:
            losses = losses - nll * chosen / tokens.chunk(2)[0]
        gain, loss = (policy - reference).chunk(2)
        statistics = {
            "accuracy": (h > 0).float() + 0.5 * (h == 0),  # a tie, as before the first step: half
            "margin": beta * h,
            "reward_chosen": beta * gain,
            "reward_rejected": beta * loss,
            "logp_chosen": chosen,
            "logp_rejected": rejected,
        }
        return losses, statistics

    return compute


def pair_logprobs(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """log π of the B chosen, then the B rejected, (2B,), and how many tokens each has, (2B,)."""
    from rlaif.training.forward import completion_logprobs
    from rlaif.training.shared import branch_logprobs

    if "branches" in batch:
        shared = branch_logprobs(model, batch)  # (B, 2) each
        return shared[0].T.reshape(-1), shared[1].T.reshape(-1)
    logprobs, mask = completion_logprobs(model, batch)  # (2B, T−1)
    return logprobs.sum(1), mask.sum(1)


def collator(
    filler: int, reference: Reference | None, share_prompt: bool = False
) -> Callable[[Sequence[Row], float], dict[str, Any]]:
    """Makes the tensors of a micro-batch: (2B, T) sequences, (2B,) reference, (B,) labels.

    Without a `reference` there is none among them. With `share_prompt` both completions stand in
    one row behind their prompt: (B, T) sequences.
    """
    import torch

    from rlaif.training.forward import completion_batch
    from rlaif.training.shared import shared_batch

    def collate(rows: Sequence[Row], total: float) -> dict[str, Any]:
        prompts = [row.prompt for row in rows] * 2
        completions = [row.chosen for row in rows] + [row.rejected for row in rows]
        known: dict[str, Any] = {}
        if reference is not None:
            both_logps = [reference[row_key(row)] for row in rows]
            known["reference"] = torch.tensor(both_logps).T.reshape(-1)
        if share_prompt:
            both = [(row.chosen, row.rejected) for row in rows]
            sequences = shared_batch(prompts[: len(rows)], both, filler)
        else:
            sequences = completion_batch(prompts, completions, filler)
        return {
            **sequences,
            **known,
            "p": torch.tensor([row.p for row in rows]),
            "weight": torch.tensor([row.weight for row in rows]),
            "total": torch.tensor(total),
        }

    return collate


def reference_logprobs(
    loaded: Loaded, plan: Plan[Row], out: Path, epochs: int = 1, bf16: bool = False
) -> Reference:
    """log π_ref of every pair, read from `out` if an earlier start left it there.

    Computed over the micro-batches of the plan's first epoch, of which every process has its own,
    under autocast with `bf16`, as the loss will be. That is before the first step, when the policy
    still is the reference; a fresh adapter is switched off all the same.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from rlaif.training.checkpoints import keep_reference, kept_reference
    from rlaif.training.forward import to_device
    from rlaif.training.loop import REFERENCE

    known = kept_reference(out / REFERENCE)
    if known:
        return known
    state, model = PartialState(), loaded.model
    adapter = getattr(model, "disable_adapter", nullcontext)
    half = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    found, training = [], model.training
    model.eval()
    try:
        for i in range(len(plan) // epochs):
            rows, batch = plan.rows_of(i), to_device(plan[i], model.device)
            with torch.no_grad(), adapter(), half:
                both = pair_logprobs(model, batch)[0].view(2, -1).T.tolist()
            found += [(row_key(row), x) for row, x in zip(rows, both, strict=True)]
    finally:
        model.train(training)
    reference = dict(gather_object(found))
    if state.is_main_process:
        keep_reference(out / REFERENCE, reference)
    state.wait_for_everyone()
    return reference
