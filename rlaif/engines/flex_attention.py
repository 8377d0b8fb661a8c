"""The trie's attention as one call a layer, by PyTorch's FlexAttention: made for CUDA, where the
dense pieces of `attention` are many small kernels, and never run there yet.

The keys are those of the path to the pack, then those of its tokens, in depth-first order. So each
key is seen by one stretch of queries: a token by itself and all below it, one of the path until the
pack leaves its subtree. Windows and chunks hide what lies too high up. Both are said by four rows
of numbers, from which the blocks of 128 keys by 128 queries follow that are computed, skipped, or
looked into score by score.

On CUDA the call is compiled, once for each shape of heads, type, scale and soft-cap: all lengths
are rounded up to whole blocks, and dynamic. On a CPU it is not compiled, and holds every
score: that is for tests. Uses what torch 2.11 and 2.13 share.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from rlaif.engines.attention import KeptPath, Pass, Reach
from rlaif.engines.trie import Ints, Plan
from rlaif.errors import ConfigError, EngineError

BLOCK = 128  # queries and keys of a block of the mask
_LEAST_BLOCKS = 2  # torch.compile makes a kernel of its own for a size of 1
_WIDTH = 16  # head sizes are padded to a multiple of it: the least that the kernel takes
_SYMBOLS: Any = importlib.import_module("torch.fx.experimental._config")
_KERNELS = 64  # that are made before torch.compile gives up; a jury's models need some each


def check_usable(device: str) -> None:
    """ConfigError, naming why, if FlexAttention cannot be had here."""
    kind = torch.device(device).type
    if kind not in ("cuda", "cpu"):
        raise ConfigError(
            f"attention: flex runs on CUDA (and slowly, for tests, on a CPU), not on {kind}. "
            "Take attention: pieces"
        )
    try:
        _functions()
    except ImportError as error:
        raise ConfigError(
            f"attention: flex needs a newer torch than {torch.__version__} ({error}). "
            "Take attention: pieces"
        ) from error
    if kind == "cuda":
        try:
            importlib.import_module("triton")
        except ImportError as error:
            raise ConfigError(
                f"attention: flex is compiled by Triton, which cannot be imported ({error}). "
                "Install it, or take attention: pieces"
            ) from error


def stops(depths: Ints) -> Ints:
    """Where the queries end that see each key, for a pack of tokens at `depths` (N,) → (D + N,).

    The first D = depths[0] keys are those of the path. In depth-first order a subtree ends at the
    next token that stands no deeper than its root.
    """
    before, size = int(depths[0]), len(depths)
    found = np.full(before + size, size, np.int64)
    edges = np.flatnonzero(np.diff(depths) != 1) + 1
    begins, ends = [0, *edges.tolist()], [*edges.tolist(), size]
    way = np.arange(before)  # the key at each depth on the way down to here
    for a, b in zip(begins, ends, strict=True):
        depth = int(depths[a])
        found[way[depth:]] = a
        way = np.concatenate([way[:depth], np.arange(before + a, before + b)])
    return found


class FlexPass(Pass):
    """The attention of one forward pass, a call of FlexAttention for each layer."""

    def __init__(self, plan: Plan, kept: KeptPath, depths: Ints, device: torch.device) -> None:
        super().__init__(plan, kept, depths, device)
        self._masks: dict[Reach | None, Any] = {}

    def _add(
        self,
        total: Any,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None,
        reach: Reach | None,
    ) -> None:
        size, heads, width = q.shape[2], q.shape[1], v.shape[3]
        before = int(self._depths[0])
        if before:
            past = self.kept.read(layer, before)
            k, v = (torch.cat(x, 2) for x in ((past[0], k), (past[1], v)))
        out, lse = _call(
            *(_in_blocks(x) for x in (q, k, v)),
            _capped(softcap) if softcap is not None else None,
            self._mask_of(reach),
            scale,
            heads != k.shape[1],
        )
        total.add(0, size, out[:, :, :size, :width].float(), lse[:, :, :size].float())

    def _mask_of(self, reach: Reach | None) -> Any:
        """The block mask of layers of this reach: made once a pass."""
        first = self._first(reach)
        key = None if first is None else reach
        if key not in self._masks:
            self._masks[key] = block_mask(self._depths, first, self.device)
        return self._masks[key]


def block_mask(depths: Ints, first: Ints | None, device: torch.device) -> Any:
    """FlexAttention's mask for a pack of tokens at `depths` (N,), its lengths in whole blocks.

    `first` (N,): the lowest depth that each token sees; None if all see all that is above them.
    Queries of the padding see nothing, and its keys are seen by none.
    """
    before, size = int(depths[0]), len(depths)
    queries, keys = _rounded(size), _rounded(before + size)
    rows = np.zeros((4, keys), np.int32)
    rows[0, before : before + size] = np.arange(size)
    rows[1, : before + size] = stops(depths)
    rows[2, : before + size] = np.concatenate([np.arange(before), depths])
    if first is not None:
        rows[3, :size] = first
    begin, stop, depth, lowest = torch.from_numpy(rows).to(device)
    lowest = lowest[:queries].contiguous()

    def sees(_b: Any, _h: Any, i: Any, j: Any) -> Any:  # query i, key j
        return (begin[j] <= i) & (i < stop[j]) & (lowest[i] <= depth[j])

    # Of each block of queries and each key: whether some of them may see it, and whether all do.
    at = torch.arange(0, queries, BLOCK, device=device)[:, None]
    low, high = lowest.view(-1, BLOCK).aminmax(dim=1)
    some = (begin < at + BLOCK) & (stop > at) & (low[:, None] <= depth)
    every = (begin <= at) & (stop >= at + BLOCK) & (high[:, None] <= depth)
    whole = every.view(len(at), -1, BLOCK).all(-1)
    partly = some.view(len(at), -1, BLOCK).any(-1) & ~whole
    mask, _, _ = _functions()
    return mask.from_kv_blocks(
        *_listed(partly),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(queries, keys),
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks (Q, K) are meant, as counts (1, 1, Q) and indices (1, 1, Q, K), these first."""
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


