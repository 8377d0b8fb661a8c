"""Linear reward heads on features that do not change, by convex optimisation.

With r(x, y) = w·h(x, y) and frozen features h, the Bradley–Terry loss of soft labels under an L2
penalty is logistic regression without an intercept on the differences h(x, y₁) − h(x, y₂). It has
one minimum, which Newton's method finds; nothing depends on a learning rate or on a seed. The
penalty is chosen by cross-validation, whose folds are of prompts: pairs of one prompt share most of
their text. A bootstrap over prompts (Efron 1979) gives an ensemble of heads, whose spread is the
uncertainty of the reward. Coste et al. (2023) train whole models for it, Zhai et al. (2024) LoRA
adapters, and Zhang et al. (2024) read it off the last states alone, as is done here.

Fits that share their rows, such as folds and resamples, are columns of one optimisation, so that a
step of all of them is two matrix products. Pure functions, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif.errors import TrainingError
from rlaif.records import content_id

PENALTIES = tuple(10.0 ** (k / 2) for k in range(6, -13, -1))  # 1e3 … 1e-6, standardised features
FOLDS = 5
_WORSE = 3  # penalties in a row that predict worse than the best so far: the rest is not tried
_EXACT, _NEAR = 1e-9, 1e-5  # a gradient's norm at the end, relative to that at w = 0
_STEPS, _INNER = 100, 500  # Newton's steps, and those of conjugate gradients within one


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is known of n pairs of completions beside their features.

    `p`: (n,) P(chosen is better); `weights`: (n,) what each counts; `prompts`: (n,) the number of
    each pair's prompt, 0 … G − 1.
    """

    p: Tensor
    weights: Tensor
    prompts: NDArray[np.int64]

    @property
    def groups(self) -> int:
        """How many prompts there are."""
        return int(self.prompts.max()) + 1


@dataclass(frozen=True, slots=True)
class Chosen:
    """A penalty, and the cross-validated loss and accuracy of each of the grid it is from."""

    penalty: float
    log_loss: dict[float, float]
    accuracy: dict[float, float]

    @property
    def best(self) -> float:
        """The least mean log-loss of pairs that were left out of the fit."""
        return self.log_loss[self.penalty]

    @property
    def at_the_top(self) -> bool:
        """Whether it is the greatest of the grid, under which hardly anything is learnt."""
        return self.penalty == max(self.log_loss)

    def as_dict(self) -> dict[str, list[float]]:
        """The grid as columns."""
        return {
            "penalty": list(self.log_loss),
            "log_loss": list(self.log_loss.values()),
            "accuracy": list(self.accuracy.values()),
        }


