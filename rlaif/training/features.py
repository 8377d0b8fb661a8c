"""What a frozen model makes of sequences: hidden states at their ends, computed once and kept.

A reward head reads the last token's state after the last norm. The same model cut off behind an
earlier layer is a smaller model, whose head reads that layer's state after the same norm; one pass
tells the states of several such depths. Sequences that share their prompt are computed as a tree,
where the model's attention allows it.

Simplified away: recurrent layers and prefixes shared in padded batches.
"""

from __future__ import annotations

import hashlib
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif.engines.packed import PackedModel, obstacle
from rlaif.engines.tokens import Ids
from rlaif.engines.trial import TRIAL_WINDOW
from rlaif.engines.trie import build, common_prefix, next_pack
from rlaif.errors import ConfigError, DataError, TrainingError
from rlaif.records import content_id
from rlaif.steps.pace import LIMIT, SAVE
from rlaif.training import stopping
from rlaif.training.checkpoints import steps_from
from rlaif.training.data import pad, token_batches
from rlaif.training.models import Loaded, write_json
from rlaif.training.processes import rank, share, wait, world

States = NDArray[np.float32]
ABOUT = "features.json"
_TOKENS = {"cpu": 1_536, "cuda": 32_768}  # of a pass


def sequence_key(ids: Ids) -> bytes:
    """A sequence's key among the features of one model: 16 bytes of the SHA-256 of its ids."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).digest()[:16]


class Trunk(nn.Module):
    """A decoder without its head: its `logits` are the states of `depths` layers, (B, T, K·d).

    It has what `PackedModel` asks of a language model. Depth k is the state behind k layers, after
    the last norm: what a model of the first k layers makes.
    """

    def __init__(self, model: Any, depths: Sequence[int]) -> None:
        super().__init__()
        self.trunk = getattr(model, model.base_model_prefix)
        self.config = model.config
        self.depths = tuple(depths)
        self._head = nn.Identity()
        self._layers, self._norm = layers_of(model)

    @property
    def device(self) -> torch.device:
        found: torch.device = self.trunk.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.trunk.dtype
        return found

    def get_input_embeddings(self) -> Any:
        return self.trunk.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self._head

    def forward(self, **inputs: Any) -> SimpleNamespace:
        found: dict[int, Tensor] = {}
        hooks = [
            self._layers[k - 1].register_forward_hook(_keep(found, k))
            for k in self.depths
            if k < len(self._layers)
        ]
        try:
            found[len(self._layers)] = self.trunk(**inputs).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        states = []
        for k in self.depths:
            state = self._head(found[k])  # a hook may take the states that are asked for out here
            if k < len(self._layers) and self._norm is not None:
                state = self._norm(state)
            states.append(state)
        return SimpleNamespace(logits=torch.cat(states, -1).float())


def _keep(found: dict[int, Tensor], k: int) -> Callable[..., None]:
    def hook(_: Any, __: Any, out: Any) -> None:
        found[k] = out[0] if isinstance(out, tuple) else out

    return hook


def layers_of(model: Any) -> tuple[nn.ModuleList, nn.Module | None]:
    """The decoder layers of a classifier, and the norm behind the last one; None if not found."""
    trunk = getattr(model, model.base_model_prefix)
    every = model.config.get_text_config().num_hidden_layers
    parts = list(trunk.named_children())
    stacks = [m for _, m in parts if isinstance(m, nn.ModuleList) and len(m) == every]
    if len(stacks) != 1 or "score" not in model._modules:
        raise TrainingError(
            "trunk: frozen needs a decoder with a `score` head, whose layers stand in one list: "
            f"{type(model).__name__} is none. Set trunk to trained"
        )
    norms = [m for name, m in parts if "norm" in type(m).__name__.lower() and "embed" not in name]
    return stacks[0], norms[0] if len(norms) == 1 else None


def depths_of(model: Any, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The depths whose states are computed: those asked for, or the last one."""
    layers, norm = layers_of(model)
    found = tuple(sorted(set(asked or [len(layers)])))
    if found[-1] > len(layers):
        raise ConfigError(f"layers: {found[-1]} is asked for, and the model has {len(layers)}")
    if norm is None and found != (len(layers),):
        raise ConfigError(
            f"layers: the norm behind the last layer of {type(model).__name__} was not found, so "
            "that it can be read after its last layer only: set layers to null"
        )
    return found


