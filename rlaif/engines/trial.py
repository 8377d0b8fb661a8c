"""What a trial of a faster way through a model needs: small requests, and a measure of rounding.

The measure is the model itself: how far two plain passes of different shapes lie apart. In bfloat16
that is too coarse for small faults (a position one off moves a freshly initialised model by half
its rounding), so a trial runs in float32 as well, where rounding is some thousand times smaller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from rlaif.engines.trie import Ints

# Packed passes of six models lay 0.3 to 1.4 times their rounding from plain ones; in float32 wrong
# keys, masks and positions 600 times and more.
TIMES_ITS_NOISE = 3.0
# In halves, after the trial in float32 has found the small faults: up to 3.5 was measured, where
# rounding tips the choice of experts.
TIMES_ITS_ERROR = 10.0
LOOKS_AHEAD = "depend on the padding behind"
TRIAL_WINDOW = 7  # shorter than the trial's paths and trunks
COPY_LIMIT = 8 << 30  # bytes of weights that are held in float32 for a trial
HALVES = (torch.bfloat16, torch.float16)
# Lengths at which a model's attention changes, beyond the reach of small requests.
_LENGTHS = ("sliding_window", "attention_chunk_size", "floor_scale")


def trial_paths(vocabulary: int) -> list[Ints]:
    """Random requests that share what those of a judge share, small."""
    draw = np.random.default_rng(0)

    def run(n: int) -> Ints:
        return draw.integers(0, vocabulary, n)

    prefix, pair = run(5), run(7)
    stems = [np.concatenate([prefix, pair, run(4)]), np.concatenate([prefix, pair, run(2)]), prefix]
    return [np.concatenate([stem, run(n)]) for stem in stems for n in (0, 3, 1, 6)]


def difference(
    plain: torch.Tensor,
    other: torch.Tensor,
    packed: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> str:
    """What to say if values (R, V) found in a faster way differ from plain ones by more than
    rounding. `dtype`: that of the numbers that they were computed of, if it is not theirs.

    How much rounding is, the model tells itself: by `other`, the same paths in a plain pass of
    another shape. Root mean squares, of all and of each path, are compared, as single values have
    long tails. A pass that agrees with itself to the last bit has the rounding of its numbers, on
    the scale of how far the paths lie apart. What is of that scale itself is no rounding: such a
    model looks ahead, at its padding.
    """
    fine, most = (2**-7, 0.5) if (dtype or plain.dtype) in HALVES else (2e-6, 0.01)
    plain, other, packed = plain.float(), other.float(), packed.float()
    if not plain.isfinite().all():
        return "" if not packed.isfinite().all() else "its plain passes are not finite"
    error, noise, apart = (
        _spread(packed - plain),
        _spread(other - plain),
        _spread(plain.diff(dim=0)),
    )
    for found, rounding, scale in zip(error, noise, apart, strict=True):
        if rounding > most * scale:
            return f"{LOOKS_AHEAD}: two plain ones lie {rounding:.2g} apart"
        if not found <= TIMES_ITS_NOISE * max(rounding, fine * scale):
            return f"differ by {found:.2g} on a trial, two plain passes by {rounding:.2g}"
    return ""


def no_less_exact(exact: torch.Tensor, plain: torch.Tensor, packed: torch.Tensor) -> str:
    """What to say if values (R, V) in halves are farther from exact ones than plain ones are.

    Of the paths' errors the medians are compared: where experts are chosen, a choice that rounding
    tips makes any path's error great. What is wrong in one path only is for the trial in float32.
    """
    far = [
        float((x.float() - exact).double().pow(2).mean(-1).sqrt().median()) for x in (packed, plain)
    ]
    least = 2**-8 * float(exact.diff(dim=0).double().pow(2).mean().sqrt())
    if far[0] <= TIMES_ITS_ERROR * max(far[1], least):
        return ""
    return f"differ by {far[0]:.2g} from exact ones on a trial, plain ones by {far[1]:.2g}"


def _spread(x: torch.Tensor) -> tuple[float, float]:
    """The root mean square of values (R, V), and the greatest of a row's."""
    rows = x.double().pow(2).mean(-1)
    return float(rows.mean().sqrt()), float(rows.max().sqrt())


