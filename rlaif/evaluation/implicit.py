"""What models give completions, and the reward that a policy implies by it: log π − log π_ref
(Rafailov et al. 2023).

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


class Likelihood:
    """What a model gives completions: their log-probability in nats, and how many tokens they are,
    the end of turn included. A completion that does not fit the context has none (None)."""

    def __init__(self, engine: HFEngine, limit: int | None = None) -> None:
        ends = end_tokens(engine.model.generation_config, engine.tokenizer)
        end = end_of_turn(engine.tokenizer, ends)
        self._engine, self._encoder = engine, RowEncoder(engine.encoder, end, ends)
        self._limit = engine.max_length if limit is None else limit
        self.key = content_id("likelihood", engine.fingerprint)

    def of(
        self, prompts: Sequence[Prompt], completions: Sequence[str]
    ) -> list[tuple[float, int] | None]:
        """One (log-probability, tokens) a completion, in their order; None where it is too long."""
        from rlaif.training.forward import sequence_logprobs

        rows = [self._encoder.sequence(p, c) for p, c in zip(prompts, completions, strict=True)]
        fits = [i for i, (a, b) in enumerate(rows) if len(a) + len(b) <= self._limit]
        befores, afters = [rows[i][0] for i in fits], [rows[i][1] for i in fits]
        out: list[tuple[float, int] | None] = [None] * len(rows)
        if fits:
            filler = int(afters[0][-1])  # behind the mask: any id will do
            found = sequence_logprobs(self._engine.model, befores, afters, filler)
            for i, logs in zip(fits, found, strict=True):
                out[i] = (float(logs.sum()), len(logs))
        return out


class ImplicitReward:
    """Scores completions by what a policy gives them beyond its reference, in nats a completion.

    Both read the same tokens, the end of turn included; their vocabularies must be one. A
    completion that fits neither context has no score (None).
    """

    def __init__(self, policy: HFEngine, reference: HFEngine) -> None:
        require_same_vocabulary(policy, reference)
        limit = min(policy.max_length, reference.max_length)
        self._policy, self._reference = Likelihood(policy, limit), Likelihood(reference, limit)
        self.key = content_id("implicit", policy.fingerprint, reference.fingerprint)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """One score a completion, in their order; None where it is too long."""
        ours, theirs = (m.of(prompts, completions) for m in (self._policy, self._reference))
        return [
            None if a is None or b is None else a[0] - b[0]
            for a, b in zip(ours, theirs, strict=True)
        ]
