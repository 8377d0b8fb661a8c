"""The run around a loss: Transformers' Trainer, made to resume exactly and to write plain files.

Trainer brings optimiser, schedule, mixed precision, checkpoints, DDP, FSDP and DeepSpeed. Ours are
the batches (`data.Plan`), the loss, the journal (`training.jsonl`) and the alarm. All epochs are
one sequence of micro-batches to it, so that resuming is skipping.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from rlaif.errors import ConfigError, DataError, TrainingError
from rlaif.files.small import is_file, read_bytes, read_object, remove
from rlaif.records import Preference, content_id
from rlaif.training.aside import BEFORE, bring_back, half_moved, let_go, set_aside
from rlaif.training.checkpoints import (
    CHECKPOINTS,
    JOURNAL,
    Sealing,
    check,
    last_checkpoint,
    step_of,
    steps_from,
)
from rlaif.training.data import Plan, R, plan_steps
from rlaif.training.models import Loaded, empty_copy, fill, fingerprint_of, quiet, write_json
from rlaif.training.private import one_gpu
from rlaif.training.processes import PATIENCE, rank, spread
from rlaif.training.settings import Runtime, TrainSettings
from rlaif.training.trackers import Trackers, check_trackers

# (model, micro-batch) -> losses (B,) and statistics (B,) of its pairs
PairLoss = Callable[[Any, Mapping[str, Any]], tuple[Tensor, dict[str, Tensor]]]
METRICS, REFERENCE, KEY = "metrics.json", "reference.json", "run.key"
FILES = "files.json"  # the sizes of a finished model's files


def run_loop(
    loaded: Loaded,
    rows: Sequence[R],
    elements: Sequence[Sequence[int]],
    collate: Callable[[Sequence[R], float], dict[str, Any]],
    pair_loss: PairLoss,
    settings: TrainSettings,
    arguments: TrainingArguments,
    runtime: Runtime,
) -> dict[str, Any]:
    """Trains `loaded.model` in place; returns steps, seconds and the last epoch's mean statistics.

    `elements` are the rows that must share a step, such as all pairs of a prompt. The call goes on
    from the newest checkpoint, which `prepare` has made sure is of this very run.
    """
    out = Path(arguments.output_dir).parent
    plan = make_plan(rows, elements, collate, settings, arguments)
    checkpoint = last_checkpoint(out)
    journal = Journal(out / JOURNAL, checkpoint, len(plan.steps), settings.epochs, runtime)
    empty = empty_copy(loaded.model) if spread() else None
    trainer = PairTrainer(loaded.model, arguments, plan, pair_loss, journal)
    trainer.add_callback(Sealing(out / JOURNAL))
    with closing(journal), quiet(), steps_from(checkpoint):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    loaded.model = trainer.accelerator.unwrap_model(trainer.model)
    if empty is not None:
        collect(loaded, empty, trainer)
    return journal.summary()


def make_plan(
    rows: Sequence[R],
    elements: Sequence[Sequence[int]],
    collate: Callable[[Sequence[R], float], dict[str, Any]],
    settings: TrainSettings,
    arguments: TrainingArguments,
) -> Plan[R]:
    """The micro-batches of this process, epoch after epoch, as `run_loop` goes through them."""
    parts, world = settings.gradient_accumulation, arguments.world_size
    steps = plan_steps(
        elements,
        [row.length for row in rows],
        size=settings.batch_size * parts * world,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    return Plan(rows, steps, collate, parts, world, arguments.process_index)


def collect(loaded: Loaded, empty: Any, trainer: Trainer) -> None:
    """Puts a model that was spread over processes together again, in the main process."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank() == 0:
        fill(empty, weights)
        loaded.model = empty.to(trainer.args.device)


def training_arguments(settings: TrainSettings, runtime: Runtime, out: Path) -> TrainingArguments:
    """Transformers' arguments for these settings; it also learns which process this is."""
    return one_gpu(TrainingArguments(**argument_values(settings, runtime, out)))


def argument_values(settings: TrainSettings, runtime: Runtime, out: Path) -> dict[str, Any]:
    """The arguments of every trainer that is Transformers', or TRL's, made of these settings."""
    check_trackers(runtime.log_to)
    return {
        "output_dir": str(out / CHECKPOINTS),
        "num_train_epochs": 1,  # the plan holds all epochs
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup if settings.warmup < 1 else int(settings.warmup),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": runtime.device == "cpu" or not torch.cuda.is_available(),
        "optim": "adamw_torch",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "report_to": "none",
        "ddp_timeout": PATIENCE,
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }


