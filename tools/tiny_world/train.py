"""Training of the embedded model from scratch: one seeded, resumable run on one CPU thread.

The trick that makes it cheap: a pair of responses is read once, and each principle asked about it
is a short branch after it. A branch sees the pair and itself, not its neighbours, and its positions
go on from the pair's end; so its answer is the one a separate prompt would give.

Simplified away: no accumulation, no mixed precision, no distributed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812

from tiny_world.corpus import Mix, draw_step
from tiny_world.encoding import IGNORE, VOCABULARY, Asked, Encoder, PairIds, TextIds
from tiny_world.formats import METHODS, FormatMix, draw_formats

CONTEXT_LENGTH: Final = 1024


NO_FORMATS: Final = FormatMix()


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the run, up to `until` (a share of all steps), with one mix of rows."""

    until: float
    mix: Mix
    formats: FormatMix = NO_FORMATS


# Text and single responses first, then pairs, then the balance that ships.
SCHEDULE: Final[tuple[Stage, ...]] = (
    Stage(0.08, Mix(texts=20, pairs=14, questions=6, unary=2, short=True)),
    Stage(0.60, Mix(texts=24, pairs=16, questions=6, unary=2)),
    Stage(0.65, Mix(texts=32, pairs=14, questions=6, unary=1, revisions=4)),
    Stage(1.00, Mix(texts=32, pairs=10, questions=6, unary=1, revisions=4, late=True)),
)
# After the decay, a second and gentler run from the same state: the other judge formats, the old
# rows beside them so that nothing is forgotten, and more of facts and how-tos.
_OLD_ROWS: Final = Mix(
    texts=24, pairs=8, questions=6, unary=1, revisions=4, late=True, knowledge=1.5
)
FORMATS_SCHEDULE: Final[tuple[Stage, ...]] = (
    Stage(0.2675, _OLD_ROWS, FormatMix(cot=5, singles=8, lists=5, knowledge=1.5)),
    Stage(0.644, _OLD_ROWS, FormatMix(cot=4, singles=5, lists=10, knowledge=1.5)),
    Stage(
        1.0,
        replace(_OLD_ROWS, more=True, core_differs=0.6, undecided=0.35),
        FormatMix(cot=4, singles=5, lists=10, more=True, knowledge=1.5),
    ),
)
FORMATS_PEAK: Final = 0.4  # of the learning rates
# Last, a short run with many ties: until then the judge leaned to one place where both responses
# help with harm, which the steps before had hardly shown.
TIES_SCHEDULE: Final[tuple[Stage, ...]] = (
    Stage(
        1.0,
        replace(_OLD_ROWS, pairs=16, more=True, core_differs=0.4, undecided=0.6),
        FormatMix(cot=4, singles=5, lists=8, more=True, knowledge=1.5),
    ),
)
TIES_PEAK: Final = 0.15
WARMUP_STEPS: Final = 40
DECAY_FROM: Final = 0.5  # learning rates are held up to here, then fall linearly to zero


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a run depends on besides the code."""

    steps: int
    formats_steps: int = 0  # further ones, with the other judge formats
    ties_steps: int = 0  # and after those, with many ties
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
    weight_formats: float = 0.5  # of each format, and of the rationales
    schedule: tuple[Stage, ...] = field(default=SCHEDULE)
    formats_schedule: tuple[Stage, ...] = field(default=FORMATS_SCHEDULE)
    ties_schedule: tuple[Stage, ...] = field(default=TIES_SCHEDULE)

    @property
    def all_steps(self) -> int:
        """The steps of all runs together."""
        return self.steps + self.formats_steps + self.ties_steps

    def run_at(self, step: int) -> tuple[tuple[Stage, ...], float, int, int]:
        """Of the run a step belongs to: its schedule, its peak rate, the step in it, its steps."""
        runs = [(self.schedule, 1.0, self.steps)]
        runs.append((self.formats_schedule, FORMATS_PEAK, self.formats_steps))
        runs.append((self.ties_schedule, TIES_PEAK, self.ties_steps))
        runs = [run for run in runs if run[2]]
        for schedule, peak, steps in runs[:-1]:
            if step < steps:
                return schedule, peak, step, steps
            step -= steps
        schedule, peak, steps = runs[-1]
        return schedule, peak, step, steps


def stage_at(recipe: Recipe, step: int) -> Stage:
    """The stage that a step belongs to."""
    schedule, _, step, steps = recipe.run_at(step)
    return next((s for s in schedule if step / steps < s.until), schedule[-1])


def rate_at(recipe: Recipe, step: int) -> float:
    """The factor on both learning rates: a short rise, a plateau, a linear fall to zero.

    Each further run does the same again with a lower plateau.
    """
    _, peak, step, steps = recipe.run_at(step)
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    fall = (steps - step) / (steps * (1.0 - DECAY_FROM))
    return peak * min(rise, fall, 1.0)


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
    labels: torch.Tensor  # (Q, K) the option tokens; 0 where a question has fewer
    p: torch.Tensor  # (Q, K) their targets; 0 there
    unary: torch.Tensor  # (Q,) True for questions about one response
    said: torch.Tensor  # (B, T) the token to come after each, or IGNORE


def pack(pairs: Sequence[PairIds], pad: int) -> Branches:
    """Puts each pair's questions after it as branches that do not see one another."""
    asked = [[*pair.questions, *pair.unary] for pair in pairs]
    T = max(
        len(pair.context) + sum(len(q.ids) for q in qs)
        for pair, qs in zip(pairs, asked, strict=True)
    )
    ids = torch.full((len(pairs), T), pad)
    positions = torch.zeros((len(pairs), T), dtype=torch.long)
    said = torch.full((len(pairs), T), IGNORE)
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
            if question.said:
                said[b, at:end] = torch.tensor(question.said)
            flat.append((b, end - 1, question, q >= len(pair.questions)))
            at = end
    same = branch[:, :, None] == branch[:, None, :]
    K = max(len(q.options) for _, _, q, _ in flat)
    visible = (same | (branch[:, None, :] == 0)) & torch.ones(T, T).tril().bool()
    return Branches(
        ids,
        positions,
        visible[:, None],
        torch.tensor([b for b, _, _, _ in flat]),
        torch.tensor([c for _, c, _, _ in flat]),
        torch.tensor([(*q.options, *[0] * (K - len(q.options))) for _, _, q, _ in flat]),
        torch.tensor([(*q.p, *[0.0] * (K - len(q.p))) for _, _, q, _ in flat]),
        torch.tensor([u for _, _, _, u in flat]),
        said,
    )


