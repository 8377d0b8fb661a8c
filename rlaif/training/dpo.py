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
from typing import TYPE_CHECKING, Any, Unpack, cast

from rlaif.records import Preference
from rlaif.training.before import keeps_the_model
from rlaif.training.data import (
    Cut,
    Plan,
    Row,
    Sampled,
    encode_rows,
    preferred,
    row_key,
    sampled_key,
    thinking_key,
)
from rlaif.training.models import add_lora, load_policy, save_model
from rlaif.training.settings import LoopOptions, LoopSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rlaif.training.loop import OnLog, PairLoss
    from rlaif.training.losses import DPOLoss, TRLLoss
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
    model: str,
    out: str | Path,
    *,
    beta: float = 0.1,
    loss: DPOLoss | TRLLoss = "sigmoid",
    label_noise: float = 0.0,
    nll: float = 0.0,
    share_prompt: bool = True,
    adapter: str | None = None,
    thinking: int | None = None,
    cut: Cut = (),
    sampled: Sampled | None = None,
    resume: bool = True,
    on_log: OnLog | None = None,
    **options: Unpack[LoopOptions],
) -> DPOResult:
    """Trains a policy on preferences and writes it to `out` as a complete model folder.

    `loss`: one of `DPO_LOSSES`, or one of `TRL_LOSSES`, which TRL computes on hard labels (soft
    ones raise ConfigError). `label_noise` is the ε of `cdpo`, `robust` and `exo_pair`. `nll` weighs
    an added −log π(chosen) a token, which holds on to the chosen completions where DPO would sink
    both (Pang et al. 2024). With `share_prompt` a pair is one row, whose prompt is computed once,
    where the model can. `adapter` is a LoRA folder to add into the model first, and so into the
    reference. `thinking`: tokens that a thought of the policy may have, 0 where it is told not to
    think: its prompts are then those it was sampled with. `cut` names completions, as (prompt id,
    text), that a length limit cut off: they get no end of turn, and are not preferred to what
    ended. `sampled` are the tokens of completions, by the same names: they are trained on as they
    were sampled, others are tokenised.

    With `resume` a killed run goes on from its last checkpoint, `checkpoint_every` steps apart,
    and a finished one returns at once. `options` are the fields of `LoopSettings`; the learning
    rate is 5e-7 unless given.
    """
    from rlaif.training.loop import (
        finish,
        make_plan,
        prepare,
        run_key,
        run_loop,
        training_arguments,
    )
    from rlaif.training.losses import TRL_LOSSES, check_dpo_loss
    from rlaif.training.shared import why_not

    check_dpo_loss(loss, beta, label_noise, nll, by_trl=True)
    kept, folder = preferred(preferences), Path(out)
    if loss in TRL_LOSSES:
        from rlaif.training.dpo_trl import check_hard

        check_hard(kept, loss)
        share_prompt = False  # its trainer computes the prompt twice
    options.setdefault("learning_rate", 5e-7)
    settings = LoopSettings(**options)
    arguments = training_arguments(settings, folder)
    chosen = [beta, loss, label_noise, nll, share_prompt, sorted(cut), *sampled_key(sampled)]
    chosen += thinking_key(thinking)
    start = (model, adapter)
    done = prepare(folder, run_key("dpo", model, adapter, kept, settings, chosen), resume, start)
    if done is not None:
        return DPOResult(folder, done["steps"], done["seconds"], done)

    loaded = load_policy(model, adapter=adapter, thinking=thinking, **settings.precision)
    loaded.model.to(arguments.device)
    limit = loaded.limit(settings.max_length)
    rows, refused = encode_rows(kept, loaded.encoder, limit, cut, sampled, policy=True)
    if settings.lora is not None:
        add_lora(loaded, settings.lora, "policy", settings.seed, merge=settings.merge)
    if share_prompt and (reason := why_not(loaded, rows)):
        share_prompt = False
        loaded.notes.append(f"the prompt of a pair is computed twice: {reason}")
    if loss in TRL_LOSSES:
        from rlaif.training.dpo_trl import fit_dpo

        summary = fit_dpo(
            loaded,
            rows,
            settings,
            folder,
            loss=loss,
            beta=beta,
            label_noise=label_noise,
            on_log=on_log,
        ).summary()
    else:
        alone = [[i] for i in range(len(rows))]
        plan = make_plan(
            rows, alone, collator(loaded.filler, None, share_prompt), settings, arguments
        )
        reference = reference_logprobs(loaded, plan, folder, settings.epochs, settings.bf16)
        summary = run_loop(
            loaded,
            rows,
            alone,
            collator(loaded.filler, reference, share_prompt),
            pair_loss(cast("DPOLoss", loss), beta, label_noise, nll),
            settings,
            arguments,
            on_log,
        )
    made = {
        **summary,
        "pairs": len(rows),
        "refused": refused.as_dict(),
        "notes": loaded.notes,
        "settings": {
            **settings.key(),
            "beta": beta,
            "loss": loss,
            "label_noise": label_noise,
            "nll": nll,
            "share_prompt": share_prompt,
        },
    }
    main = arguments.process_index == 0
    if main:
        save_model(loaded, folder, lora=settings.lora is not None, merge=settings.merge)
    metrics = finish(folder, made if main else None)
    return DPOResult(folder, metrics["steps"], metrics["seconds"], metrics)


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
