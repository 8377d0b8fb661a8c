"""Training of the embedded model from scratch: one seeded, resumable run on one CPU thread.

The trick that makes it cheap: a pair of responses is read once, and each principle asked about it
is a short branch after it. A branch sees the pair and itself, not its neighbours, and its positions
go on from the pair's end; so its answer is the one a separate prompt would give.

Simplified away: no accumulation, no mixed precision, no distributed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812

from rlaif.tiny.corpus import Mix, draw_step
from rlaif.tiny.encoding import VOCABULARY, Asked, Encoder, PairIds, TextIds

IGNORE: Final = -100
CONTEXT_LENGTH: Final = 1024


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the run, up to `until` (a share of all steps), with one mix of rows."""

    until: float
    mix: Mix


# Text and single responses first, then pairs, then the balance that ships.
SCHEDULE: Final[tuple[Stage, ...]] = (
    Stage(0.08, Mix(texts=20, pairs=14, questions=6, unary=2, short=True)),
    Stage(0.60, Mix(texts=24, pairs=16, questions=6, unary=2)),
    Stage(0.65, Mix(texts=32, pairs=14, questions=6, unary=1, revisions=4)),
    Stage(1.00, Mix(texts=32, pairs=10, questions=6, unary=1, revisions=4, late=True)),
)
WARMUP_STEPS: Final = 40
DECAY_FROM: Final = 0.5  # learning rates are held up to here, then fall linearly to zero


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a run depends on besides the code."""

    steps: int
    seed: int = 0
    width: int = 128
    layers: int = 5
    heads: int = 4
    feed_forward: int = 384
    muon_lr: float = 8e-3
    adam_lr: float = 1.5e-3
    weight_pairs: float = 1.0
    weight_unary: float = 0.5
    weight_revisions: float = 0.5
    schedule: tuple[Stage, ...] = field(default=SCHEDULE)


def mix_at(recipe: Recipe, step: int) -> Mix:
    """The mix of rows of a step."""
    share = step / recipe.steps
    return next((s.mix for s in recipe.schedule if share < s.until), recipe.schedule[-1].mix)


def rate_at(recipe: Recipe, step: int) -> float:
    """The factor on both learning rates: a short rise, a plateau, a linear fall to zero."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    fall = (recipe.steps - step) / (recipe.steps * (1.0 - DECAY_FROM))
    return min(rise, fall, 1.0)


def build_model(recipe: Recipe, encoder: Encoder, end: int) -> Any:
    """A fresh Llama of the recipe's shape, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=encoder.pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    model: Any = LlamaForCausalLM(config).float()
    return model


# --- optimiser ----------------------------------------------------------------------------------


def orthogonalise(g: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """(N, R, C) -> (N, R, C): each matrix pushed towards its nearest orthogonal one.

    The quintic Newton-Schulz iteration of Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/)
    in float32 and in batches: on a CPU three times as fast as one matrix at a time.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.size(-2) <= g.size(-1)
    x: torch.Tensor = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the matrices inside the blocks."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape go through the iteration together."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._update(same, group["lr"], group["momentum"])

    def _update(self, params: list[torch.Tensor], lr: float, momentum: float) -> None:
        updates = []
        for p in params:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["buffer"] = torch.zeros_like(p)
            state["buffer"].lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(state["buffer"], momentum))  # Nesterov
        steps = orthogonalise(torch.stack(updates))
        scale = max(1.0, params[0].size(0) / params[0].size(1)) ** 0.5
        for p, update in zip(params, steps, strict=True):
            p.add_(update, alpha=-lr * scale)


def build_optimisers(recipe: Recipe, model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=recipe.muon_lr), adam]


# --- losses -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Branches:
    """Pairs with their branches as tensors: B rows of T tokens, Q questions in all."""

    ids: torch.Tensor  # (B, T)
    positions: torch.Tensor  # (B, T)
    visible: torch.Tensor  # (B, 1, T, T), True where the row's token may look
    row: torch.Tensor  # (Q,) the row of each question
    column: torch.Tensor  # (Q,) where its answer is predicted
    labels: torch.Tensor  # (Q, 2) the two option tokens
    p_first: torch.Tensor  # (Q,) target of the first of them
    unary: torch.Tensor  # (Q,) True for questions about one response


