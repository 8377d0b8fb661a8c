"""A reward model whose trunk stays as it is: features once, then a convex fit.

The features are the states that the model's own head would read (`features`); the head is the
minimum of the Bradley–Terry loss under the penalty, and on the layer, that predict prompts left out
of the fit best (`heads`). What is written is an ordinary sequence-classification folder, the
standardisation folded into its head and the layers behind the chosen one cut off, and beside it the
heads of a bootstrap over prompts, whose spread tells how sure a reward is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif.engines.tokens import Ids
from rlaif.errors import DataError, TrainingError
from rlaif.training.data import Row
from rlaif.training.features import Features, compute, layers_of, sequence_key
from rlaif.training.heads import (
    Chosen,
    Pairs,
    choose,
    folds_of,
    require_prompts,
    rotated,
    with_resamples,
)

if TYPE_CHECKING:
    from rlaif.training.models import Loaded
    from rlaif.training.settings import OnLog

HEADS = "heads.npz"
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of the bootstrap: the reward by head b is `weight`[b]·h + `bias`[b], unnormalised.

    `weight` is (B, d); `bias` (B,) makes the mean over the training completions that of the fitted
    head, as Bradley–Terry leaves a head's zero open.
    """

    weight: Floats
    bias: Floats

    def save(self, folder: Path) -> None:
        # Not as safetensors: vLLM takes each such file of a folder for weights of the model.
        np.savez(folder / HEADS, weight=self.weight, bias=self.bias)

    @classmethod
    def load(cls, folder: Path, width: int) -> Heads | None:
        """What lies in a reward model's folder; None where nothing does."""
        path = folder / HEADS
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as found:
                heads = cls(np.asarray(found["weight"]), np.asarray(found["bias"]))
        except Exception as error:  # a damaged file may be anything
            raise DataError(
                f"{path}: the heads of the ensemble cannot be read ({error})"
            ) from error
        if heads.weight.shape != (len(heads.bias), width):
            raise DataError(
                f"{path}: heads of shape {heads.weight.shape} do not fit a model of width {width}: "
                "train the reward model again"
            )
        return heads


