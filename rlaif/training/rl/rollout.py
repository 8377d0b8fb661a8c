"""Rollouts: completions of the live policy, and the plan of the minibatches that learn from them.

The engine's own decoding loop samples them, so that a completion depends on its prompt, the seed
and its number only. A completion ends at its first end token, which is its last token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif.engines.base import Sampling
from rlaif.engines.checkpoint import end_tokens
from rlaif.engines.decoding import Ends, decode_batch
from rlaif.engines.faster import apply
from rlaif.engines.tokens import Ids
from rlaif.errors import TrainingError
from rlaif.records import Prompt
from rlaif.training.data import pad
from rlaif.training.forward import BATCH_TOKENS
from rlaif.training.models import Loaded
from rlaif.training.rl.nlpo import Bits, MaskedPolicy, Masker
from rlaif.training.rl.packing import packed

DECODE_TOKENS = {"cpu": 16_384, "cuda": 262_144}  # prompt and completion tokens of one batch
# What a padded forward and backward pass costs beside its tokens, counted in tokens: below it,
# padding is cheaper than one pass more.
PASS_OVERHEAD = {"cpu": 64, "cuda": 4_096}


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and what the policy said to it. `logprobs` (L,) are those of its sampling.

    `text` is the answer; the ids of a policy that thinks begin with its thought.
    """

    prompt: Prompt
    prompt_ids: Ids
    ids: Ids  # (L,), the end token included
    text: str
    ended: bool  # by an end token or a stop string; else a limit cut it
    logprobs: NDArray[np.float64]
    masks: Bits | None = None  # (L, V/8): tokens that were allowed, with masked sampling

    @property
    def sequence(self) -> Ids:
        """All tokens, those of the prompt first."""
        return np.concatenate([self.prompt_ids, self.ids])

    @property
    def states(self) -> int:
        """States that have a value: those before each token, and that after the end."""
        return len(self.ids) + self.ended


class Sampler:
    """Samples completions from a model that may change between calls, by its own forward pass."""

    def __init__(self, loaded: Loaded, *, temperature: float, max_new_tokens: int) -> None:
        self.rows, self.encoder = loaded.encoder, loaded.encoder.encoder
        self._eos = end_tokens(loaded.model.generation_config, loaded.tokenizer)
        self._room, self._filler = loaded.max_length, loaded.filler
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens  # of a thought and its answer together

    def encode(self, prompt: Prompt) -> Ids:
        """The ids of a prompt, up to where the assistant begins."""
        return self.rows.prompt(prompt)

    def text(self, ids: Sequence[int]) -> str:
        """The answer that sampled ids hold, without the thought before it."""
        return self.encoder.said(ids, (), self.rows.mode).text

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt and the longest completion fit the context."""
        return 0 < len(self.encode(prompt)) <= self._room - self.max_new_tokens

    def close(self) -> None:
        """Frees what is held beside the model: here nothing."""

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        seed: int,
        n: int = 1,
        masker: Masker | None = None,
        draws: Sequence[int] = (),
    ) -> list[Episode]:
        """`n` completions of each prompt, in the prompts' order; its prefix is computed once.

        `draws` says how often each prompt came before (see `occurrences`): one that comes again
        is sampled anew, not to the same words.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        sampling = Sampling(
            n=n, temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=seed
        )
        out: dict[tuple[int, int], Episode] = {}
        training = model.training
        model.eval()
        faster = apply.prepacked(model)  # anew, as the weights have changed
        for batch in self._batches([len(ids) for ids in encoded], n, model.device.type):
            decoder = MaskedPolicy(model, masker) if masker else model
            with faster.active():
                rows = decode_batch(
                    decoder,
                    [encoded[i] for i in batch],
                    sampling,
                    Ends(self._room, self._filler, self._eos, self._ends),
                    logprobs=True,
                    first=[draws[i] * n for i in batch] if draws else (),
                )
            for k, row in enumerate(rows):
                i = batch[row.prompt]
                if row.finish_reason == "not_finite":
                    raise TrainingError(
                        f"the policy's logits are not finite after {len(row.ids)} tokens of a "
                        "completion: lower the learning rate, or train in float32"
                    )
                out[i, row.sample] = Episode(
                    prompt=prompts[i],
                    prompt_ids=encoded[i],
                    ids=np.asarray(row.ids, np.int32),
                    text=self.text(row.ids),
                    ended=row.finish_reason == "stop",
                    logprobs=np.asarray(row.logprobs),
                    masks=np.stack(decoder.masks[k]) if masker else None,
                )
        model.train(training)
        return [out[key] for key in sorted(out)]

    def _batches(self, lengths: Sequence[int], n: int, device: str) -> list[list[int]]:
        """Prompts of like length together, within the tokens of one batch."""
        budget = DECODE_TOKENS.get(device, 16_384)
        batches: list[list[int]] = []
        for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
            if batches:
                size = (len(batches[-1]) + 1) * n * (lengths[batches[-1][0]] + self.max_new_tokens)
                if size <= budget:
                    batches[-1].append(i)
                    continue
            batches.append([i])
        return batches

    def _ends(self, ids: list[int]) -> bool:
        stop = self.encoder.stop
        tail = max((len(s.encode()) for s in stop), default=0) + 4  # a token is a byte at least
        return bool(stop) and any(s in self.encoder.decode(ids[-tail:]) for s in stop)