@contextlib.contextmanager
def narrowed(model: Any, size: int | None) -> Iterator[None]:
    """Gives all sliding windows and chunks of a model, wherever they are said, another size."""
    parts = {id(p): p for m in model.modules() for p in (m, getattr(m, "config", None))}
    said = [
        (part, name, getattr(part, name))
        for part in parts.values()
        for name in _LENGTHS
        if type(getattr(part, name, None)) in (int, float)
    ]
    try:
        for part, name, _ in said if size is not None else ():
            setattr(part, name, size)
        yield
    finally:
        for part, name, old in said:
            setattr(part, name, old)


# ---- in float32


@contextlib.contextmanager
def bare(model: Any) -> Iterator[list[torch.Tensor]]:
    """A model's logits are what goes into its head while inside; yields its weights in halves.

    Where these would take too much memory in float32, all layers but one of each kind do nothing;
    empty if that is too much too, or there are none.
    """
    weights = _halves(model)
    idle: list[Any] = []
    if _size(weights) > COPY_LIMIT:
        idle = _of_known_kind(_layers(model.get_decoder()))
        skipped = {id(x) for layer in idle for x in (*layer.parameters(), *layer.buffers())}
        weights = [x for x in weights if id(x) not in skipped]
    head = model.get_output_embeddings()
    with _doing_nothing(model, idle):
        head.forward = lambda hidden: hidden
        try:
            yield weights if _size(weights) <= COPY_LIMIT else []
        finally:
            del head.forward


@contextlib.contextmanager
def in_float32(model: Any, weights: list[torch.Tensor]) -> Iterator[None]:
    """A bare model of halves computes in float32 while inside.

    Embeddings stay as they are, as looking something up rounds nothing; what they give is widened.
    """
    before = [x.data for x in weights]
    hooks = [m.register_forward_hook(lambda _, __, out: out.float()) for m in _tables(model)]
    try:
        for x in weights:
            x.data = x.data.float()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for x, old in zip(weights, before, strict=True):
            x.data = old


def _halves(model: Any) -> list[torch.Tensor]:
    """The weights of a decoder that are halves, but those of embeddings and of the head."""
    decoder = model.get_decoder()
    others = (*_tables(model), model.get_output_embeddings())
    without = {id(p) for m in others for p in m.parameters(recurse=False)}
    every = {id(x): x for x in (*decoder.parameters(), *decoder.buffers())}
    return [x for k, x in every.items() if x.dtype in HALVES and k not in without]


def _tables(model: Any) -> list[Any]:
    return [m for m in model.get_decoder().modules() if isinstance(m, nn.Embedding)]


def _size(weights: list[torch.Tensor]) -> int:
    return sum(4 * x.numel() for x in weights)


def _layers(decoder: Any) -> list[Any]:
    """A decoder's layers: its first list of as many modules as its config says."""
    count = getattr(decoder.config, "num_hidden_layers", None)
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    return next((list(m) for m in lists if len(m) == count), [])


def _of_known_kind(layers: list[Any]) -> list[Any]:
    """The layers of whose kind there is one before them."""
    seen: set[str] = set()
    known = []
    for layer in layers:
        kind = repr([(n, type(m).__name__, _settings(m)) for n, m in layer.named_modules()])
        if kind in seen:
            known.append(layer)
        seen.add(kind)
    return known


def _settings(module: Any) -> list[tuple[str, Any]]:
    """What makes two modules of a class different, but their number and their weights."""
    plain = (int, float, bool, str, type(None))
    return sorted(
        [(k, x) for k, x in vars(module).items() if isinstance(x, plain) and k != "layer_idx"]
        + [(k, tuple(p.shape)) for k, p in module.named_parameters(recurse=False)],
        key=repr,
    )


@contextlib.contextmanager
def _doing_nothing(model: Any, layers: list[Any]) -> Iterator[None]:
    """Layers hand on what they are given, in the form in which they hand on what they make."""
    forms: dict[int, Any] = {}

    def note(module: Any, _: Any, output: Any) -> None:
        forms[id(module)] = output

    if layers:
        hooks = [layer.register_forward_hook(note) for layer in layers]
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        for hook in hooks:
            hook.remove()

    def passing(form: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *form[1:]) if isinstance(form, tuple) else hidden

        return forward

    try:
        for layer in layers:
            layer.forward = passing(forms[id(layer)])
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