class Features:
    """States of sequences in a folder, as rows that are only ever appended.

    A file has rows of a key (16 bytes), a CRC-32 and K·d float32, as numpy's `memmap` reads them;
    `features.json` says of which model. A row cut off by a kill is taken away, a damaged one is
    computed again. Each process writes a file of its own, and reads all.
    """

    def __init__(self, folder: Path, model: str, depths: Sequence[int], width: int) -> None:
        self.folder = folder / content_id("features", model, list(depths), width)
        self.depths = tuple(depths)
        self._type = np.dtype(
            [("key", "V16"), ("crc", "<u4"), ("states", "<f4", (len(depths), width))]
        )
        self._mine = self.folder / f"{rank()}.rows"
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            about = {"model": model, "depths": list(depths), "width": width}
            write_json(self.folder / ABOUT, {**about, "row": str(self._type.descr)})
        self._whole()
        self.known = self._read_keys()

    def _whole(self) -> None:
        """Takes away what a kill left of a row at the end of this process's file."""
        if self._mine.is_file() and (over := self._mine.stat().st_size % self._type.itemsize):
            with self._mine.open("r+b") as file:
                file.truncate(self._mine.stat().st_size - over)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.rows"))

    def _rows(self, path: Path) -> Any:
        count = path.stat().st_size // self._type.itemsize
        if not count:
            return np.zeros(0, self._type)
        return np.memmap(path, self._type, "r", shape=(count,))

    def _read_keys(self) -> dict[bytes, tuple[Path, int]]:
        known: dict[bytes, tuple[Path, int]] = {}
        for path in self._files():
            bad = 0
            for i, row in enumerate(self._rows(path)):
                if (
                    zlib.crc32(row["states"].tobytes(), zlib.crc32(row["key"].tobytes()))
                    != row["crc"]
                ):
                    bad += 1
                    continue
                known.setdefault(row["key"].tobytes(), (path, i))
            if bad:
                warnings.warn(
                    f"{path}: {bad} rows are not what was written; they are computed again",
                    stacklevel=2,
                )
        return known

    def add(self, keys: Sequence[bytes], states: States) -> None:
        """Writes states (n, K, d) and makes sure that they are on the disk."""
        rows = np.zeros(len(keys), self._type)
        rows["states"] = states
        for i, key in enumerate(keys):
            rows["key"][i] = np.void(key)
            rows["crc"][i] = zlib.crc32(rows["states"][i].tobytes(), zlib.crc32(key))
        before = self._mine.stat().st_size // self._type.itemsize if self._mine.is_file() else 0
        with self._mine.open("ab") as file:
            file.write(rows.tobytes())
        self.known |= {key: (self._mine, before + i) for i, key in enumerate(keys)}

    def read(self, keys: Sequence[bytes], depth: int) -> States:
        """The states (n, d) at one of `depths`; DataError where a sequence's are not there."""
        place = self.depths.index(depth)
        files = {path: self._rows(path) for path in self._files()}
        out = np.zeros((len(keys), self._type["states"].shape[1]), np.float32)
        for n, key in enumerate(keys):
            if key not in self.known:
                raise DataError(
                    f"{self.folder}: a sequence's features are not there. With several machines, "
                    "the run directory must be one that all of them see"
                )
            path, i = self.known[key]
            out[n] = files[path][i]["states"][place]
        return out

    def again(self) -> None:
        """Looks at the files anew: other processes have written theirs."""
        self.known = self._read_keys()


def compute(
    loaded: Loaded,
    sequences: Sequence[Ids],
    features: Features,
    on_step: Callable[[int, int], None],
) -> None:
    """Sees to it that the states of all sequences are in `features`.

    `on_step(done, total)` is told after each pass how many sequences are there. Chunks of sequences
    are the same whenever the work goes on, so that what it goes on with is what it would have
    been. Processes share the chunks. Where a pass takes long, it is cut into smaller ones.
    """
    by_key = {sequence_key(s): s for s in sequences}
    # In the order of their ids those that share a prompt stand together.
    keys = sorted(by_key, key=lambda key: by_key[key].astype(">u4").tobytes())
    done = sum(key in features.known for key in keys)
    if done < len(keys):
        _compute(loaded, {key: by_key[key] for key in keys}, features, done, on_step)
    if world() > 1:
        wait()
        features.again()


def _compute(
    loaded: Loaded,
    by_key: Mapping[bytes, Ids],
    features: Features,
    done: int,
    on_step: Callable[[int, int], None],
) -> None:
    passes = _Passes(loaded, features.depths, list(by_key.values()))
    saver = _Saver(features)
    with steps_from(None):
        stopping.saved(done)
        for chunk in share(list(_chunks(by_key, passes.budget))):
            todo = [key for key in chunk if key not in features.known]
            for found, states in passes.states([by_key[key] for key in todo]):
                saver.add([todo[i] for i in found], states)
                done += len(found)
                if stopping.asked():
                    saver.flush()
                    stopping.saved(done)
                    stopping.leave()
                on_step(done, len(by_key))  # of several processes, by this one
        saver.flush()


