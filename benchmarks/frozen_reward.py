"""How well a frozen model's states tell which response people preferred: docs/reward.md.

    python benchmarks/frozen_reward.py MODEL PAIRS FEATURES [--layers 16,17,18] [--limit N]

Each pair is held out once, by folds of prompts; within the others the penalty and the layer are
chosen by folds of their own, as `train.reward.trunk: frozen` does. The states are kept in the
folder FEATURES: a run that was stopped goes on, and another one reads nothing again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch

from rlaif.files.readers import read_pairs
from rlaif.records import Preference, content_id
from rlaif.statistics.intervals import share
from rlaif.training.data import encode_rows
from rlaif.training.features import Features, compute, depths_of, sequence_key
from rlaif.training.heads import Pairs, choose, folds_of, rotated, with_resamples
from rlaif.training.models import fingerprint_of, load_reward
from rlaif.training.reward import reward_quality

HEADS, FOLDS = 16, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("features", type=Path)
    parser.add_argument("--layers", type=lambda x: [int(k) for k in x.split(",")])
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()

    read = itertools.islice(read_pairs(asked.pairs, on_bad=lambda _: None), asked.limit)
    pairs = [p for p in {p.id: p for p in read}.values() if p.label not in (None, 0.5)]
    loaded = load_reward(asked.model)
    labels = [Preference(pair, "preferred", pair.label) for pair in pairs]
    rows, refused = encode_rows(labels, loaded.encoder, loaded.max_length)
    print(f"{len(rows):,} pairs; left out: {refused}")
    both = [[np.concatenate([r.prompt, c]) for c in (r.chosen, r.rejected)] for r in rows]
    features = Features(
        asked.features,
        content_id(fingerprint_of(asked.model), str(loaded.model.dtype)),
        depths_of(loaded.model, asked.layers),
        loaded.model.config.get_text_config().hidden_size,
    )
    compute(loaded, [s for pair in both for s in pair], features, _Progress())
    keys = [[sequence_key(pair[side]) for pair in both] for side in (0, 1)]
    states = {
        depth: torch.stack([torch.from_numpy(features.read(k, depth)).double() for k in keys])
        for depth in features.depths
    }
    p = torch.tensor([r.p for r in rows], dtype=torch.float64)
    report([r.prompt_id for r in rows], p, states)


class _Progress:
    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._said > 20:
            self._said = time.monotonic()
            print(f"{done:,} of {total:,} completions", flush=True)


def report(names: list[str], p: torch.Tensor, states: dict[int, torch.Tensor]) -> None:
    """Prints the held-out quality, and agreement by how sure the ensemble is of a margin."""
    prompts = list(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(prompts)}
    of = np.array([number[name] for name in names])
    outer = folds_of(prompts, 1, FOLDS)[of]
    margins, ensemble = np.zeros(len(names)), np.zeros((len(names), HEADS))
    for fold in range(FOLDS):
        best = None
        train = np.flatnonzero(outer != fold)
        kept, inner = np.unique(of[train], return_inverse=True)
        known = Pairs(p[train], torch.from_numpy(1 / np.bincount(inner)[inner]), inner)
        folds = folds_of([prompts[i] for i in kept], 0)
        for depth, (chosen, rejected) in states.items():
            scale = torch.cat([chosen[train], rejected[train]]).std(0, correction=0)
            x, axes = rotated((chosen - rejected)[train] / scale)
            found = choose(x, known, folds)
            if best is None or found.best < best[0]:
                weight = (axes @ with_resamples(x, known, found.penalty, HEADS, 0)).T / scale
                best = found.best, depth, found.penalty, weight
        _, depth, penalty, weight = best
        print(f"fold {fold + 1}: after layer {depth}, penalty {penalty:.3g}")
        test = outer == fold
        scores = ((states[depth][0] - states[depth][1])[test] @ weight.T).numpy()
        margins[test], ensemble[test] = scores[:, 0], scores[:, 1:]
    quality = reward_quality(margins.tolist(), p.tolist(), names)
    for name, interval in quality["intervals"].items():
        print(f"{name}: {interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]")
    right = (margins > 0).astype(float)
    sure = np.argsort(-np.abs(margins) / ensemble.std(1, ddof=1))
    for i, part in enumerate(np.array_split(sure, 4)):
        found = share(right[part], [names[k] for k in part])
        print(
            f"quarter {i + 1} by margin/spread: {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}]"
        )


if __name__ == "__main__":
    main()