def pack(pairs: Sequence[PairIds], pad: int) -> Branches:
    """Puts each pair's questions after it as branches that do not see one another."""
    asked = [[*pair.questions, *pair.unary] for pair in pairs]
    T = max(
        len(pair.context) + sum(len(q.ids) for q in qs)
        for pair, qs in zip(pairs, asked, strict=True)
    )
    ids = torch.full((len(pairs), T), pad)
    positions = torch.zeros((len(pairs), T), dtype=torch.long)
    branch = torch.full((len(pairs), T), -1)  # 0 the context, 1.. its branches, -1 padding
    flat: list[tuple[int, int, Asked, bool]] = []
    for b, (pair, questions) in enumerate(zip(pairs, asked, strict=True)):
        n = len(pair.context)
        ids[b, :n] = torch.tensor(pair.context)
        positions[b, :n] = torch.arange(n)
        branch[b, :n] = 0
        at = n
        for q, question in enumerate(questions):
            end = at + len(question.ids)
            ids[b, at:end] = torch.tensor(question.ids)
            positions[b, at:end] = torch.arange(n, n + len(question.ids))
            branch[b, at:end] = q + 1
            flat.append((b, end - 1, question, q >= len(pair.questions)))
            at = end
    same = branch[:, :, None] == branch[:, None, :]
    visible = (same | (branch[:, None, :] == 0)) & torch.ones(T, T).tril().bool()
    return Branches(
        ids,
        positions,
        visible[:, None],
        torch.tensor([b for b, _, _, _ in flat]),
        torch.tensor([c for _, c, _, _ in flat]),
        torch.tensor([(q.first, q.second) for _, _, q, _ in flat]),
        torch.tensor([q.p_first for _, _, q, _ in flat]),
        torch.tensor([u for _, _, _, u in flat]),
    )


def answer_losses(model: Any, batch: Branches) -> torch.Tensor:
    """(Q,) cross-entropy over the whole vocabulary against the two options' soft target.

    Over the whole vocabulary, so that nearly all probability comes to lie on the two options.
    """
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state  # (B, T, D)
    logits = model.lm_head(hidden[batch.row, batch.column]).float()  # (Q, V)
    log_p = F.log_softmax(logits, dim=-1).gather(1, batch.labels)  # (Q, 2)
    return -(batch.p_first * log_p[:, 0] + (1 - batch.p_first) * log_p[:, 1])


def text_loss(model: Any, rows: Sequence[TextIds], pad: int) -> torch.Tensor:
    """() mean cross-entropy of the learnt tokens, the end tokens among them."""
    T = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), T), pad)
    targets = torch.full((len(rows), T), IGNORE)
    for b, r in enumerate(rows):
        ids[b, : len(r.ids)] = torch.tensor(r.ids)
        learnt = torch.tensor(r.learnt[1:])  # the token before predicts it
        targets[b, : len(r.ids) - 1][learnt] = ids[b, 1 : len(r.ids)][learnt]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
    known = targets != IGNORE
    return F.cross_entropy(model.lm_head(hidden[known]).float(), targets[known])


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step cost: mean losses in nats, and how many tokens went through the model."""

    text: float
    pairs: float
    unary: float
    tokens: int


def train_step(
    recipe: Recipe, step: int, model: Any, encoder: Encoder, optimisers: list[torch.optim.Optimizer]
) -> StepReport:
    """One step: draw, encode, three losses each averaged by itself, update."""
    rows = draw_step(recipe.seed, step, mix_at(recipe, step))
    pairs = [encoder.pair(row) for row in rows.pairs]
    texts = [encoder.text(row) for row in rows.texts]
    revisions = [encoder.revision(row) for row in rows.revisions]
    spoken = text_loss(model, texts, encoder.pad)
    spoken.backward()  # type: ignore[no-untyped-call]
    if revisions:
        revised = recipe.weight_revisions * text_loss(model, revisions, encoder.pad)
        revised.backward()  # type: ignore[no-untyped-call]
    tokens = sum(len(t.ids) for t in (*texts, *revisions))
    sums = {True: 0.0, False: 0.0}
    counts = {False: sum(len(p.questions) for p in pairs), True: sum(len(p.unary) for p in pairs)}
    pairs.sort(key=lambda p: len(p.context) + 12 * (len(p.questions) + len(p.unary)))
    half = len(pairs) // 2
    for part in (pairs[:half], pairs[half:]):  # like lengths together: less padding
        batch = pack(part, encoder.pad)
        losses = answer_losses(model, batch)  # (Q,)
        unary = losses[batch.unary].sum()
        paired = losses[~batch.unary].sum()
        loss = recipe.weight_pairs * paired / max(counts[False], 1)
        loss = loss + recipe.weight_unary * unary / max(counts[True], 1)
        loss.backward()  # type: ignore[no-untyped-call]
        sums[True] += float(unary.detach())
        sums[False] += float(paired.detach())
        tokens += int((batch.visible[:, 0].any(-1)).sum())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser, lr in zip(optimisers, (recipe.muon_lr, recipe.adam_lr), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr * rate_at(recipe, step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return StepReport(
        float(spoken.detach()),
        sums[False] / max(counts[False], 1),
        sums[True] / max(counts[True], 1),
        tokens,
    )