def occurrences(prompts: Sequence[Prompt]) -> list[int]:
    """How often each prompt came before in the list: a step between two passes may hold it twice.

    To be asked of the prompts of a whole step, before processes share them.
    """
    seen: Counter[str] = Counter()
    out = []
    for prompt in prompts:
        out.append(seen[prompt.id])
        seen[prompt.id] += 1
    return out


@dataclass(frozen=True, slots=True)
class Part:
    """A forward pass over some episodes, packed (b, S = 1, all tokens) or right-padded (b, S).

    Behind the trunk only their N states are left, in one row.
    """

    inputs: dict[str, Any]  # of the trunk
    where: Tensor  # (N,) place of each state in the flat (b·S)
    tokens: Tensor  # (N,) the token chosen in each state; 0 in the state after the end
    acts: Tensor  # (N,) 1 where a token was chosen
    index: Tensor  # (N,) place of each state in the flat (B·T) of the whole batch


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The episodes of one optimiser step: the forward passes that this process makes of its share.

    `acts` and `states` count those of all processes: what losses are means over.
    """

    parts: list[Part]
    acts: int
    states: int


def make_minibatch(
    episodes: Sequence[Episode],
    rows: Sequence[int],
    filler: int,
    device: Any,
    rank: int = 0,
    world: int = 1,
    *,
    longest_packed: int = 0,
) -> Minibatch:
    """The minibatch of some rows; processes take turns by length, so that all have alike to do.

    Sequences are packed if none is longer than `longest_packed`, else padded.
    """
    lengths = [len(e.sequence) for e in episodes]
    pack = max(lengths[i] for i in rows) <= longest_packed
    overhead = math.inf if pack else PASS_OVERHEAD.get(device.type, 64)
    mine = sorted(rows, key=lambda i: (-lengths[i], i))[rank::world]
    passes = split_by_length(mine, lengths, BATCH_TOKENS, overhead)
    acts = sum(len(episodes[i].ids) for i in rows)
    states = sum(episodes[i].states for i in rows)
    return Minibatch(make_parts(episodes, passes, filler, device, pack), acts, states)


def make_parts(
    episodes: Sequence[Episode],
    parts: Sequence[Sequence[int]],
    filler: int,
    device: Any,
    pack: bool = False,
) -> list[Part]:
    """The tensors of some forward passes, each over a list of rows of the batch."""
    T = max(e.states for e in episodes)
    return [_part(episodes, rows, T, filler, device, pack) for rows in parts]


def _part(
    episodes: Sequence[Episode], rows: Sequence[int], T: int, filler: int, device: Any, pack: bool
) -> Part:
    sequences = [episodes[i].sequence for i in rows]
    if pack:
        inputs = packed(sequences, device)
        begins = np.cumsum([0, *map(len, sequences)])
    else:
        ids, _ = pad(sequences, filler)
        inputs = {"input_ids": ids.to(device)}
        begins = np.arange(len(rows)) * ids.shape[1]
    where, tokens, acts, index = [], [], [], []
    for begin, i in zip(begins, rows, strict=False):
        episode = episodes[i]
        t = np.arange(episode.states)
        where.append(begin + len(episode.prompt_ids) - 1 + t)
        tokens.append(np.append(episode.ids, 0)[: episode.states].astype(np.int64))
        acts.append((t < len(episode.ids)).astype(np.float32))
        index.append(i * T + t)
    flat = [torch.from_numpy(np.concatenate(c)).to(device) for c in (where, tokens, acts, index)]
    return Part(inputs, flat[0], flat[1], flat[2], flat[3])


def plan_update(
    n: int, *, epochs: int, minibatches: int, seed: Sequence[int]
) -> list[list[list[int]]]:
    """`n` episodes by epoch and minibatch; every epoch is shuffled anew."""
    plan = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(n)
        plan.append([m.tolist() for m in np.array_split(order, min(minibatches, n))])
    return plan


def split_by_length(
    rows: Sequence[int], lengths: Sequence[int], budget: int, overhead: float
) -> list[list[int]]:
    """Rows, longest first, in passes of at most `budget` padded tokens (or one row).

    A new pass begins as soon as the padding of the open one would cost more than a pass does.
    """
    out: list[list[int]] = []
    waste = 0
    for i in sorted(rows, key=lambda i: (-lengths[i], i)):
        longest = lengths[out[-1][0]] if out else 0
        waste += longest - lengths[i]
        if not out or waste > overhead or (len(out[-1]) + 1) * longest > budget:
            out.append([i])
            waste = 0
        else:
            out[-1].append(i)
    return out
