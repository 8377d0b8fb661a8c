"""Recurrent layers of Transformers over a pack of the token trie: no packing, the tree is walked.

All but two things in a recurrent layer treat tokens alike: a short causal convolution, which reads
the few tokens before, and a scan, which carries a state. Models call both by name, as functions of
their own file, and while a pass over a pack runs, others stand in their place. The convolution
reads the tokens before on each token's own path. The scan is done run by run, by the function that
was there: first the runs at the top, then together those that go on from them, each from the state
that the run above it left.

So every distinct token is computed once, in projections as large as the pack. A batch of runs is
padded to its longest within the scan alone, by steps that change no state.

Simplified away: convolutions and scans by other names, as MiniMax, Zaya, RecurrentGemma and xLSTM
have them. The trial of `PackedModel.check` finds them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad, silu, softplus

from rlaif.engines.trie import Walk

Key = tuple[str, int]  # the n-th convolution or scan of a forward pass
States = dict[int, torch.Tensor]  # by depth
# Some runs of a step (tensors (B, L, …)), the states that they go on from, and whether those that
# they leave are wanted → what they give (B, L, …), and the states.
Compute = Callable[[list[torch.Tensor], torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]
_MARKS = 8  # depths whose states are kept between calls
_LEAST = 16  # tokens: the smallest chunk that the scans' kernels take
_NEVER = -1e4  # softplus(_NEVER) is 0
_now = threading.local()  # the pass that is running in this thread
_lock = threading.Lock()
_in_place: dict[tuple[str, str], tuple[int, Any]] = {}  # how many passes use it, what was there


class KeptStates:
    """States on the kept path: what each convolution and scan goes on from, by depth in tokens.

    They last while later packs branch off there; those at the marks also between calls.
    """

    def __init__(self) -> None:
        self._marks: list[int] = []
        self._met = 0  # where the newest call left the path of the one before
        self._states: dict[Key, States] = {}

    def read(self, key: Key, depth: int) -> torch.Tensor:
        """The state (1, …) after the first `depth` tokens of the path."""
        return self._states[key][depth]

    def replace(self, new: dict[Key, States], stay: Sequence[int]) -> None:
        """Keeps new states beside the old ones at `stay` and at the marks, and drops the others."""
        depths = {*stay, *self._marks}
        for key, states in new.items():
            old = self._states.get(key, {})
            self._states[key] = {d: old[d] for d in depths if d in old} | states

    def mark(self, depth: int) -> None:
        """Keeps the states at a depth for later calls. Of too many, every other one goes.

        The one where calls have parted before stays: the next call will most likely part there too.
        """
        if depth not in self._marks:
            self._marks.append(depth)
        if len(self._marks) > _MARKS:
            self._marks = [m for i, m in enumerate(self._marks) if i % 2 or m == self._met]

    def resume(self, depth: int) -> int:
        """The deepest mark within the first `depth` tokens, 0 if there is none.

        Marks below it are forgotten.
        """
        self._met = depth
        self._marks = [mark for mark in self._marks if mark <= depth]
        return max(self._marks, default=0)


class Recurrence:
    """The convolutions and scans of a model, found by their names; none in most models."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.kept = KeptStates()
        files = [sys.modules[name] for name in {type(m).__module__ for m in model.modules()}]
        self._places = [(f, name) for f in files for name in _INSTEAD if name in vars(f)]
        self._shifts = [m for m in model.modules() if _is_shift(m)]

    def __bool__(self) -> bool:
        return bool(self._places)

    @contextlib.contextmanager
    def walking(self, plan: Walk, device: torch.device) -> Iterator[None]:
        """The model's recurrent layers walk the plan while inside; then its states are kept.

        Not where the pass fails: one that is out of memory is run again.
        """
        run = _Pass(plan, self.kept, device)
        with contextlib.ExitStack() as stack:
            for file, name in self._places:
                stack.enter_context(_replaced(file, name))
            for module in self._shifts:
                module.forward = partial(_shift, run)
                stack.callback(delattr, module, "forward")  # the class's own shows again
            _now.run = run
            stack.callback(setattr, _now, "run", None)
            yield
        self.kept.replace(run.new, plan.stay)