class PairTrainer(Trainer):  # type: ignore[misc]
    """Trainer over a `Plan`: the loss is a weighted mean over the pairs of the whole step."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        plan: Plan[Any],
        pair_loss: PairLoss,
        journal: Journal,
    ) -> None:
        # A given compute_loss_func tells every supported Trainer that the loss is already divided
        # by the whole step; ours is used by the overridden compute_loss below.
        super().__init__(
            model=model, args=arguments, train_dataset=plan, compute_loss_func=pair_loss
        )
        self.remove_callback(PrinterCallback)
        self._pair_loss = pair_loss
        self._journal = journal
        self._sums: dict[str, Tensor] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by Accelerate: the plan already holds this process's share only.
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        del return_outputs, num_items_in_batch
        weight = inputs["weight"] / inputs["total"]
        losses, statistics = self._pair_loss(model, inputs)
        loss: Tensor = (weight * losses).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} of "
                f"{self.state.max_steps}: lower the learning rate, or train in float32"
            )
        for name, values in statistics.items():
            held = self._sums.get(name, torch.zeros((), device=loss.device))
            self._sums[name] = held + (weight * values.detach().float()).sum()
        scaled: Tensor = loss * self.args.world_size  # processes average their gradients
        return scaled

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:  # Trainer's closing summary
            return
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        self._sums = {}
        entry = {**logs, **dict(zip(names, sums.tolist(), strict=True))}
        entry["grad_norm"] = float(entry.get("grad_norm", 0.0))
        self._journal.write(self.state.global_step, entry)
        super().log(entry, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        del inputs
        return 0  # its estimate walks over all parameters at every micro-batch


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


class Journal:
    """`training.jsonl`: one line a step. A resumed run goes on after the checkpoint's line.

    The main process alone writes, and tells the runtime's trackers and `on_log`.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Path | None,
        total: int,
        epochs: int,
        runtime: Runtime,
    ) -> None:
        self._path, self._total, self._epochs, self._on_log = path, total, epochs, runtime.on_log
        done = 0 if checkpoint is None else step_of(checkpoint)
        # The checkpoint's own copy is under its seal; the file may have been damaged since.
        before = path if checkpoint is None else checkpoint / JOURNAL
        self.lines = [line for line in read_journal(before) if line["step"] <= done]
        self._before = float(self.lines[-1]["seconds"]) if self.lines else 0.0
        self._start = time.perf_counter()
        self._trackers = Trackers(runtime.log_to, path.parent, _key_of(path.parent))
        if rank() == 0:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """TrainingError where the loss or the gradient is no number, before anything is saved."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise TrainingError(
                    f"the {name.replace('grad_norm', 'norm of the gradient')} is {values[name]} at "
                    f"step {step} of {self._total}: lower the learning rate, or train in float32"
                )
        if rank():
            return
        line = {
            "step": step,
            "total_steps": self._total,
            "epoch": round(step / self._total * self._epochs, 4),
            **{k: v for k, v in values.items() if k != "epoch"},
            "seconds": round(self._before + time.perf_counter() - self._start, 3),
        }
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._trackers.log(line)
        if self._on_log is not None:
            self._on_log(dict(line))

    def close(self) -> None:
        """Ends the trackers; what is in the file is there already."""
        self._trackers.close()

    def summary(self) -> dict[str, Any]:
        """Steps, seconds, and the means over the last epoch."""
        if not self.lines:
            return {"steps": 0, "seconds": 0.0}
        last = self.lines[-max(1, self._total // self._epochs) :]
        skip = {"step", "total_steps", "epoch", "seconds", "learning_rate"}
        means = {k: math.fsum(x[k] for x in last) / len(last) for k in last[0] if k not in skip}
        return {"steps": self.lines[-1]["step"], "seconds": self.lines[-1]["seconds"], **means}


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a last line cut off by a kill is left out."""
    lines = []
    if os.path.lexists(path):
        for text in read_bytes(path, DataError).decode(errors="replace").splitlines():
            try:
                lines.append(dict(json.loads(text)))
            except (ValueError, TypeError, RecursionError):
                break
    return lines


