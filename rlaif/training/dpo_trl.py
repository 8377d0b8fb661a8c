"""The losses of TRL's DPO trainer that rlaif has none of its own for. They take hard labels only.

Rows, checkpoints and journal are those of `train_dpo`; TRL computes the loss, its gradient, and the
reference's log-probabilities, the latter in the batches of the first epoch: what another forward
pass says is not the same number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from rlaif.errors import ConfigError
from rlaif.records import Preference
from rlaif.training.by_trl import IN_ORDER, fit
from rlaif.training.checkpoints import keep_reference, kept_reference
from rlaif.training.data import Row, row_key
from rlaif.training.loop import REFERENCE, Journal, argument_values
from rlaif.training.models import Loaded
from rlaif.training.private import on_trl, one_gpu
from rlaif.training.settings import DPOSettings, Runtime

_STATISTICS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}


def check_hard(preferences: Sequence[Preference], loss: str) -> None:
    """ConfigError if any label is soft: TRL's losses would take it for certain."""
    soft = [p for p in preferences if p.p_chosen < 1]
    if soft:
        raise ConfigError(
            f"the loss '{loss}' takes hard labels only, and {len(soft):,} of {len(preferences):,} "
            f"have a soft one (pair {soft[0].pair.id}: {soft[0].p_chosen:.3f}). Harden them, which "
            "asks no model (`rlaif label --set preferences.soft=false`), or take a loss of rlaif's "
            "own"
        )


def fit_dpo(
    loaded: Loaded,
    rows: Sequence[Row],
    settings: DPOSettings,
    runtime: Runtime,
    out: Path,
) -> Journal:
    """Trains `loaded.model` in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = one_gpu(
            DPOConfig(
                **argument_values(settings, runtime, out),
                **IN_ORDER,
                loss_type=[settings.loss],
                beta=settings.beta,
                label_smoothing=settings.label_noise,  # 0 where the loss takes none
                precompute_ref_log_probs=True,
            )
        )
    table = [
        {
            "prompt_ids": row.prompt.tolist(),
            "chosen_ids": row.chosen.tolist(),
            "rejected_ids": row.rejected.tolist(),
            "key": row_key(row),
        }
        for row in rows
    ]
    make = partial(_Ready, epoch=len(rows), reference=out / REFERENCE)
    return fit(make, arguments, loaded, table, settings, runtime, _STATISTICS)


@on_trl("_prepare_dataset", "_precompute_ref_logps")
class _Ready(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are tokenised; `epoch` of them are one pass over all.

    `reference` is the file of the reference's log-probabilities, written at the first start.
    """

    def __init__(self, *, epoch: int, reference: Path, **given: Any) -> None:
        self._epoch, self._reference = epoch, reference
        super().__init__(**given)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        del name
        known = kept_reference(self._reference)
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if not known:
            found = self._first_epoch(dataset.select(range(self._epoch)), batch_size)
            if self.accelerator.is_main_process:
                keep_reference(self._reference, found)
            self.accelerator.wait_for_everyone()
            known = kept_reference(self._reference)
        both = np.array([known[key] for key in dataset["key"]])
        dataset = dataset.remove_columns("key").add_column("ref_chosen_logps", both[:, 0])
        return dataset.add_column("ref_rejected_logps", both[:, 1])

    def _first_epoch(self, dataset: Dataset, batch_size: int) -> dict[str, list[float]]:
        """log π_ref of chosen and rejected, in the batches that training will see."""
        loader = DataLoader(
            dataset.remove_columns("key"), batch_size=batch_size, collate_fn=self.data_collator
        )
        found: list[list[float]] = []
        for batch in self.accelerator.prepare(loader):
            both = torch.stack(self.compute_ref_log_probs(self.model, batch), 1)
            found += self.accelerator.gather_for_metrics(both).tolist()
        return dict(zip(dataset["key"], found, strict=True))