@contextlib.contextmanager
def _replaced(file: ModuleType, name: str) -> Iterator[None]:
    """A function of a file asks for the pass of its thread while any thread is inside."""
    key = (file.__name__, name)
    with _lock:
        users, before = _in_place.get(key, (0, getattr(file, name)))
        _in_place[key] = (users + 1, before)
        if not users:
            setattr(file, name, _switch(before, _INSTEAD[name]))
    try:
        yield
    finally:
        with _lock:
            users, before = _in_place.pop(key)
            if users > 1:
                _in_place[key] = (users - 1, before)
            else:
                setattr(file, name, before)


def _switch(before: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before)
    def switch(*args: Any, **kwargs: Any) -> Any:
        run = getattr(_now, "run", None)
        return before(*args, **kwargs) if run is None else instead(run, before, *args, **kwargs)

    return switch


class _Pass:
    """The recurrent layers of one forward pass."""

    def __init__(self, plan: Walk, kept: KeptStates, device: torch.device) -> None:
        self.plan = plan
        self.new: dict[Key, States] = {}
        self._kept, self._device = kept, device
        self._counts: dict[str, int] = {}
        self._windows: dict[int, tuple[torch.Tensor, ...]] = {}
        self._steps = [
            (
                torch.from_numpy(step.gather).to(device),
                torch.from_numpy(step.real).to(device),
                step.source.tolist(),
                None if step.target is None else step.target.tolist(),
            )
            for step in plan.steps
        ]

    def _key(self, kind: str) -> Key:
        """The name of what is computed now: a model's layers are always in the same order."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return kind, self._counts[kind]

    # ---- convolutions

    def convolve(
        self, x: torch.Tensor, width: int, convolution: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """A causal convolution of some width over x (1, C, N), each token with its own path.

        `convolution`: (B, C, L) → (B, C, L), by rows.
        """
        key = self._key("convolution")
        blank = x.new_zeros(1, x.shape[1], width - 1)
        starts = [self._kept.read(key, depth) if depth else blank for depth in self.plan.starts]
        row = torch.cat([*starts, x], -1)[0]  # (C, M)
        tokens, windows, last = self._neighbours(width)
        out = convolution(x)
        # Right but for the first tokens of a run: those follow others than stand before them.
        turned = convolution(row[:, windows].transpose(0, 1).contiguous())[..., -1]  # (F, C)
        out[0, :, tokens] = turned.T
        ends = row[:, last]  # (C, K, width - 1)
        self.new[key] = {
            depth: ends[None, :, i].clone() for i, (depth, *_) in enumerate(self.plan.keep)
        }
        return out

    def _neighbours(self, width: int) -> tuple[torch.Tensor, ...]:
        """Where tokens at turns find those before them, in a row of the starts and the pack.

        The row has `width - 1` inputs of each start, then one for each token. Gives the F tokens
        whose windows are not the last inputs before them, (F,), their windows (F, width), and
        those that are to be kept (K, width - 1).
        """
        if width not in self._windows:
            before, offset = self.plan.previous, (width - 1) * len(self.plan.starts)
            previous = np.arange(-1, offset + len(before) - 1)
            outside = (width - 1) * -before - 1
            previous[offset:] = np.where(before < 0, outside, before + offset)
            way = [np.arange(offset, len(previous))]
            for _ in range(width - 1):
                way.append(previous[way[-1]])
            windows = np.stack(way[::-1], 1)  # (N, width)
            straight = np.arange(len(before))[:, None] + np.arange(offset - width + 1, offset + 1)
            tokens = np.flatnonzero((windows != straight).any(1) | (straight < offset).any(1))
            ends = np.array([end for *_, end in self.plan.keep], np.int64)
            found = (tokens, windows[tokens], windows[ends, 1:])
            self._windows[width] = tuple(torch.from_numpy(x).to(self._device) for x in found)
        return self._windows[width]

    # ---- scans

    def scan(
        self,
        inputs: Sequence[tuple[torch.Tensor, float | None]],
        blank: torch.Tensor,
        compute: Compute,
        alone: bool = False,
    ) -> torch.Tensor:
        """A scan over inputs (N, …) from the states of the plan, as (N, …).

        Beside each input, what stands for it in padding, None where that does not matter. `blank`:
        (1, …) the state before the first token. `alone`: padding cannot be kept out of the states.
        """
        key = self._key("scan")
        states = [self._kept.read(key, depth) if depth else blank for depth in self.plan.starts]
        states += [blank] * (self.plan.slots - len(states))
        out: torch.Tensor | None = None
        for gather, real, source, target in self._steps:
            single = alone and target is not None
            for part in [slice(i, i + 1) for i in range(len(source))] if single else [slice(None)]:
                width = int(real[part].sum(1).max())
                where, valid = gather[part, :width], real[part, :width]
                rows = [_filled(x[where], valid, fill) for x, fill in inputs]
                initial = torch.cat([states[i] for i in source[part]])
                made, final = compute(rows, initial, target is not None)
                if out is None:
                    out = made.new_empty(len(self.plan.previous), *made.shape[2:])
                out[where[valid]] = made[valid]
                for i, slot in enumerate(target[part] if target else ()):
                    states[slot] = final[i : i + 1]
        self.new[key] = {depth: states[slot].clone() for depth, slot, _ in self.plan.keep}
        assert out is not None
        return out


def _filled(rows: torch.Tensor, real: torch.Tensor, fill: float | None) -> torch.Tensor:
    """Rows (B, L, …) with something else where they are padded."""
    if fill is None:
        return rows
    return rows.masked_fill(~real.reshape(*real.shape, *[1] * (rows.dim() - 2)), fill)


def _chunk(length: int, most: int) -> int:
    """The chunk for runs of a length: the next power of two, so that little of it is empty."""
    return min(most, max(_LEAST, 1 << (length - 1).bit_length()))


# ---- what stands in place of the functions of a model's file: the pass, what was there, arguments


def _convolution(
    run: _Pass,
    before: Callable[..., Any],
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    """A depthwise causal convolution of (1, C, N) with (C, width)."""
    how = partial(before, weight=weight, bias=bias, activation=activation)
    return run.convolve(hidden_states, weight.shape[-1], how)


def _delta_rule(
    run: _Pass,
    before: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The gated delta rule of Qwen3-Next and its kin, and Kimi's, whose decay has channels.

    Queries and keys (1, N, H, K), values (1, N, H, V); without decay (g = 0) and without a step
    (beta = 0) a state (1, H, K, V) stays what it is.
    """
    for name in ("initial_state", "output_final_state", "cu_seqlens"):
        kwargs.pop(name, None)
    blank = value.new_zeros(1, value.shape[2], key.shape[3], value.shape[3], dtype=torch.float32)

    def compute(
        rows: list[torch.Tensor], initial: torch.Tensor, wanted: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, decay, step = rows
        found: tuple[torch.Tensor, torch.Tensor] = before(
            q,
            k,
            v,
            g=decay,
            beta=step,
            chunk_size=_chunk(q.shape[1], chunk_size),
            initial_state=initial,
            output_final_state=wanted,
            **kwargs,
        )
        return found

    inputs = ((query, None), (key, None), (value, None), (g, 0.0), (beta, 0.0))
    return run.scan([(x[0], fill) for x, fill in inputs], blank, compute)[None], None


def _chunk_scan(
    run: _Pass,
    before: Callable[..., Any],
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    **kwargs: Any,
) -> torch.Tensor:
    """The scan of Mamba 2: inputs (1, N, H, P), steps (1, N, H), B and C (1, N, G, S).

    A state (1, H, P, S) stays what it is where the step is 0, if so small a one is let pass.
    """
    for name in ("initial_states", "return_final_states"):
        kwargs.pop(name, None)
    dt_limit = kwargs.pop("dt_limit", (0.0, float("inf")))
    blank = hidden_states.new_zeros(1, *hidden_states.shape[2:], B.shape[-1], dtype=torch.float32)

    def compute(
        rows: list[torch.Tensor], initial: torch.Tensor, wanted: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, step, b, c = rows
        found = before(
            x,
            step,
            A,
            b,
            c,
            chunk_size=_chunk(x.shape[1], chunk_size),
            dt_limit=dt_limit,
            initial_states=initial,
            return_final_states=wanted,
            **kwargs,
        )
        return found if wanted else (found, initial)

    small = _NEVER if kwargs.get("dt_softplus") else 0.0
    inputs = ((hidden_states, None), (dt, small), (B, 0.0), (C, None))
    rows = [(x[0], fill) for x, fill in inputs]
    return run.scan(rows, blank, compute, alone=dt_limit[0] > 0)[None]


def _selective_scan(
    run: _Pass,
    _: Callable[..., Any],
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *places: Any,
    **names: Any,
) -> torch.Tensor:
    """The scan of Mamba: inputs and steps (1, D, N), A (D, S), B and C (1, S, N).

    Neither Transformers' nor the kernel's begins at a given state, so this is one of our own. In
    eq. 2 of the paper (Gu and Dao 2023): h = exp(dt·A) h + dt·B x, y = C h.
    """
    # as the kernel takes them, by their place or by name
    more = dict(zip(("D", "z", "delta_bias", "delta_softplus"), places, strict=False)) | names
    D, z, bias = (more.get(name) for name in ("D", "z", "delta_bias"))
    if bias is not None:
        dt = dt + bias.to(dt.dtype)[:, None]
    if more.get("delta_softplus"):
        dt = softplus(dt)

    def compute(
        rows: list[torch.Tensor], state: torch.Tensor, _: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, step, b, c = rows
        out = []
        for t in range(x.shape[1]):
            grown = (step[:, t, :, None] * b[:, t, None].float()) * x[:, t, :, None].float()
            state = torch.exp(A * step[:, t, :, None]) * state + grown  # (B, D, S)
            out.append((state.to(x.dtype) @ c[:, t, :, None])[..., 0])
        return torch.stack(out, 1), state

    blank = A.new_zeros(1, *A.shape, dtype=torch.float32)
    inputs = ((hidden_states, None), (dt, 0.0), (B, None), (C, None))
    scanned = run.scan([(x[0].T, fill) for x, fill in inputs], blank, compute).T[None]
    if D is not None:
        scanned = scanned + hidden_states * D[:, None]
    return scanned if z is None else scanned * silu(z)


def _rwkv(
    run: _Pass,
    before: Callable[..., Any],
    time_decay: torch.Tensor,
    time_first: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The scan of RWKV 4 over keys and values (1, N, D).

    A state (1, 3, D) holds a numerator and a denominator, and the exponent that both lack. It
    fades with every token, so that there is none by which to pad.
    """
    blank = key.new_zeros(1, 3, key.shape[-1], dtype=torch.float32)
    blank[:, 2] = -1e38

    def compute(
        rows: list[torch.Tensor], initial: torch.Tensor, _: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = list(initial.unbind(1))
        out, state = before(time_decay, time_first, *rows, state=state, return_state=True)
        return out, torch.stack(list(state), 1)

    return run.scan([(key[0], None), (value[0], None)], blank, compute, alone=True)[None], None


def _is_shift(module: torch.nn.Module) -> bool:
    """Whether a layer gives each token what the token before it has, as RWKV's does."""
    return isinstance(module, torch.nn.ZeroPad2d) and module.padding == (0, 0, 1, -1)


def _shift(run: _Pass, x: torch.Tensor) -> torch.Tensor:
    """What the token before has, for (1, N, D)."""
    return run.convolve(x.mT, 2, lambda rows: pad(rows, (1, -1))).mT


_INSTEAD: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _chunk_scan,
    "mamba_selective_scan": _selective_scan,
    "rwkv_linear_attention": _rwkv,
}
