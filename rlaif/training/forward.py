"""Forward passes shared by training and evaluation: log-probabilities and rewards of sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif.engines.head import LOGIT_BYTES, in_parts, logits_at
from rlaif.engines.tokens import Ids
from rlaif.training.data import pad, token_batches
from rlaif.training.losses import token_logprobs

Floats = NDArray[np.float64]
BATCH_TOKENS = 8_192  # padded tokens of a forward pass without gradients


def completion_batch(
    prompts: Sequence[Ids], completions: Sequence[Ids], filler: int
) -> dict[str, Any]:
    """Padded prompt + completion: ids, mask and completion mask, each (B, T)."""
    pairs = list(zip(prompts, completions, strict=True))
    ids, mask = pad([np.concatenate(pair) for pair in pairs], filler)
    starts = torch.tensor([len(prompt) for prompt, _ in pairs])
    completion = mask * (torch.arange(ids.shape[1]) >= starts[:, None])
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}


def completion_logprobs(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T−1) of the tokens after the first, and their completion mask (B, T−1).

    Logits are made where a completion's token is predicted and nowhere else, as the head is the
    dearest part of a small model, and its logits the largest tensor of any. Positions outside the
    mask hold 0.
    """
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    picked = logprobs_where(model, ids, mask.bool(), attention_mask=batch["attention_mask"])
    return picked.new_zeros(mask.shape).masked_scatter(mask.bool(), picked), mask


def logprobs_where(model: Any, ids: Tensor, predicted: Tensor, **inputs: Any) -> Tensor:
    """Log-probability (N,) of the tokens of `ids` (B, T) that are `predicted` (B, T−1), the first
    of a row being none, row after row. `inputs` is what else the model takes."""
    wanted = torch.nn.functional.pad(predicted, (0, 1)).flatten().nonzero()[:, 0]  # of the (B·T)
    logits, _ = logits_at(model, wanted, input_ids=ids, **inputs)
    return token_logprobs(logits, ids[:, 1:][predicted])


@torch.no_grad()
def sequence_logprobs(
    model: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    filler: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Floats]:
    """Log-probability of every completion token, (T_i,) a sequence, in the order given."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    out: list[Floats] = [np.zeros(0)] * len(lengths)
    training = model.training
    most = LOGIT_BYTES // (4 * model.get_output_embeddings().weight.shape[0])
    model.eval()
    try:
        batches = (
            part
            for batch in token_batches(lengths, batch_tokens)
            for part in in_parts(batch, lambda i: len(completions[i]), most)
        )
        for batch in batches:
            tensors = completion_batch(
                [prompts[i] for i in batch], [completions[i] for i in batch], filler
            )
            values, mask = completion_logprobs(model, to_device(tensors, model.device))
            for i, row, real in zip(batch, values, mask, strict=True):
                out[i] = row[real.bool()].double().cpu().numpy()
    finally:
        model.train(training)
    return out


def sequence_rewards(
    model: Any, sequences: Sequence[Ids], filler: int, *, batch_tokens: int = BATCH_TOKENS
) -> Floats:
    """The raw reward of each sequence, (N,), in the order given."""
    return sequence_outputs(model, sequences, filler, batch_tokens=batch_tokens)[:, 0]


@torch.no_grad()
def sequence_outputs(
    model: Any, sequences: Sequence[Ids], filler: int, *, batch_tokens: int = BATCH_TOKENS
) -> Floats:
    """What a classifier says of each sequence, (N, labels), in the order given."""
    parts: list[tuple[list[int], Floats]] = []
    training = model.training
    model.eval()
    try:
        for batch in token_batches([len(s) for s in sequences], batch_tokens):
            ids, mask = pad([sequences[i] for i in batch], filler)
            logits = model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device)
            ).logits
            parts.append((batch, logits.double().cpu().numpy()))
    finally:
        model.train(training)
    if not parts:
        return np.zeros((0, 1))
    out = np.zeros((len(sequences), parts[0][1].shape[1]))
    for batch, found in parts:
        out[batch] = found
    return out


def to_device(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
