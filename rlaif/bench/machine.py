"""What a machine can do and what a run took of it: time, memory, and the rate of its arithmetic.

Loads without torch, so that a peer measured in an environment of its own is timed by this too.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MIB = 2**20
_SIZES = {"cpu": (512, 1_024, 2_048), "cuda": (4_096, 8_192, 16_384)}  # of square products
_PROC = Path("/proc")


class Clock:
    """Seconds by the wall and by the processors, since it was made.

    `seconds` is what to report: with one thread on a CPU the processors' time, which a busy
    neighbour does not change and which equals the wall's on an idle machine; otherwise the wall's.
    """

    def __init__(self, one_core: bool) -> None:
        self._one_core = one_core
        self._cpu, self._wall = processor_seconds(), time.perf_counter()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, processor_seconds() - self._cpu
        return {"seconds": cpu if self._one_core else wall, "wall_seconds": wall}


def together(steps: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What clocks read of steps, one each, as a report's fields."""
    seconds = [step["seconds"] for step in steps]
    wall = sum(step["wall_seconds"] for step in steps)
    return {"seconds": sum(seconds), "step_seconds": seconds, "wall_seconds": wall}


def processor_seconds() -> float:
    """Processor time of this process, of those it started, and of theirs, ended or alive."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    for pid in _descendants(os.getpid()):
        fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / tick  # own and ended children's, user and system
    return total


def peak_rss_mib() -> float:
    """The most memory this process held, and those it started, each at its own peak."""
    unit = 1 if sys.platform == "darwin" else 1_024
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for pid in _descendants(os.getpid()):
        for line in _read(_PROC / str(pid) / "status").splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1_024
    return total / MIB


def _descendants(pid: int) -> list[int]:
    """The living processes below one; none where the system does not tell."""
    out = []
    for task in (_PROC / str(pid) / "task").glob("*/children"):
        for child in map(int, _read(task).split()):
            out += [child, *_descendants(child)]
    return out


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended meanwhile
        return ""


def matmul_rate(device: str, dtype: str, threads: int, seconds: float = 0.25) -> float:
    """Floating-point operations a second of square matrix products: the best of several sizes, and
    of PyTorch's own products and oneDNN's, where there are both: on some processors one is twice as
    fast as the other.

    `seconds` is the time spent on each size. The ceiling of every share of the limit.
    """
    import torch

    from rlaif.engines.faster.prepacked import is_readable, product

    kind = torch.device(device).type
    best = 0.0
    for size in _SIZES.get(kind, _SIZES["cpu"]):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in "ab")
        ways = [partial(torch.mm, a, b, out=torch.empty_like(a))]
        ways += [partial(product, a, b)] if is_readable(b) else []
        until = time.perf_counter() + seconds
        while True:
            taken = min(_product_seconds(way, kind, threads) for way in ways)
            best = max(best, 2 * size**3 / taken)
            if time.perf_counter() > until:
                break
    return best


def _product_seconds(way: Callable[[], Any], kind: str, threads: int) -> float:
    """Seconds of one product, averaged over enough of them to be seen on a GPU."""
    import torch

    repeats = 10 if kind == "cuda" else 1
    clock = time.process_time if kind == "cpu" and threads == 1 else time.perf_counter
    if kind == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        way()
    if kind == "cuda":
        torch.cuda.synchronize()
    return max(clock() - start, 1e-9) / repeats


def set_threads(threads: int | None, device: str) -> int:
    """Fixes the threads of the arithmetic: one by default on a CPU. Returns how many there are."""
    import torch

    if threads is None and device != "cuda" and not torch.cuda.is_available():
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def device_name(device: str) -> str:
    """The device with its make: a GPU's name, or the processor's."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    for line in _read(_PROC / "cpuinfo").splitlines():
        if line.startswith("model name"):
            return f"{device} ({line.partition(':')[2].strip()})"
    return f"{device} ({platform.processor() or platform.machine()})"


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages, and Python's."""
    out = {"python": platform.python_version()}
    for name in packages:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