def _chunks(by_key: Mapping[bytes, Ids], budget: int) -> Iterator[list[bytes]]:
    """Consecutive keys whose sequences have some `budget` tokens together, shared ones once."""
    chunk: list[bytes] = []
    tokens = 0
    for key, ids in by_key.items():
        new = len(ids) - (common_prefix(by_key[chunk[-1]], ids) if chunk else 0)
        if chunk and tokens + new > budget:
            yield chunk
            chunk, tokens, new = [], 0, len(ids)
        chunk.append(key)
        tokens += new
    if chunk:
        yield chunk


class _Saver:
    """Writes rows every few seconds."""

    def __init__(self, features: Features) -> None:
        self._features, self._last = features, time.monotonic()
        self._keys: list[bytes] = []
        self._states: list[States] = []

    def add(self, keys: Sequence[bytes], states: States) -> None:
        self._keys += keys
        self._states.append(states)
        if time.monotonic() - self._last >= SAVE:
            self.flush()

    def flush(self) -> None:
        if self._keys:
            self._features.add(self._keys, np.concatenate(self._states))
        self._keys, self._states, self._last = [], [], time.monotonic()


class _Passes:
    """Forward passes of a trunk over sequences: packed where it can be, else padded."""

    def __init__(self, loaded: Loaded, depths: Sequence[int], sequences: Sequence[Ids]) -> None:
        self._trunk = Trunk(loaded.model, depths).eval()
        self._packed = PackedModel(self._trunk)
        self._filler, self._depths = loaded.filler, depths
        self._device = self._trunk.device
        self.budget = _TOKENS.get(self._device.type, 8_192)
        longest = max(sequences, key=len)
        why, most = obstacle(self._trunk.config, windows=True)
        if not why and len(longest) > most:
            why = f"it packs paths of up to {most} tokens"
        with torch.no_grad():
            why = why or self._packed.check(most, TRIAL_WINDOW)
        self._plain = bool(why)
        if why:
            loaded.notes.append(f"the prompt of several completions is computed for each: {why}")
        self._size = self._first_size(longest[:64])

    def _first_size(self, some: Ids) -> int:
        """Tokens of a pass: the budget, or fewer where a trial tells that it would take long."""
        started = time.monotonic()
        with torch.no_grad():
            self._trunk(input_ids=torch.from_numpy(some.astype(np.int64))[None].to(self._device))
        speed = len(some) / max(time.monotonic() - started, 1e-9)
        return min(self.budget, max(len(some), int(LIMIT * speed)))

    @torch.no_grad()
    def states(self, sequences: Sequence[Ids]) -> Iterator[tuple[list[int], States]]:
        """The states (n, K, d) of some of the sequences at a time, and which these are."""
        if not sequences:
            return
        if self._plain:
            yield from self._padded(sequences)
            return
        trie = build(sequences)
        ends = np.array([trie.node(r, len(s) - 1) for r, s in enumerate(sequences)])
        self._packed.forget()
        begin = 0
        while begin < len(trie):
            started = time.monotonic()
            end = next_pack(trie, begin, self._size)
            mine = np.flatnonzero((ends >= begin) & (ends < end))
            nodes, row = np.unique(ends[mine], return_inverse=True)
            try:
                found = self._packed.logits(trie, begin, end, nodes)
            except torch.cuda.OutOfMemoryError:
                if self._size <= 64:
                    raise
                self._size //= 2
                torch.cuda.empty_cache()
                continue
            if len(mine):
                yield mine.tolist(), self._shaped(found)[row]
            self._took(end - begin, time.monotonic() - started)
            begin = end

    def _took(self, tokens: int, seconds: float) -> None:
        """Makes passes smaller where one takes longer than LIMIT."""
        if seconds > LIMIT:
            self._size = max(64, int(tokens * LIMIT / 2 / seconds))

    def _padded(self, sequences: Sequence[Ids]) -> Iterator[tuple[list[int], States]]:
        for batch in token_batches([len(s) for s in sequences], self._size):
            started = time.monotonic()
            ids, mask = pad([sequences[i] for i in batch], self._filler)
            out = self._trunk(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits
            last = torch.tensor([len(sequences[i]) - 1 for i in batch])
            yield batch, self._shaped(out[torch.arange(len(batch)), last])
            self._took(ids.numel(), time.monotonic() - started)

    def _shaped(self, found: Tensor) -> States:
        states: States = found.float().cpu().numpy().reshape(len(found), len(self._depths), -1)
        if not np.isfinite(states).all():
            raise TrainingError(
                "a sequence's hidden states are not finite: this model cannot be computed in "
                "this precision. Set train.reward.bf16 to false"
            )
        return states
