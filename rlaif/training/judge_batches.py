"""What a judge in training computes: the log-probability of each option after each of its prompts.

Prompts of one pair (both orders, several principles) share their beginnings: the template's head
and the conversation, and in each order both completions. A row holds them as the trie that an
engine would score, each distinct token once: its mask lets a token see what stands above it, and
positions are depths. Logits are computed where an option's token is predicted, and nowhere else.

Simplified away: models whose layers do not take a mask a pair of tokens (recurrent ones, other
attention than SDPA). `why_not` finds them, and each prompt becomes a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from rlaif.engines.faster.apply import last_layer_at
from rlaif.engines.head import logits_at
from rlaif.engines.packed import REFUSALS, obstacle
from rlaif.engines.tokens import Ids
from rlaif.engines.trial import TRIAL_WINDOW, difference, narrowed
from rlaif.engines.trie import Trie, build
from rlaif.training.data import pad
from rlaif.training.forward import to_device
from rlaif.training.losses import exclusive_logprobs, soft_cross_entropy
from rlaif.training.models import Loaded

if TYPE_CHECKING:
    from rlaif.training.loop import PairLoss

_PADDING = 37  # tokens by which the trial's rows are padded
Collate = Callable[[Sequence["JudgeRow"], float], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class JudgeRow:
    """One prompt of a judge, tokenised, with the probability that each of its options is right.

    `together` names the rows that are computed in one with it, `alone` the question that it asks,
    `prompt_id` the prompt under judgement.
    """

    together: str
    alone: str
    prompt_id: str
    ids: Ids
    options: tuple[Ids, ...]
    target: tuple[float, ...]
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the prompt and of its longest option, whose last one is only predicted."""
        return len(self.ids) + max(map(len, self.options)) - 1

    def paths(self) -> list[Ids]:
        """What is read before each option's last token."""
        return [np.concatenate([self.ids, option[:-1]]) for option in self.options]


def collator(filler: int, share: bool) -> Collate:
    """Makes the tensors of a micro-batch of N prompts with K options each.

    `input_ids` (B, T); with `share` also `position_ids` and `stops`, where each token's subtree
    ends, else `attention_mask`. `where` (U,) are flat places whose logits are looked at; number m
    of the options' tokens is `tokens[m]`, predicted at `where[slots[m]]`, of option `owners[m]` of
    the N·K. `target` (N, K); `begins` (K, K): whether one option's tokens begin another's.
    """

    def collate(rows: Sequence[JudgeRow], total: float) -> dict[str, Any]:
        paths = [row.paths() for row in rows]
        tries, homes = _tries(rows, paths, share)
        batch = _shared(tries, filler) if share else _plain(tries, filler)
        T = batch["input_ids"].shape[1]
        asked: list[tuple[int, int, int]] = []  # place, token, owner
        for n, row in enumerate(rows):
            for k, option in enumerate(row.options):
                b, request = homes[n, k]
                start = len(row.ids) - 1
                asked += [
                    (b * T + tries[b].node(request, start + j), token, n * len(row.options) + k)
                    for j, token in enumerate(option.tolist())
                ]
        places, tokens, owners = np.array(asked).T
        where, slots = np.unique(places, return_inverse=True)
        numbers = {"where": where, "slots": slots, "tokens": tokens, "owners": owners}
        return {
            **batch,
            **{name: torch.from_numpy(x) for name, x in numbers.items()},
            "target": torch.tensor([row.target for row in rows]),
            "begins": torch.from_numpy(_begins(rows[0].options)),
            "weight": torch.tensor([row.weight for row in rows]),
            "total": torch.tensor(total),
        }

    return collate


def _tries(
    rows: Sequence[JudgeRow], paths: Sequence[Sequence[Ids]], share: bool
) -> tuple[list[Trie], dict[tuple[int, int], tuple[int, int]]]:
    """The rows of the batch, and for (prompt, option) the row and the request in it."""
    groups: dict[Any, list[Ids]] = {}
    at: dict[tuple[int, int], tuple[Any, int]] = {}
    for n, row in enumerate(rows):
        for k, path in enumerate(paths[n]):
            name = row.together if share else path.tobytes()
            mine = groups.setdefault(name, [])
            at[n, k] = name, len(mine)
            mine.append(path)
    number = {name: b for b, name in enumerate(groups)}
    homes = {where: (number[name], request) for where, (name, request) in at.items()}
    return [build(mine) for mine in groups.values()], homes


def _plain(tries: Sequence[Trie], filler: int) -> dict[str, Tensor]:
    ids, mask = pad([trie.tokens for trie in tries], filler)
    return {"input_ids": ids, "attention_mask": mask}


def _shared(tries: Sequence[Trie], filler: int) -> dict[str, Tensor]:
    ids, _ = pad([trie.tokens for trie in tries], filler)
    depths, _ = pad([trie.depths for trie in tries], 0)
    stops = torch.arange(1, ids.shape[1] + 1).repeat(len(tries), 1)  # padding sees itself
    for b, trie in enumerate(tries):
        stops[b, : len(trie)] = torch.from_numpy(np.repeat(trie.stop, trie.end - trie.begin))
    return {"input_ids": ids, "position_ids": depths, "stops": stops}


