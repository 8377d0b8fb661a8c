"""Models whose attention does not go through the attention interface of Transformers: Bloom, MPT,
Falcon, GPT-J, CodeGen and GPT-Neo. For a packed pass that part of their layers is replaced.

Bloom, MPT and some Falcons add a bias that is linear in a key's position (ALiBi). A softmax does
not change when all scores of a query move together, so a key's own depth tells its bias. It is
carried as one more component: queries are (q, 1) and keys (k, bias / scale), in float32, since on
long paths it is far greater than the other scores.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

Table = dict[str, torch.Tensor]


@contextlib.contextmanager
def attending(model: Any, run: Any) -> Iterator[None]:
    """Sends such attention to `run` (`attention.Pass`) while inside."""
    own = [(m, *_METHODS[n]) for m in model.modules() if (n := type(m).__name__) in _METHODS]
    table: Table = {}  # the biases by depth, the same in every layer
    for module, name, method in own:
        setattr(module, name, partial(method, module, run, table))
    try:
        yield
    finally:
        for module, name, _ in own:
            delattr(module, name)  # the class's own shows again


def needs_mask(model: Any) -> bool:
    """Whether a model takes the absence of a mask for an error."""
    return any(type(m).__name__ == "MptModel" for m in model.modules())


def _bloom(
    self: Any, run: Any, table: Table, hidden: torch.Tensor, residual: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    q, k, v = self._reshape(self.query_key_value(hidden))
    bias = _by_depth(self, run, table, self.num_heads, hidden.dtype)
    out = self.dense(_attend(run, q, k, v, self.inv_norm_factor, bias))
    return residual + torch.nn.functional.dropout(out, self.hidden_dropout, self.training), None


def _mpt(
    self: Any, run: Any, table: Table, hidden: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    mixed = self.Wqkv(hidden)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    shape = (*hidden.shape[:2], 3, self.n_heads, self.head_dim)
    q, k, v = mixed.view(shape).permute(2, 0, 3, 1, 4)
    if "bias" not in table:
        made = _functions(self).build_mpt_alibi_tensor(
            self.n_heads, run.deepest + 1, device=hidden.device
        )
        made = made.reshape(self.n_heads, -1)  # counted from its end: −(n − 1) to 0
        table["bias"] = made - made[:, :1]
    return self.out_proj(_attend(run, q, k, v, self.softmax_scale, table["bias"])), None


def _falcon(
    self: Any,
    run: Any,
    table: Table,
    hidden: torch.Tensor,
    alibi: torch.Tensor | None = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    split = self._split_heads(self.query_key_value(hidden))
    q, k, v = (x.reshape(*hidden.shape[:2], -1, self.head_dim).transpose(1, 2) for x in split)
    scale, bias = 1 / math.sqrt(self.head_dim), None
    if alibi is None:
        q, k = _functions(self).apply_rotary_pos_emb(q, k, *(position_embeddings or ()))
    else:  # here it is scaled as the scores are
        bias = _by_depth(self, run, table, self.num_heads, hidden.dtype) * scale
    return self.dense(_attend(run, q, k, v, scale, bias)), None


def _scaled(
    self: Any, run: Any, _: Table, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: Any
) -> tuple[torch.Tensor, None]:
    """Of layers that have the attention itself in a method, q, k, v (1, H, N, D), in float32."""
    scale = next(
        (1 / float(vars(self)[n]) for n in ("scale_attn", "norm_factor") if n in vars(self)), 1.0
    )
    out = run.attend(q.float(), k.float(), v.float(), scale, reach=_local(self))
    return out.transpose(1, 2).to(v.dtype), None


def _local(module: Any) -> tuple[str, int] | None:
    """GPT-Neo writes the windows of its local layers into a mask, and nowhere else."""
    if type(module).__name__ != "GPTNeoSelfAttention":
        return None
    return "window", int(module.bias[0, 0, -1].sum())


_METHODS: dict[str, tuple[str, Callable[..., Any]]] = {
    "BloomAttention": ("forward", _bloom),
    "MptAttention": ("forward", _mpt),
    "FalconAttention": ("forward", _falcon),
    "FalconFlashAttention2": ("forward", _falcon),
    "GPTJAttention": ("_attn", _scaled),
    "CodeGenAttention": ("_attn", _scaled),
    "GPTNeoXJapaneseAttention": ("_attn", _scaled),
    "GPTNeoSelfAttention": ("_attn", _scaled),
}


def _functions(module: Any) -> Any:
    """The Python module that a layer's class is written in."""
    return sys.modules[type(module).__module__]


def _by_depth(module: Any, run: Any, table: Table, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """The model's own ALiBi biases (H, depths), rounded as it rounds them."""
    if "bias" not in table:
        ones = torch.ones(1, run.deepest + 1, dtype=torch.long, device=run.depths.device)
        table["bias"] = _functions(module).build_alibi_tensor(ones, heads, dtype).reshape(heads, -1)
    return table["bias"]


def _attend(
    run: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """q (1, H, N, D), k and v (1, Hkv, N, D), `bias` (H, depths) → (1, N, H·D)."""
    dtype = q.dtype
    if bias is not None:
        heads = q.shape[1]
        k, v = (x.float().expand(-1, heads, -1, -1) for x in (k, v))
        q = torch.nn.functional.pad(q.float(), (0, 1), value=1.0)
        k = torch.cat([k, (bias.float()[:, run.depths] / scale)[None, ..., None]], -1)
    out: torch.Tensor = run.attend(q, k, v, scale)
    return out.flatten(2).to(dtype)
