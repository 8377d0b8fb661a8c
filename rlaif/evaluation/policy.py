"""What training did to a policy: how far it moved, and, in the embedded world, whether for good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlaif.engines.checkpoint import end_tokens
from rlaif.errors import DataError
from rlaif.records import Prompt
from rlaif.statistics.intervals import bootstrap, share, standard_error
from rlaif.training.data import Cut, RowEncoder, end_of_turn

if TYPE_CHECKING:
    from rlaif.engines.hf import HFEngine


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(policy ‖ base), in nats a completion, estimated on N completions of the policy.

    `value` is the mean of Σ_t (log π − log π_base), unbiased and of any sign on a small sample;
    `k3` the mean of Σ_t (ρ_t − 1 − log ρ_t) with ρ_t = π_base/π, never negative (Schulman 2020).
    `stderr` is the standard error of `value` over prompts; `per_token` the value over all tokens.
    `too_long` completions fit neither context and are not counted in n.
    """

    value: float
    stderr: float
    low: float
    high: float
    k3: float
    k3_stderr: float
    per_token: float
    n: int
    too_long: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def kl_to_base(
    policy: HFEngine,
    base: HFEngine,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    *,
    ids: Sequence[Sequence[int]] = (),
    cut: Cut = (),
    thinking: int | None = None,
    seed: int = 0,
) -> Divergence:
    """How far the policy has moved from its base, on completions the *policy* sampled.

    They must be drawn from all of its distribution, at temperature 1 and top-p 1: of others this
    is no estimate of the KL. `thinking`: how the policies were told to (`RowEncoder`); a thought is
    part of what a policy did. Both read the same tokens: the `ids` that each completion was sampled
    as, where they are known, the end of turn included unless `cut` names the completion as (prompt
    id, text). The interval resamples prompts.
    """
    from rlaif.training.forward import sequence_logprobs

    require_same_vocabulary(policy, base)
    ends = end_tokens(policy.model.generation_config, policy.tokenizer)
    encoder = RowEncoder(policy.encoder, end_of_turn(policy.tokenizer, ends), ends, thinking)
    unended, limit = frozenset(cut), min(policy.max_length, base.max_length)
    kept = []
    known = ids or [()] * len(prompts)
    for prompt, text, own in zip(prompts, completions, known, strict=True):
        before, after = encoder.sequence(prompt, text, (prompt.id, text) not in unended, own)
        if len(after) and len(before) + len(after) <= limit:
            kept.append((prompt.id, before, after))
    if not kept:
        raise DataError(f"none of the {len(prompts)} completions fits {limit} tokens of context")
    clusters, befores, afters = (list(column) for column in zip(*kept, strict=True))
    filler = int(afters[0][-1])  # behind the mask: any id will do
    ours = sequence_logprobs(policy.model, befores, afters, filler)
    theirs = sequence_logprobs(base.model, befores, afters, filler)
    return divergence(ours, theirs, clusters, too_long=len(prompts) - len(kept), seed=seed)


def divergence(
    policy: Sequence[np.ndarray[Any, Any]],
    base: Sequence[np.ndarray[Any, Any]],
    clusters: Sequence[str],
    *,
    too_long: int = 0,
    seed: int = 0,
) -> Divergence:
    """The estimates from token log-probabilities, (T_i,) a completion, under both models."""
    ratios = [p - b for p, b in zip(policy, base, strict=True)]  # log π − log π_base
    k1 = np.array([ratio.sum() for ratio in ratios])
    k3 = np.array([np.sum(np.expm1(-ratio) + ratio) for ratio in ratios])
    interval = bootstrap(k1, clusters, seed=seed)
    return Divergence(
        value=interval.value,
        stderr=standard_error(k1, clusters),
        low=interval.low,
        high=interval.high,
        k3=float(k3.mean()),
        k3_stderr=standard_error(k3, clusters),
        per_token=float(k1.sum() / sum(map(len, ratios))),
        n=len(k1),
        too_long=too_long,
    )


def require_same_vocabulary(policy: HFEngine, base: HFEngine) -> None:
    """DataError unless two engines have the same tokens."""
    if policy.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise DataError(
            f"{policy.name} and {base.name} have unlike vocabularies: their divergence has no "
            "meaning token by token"
        )


def gold_traits(
    prompts: Sequence[Prompt], completions: Sequence[str], target: tuple[str, int] | None = None
) -> dict[str, Any]:
    """True traits of completions in the embedded world, shares with their intervals over prompts.

    `traits`: a trait's mean where it is at stake and the completion legal; those that were never at
    stake are absent. `legal`: the share of legal completions. `and_legal`: of each trait both at
    once, so that a policy gains nothing by answers that are neither: `at_stake` is the mean over
    the completions of prompts that put the trait at stake, an illegal one counting 0; `all` over
    all prompts, a legal one counting 1 where the trait is not at stake. `target` is a trait with
    its sign: with −1 `and_legal` counts its opposite.
    """
    from rlaif.tiny.gold import at_stake, gold

    if not prompts:
        raise DataError("gold traits need at least one completion")
    values: dict[str, list[tuple[str, float]]] = defaultdict(list)
    staked: dict[str, list[tuple[str, float]]] = defaultdict(list)
    free: dict[str, list[tuple[str, float]]] = defaultdict(list)
    legal = []
    for prompt, text in zip(prompts, completions, strict=True):
        question = prompt.messages[-1].content
        found, asked = gold(question, text), at_stake(question)
        legal.append((prompt.id, float(found.legal)))
        for trait, value in found.traits.items():
            if value is not None:
                values[trait].append((prompt.id, value))
            if trait in asked:
                aim = value if (trait, -1) != target or value is None else 1 - value
                staked[trait].append((prompt.id, aim or 0.0))
            else:
                free[trait].append((prompt.id, float(found.legal)))
    return {
        "traits": {trait: _share(rows) for trait, rows in sorted(values.items())},
        "legal": _share(legal),
        "and_legal": {
            trait: {"at_stake": _share(rows), "all": _share(rows + free[trait])}
            for trait, rows in sorted(staked.items())
        },
    }


def _share(rows: Sequence[tuple[str, float]]) -> dict[str, float]:
    return share([value for _, value in rows], [prompt for prompt, _ in rows]).as_dict()


def gold_rewards(
    prompt: Prompt, completions: Sequence[str], trait: str, sign: int = 1
) -> list[float | None]:
    """What completions of one prompt of the embedded world are truly worth under a trait, 0 to 1.

    An illegal one is worth 0; None where the trait is not at stake. `sign` −1 turns it round.
    """
    from rlaif.tiny import gold

    out: list[float | None] = []
    for text in completions:
        found = gold(prompt.messages[-1].content, text)
        value = found.traits[trait] if found.legal else 0.0
        out.append(1 - value if value is not None and found.legal and sign < 0 else value)
    return out