def _begins(options: Sequence[Ids]) -> Any:
    """(K, K) bool: whether option i's tokens are the first of option j's, which is longer."""
    found = np.zeros((len(options), len(options)), bool)
    for i, short in enumerate(options):
        for j, long in enumerate(options):
            found[i, j] = len(short) < len(long) and bool((long[: len(short)] == short).all())
    return found


def tree_mask(stops: Tensor, depths: Tensor, window: int | None = None) -> Tensor:
    """Which tokens see which, (B, 1, T, T): themselves and what stands above them in their trie.

    `window`: of these, only the last so many.
    """
    T = stops.shape[1]
    before = torch.ones(T, T, dtype=torch.bool, device=stops.device).tril()
    here = torch.arange(T, device=stops.device)
    seen = before & (here[:, None] < stops[:, None, :])  # token j's subtree holds token i
    if window is not None:
        seen &= depths[:, :, None] - depths[:, None, :] < window
    return seen[:, None]


def _masks(config: Any, stops: Tensor, depths: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask as a model of this config takes it: one, or one for each kind of layers."""
    text = config.get_text_config(decoder=True)
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    if kinds and "sliding_attention" in kinds and window:
        return {
            "full_attention": tree_mask(stops, depths),
            "sliding_attention": tree_mask(stops, depths, window),
        }
    return tree_mask(stops, depths, None if kinds else window)


def logits_of(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """The logits (U, V) in float32 at the places `where`, and at no others: never (B, T, V)."""
    inner = extract_model_from_parallel(model)
    where, given = batch["where"], {"attention_mask": batch.get("attention_mask")}
    if "stops" in batch:
        positions = batch["position_ids"]
        mask = _masks(inner.config, batch["stops"], positions)
        given = {"attention_mask": mask, "position_ids": positions}
    with last_layer_at(inner, where):
        logits, _ = logits_at(model, where, input_ids=batch["input_ids"], **given)
    return logits.float()


def option_logprobs(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log P(option | prompt), (N, K): of all its tokens, each given those before it.

    The log-softmax is over the whole vocabulary.
    """
    logits = logits_of(model, batch)  # (U, V)
    slots, tokens = batch["slots"], batch["tokens"]
    each = logits[slots, tokens] - logits.logsumexp(-1)[slots]  # (M,)
    N, K = batch["target"].shape
    sums = each.new_zeros(N * K).index_add(0, batch["owners"], each).view(N, K)
    return exclusive_logprobs(sums, batch["begins"])


def judge_loss() -> PairLoss:
    """−Σ_o p_o log P(o | prompt) of each prompt: cross-entropy that label mass is learnt by too."""

    def compute(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, target = option_logprobs(model, batch), batch["target"]
        said, sure = logprobs.argmax(1), target.argmax(1)
        even = (target == target[:, :1]).all(1)
        return soft_cross_entropy(logprobs, target), {
            "accuracy": torch.where(even, 0.5, (said == sure).float()),
            "mass": logprobs.exp().sum(1),
        }

    return compute


@torch.no_grad()
def why_not(loaded: Loaded, rows: Sequence[JudgeRow]) -> str:
    """Why this model cannot compute the prompts of a pair in one row; "" if it can.

    Tried on a middling pair, its windows being narrowed to less than that, against its own
    rounding: how far a batch of the prompts, padded, is from each by itself.
    """
    config = loaded.model.config
    reason, longest = obstacle(config, windows=True)
    if reason:
        return reason
    kinds = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has {', '.join(sorted(other))} layers"
    if max(row.length for row in rows) > longest:
        return f"its positions change beyond {longest} tokens"
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation}, not sdpa"
    groups = [list(g) for _, g in groupby(rows, key=lambda row: row.together)]
    groups.sort(key=lambda g: max(row.length for row in g))
    some = groups[len(groups) // 2][:4]
    # Rows of one length round alike in a batch and alone: a longer one has them all padded.
    room = min(_PADDING, loaded.max_length - some[0].length)
    longer = replace(some[0], ids=np.concatenate([some[0].ids, some[0].ids[:room]]))
    plain, shared = collator(loaded.filler, False), collator(loaded.filler, True)
    model, training = loaded.model, loaded.model.training
    model.eval()

    def found(batch: Mapping[str, Any]) -> Tensor:
        return logits_of(model, to_device(batch, model.device))[batch["slots"]]  # (M, V)

    try:
        with narrowed(model, TRIAL_WINDOW):
            alone = torch.cat([found(plain([row], 1.0)) for row in some])
            padded = found(plain([*some, longer], 1.0))[: len(alone)]
            why = difference(alone, padded, found(shared(some, 1.0)))
    except (*REFUSALS, NotImplementedError, KeyError) as error:
        return f"its code cannot do it ({error})"
    finally:
        model.train(training)
    return f"its logits {why}" if why else ""
