"""What TRL's trainers share here: silence; offline, rows in a fixed order and exact resuming.

Rows are tokenised before, and TRL is kept from touching them. All epochs are one sequence of rows
to TRL, so that resuming is skipping.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from rlaif.training.checkpoints import JOURNAL, Sealing, last_checkpoint, steps_from
from rlaif.training.loop import Journal, collect
from rlaif.training.models import Loaded, empty_copy, own_ends, quiet
from rlaif.training.processes import spread
from rlaif.training.settings import Runtime, TrainSettings

IN_ORDER = {"max_length": None, "train_sampling_strategy": "sequential"}  # TRL's arguments
_ALWAYS = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


@contextmanager
def sends_nothing() -> Iterator[None]:
    """Keeps TRL from telling the Hugging Face hub of every trainer it makes (model, device, GPU).

    The switch is the hub library's own, `HF_HUB_DISABLE_TELEMETRY`, which it reads when it sends;
    the variable itself would come too late where that library is loaded already.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def fit(
    make: Callable[..., Any],
    arguments: Any,
    loaded: Loaded,
    rows: Sequence[Mapping[str, Any]],
    settings: TrainSettings,
    runtime: Runtime,
    names: Mapping[str, str],
    filler: Mapping[str, Any] | None = None,
) -> Journal:
    """Trains `loaded.model` in place by the trainer that `make` makes of TRL's usual arguments.

    `names` are the statistics that the journal takes, ours by TRL's. The call goes on from the
    newest checkpoint. `filler` is a row of which nothing is learnt, to fill up the last batches of
    several processes; without one Accelerate fills them with the first rows once more.
    """
    out = Path(arguments.output_dir).parent
    random = np.random.default_rng(settings.seed)
    order = [i for _ in range(settings.epochs) for i in random.permutation(len(rows)).tolist()]
    size = settings.batch_size * settings.gradient_accumulation * arguments.world_size
    table = [dict(rows[i]) for i in order]
    if filler is not None and arguments.world_size > 1:
        together = settings.batch_size * arguments.world_size
        table += [dict(filler)] * (-len(table) % together)
    total, checkpoint = math.ceil(len(order) / size), last_checkpoint(out)
    journal = Journal(out / JOURNAL, checkpoint, total, settings.epochs, runtime)
    tokenizer = copy.deepcopy(loaded.tokenizer)  # TRL changes it
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = loaded.filler
    empty = empty_copy(loaded.model) if spread() else None
    with warnings.catch_warnings(), quiet(), sends_nothing(), closing(journal), own_ends(loaded):
        warnings.simplefilter("ignore")
        trainer = make(
            model=loaded.model,
            args=arguments,
            train_dataset=Dataset.from_list(table),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Writer(journal, {**_ALWAYS, **names}))
        trainer.add_callback(Sealing(out / JOURNAL))
        with steps_from(checkpoint):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        loaded.model = trainer.accelerator.unwrap_model(trainer.model)
        if empty is not None:
            collect(loaded, empty, trainer)
    return journal


class _Writer(TrainerCallback):  # type: ignore[misc]
    """Writes the journal."""

    def __init__(self, journal: Journal, names: Mapping[str, str]) -> None:
        self._journal = journal
        self._names = names

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        del args, control
        if not logs or "loss" not in logs:  # Trainer's closing summary
            return
        found = {ours: float(logs[name]) for name, ours in self._names.items() if name in logs}
        self._journal.write(state.global_step, found)