def _rounded(size: int) -> int:
    return max(_LEAST_BLOCKS, -(-size // BLOCK)) * BLOCK


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """(1, H, n, D) with zeros behind, to whole blocks and a head size that kernels take."""
    more = (0, -x.shape[3] % _WIDTH, 0, _rounded(x.shape[2]) - x.shape[2])
    return torch.nn.functional.pad(x, more) if any(more) else x.contiguous()


@functools.cache
def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def score(value: torch.Tensor, _b: Any, _h: Any, _i: Any, _j: Any) -> torch.Tensor:
        return torch.tanh(value / softcap) * softcap

    return score


# ---- the call


def _functions() -> tuple[Any, Any, Any]:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    return BlockMask, AuxRequest, flex_attention


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: Callable[..., torch.Tensor] | None,
    mask: Any,
    scale: float,
    grouped: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _, request, flex_attention = _functions()
    out, more = flex_attention(
        q,
        k,
        v,
        score_mod=score,
        block_mask=mask,
        scale=scale,
        enable_gqa=grouped,
        return_aux=request(lse=True),
    )
    return out, more.lse


def _call(q: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of `_attention`."""
    if q.device.type == "cpu":
        with _uncompiled():
            return _attention(q, *rest)
    return _compiled(q, *rest)


def _compiled(
    q: torch.Tensor, *rest: Any, backend: Any = "inductor"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by a compiled kernel; EngineError, naming why, where there can be none."""
    with contextlib.ExitStack() as stack:
        # Scale and soft-cap are constants of a kernel; equal sizes are equal by chance.
        limits: dict[str, Any] = {"specialize_float": True, "recompile_limit": _KERNELS}
        stack.enter_context(torch._dynamo.config.patch(**limits))
        stack.enter_context(_SYMBOLS.patch(use_duck_shape=False))
        try:
            return _kernel(backend)(q, *rest)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"attention: flex cannot be used for {q.dtype} heads of {q.shape[3]} on "
                f"{q.device}: {type(error).__name__}: {_briefly(error)}. "
                "Take attention: pieces"
            ) from error


@functools.cache
def _kernel(backend: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    # Whole, or else an error: what is not compiled would hold every score of 32,768 tokens.
    return torch.compile(_attention, dynamic=True, fullgraph=True, backend=backend)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """FlexAttention as it is written, without its warning that this is slow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        with torch.compiler.set_stance("force_eager"):
            yield


def _briefly(error: Exception) -> str:
    """What a compiler's error says first: which step failed, and how."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return " ".join(lines[:2]) or "it said nothing"