@dataclass(frozen=True, slots=True)
class _Depth:
    """The heads on the states of one depth: `weight` (1 + B, d), that fitted to all pairs first."""

    depth: int
    chosen: Chosen
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head that was fitted and put on the model: its scores, its ensemble and what is told."""

    scores: Mapping[bytes, float]
    heads: Heads | None
    summary: dict[str, Any]
    by_head: Mapping[bytes, Floats]  # (B,) the raw rewards by the heads of the ensemble

    def spread(self, one: Ids, other: Ids) -> float | None:
        """Standard deviation over the heads of P(one is better), σ of the difference of their
        rewards; None without an ensemble."""
        if self.heads is None or len(self.heads.bias) < 2:
            return None
        gap = self.by_head[sequence_key(one)] - self.by_head[sequence_key(other)]
        return float(np.std(1 / (1 + np.exp(-gap)), ddof=1))

    def scores_of(self, sequences: Mapping[bytes, Ids]) -> dict[bytes, float]:
        """The raw reward of sequences that were among those of the fit, by their names."""
        return {name: self.scores[sequence_key(ids)] for name, ids in sequences.items()}


def fit_heads(
    loaded: Loaded,
    rows: Sequence[Row],
    more: Sequence[Ids],
    heads: int,
    seed: int,
    features: Features,
    on_log: OnLog | None,
) -> Fitted:
    """Fits the head to the rows and puts it on the model, cut off behind the chosen layer.

    `features` are filled with what they lack: the states of all sequences of the rows, and of
    `more`, which are scored too.
    """
    sequences = [np.concatenate([r.prompt, c]) for r in rows for c in (r.chosen, r.rejected)]
    every = list({sequence_key(s): s for s in [*sequences, *more]}.values())
    keys, clock = [sequence_key(s) for s in every], time.perf_counter()
    folds = require_prompts(len({row.prompt_id for row in rows}))

    def told(done: int, total: int) -> None:
        if on_log is not None:
            seconds = round(time.perf_counter() - clock, 3)
            on_log({"step": done, "total_steps": total, "found": found, "seconds": seconds})

    found = sum(key in features.known for key in keys)
    cut_off(loaded, max(features.depths))  # what lies behind is not computed
    compute(loaded, every, features, told)
    reading = time.perf_counter() - clock
    fits = [_fit_depth(features, depth, rows, heads, seed, folds) for depth in features.depths]
    best = min(fits, key=lambda fit: fit.chosen.best)
    states = features.read(keys, best.depth).astype(np.float64)
    raw = states @ best.weight.T.numpy()  # (N, 1 + B)
    scores = dict(zip(keys, raw[:, 0].tolist(), strict=True))
    cut_off(loaded, best.depth)
    put_head(loaded, best.weight[0])
    _check(loaded, every, scores)
    if best.chosen.at_the_top:
        loaded.notes.append(
            f"the penalty that predicts prompts left out best is the greatest of the grid, "
            f"{best.chosen.penalty:g}: the model's states tell hardly anything of these labels"
        )
    learnt = {sequence_key(s) for s in sequences}
    trained = [i for i, key in enumerate(keys) if key in learnt]
    means = raw[trained].mean(0)
    summary = {
        "steps": 0,
        "seconds": round(time.perf_counter() - clock, 3),
        "frozen": {
            "sequences": len(every),
            "computed": len(every) - found,
            "seconds_computing": round(reading, 3),
            "depth": best.depth,
            "depths": list(features.depths),
            "penalty": best.chosen.penalty,
            "folds": folds,
            "heads": heads,
            "cross_validation": {str(fit.depth): fit.chosen.as_dict() for fit in fits},
        },
    }
    ensemble = Heads(best.weight[1:].numpy(), means[0] - means[1:]) if heads else None
    return Fitted(scores, ensemble, summary, dict(zip(keys, raw[:, 1:], strict=True)))


def _fit_depth(
    features: Features, depth: int, rows: Sequence[Row], heads: int, seed: int, folds: int
) -> _Depth:
    """The heads on the states of one depth, in the features' own units."""
    names = list(dict.fromkeys(row.prompt_id for row in rows))
    number = {name: i for i, name in enumerate(names)}
    sides = [[(r.prompt, r.chosen) for r in rows], [(r.prompt, r.rejected) for r in rows]]
    chosen, rejected = (
        torch.from_numpy(
            features.read([sequence_key(np.concatenate(both)) for both in side], depth)
        ).double()
        for side in sides
    )
    scale = torch.cat([chosen, rejected]).std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)  # one that never differs gets no weight anyhow
    x, axes = rotated((chosen - rejected) / scale)
    pairs = Pairs(
        torch.tensor([row.p for row in rows], dtype=torch.float64),
        torch.tensor([row.weight for row in rows], dtype=torch.float64),
        np.array([number[row.prompt_id] for row in rows]),
    )
    found = choose(x, pairs, folds_of(names, seed, folds))
    weight = (axes @ with_resamples(x, pairs, found.penalty, heads, seed)).T / scale
    return _Depth(depth, found, weight)


def cut_off(loaded: Loaded, depth: int) -> None:
    """Leaves a model its first `depth` layers, and says so in its config."""
    config = loaded.model.config.get_text_config()
    every = config.num_hidden_layers
    if depth == every:
        return
    layers, _ = layers_of(loaded.model)
    del layers[depth:]
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == every:  # one a layer: layer_types
            setattr(config, name, copy.copy(value[:depth]))
    config.num_hidden_layers = depth


def put_head(loaded: Loaded, weight: Tensor) -> None:
    """Gives the classifier a head of this weight (d,), in float32, and no bias."""
    head = torch.nn.Linear(len(weight), 1, bias=False, device=loaded.model.device)
    with torch.no_grad():
        head.weight.copy_(weight[None])
    loaded.model.score = head


def _check(loaded: Loaded, sequences: Sequence[Ids], scores: dict[bytes, float]) -> None:
    """TrainingError unless the model, as it will be saved, scores some sequences as was fitted."""
    from rlaif.training.forward import sequence_rewards

    some = sorted(sequences, key=len)[:: max(1, len(sequences) // 6)][:6]
    found = sequence_rewards(loaded.model, some, loaded.filler)
    wanted = np.array([scores[sequence_key(s)] for s in some])
    spread = float(np.std(list(scores.values())))
    apart = float(np.abs(found - wanted).max())
    exact = loaded.model.dtype == torch.float32
    if not apart <= (1e-3 if exact else 0.1) * max(spread, 1e-6):
        raise TrainingError(
            f"the reward model scores {apart:.2g} off what was fitted to its features, whose "
            f"spread is {spread:.2g}: this architecture cannot be read so. Use trunk: trained"
        )