def answer_losses(model: Any, batch: Branches) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q,) cross-entropy over the whole vocabulary against the options' soft target; () of what
    is to be said before the answers, the mean over its tokens (0 when there is nothing).

    Over the whole vocabulary, so that nearly all probability comes to lie on the options.
    """
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state  # (B, T, D)
    logits = model.lm_head(hidden[batch.row, batch.column]).float()  # (Q, V)
    log_p = F.log_softmax(logits, dim=-1).gather(1, batch.labels)  # (Q, K)
    spoken = torch.zeros(())
    known = batch.said != IGNORE
    if known.any():
        spoken = F.cross_entropy(model.lm_head(hidden[known]).float(), batch.said[known])
    return -(batch.p * log_p).sum(-1), spoken


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
    formats: dict[str, float] = field(default_factory=dict)  # by method, and "rationale"


def formats_step(
    recipe: Recipe, step: int, model: Any, encoder: Encoder
) -> tuple[dict[str, float], int]:
    """Gradients of the other formats' rows, if the step has any: mean losses, and the tokens.

    Each format is averaged by itself. Rows are taken by likeness of length, as pairs are.
    """
    rows = draw_formats(recipe.seed, step, stage_at(recipe, step).formats)
    methods = {id(row): row.askings[0].method for row in rows if row.askings}
    sums: dict[str, float] = {}
    tokens = 0
    for group in (("cot",), ("pointwise", "rubric"), ("listwise",)):
        chosen = [row for row in rows if methods.get(id(row)) in group]
        if not chosen:
            continue
        batch = pack([encoder.format(row) for row in chosen], encoder.pad)
        asked = [asking.method for row in chosen for asking in row.askings]
        losses, spoken = answer_losses(model, batch)  # (Q,), ()
        means: dict[str, torch.Tensor] = {
            method: losses[[i for i, m in enumerate(asked) if m == method]].mean()
            for method in METHODS
            if method in asked
        }
        if group == ("cot",):
            means["rationale"] = spoken
        loss = recipe.weight_formats * torch.stack(list(means.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        sums |= {name: float(mean.detach()) for name, mean in means.items()}
        tokens += int(batch.visible[:, 0].any(-1).sum())
    return sums, tokens


def train_step(
    recipe: Recipe, step: int, model: Any, encoder: Encoder, optimisers: list[torch.optim.Optimizer]
) -> StepReport:
    """One step: draw, encode, three losses each averaged by itself, update."""
    rows = draw_step(recipe.seed, step, stage_at(recipe, step).mix)
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
        losses, _ = answer_losses(model, batch)  # (Q,)
        unary = losses[batch.unary].sum()
        paired = losses[~batch.unary].sum()
        loss = recipe.weight_pairs * paired / max(counts[False], 1)
        loss = loss + recipe.weight_unary * unary / max(counts[True], 1)
        loss.backward()  # type: ignore[no-untyped-call]
        sums[True] += float(unary.detach())
        sums[False] += float(paired.detach())
        tokens += int((batch.visible[:, 0].any(-1)).sum())
    formats, more = formats_step(recipe, step, model, encoder)
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
        tokens + more,
        formats,
    )
