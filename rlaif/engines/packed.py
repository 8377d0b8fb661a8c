"""Forward passes over a token trie: every distinct token is computed once.

One pass computes one pack: a row of tokens in depth-first order, with the depth of each as its
position. Everything but attention treats tokens alike; attention is done by `attention`, along the
trie's branches. Recurrent layers walk the trie (`recurrent`). A `trial` against plain passes finds
out whether a model can be packed. Callers look for what is known not to work (`obstacle`), and make
the trial.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal, get_args

import numpy as np
import torch

from rlaif.engines.attention import KeptPath, Pass, tree_attention
from rlaif.engines.faster import apply
from rlaif.engines.faster.prepacked import Prepacked
from rlaif.engines.flex_attention import FlexPass, check_usable
from rlaif.engines.head import head_at
from rlaif.engines.own_attention import needs_mask
from rlaif.engines.recurrent import Recurrence
from rlaif.engines.trial import (
    HALVES,
    bare,
    difference,
    in_float32,
    narrowed,
    no_less_exact,
    trial_paths,
)
from rlaif.engines.trie import (
    SHORT,
    Ints,
    Trie,
    attention_plan,
    build,
    common_prefix,
    kept_plan,
    packs,
    walk,
)
from rlaif.errors import ConfigError

# How a pack attends: in dense pieces, or as one call of FlexAttention a layer.
Attention = Literal["pieces", "flex"]
# What a model's code raises when it is called in a way that it does not know.
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError)
_RECURRENT = {"linear_attention", "conv", "hybrid", "moe", "mlp"}  # and what stands beside them
# Four dimensions say that the mask is made, so Transformers makes none (1, 1, N, N).
_MADE = torch.ones(1, 1, 1, 1, dtype=torch.bool)


class PackedModel:
    """Runs a causal language model over packs of a trie."""

    def __init__(self, model: Any, attention: Attention = "pieces") -> None:
        self.model, self.attention = model, attention
        self.kept = KeptPath()
        self._short = SHORT
        self._faster: Prepacked | None = None
        self._recurrence: Recurrence | None = None

    @torch.no_grad()
    def logits(self, trie: Trie, begin: int, end: int, nodes: Ints) -> torch.Tensor:
        """Logits (U, V) after the given nodes, all of them tokens of the pack begin…end.

        Leaves the path to `end` (after the last pack: to the last token) kept for the next pack.
        """
        target = end if end < len(trie) else len(trie) - 1
        device = self.model.device
        run = self._pass(trie, begin, end, target)
        ids = torch.from_numpy(trie.tokens[begin:end].astype(np.int64))[None].to(device)
        positions = torch.from_numpy(trie.depths[begin:end].astype(np.int64))[None].to(device)
        where = torch.from_numpy(nodes - begin)
        more = {"attention_mask": _MADE.to(device)} if needs_mask(self.model) else {}
        recurrence = self._recurrent()
        with contextlib.ExitStack() as stack:
            if recurrence:
                stack.enter_context(recurrence.walking(walk(trie, begin, end), device))
            stack.enter_context(self.faster().active())
            stack.enter_context(tree_attention(self.model, run))
            stack.enter_context(head_at(self.model, where))
            found = self.model(input_ids=ids, position_ids=positions, use_cache=False, **more)
        run.commit()
        logits: torch.Tensor = found.logits[0]
        return logits

    def faster(self) -> Prepacked:
        """The model's linear layers by faster kernels, laid out once until `forget`."""
        if self._faster is None:
            self._faster = apply.prepacked(self.model)
        return self._faster

    def _pass(self, trie: Trie, begin: int, end: int, target: int) -> Pass:
        depths, device = trie.depths[begin:end], self.model.device
        if self.attention == "flex":
            return FlexPass(kept_plan(trie, begin, end, target), self.kept, depths, device)
        plan = attention_plan(trie, begin, end, target, self._short)
        return Pass(plan, self.kept, depths, device)

    def _recurrent(self) -> Recurrence:
        if self._recurrence is None:
            self._recurrence = Recurrence(self.model)
        return self._recurrence

    def resume(self, tokens: Ints, block: int) -> int:
        """How many of these tokens, in whole blocks, are kept as the first ones of the path."""
        begin = common_prefix(tokens, self.kept.tokens)
        begin -= begin % block
        if recurrence := self._recurrent():
            begin = recurrence.kept.resume(begin)
        self.kept.tokens = tokens[:begin]
        return begin

    def keep(self, tokens: Ints) -> None:
        """Keeps these first tokens of the path between calls; a pass has just ended with them."""
        self.kept.tokens = tokens
        self._recurrent().kept.mark(len(tokens))

    def forget(self) -> None:
        """Drops what was kept, because the weights may change or memory is wanted."""
        self.kept = KeptPath()
        self._faster = self._recurrence = None

    @torch.no_grad()
    def check(self, longest: int, window: int | None = None) -> str:
        """Compares packed with plain passes on a small tree; "" if equal, else what was found.

        The tree has all that real ones have: a shared prefix, long and short runs, a way that ends
        inside another, and packs that cut it. `window` narrows the model's windows for the trial,
        so that its small paths are longer than they. A model of halves is tried in float32, where
        rounding hides no fault, and in halves by whether packing is less exact than it is itself.
        """
        paths = trial_paths(self.model.get_input_embeddings().weight.shape[0])
        if max(map(len, paths)) > longest:
            return f"only paths of {longest} tokens could be packed"
        try:
            with narrowed(self.model, window):
                said = self._differ_in_float32(paths)
                return self._differ(paths) if said is None else said
        except REFUSALS as error:
            return f"its code cannot do it ({error})"

    def _differ(self, paths: list[Ints]) -> str:
        logits = self._alone(paths), self._together(paths), self._packed(paths)
        # Never in halves: log-probabilities are many times as large as their differences.
        alone, together, packed = (x.float().log_softmax(-1) for x in logits)
        said = difference(alone, together, packed, logits[0].dtype)
        return said and f"packed and plain log-probabilities {said}"

    def _differ_in_float32(self, paths: list[Ints]) -> str | None:
        """The same of what goes into the head; None for a model that is no other in float32."""
        if self.model.dtype not in HALVES:
            return None
        with bare(self.model) as weights:
            if not weights:
                return None
            halves = self._alone(paths)
            try:
                with in_float32(self.model, weights):
                    exact, together = self._alone(paths), self._together(paths)
            except REFUSALS:  # it knows its own numbers only
                return None
            with in_float32(self.model, weights):
                said = difference(exact, together, self._packed(paths))
            if said:
                return f"packed and plain hidden states (in float32) {said}"
            said = no_less_exact(exact, halves, self._packed(paths))
            return said and f"packed hidden states {said}"

    def _packed(self, paths: list[Ints]) -> torch.Tensor:
        """Logits (R, V) after each path, by passes over small packs of their trie."""
        trie = build(paths)
        nodes = np.array([trie.node(r, len(path) - 1) for r, path in enumerate(paths)])
        found: dict[int, torch.Tensor] = {}
        self.forget()
        self._short = 8  # the trial's trunks are shorter than real ones
        try:
            for begin, end in packs(trie, 20):
                mine = np.unique(nodes[(nodes >= begin) & (nodes < end)])
                found |= dict(zip(mine.tolist(), self.logits(trie, begin, end, mine), strict=True))
        finally:
            self._short = SHORT
            self.forget()
        return torch.stack([found[node] for node in nodes.tolist()])

    def _together(self, paths: list[Ints]) -> torch.Tensor:
        """The same by a plain pass of another shape, its linear layers by packing's kernels."""
        with apply.prepacked(self.model).active():
            return self._plain(paths)

    def _alone(self, paths: list[Ints]) -> torch.Tensor:
        return torch.cat([self._plain([path]) for path in paths])

    def _plain(self, paths: list[Ints]) -> torch.Tensor:
        """Logits (R, V) after each path, by one ordinary pass, padded behind the paths."""
        ids = torch.zeros(len(paths), max(map(len, paths)), dtype=torch.long)
        for row, path in zip(ids, paths, strict=True):
            row[: len(path)] = torch.from_numpy(path)
        logits = self.model(input_ids=ids.to(self.model.device)).logits
        return torch.stack([row[len(path) - 1] for row, path in zip(logits, paths, strict=True)])