def prepare(
    out: Path, key: str, resume: bool, start: Sequence[str | None]
) -> dict[str, Any] | None:
    """Makes `out` ready for the run `key`; returns its metrics if it is already done.

    `start`: the models and adapters that training starts from. ConfigError where one of them is
    what it writes to.

    The key hashes all that decides the weights. What an earlier run with another key left behind,
    its checkpoints too, belongs to other weights and is cleared; a finished model is put aside till
    this one is finished, and comes back where its key is asked for again. The main process's key is
    that of all: what a reward function holds, such as its device, may differ between them.
    """
    for name in filter(None, start):
        written = [out.resolve(), out.resolve() / "adapter"]
        if Path(name).exists() and Path(name).resolve() in written:
            raise ConfigError(
                f"training would start from {name} and write over it: it writes to {out}. Copy the "
                "model to another folder and name that, or write to another run directory"
            )
    named = out / KEY
    if PartialState().num_processes > 1:
        keys = [key]
        broadcast_object_list(keys)
        key = keys[0]
    if not PartialState().is_main_process:
        resume = True  # the main process, which goes first, has cleared what was to be cleared
    with PartialState().main_process_first():
        out.mkdir(parents=True, exist_ok=True)
        if half_moved(out, METRICS):
            bring_back(out, METRICS)
        if resume and _key_of(out) != key and _key_of(out / BEFORE) == key:
            _back(out)
        if resume and _key_of(out) == key:
            done = read_metrics(out)
            if done and not _lost(out):
                return done
            if not done:
                if PartialState().is_main_process:
                    check(out)
                return None
        if is_file(out / METRICS):
            set_aside(out, (JOURNAL, REFERENCE, KEY, FILES, *_files_of(out)), METRICS)
        _clear(out)
        named.write_text(key + "\n", "utf-8")
    return None


def _clear(out: Path) -> None:
    """Takes away all that a training has written, but for what it put aside."""
    old = _files_of(out)
    for name in (CHECKPOINTS, "tensorboard", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (METRICS, JOURNAL, REFERENCE, KEY, FILES, *old):
        remove(out / name)


def _back(out: Path) -> None:
    _clear(out)
    bring_back(out, METRICS)


def back_if_nothing_was_learnt(out: Path) -> None:
    """After a failure: the model that was there is more than what has no checkpoint."""
    if (
        PartialState().is_main_process
        and not is_file(out / METRICS)
        and last_checkpoint(out) is None
    ):
        _back(out)


def finish(out: Path, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Writes the metrics, which marks the run as done, then drops the checkpoints.

    All processes call it, those that are not the main one with None, and get the same metrics.
    """
    if metrics is not None:
        write_json(out / FILES, {name: (out / name).stat().st_size for name in _written(out)})
        write_json(out / METRICS, metrics)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        let_go(out)
    PartialState().wait_for_everyone()
    return read_metrics(out)


def read_metrics(out: Path) -> dict[str, Any]:
    """What a finished training said of itself; empty where none is finished."""
    again = "the training"
    found = read_object(out / METRICS, again, {"steps": float, "seconds": float})
    if found and (found.get("steps") is None or found.get("seconds") is None):
        raise DataError(f"{out / METRICS}: no steps or seconds. Remove it and run {again} again")
    return dict(found)


def _written(out: Path) -> list[str]:
    """The files of a model that training has just saved."""
    mine = {METRICS, REFERENCE, KEY, FILES, JOURNAL}
    found = [p for folder in (out, out / "adapter") for p in folder.glob("*") if p.is_file()]
    return sorted(str(p.relative_to(out)) for p in found if p.name not in mine)


def _files_of(out: Path) -> dict[str, int]:
    """A finished model's files and their sizes; none of one that an older version made."""
    try:
        found = read_object(out / FILES, "the training", {str: float})
    except DataError:
        return {}
    below = (Path(name) for name in found)
    return {str(p): found[str(p)] for p in below if not p.is_absolute() and ".." not in p.parts}


def _lost(out: Path) -> bool:
    """Whether a finished model's files are no longer as they were written; warns of it."""
    for name, size in _files_of(out).items():
        path = out / name
        if not is_file(path) or path.stat().st_size != size:
            came = f"{path.stat().st_size:,}" if is_file(path) else "no file"
            warnings.warn(
                f"{path}: expected {size:,} bytes, found {came}. The model is trained anew",
                stacklevel=4,
            )
            return True
    return False


def _key_of(out: Path) -> str:
    if not is_file(out / KEY):
        return ""
    return read_bytes(out / KEY, DataError).decode(errors="replace").strip()


def run_key(
    kind: str,
    model: str,
    adapter: str | None,
    rows: Sequence[Preference],
    settings: TrainSettings,
    more: Sequence[Any],
) -> str:
    """Hash of all that decides the weights: the model's content, the labels, the settings."""
    labels = [(p.pair.id, p.pair.first, p.pair.second, p.p_first) for p in rows]
    return content_id(kind, fingerprint_of(model, adapter), labels, settings.key(), list(more))
