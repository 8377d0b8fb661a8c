"""What the processes of `accelerate launch` do together; in one process each of these does nothing.

Every process holds the whole model, and all of them must call these functions in the same order.
Sums come out the same, to the last bit, in every process, so weights that start alike stay alike.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlaif.errors import ConfigError

Item = TypeVar("Item")
PATIENCE = 24 * 3600  # seconds for which processes wait while the main one scores and writes


@atexit.register
def _leave() -> None:
    """Ends gloo's threads while Python still stands.

    Such a thread frees the tensors of the last sum; where Python is already being taken down, that
    aborts the process, and the launcher calls a finished run failed (PyTorch issue and fix, never
    merged: https://github.com/pytorch/pytorch/pull/179291). NCCL ends its own; asked to after an
    error in one process, it would wait for the others.
    """
    if world() > 1 and dist.get_backend() == "gloo":
        dist.destroy_process_group()
        gc.collect()  # DDP and FSDP hold the group, in cycles


def join(device: str) -> torch.device:
    """Joins the processes of `accelerate launch`, if there are any; returns this one's device.

    `device` is `auto`, or one to train on.
    """
    from accelerate import PartialState

    if launched() > 1:
        # Imported later, its functions' defaults would hold the group beyond `_leave`.
        import_module("torch.distributed.nn.functional")
        wait = timedelta(seconds=PATIENCE)
        # Not told that there is no GPU, Accelerate would take each process for the only one.
        cpu = device == "cpu" or not torch.accelerator.is_available()
        found: torch.device = PartialState(cpu=cpu, timeout=wait).device
        return found
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def launched() -> int:
    """How many processes the launcher starts, before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_spread() -> None:
    """ConfigError where `accelerate launch` was told to spread models over processes."""
    if spread():
        raise ConfigError(
            f"PPO cannot train a model spread by {spread()}, nor can online training: completions "
            "are sampled from the whole model in every process. Launch with "
            "configs/accelerate/multi_gpu.yaml; lora, bf16 and gradient_checkpointing save memory"
        )


def spread() -> str:
    """FSDP or DEEPSPEED, where `accelerate launch` was told to spread models by it; else ""."""
    names = ("FSDP", "DEEPSPEED")
    chosen = [n for n in names if os.environ.get(f"ACCELERATE_USE_{n}", "").lower() == "true"]
    return chosen[0] if chosen else ""


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes."""
    return dist.get_rank() if world() > 1 else 0


def wait() -> None:
    """Until all processes have come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's consecutive share; the shares in order of rank are the whole."""
    n, r, w = len(items), rank(), world()
    return items[n * r // w : n * (r + 1) // w]


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in order of rank."""
    if world() == 1:
        return list(items)
    parts: list[list[Item]] = [[] for _ in range(world())]
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the gradients; a process that had nothing to learn from counts as 0."""
    if world() == 1:
        return
    waiting = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()


def same_parameters(parameters: Iterable[nn.Parameter]) -> None:
    """Every process takes over the main one's parameters."""
    if world() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)
