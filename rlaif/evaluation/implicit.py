"""The reward that a policy implies: log π − log π_ref of a completion (Rafailov et al. 2023).

DPO's reward is β times that. β scales all rewards alike, so that it changes no comparison and no
score of a benchmark, and is left out, as in RewardBench.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif.engines.checkpoint import end_tokens
from rlaif.evaluation.policy import require_same_vocabulary
from rlaif.records import Prompt, content_id
from rlaif.training.data import RowEncoder, end_of_turn

if TYPE_CHECKING:
    from rlaif.engines.hf import HFEngine


class ImplicitReward:
    """Scores completions by what a policy gives them beyond its reference, in nats a completion.

    Both read the same tokens, the end of turn included; their vocabularies must be one. A
    completion that fits neither context has no score (None).
    """

    def __init__(self, policy: HFEngine, reference: HFEngine) -> None:
        require_same_vocabulary(policy, reference)
        self._policy, self._reference = policy, reference
        ends = end_tokens(policy.model.generation_config, policy.tokenizer)
        end = end_of_turn(policy.tokenizer, ends)
        self._encoder = RowEncoder(policy.encoder, end, ends)
        self._limit = min(policy.max_length, reference.max_length)
        self.key = content_id("implicit", policy.fingerprint, reference.fingerprint)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """One score a completion, in their order; None where it is too long."""
        from rlaif.training.forward import sequence_logprobs

        rows = [self._encoder.sequence(p, c) for p, c in zip(prompts, completions, strict=True)]
        fits = [i for i, (a, b) in enumerate(rows) if len(a) + len(b) <= self._limit]
        befores, afters = [rows[i][0] for i in fits], [rows[i][1] for i in fits]
        out: list[float | None] = [None] * len(rows)
        if not fits:
            return out
        filler = int(afters[0][-1])  # behind the mask: any id will do
        ours = sequence_logprobs(self._policy.model, befores, afters, filler)
        theirs = sequence_logprobs(self._reference.model, befores, afters, filler)
        for i, a, b in zip(fits, ours, theirs, strict=True):
            out[i] = float((a - b).sum())
        return out