def rotated(differences: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (n, D) in their principal axes, (n, r) with r = min(n, D), and the axes (D, r).

    A change of basis: w = axes @ a has the same penalty and the same scores. In these axes the
    curvature of the loss is nearly diagonal, which makes Newton's equations easy to solve. With
    fewer rows than features the best w is a combination of the rows, so that r = n axes do.
    """
    x = differences.double()
    axes = torch.eye(0)
    if x.shape[0] < x.shape[1]:
        axes, _ = torch.linalg.qr(x.T)  # (D, n)
        x = x @ axes
    _, turn = torch.linalg.eigh(x.T @ x)
    return x @ turn, axes @ turn if axes.numel() else turn


def fit(
    x: Tensor,
    p: Tensor,
    weights: Tensor,
    penalty: float,
    start: Tensor | None = None,
    tolerance: float = _EXACT,
) -> Tensor:
    """The minima (r, M) of M fits to the same rows x (n, r), in `rotated` axes.

    Column m minimises Σ_i a_im (log(1 + e^z_i) − p_i z_i) + penalty/2 ‖w‖² with z = x w, where a_m
    are the column's `weights` (n, M) divided by their sum; `start` (r, M) is where to begin.
    Newton's steps, each solved by conjugate gradients with a diagonal preconditioner, halved until
    the loss falls enough (Nocedal & Wright 2006, algorithm 7.1). TrainingError where a gradient
    does not vanish.
    """
    a = weights / weights.sum(0)
    first = (x.T @ (a * (0.5 - p[:, None]))).norm(dim=0).clamp_min(1e-300)  # at w = 0
    w = torch.zeros(x.shape[1], a.shape[1]).to(x) if start is None else start
    z = x @ w
    loss = _loss(z, p, a, w, penalty)
    for _ in range(_STEPS):
        says = torch.sigmoid(z)
        gradient = x.T @ (a * (says - p[:, None])) + penalty * w  # (r, M)
        size = gradient.norm(dim=0)
        going = size > tolerance * first
        if not going.any():
            return w
        step = _solve(x, a * says * (1 - says), penalty, -gradient, going, first)
        w, z, loss = _line(x, p, a, penalty, (w, z, loss), step, (gradient * step).sum(0))
    left = float((size / first).max())
    raise TrainingError(
        f"the head's optimisation stopped at a gradient of {left:.1g} of the first one after "
        f"{_STEPS} steps: some features may be out of all proportion"
    )


def _loss(z: Tensor, p: Tensor, a: Tensor, w: Tensor, penalty: float) -> Tensor:
    losses = torch.nn.functional.softplus(z) - p[:, None] * z
    return (a * losses).sum(0) + penalty / 2 * (w * w).sum(0)


def _solve(
    x: Tensor, curvature: Tensor, penalty: float, target: Tensor, going: Tensor, first: Tensor
) -> Tensor:
    """Newton's equations (xᵀ diag(c_m) x + λ) s_m = target_m of the columns that are `going`.

    The nearer the end, the more exactly: to min(0.1, √(‖g‖/‖g₀‖)) of the gradient.
    """
    diagonal = (x * x).T @ curvature + penalty
    size = target.norm(dim=0)
    enough = size * (size / first).sqrt().clamp_max(0.1)
    s = torch.zeros_like(target)
    residual = target.clone()
    y = residual / diagonal
    direction, dot = y.clone(), (residual * y).sum(0)
    for _ in range(_INNER):
        on = going & (residual.norm(dim=0) > enough)
        if not on.any():
            break
        product = x.T @ (curvature * (x @ direction)) + penalty * direction
        length = torch.where(on, dot / (direction * product).sum(0), 0.0)
        s += length * direction
        residual -= length * product
        y = residual / diagonal
        new = (residual * y).sum(0)
        direction = torch.where(on, y + new / dot * direction, direction)
        dot = torch.where(on, new, dot)
    return torch.where(going, s, 0.0)


def _line(
    x: Tensor,
    p: Tensor,
    a: Tensor,
    penalty: float,
    now: tuple[Tensor, Tensor, Tensor],
    step: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest of the steps 1, ½, ¼ … by which each column's loss falls as its slope says."""
    w, z, loss = now
    along, length = x @ step, torch.ones_like(loss)
    for _ in range(50):
        found = _loss(z + length * along, p, a, w + length * step, penalty)
        # The last steps change the loss by less than its rounding.
        bad = found > loss + 1e-4 * length * slope + 1e-14 * loss.abs()
        if not bad.any():
            break
        length = torch.where(bad, length / 2, length)
    return w + length * step, z + length * along, found


def folds_of(names: Sequence[str], seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each prompt (G,): as many in each, drawn by the prompts' names and the seed."""
    order = sorted(range(len(names)), key=lambda i: content_id("fold", seed, names[i]))
    out = np.zeros(len(names), np.int64)
    out[order] = np.arange(len(names)) % folds
    return out


def choose(x: Tensor, pairs: Pairs, folds: NDArray[np.int64]) -> Chosen:
    """The penalty of PENALTIES that predicts prompts left out of the fit best, by mean log-loss.

    `x` are the pairs in `rotated` axes, `folds` (G,) those of the prompts. From the greatest
    penalty down, each fit begins where the one before it ended. The loss of the one that is chosen
    is too good by the choice: report another set's.
    """
    of = torch.from_numpy(folds[pairs.prompts]).to(x.device)  # (n,)
    held = of[:, None] == torch.arange(int(folds.max()) + 1, device=x.device)  # (n, folds)
    weights = pairs.weights[:, None] * ~held
    sided = pairs.weights * (pairs.p != 0.5)
    losses: dict[float, float] = {}
    accuracies: dict[float, float] = {}
    w: Tensor | None = None
    for penalty in PENALTIES:
        w = fit(x, pairs.p, weights, penalty, w, _NEAR)
        z = (x @ w)[held]  # (n,), each by the fit that it was left out of
        loss = torch.nn.functional.softplus(z) - pairs.p * z
        right = torch.where(z == 0, 0.5, ((z > 0) == (pairs.p > 0.5)).double())
        losses[penalty] = float((pairs.weights * loss).sum() / pairs.weights.sum())
        accuracies[penalty] = float((sided * right).sum() / sided.sum().clamp_min(1e-300))
        best = min(losses, key=lambda found: losses[found])
        if len(losses) - 1 - list(losses).index(best) >= _WORSE:
            break
    return Chosen(best, losses, accuracies)


def with_resamples(x: Tensor, pairs: Pairs, penalty: float, heads: int, seed: int) -> Tensor:
    """The head fitted to all pairs, and `heads` more on prompts drawn with replacement: (r, 1 + B).

    A prompt that is drawn twice counts twice, with all of its pairs.
    """
    random, G = np.random.default_rng(seed), pairs.groups
    times = np.stack(
        [np.ones(G), *(np.bincount(random.integers(0, G, G), minlength=G) for _ in range(heads))],
        1,
    )  # (G, 1 + B)
    weights = pairs.weights[:, None] * torch.from_numpy(times[pairs.prompts]).to(x)
    return fit(x, pairs.p, weights, penalty)


def require_prompts(groups: int) -> int:
    """How many folds there can be; TrainingError with fewer than two prompts."""
    if groups < 2:
        raise TrainingError(
            "trunk: frozen chooses its penalty on prompts left out of the fit, and there is only "
            f"{groups} to train on: label pairs of more prompts, or lower held_out"
        )
    return min(FOLDS, groups)
