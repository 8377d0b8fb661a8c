"""PPO on language models (Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022).

`PPO.step` is the algorithm; `ppo_run` makes what it works with, and `loop` is the run around it.
REINFORCE with a learned baseline and A2C are settings of the same loop: one update a batch, and the
score function's gradient in place of the clipped ratio.

Log-probabilities of a rollout are computed anew by the training's own forward pass, in the very
parts of the first epoch, so that its first ratio is exactly 1: a decoder with a cache rounds
otherwise, and the values need that pass anyway. How far the two are apart is in the journal.

NLPO (Ramamurthy et al. 2022) is a setting too, `mask_top_p`: see `rlaif.training.rl.nlpo`.

Everything random is drawn from (seed, step, …), never from a state, so that resuming needs no more
than weights, optimiser, β and the number of steps done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlaif.engines.tokens import Ids
from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Prompt, content_id
from rlaif.training.data import pad
from rlaif.training.forward import logprobs_where
from rlaif.training.processes import gathered, rank, share, summed, world
from rlaif.training.rl.actor_critic import ActorCritic
from rlaif.training.rl.loop import descend
from rlaif.training.rl.nlpo import Masker, table_of
from rlaif.training.rl.ppo_losses import (
    KLController,
    approx_kl,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    k3,
    score_function_loss,
    token_rewards,
    whiten,
)
from rlaif.training.rl.rollout import (
    Episode,
    Minibatch,
    Part,
    Sampler,
    make_minibatch,
    occurrences,
    plan_update,
)
from rlaif.training.rl.scorers import Scorer, score_all, without_reward
from rlaif.training.rl.settings import PPOSettings


@dataclass(frozen=True, slots=True)
class Experience:
    """What policy, reference and values said when the episodes were sampled, (B, T) each."""

    logp: Tensor
    free: Tensor  # log π without the mask of masked sampling; else as `logp`
    reference: Tensor
    values: Tensor
    entropy: Tensor
    acts: Tensor  # 1 where a token was chosen
    states: Tensor  # 1 where there is a value: one further than `acts` after an end token
    bits: Tensor | None = None  # (B·T, V/8): the tokens allowed, with masked sampling

    @property
    def log_ratio(self) -> Tensor:
        """log π − log π_ref; 0 where no token was chosen."""
        return self.free - self.reference

    def allowed(self, part: Part) -> Tensor | None:
        """The tokens allowed in a part's states, (N, V/8)."""
        return None if self.bits is None else self.bits[part.index]