def check_attention(attention: str, device: str) -> None:
    """ConfigError if packs cannot attend so on this device, or there is no such way."""
    if attention not in get_args(Attention):
        known = ", ".join(get_args(Attention))
        raise ConfigError(f"unknown attention '{attention}'. Choices: {known}.")
    if attention == "flex":
        check_usable(device)


def obstacle(config: Any, *, windows: bool = False, recurrent: bool = False) -> tuple[str, int]:
    """Why a model cannot be packed ("" if nothing is known), and the longest path that can be.

    `windows`: whether sliding windows and chunks are computed, so that no window bounds a path.
    `recurrent`: whether layers that carry a state walk the tree.
    """
    text = config.get_text_config(decoder=True)
    named = getattr(text, "layer_types", None)
    kinds = set(named or ["full_attention"])
    known = {"full_attention", "sliding_attention"} | ({"chunked_attention"} if windows else set())
    other = kinds - known - (_RECURRENT if recurrent else set())
    if other:
        return f"it has {', '.join(sorted(other))} layers", 0
    longest = 2**30
    window = getattr(text, "sliding_window", None)
    # Configs without layer types that name a window use it in every layer.
    if not windows and window and (not named or "sliding_attention" in kinds):
        longest = min(longest, int(window))
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # some have one for each kind of layer
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind in ("longrope", "dynamic"):  # frequencies change with the length of the input
            until = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            longest = min(longest, int(until))
    return "", longest