class PPO:
    """The algorithm over networks, a sampler and a scorer.

    `ptx` are token sequences whose likelihood is held up beside the reward (PPO-ptx, Ouyang et al.
    2022, eq. 2), with `ptx_weight`.
    """

    def __init__(
        self,
        nets: ActorCritic,
        sampler: Sampler,
        scorer: Scorer,
        settings: PPOSettings,
        ptx: Sequence[Ids] = (),
    ) -> None:
        self.nets, self.sampler, self.scorer = nets, sampler, scorer
        self.settings, self.ptx = settings, ptx
        self.kl = KLController(settings.beta, settings.target_kl, settings.horizon)
        self.parameters = nets.trainable()
        rate, own = settings.learning_rate, settings.value_learning_rate
        self._rates = (rate, rate if own is None else own)
        groups = [
            {"params": [p for name, p in self.parameters.items() if name.startswith(part)]}
            for part in ("policy.", "critic.")
        ]
        self.optimizer = torch.optim.Adam(groups, lr=rate, eps=1e-5, fused=True)
        self.masker = None
        if settings.mask_top_p is not None:
            self.masker = Masker(nets.policy, settings.mask_top_p, settings.temperature)
        if settings.ptx_weight and not ptx:
            raise ConfigError("ptx_weight is above 0, but there are no ptx sequences")

    @property
    def policy(self) -> Any:
        """The model that learns."""
        return self.nets.policy

    def autocast(self) -> Any:
        """A context in the precision of training."""
        return self.nets.autocast()

    def step(self, index: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Samples completions of the prompts, and learns from what they score."""
        s, meter = self.settings, Meter()
        if self.masker is not None and index and index % s.mask_every == 0:
            self.masker.renew(self.nets.policy)
        episodes, scores = self.rollout(index, prompts, meter)
        plan = self.plan(index, episodes)
        old = self.experience(episodes, plan[0])
        rewards = token_rewards(
            scores,
            old.log_ratio,
            old.states,
            self.kl.beta,
            estimator=s.kl_estimator,
            score_weight=s.score_weight,
        )
        if s.whiten_rewards:
            rewards = whiten(rewards, old.states, shift_mean=False)
        advantages, returns = gae(rewards, old.values, s.gamma, s.trace)
        meter.batch(episodes, scores, old, returns, self.kl.beta)
        advantages = whiten(advantages, old.acts)
        for epoch in plan:
            for minibatch in epoch:
                for part in minibatch.parts:
                    self.backward(part, minibatch, old, advantages, returns, meter)
                self.update(index, meter)
        self.kl.update(meter.facts["kl"], len(episodes))
        return meter.result()

    # ---- gather

    def rollout(
        self, index: int, prompts: Sequence[Prompt], meter: Meter
    ) -> tuple[list[Episode], Tensor]:
        """Completions and their scores (B,). Those on which the scorer abstains are left out.

        A completion that never ended scores `no_end_score` at most (after the EOS trick, which
        gives that unasked, and so pays where scores go below it). Each process samples and scores
        its share of the prompts, and gets to know what the others have.
        """
        s = self.settings
        seed = int(content_id("rollout", s.seed, index)[:15], 16)
        with self.nets.autocast():
            mine = self.sampler.sample(
                self.nets.policy,
                share(prompts),
                seed,
                s.samples,
                self.masker,
                draws=share(occurrences(prompts)),
            )
        found = score_all(self.scorer, mine)
        scores = without_reward(found, [e.ended for e in mine], s.no_end_score)
        sampled = gathered(list(zip(mine, scores, strict=True)))
        kept = [(e, x) for e, x in sampled if x is not None]
        meter.facts["ended"] = sum(e.ended for e, _ in sampled) / len(sampled)
        meter.facts["abstained"] = len(sampled) - len(kept)
        if not kept:
            raise TrainingError(
                f"none of the {len(sampled)} completions of step {index + 1} has a score: the "
                "scorer abstained on all of them. Look at what it is asked"
            )
        values = torch.tensor([x for _, x in kept], device=self.nets.device)
        if not torch.isfinite(values).all():
            raise TrainingError(f"a score of step {index + 1} is not finite: {values.tolist()}")
        return [e for e, _ in kept], values

    def plan(self, index: int, episodes: Sequence[Episode]) -> list[list[Minibatch]]:
        """The minibatches of every epoch, of which this process computes some parts."""
        s = self.settings
        rows = plan_update(
            len(episodes),
            epochs=s.passes,
            minibatches=s.updates,
            seed=(s.seed, index),
        )
        nets, who = self.nets, (rank(), world())

        def make(m: Sequence[int]) -> Minibatch:
            fill, longest = nets.loaded.filler, nets.longest_packed
            return make_minibatch(episodes, m, fill, nets.device, *who, longest_packed=longest)

        return [[make(m) for m in epoch] for epoch in rows]

    @torch.no_grad()
    def experience(self, episodes: Sequence[Episode], epoch: Sequence[Minibatch]) -> Experience:
        """log π, log π_ref and V of every state, computed in the parts of the first epoch."""
        B, T = len(episodes), max(e.states for e in episodes)
        table = torch.zeros(7, B * T, device=self.nets.device)
        masks = [e.masks for e in episodes if e.masks is not None]
        bits = table_of(masks, T, self.nets.device) if masks else None
        for part in (part for minibatch in epoch for part in minibatch.parts):
            allowed = None if bits is None else bits[part.index]
            now = self.nets.outcome(part, entropy=True, bits=allowed)
            reference = self.nets.reference_logp(part)
            ones = torch.ones_like(now.values)
            rows = (now.logp, now.free, reference, now.values, now.entropy, part.acts, ones)
            table[:, part.index] = torch.stack([row.float() for row in rows])
        logp, free, *others = summed(table).view(7, B, T)
        reference, values, uncertain, acts, states = others
        return Experience(logp, free, reference, values, uncertain, acts, states, bits)

    # ---- learn

    def backward(
        self,
        part: Part,
        minibatch: Minibatch,
        old: Experience,
        advantages: Tensor,
        returns: Tensor,
        meter: Meter,
    ) -> None:
        """Adds the gradient of a part's share in its minibatch's mean loss.

        Policy losses are means over tokens, value losses over states, of the whole minibatch.
        """
        s = self.settings
        acts, states = minibatch.acts, minibatch.states
        new = self.nets.outcome(part, entropy=s.entropy_weight > 0, bits=old.allowed(part))
        then, V, A, R = (
            x.reshape(-1)[part.index] for x in (old.logp, old.values, advantages, returns)
        )
        if s.algorithm == "ppo":
            policy, clipped = clipped_policy_loss(new.logp, then, A, s.clip)
        else:
            policy, clipped = score_function_loss(new.logp, A), torch.zeros_like(A)
        policy_loss = (policy * part.acts).sum() / acts
        value_loss = clipped_value_loss(new.values, V, R, s.value_clip).sum() / states
        loss = policy_loss + s.value_weight * value_loss
        if s.entropy_weight:
            loss = loss - s.entropy_weight * new.entropy.sum() / acts
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            meter.add("policy_loss", policy_loss)
            meter.add("value_loss", value_loss)
            meter.add("approx_kl", (approx_kl(new.logp, then) * part.acts).sum() / acts)
            meter.add("clip_fraction", (clipped * part.acts).sum() / acts)
            meter.ratio((new.logp - then).exp())

    def update(self, index: int, meter: Meter) -> None:
        """An Adam step at a learning rate that falls linearly to 0 over the run."""
        s = self.settings
        if s.ptx_weight:
            self.ptx_backward(index, meter)
        norm = descend(self.optimizer, self._rates, self.parameters, index, s)
        meter.add("grad_norm", norm / world())  # of the whole gradient, which all of them know
        meter.facts["learning_rate"] = s.learning_rate * (1 - index / s.steps)
        meter.next_minibatch()

    def ptx_backward(self, index: int, meter: Meter) -> None:
        """PPO-ptx: adds the gradient of −ptx_weight·log π a token of some ptx sequences.

        As many as a minibatch has episodes.
        """
        s = self.settings
        draw = np.random.default_rng([s.seed, index, meter.minibatches])
        rows = draw.integers(len(self.ptx), size=s.batch_size // s.updates).tolist()
        tokens = sum(len(self.ptx[i]) - 1 for i in rows)
        mine = [self.ptx[i] for i in share(rows)]
        if not mine:
            return
        ids, mask = (x.to(self.nets.device) for x in pad(mine, 0))
        loss = -logprobs_where(self.nets.policy, ids, mask[:, 1:].bool()).sum() / tokens
        (s.ptx_weight * loss).backward()  # type: ignore[no-untyped-call]
        meter.add("ptx_loss", loss.detach())

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimiser: β, and NLPO's mask."""
        mask = None if self.masker is None else self.masker.weights(set(self.parameters))
        return {"beta": self.kl.beta, "mask": mask}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.kl.beta = state["beta"]
        if self.masker is not None:
            self.masker.restore(state["mask"])


class Meter:
    """What a step has to tell: facts of its batch, and means over its minibatches.

    `first_ratio_gap` is the largest |ρ − 1| of the first minibatch, which is 0 if rollout and
    training agree on every log-probability to the last bit.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.minibatches = 0
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._gaps: list[Tensor] = []

    def batch(
        self,
        episodes: Sequence[Episode],
        scores: Tensor,
        old: Experience,
        returns: Tensor,
        beta: float,
    ) -> None:
        """Facts of the episodes before learning. KL is in nats an episode, entropy in a token."""
        n, seen = len(episodes), old.states.bool()
        kl = old.log_ratio.sum(1)
        sampled = [torch.from_numpy(e.logprobs) for e in episodes]
        error = returns[seen] - old.values[seen]
        pairs = zip(old.logp.cpu().double(), sampled, strict=True)
        gaps = torch.cat([(row[: len(x)] - x).abs() for row, x in pairs])
        self.facts |= {
            "kl": kl.mean().item(),
            "kl_k3": (k3(old.log_ratio).sum() / n).item(),
            "score": scores.mean().item(),
            "score_std": scores.std(correction=0).item(),
            "reward": (scores - beta * kl).mean().item(),
            "beta": beta,
            "entropy": (old.entropy.sum() / old.acts.sum()).item(),
            "length": old.acts.sum().item() / n,
            "value": old.values[seen].mean().item(),
            "explained_variance": 1 - (error.var() / returns[seen].var().clamp_min(1e-8)).item(),
            "rollout_gap": gaps.max().item(),
            "rollout_gap_mean": gaps.mean().item(),
        }

    def add(self, name: str, value: Tensor) -> None:
        """A minibatch's mean, or a part's share of it."""
        self._sums[name].append(value)

    def ratio(self, ratio: Tensor) -> None:
        if self.minibatches == 0:
            self._gaps.append((ratio - 1).abs().max())

    def next_minibatch(self) -> None:
        if self.minibatches == 0:
            self._sums["first_approx_kl"] = list(self._sums["approx_kl"])
        self.minibatches += 1

    def result(self) -> dict[str, Any]:
        """Facts and means as numbers, over the shares of all processes."""
        means: dict[str, float] = defaultdict(float)
        gaps = []
        sums = {name: torch.stack(x).sum().item() for name, x in self._sums.items() if x}
        for shares, gap in gathered([(sums, [x.item() for x in self._gaps])]):
            gaps += gap
            for name, value in shares.items():
                means[name] += value / (1 if name == "first_approx_kl" else self.minibatches)
        return self.facts | means | {"first_ratio_gap": max(gaps)}
