"""Online DPO (Guo et al. 2024): pairs of the live policy, labelled by a judge as it learns.

`OnlineDPO.step` is the algorithm. TRL's trainer (trl.experimental.online_dpo) is not used: it takes
one number a completion and the sign of their difference, so a label is hard, a tie makes the first
completion the chosen one, and a completion that nobody could score counts as 0 and is trained on.
Here the label is the judge's probability, and pairs that are ties, cut off, identical or abstained
on teach nothing and are counted, as in `train dpo`.

Everything random is drawn from (seed, step), so that resuming needs no more than weights, optimiser
and the number of steps done.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif.engines.faster import apply
from rlaif.errors import TrainingError
from rlaif.records import Pair, Prompt, content_id
from rlaif.training.before import keeps_the_model
from rlaif.training.data import Row, token_batches
from rlaif.training.dpo import collator, pair_logprobs, pair_loss
from rlaif.training.forward import BATCH_TOKENS, sequence_logprobs, to_device
from rlaif.training.models import (
    Loaded,
    Start,
    add_lora,
)
from rlaif.training.processes import (
    gathered,
    same_parameters,
    share,
    summed,
)
from rlaif.training.rl.loop import OnlineRun, TrainingResult, descend
from rlaif.training.rl.rollout import Episode, Sampler, occurrences
from rlaif.training.rl.scorers import Labels, Scorer, checked_labels
from rlaif.training.rl.settings import OnlineDPOSettings
from rlaif.training.settings import Runtime


@keeps_the_model
def train_online_dpo(
    prompts: Sequence[Prompt],
    model: str | Start,
    out: str | Path,
    labels: Labels,
    settings: OnlineDPOSettings = OnlineDPOSettings(),
    *,
    judge: Scorer | None = None,
    runtime: Runtime = Runtime(),
) -> TrainingResult:
    """Trains a policy on pairs that `labels` gives preferences, and writes it to `out`.

    `judge` looks on as `settings.held_out` says. Every pass over the prompts is in an order of its
    own.
    """
    s = settings
    run = OnlineRun("online-dpo", Start.of(model), Path(out), s, runtime, judge)
    place = run.join()
    done = run.done(run.key(prompts, run.start.fingerprint, labels.key, s.key()))
    if done is not None:
        return done

    loaded = run.load()
    loaded.model.to(place)
    apply.train(loaded.model, place)
    sampler = Sampler(loaded, temperature=s.temperature, max_new_tokens=s.longest)
    run.take(prompts, sampler, s.batch_size)
    learner = OnlineDPO(loaded, sampler, labels, s)
    same_parameters(learner.parameters.values())
    return run.finish(loaded, run.steps(learner, sampler, s.batch_size))


class OnlineDPO:
    """The algorithm over a policy, a sampler and a judge."""

    def __init__(
        self,
        loaded: Loaded,
        sampler: Sampler,
        labels: Labels,
        settings: OnlineDPOSettings,
    ) -> None:
        self.loaded, self.sampler, self.settings = loaded, sampler, settings
        self._labels, self._spent = labels, labels.spent
        lora = settings.lora
        self._frozen = None if lora else copy.deepcopy(loaded.model).requires_grad_(False).eval()
        if lora is not None:
            add_lora(loaded, lora, "policy", settings.seed)
        self.policy = loaded.model
        self.policy.train()  # dropout is off
        named = self.policy.named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=0.0
        )
        self._loss = pair_loss(settings.loss, settings.beta, settings.label_noise, settings.nll)

    def step(self, index: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Samples two completions of each prompt, has them judged, and learns from the labels."""
        rows, facts = self.gather(index, prompts)
        order = np.random.default_rng([self.settings.seed, index]).permutation(len(rows))
        parts = np.array_split(order, min(self.settings.minibatches, len(rows))) if rows else []
        learnt = [self.learn(index, [rows[i] for i in part]) for part in parts]
        means = {k: sum(x[k] for x in learnt) / len(learnt) for k in learnt[0]} if learnt else {}
        rate = self.optimizer.param_groups[0]["lr"]
        return facts | means | {"learning_rate": rate}

    # ---- gather

    def gather(self, index: int, prompts: Sequence[Prompt]) -> tuple[list[Row], dict[str, Any]]:
        """The pairs to learn from, and the facts of the batch.

        Each process samples and labels its share of the prompts.
        """
        s = self.settings
        seed = int(content_id("rollout", s.seed, index)[:15], 16)
        before = self._spent() if self._spent is not None else 0.0
        with self.autocast():
            mine = self.sampler.sample(
                self.policy, share(prompts), seed, 2, draws=share(occurrences(prompts))
            )
        now, then = self._logprobs(mine)
        pairs = list(zip(mine[::2], mine[1::2], strict=True))
        rows, left_out = self._label(pairs)
        tokens = self._spent() - before if self._spent is not None else 0.0
        share_of = [
            (
                rows,
                left_out,
                tokens,
                float((now - then).sum()),
                sum(e.ended for e in mine),
                sum(len(e.ids) for e in mine),
            )
        ]
        every = gathered(share_of)
        found = [row for part in every for row in part[0]]
        why: Counter[str] = sum((part[1] for part in every), Counter())
        n = len(prompts)
        if why["abstained"] and not found and not why["tie"]:
            raise TrainingError(
                f"the judge abstained on all {why['abstained']} pairs of step {index + 1}: look at "
                "what it is asked"
            )
        facts = {
            "pairs": len(found),
            **{name: why[name] / n for name in ("abstained", "tie", "identical", "cut")},
            "p_chosen": math.fsum(row.p for row in found) / len(found) if found else 0.5,
            "kl": math.fsum(part[3] for part in every) / (2 * n),
            "ended": sum(part[4] for part in every) / (2 * n),
            "length": sum(part[5] for part in every) / (2 * n),
        }
        if self._spent is not None:
            facts["judge_tokens"] = math.fsum(part[2] for part in every)
        return found, facts

    def _label(self, pairs: Sequence[tuple[Episode, Episode]]) -> tuple[list[Row], Counter[str]]:
        """The preferred pairs as rows, and why the others are none.

        What never ended is not preferred to what did: that would pay for going on to the limit.
        """
        left_out: Counter[str] = Counter()
        asked = []
        for first, second in pairs:
            if first.text == second.text:
                left_out["identical"] += 1
            elif not (self.settings.keep_cut or (first.ended and second.ended)):
                left_out["cut"] += 1
            else:
                asked.append((first, second))
        judged = [Pair(a.prompt, a.text, b.text) for a, b in asked]
        labels = checked_labels(self._labels.label, judged)
        rows = []
        for (first, second), label in zip(asked, labels, strict=True):
            if label.status != "preferred":
                left_out[label.status] += 1
                continue
            good, bad = (first, second) if label.first_is_chosen else (second, first)
            if bad.ended and not good.ended:
                left_out["cut"] += 1
                continue
            rows.append(
                Row(
                    label.pair.id,
                    first.prompt.id,
                    first.prompt_ids,
                    good.ids,
                    bad.ids,
                    label.p_chosen,
                )
            )
        return rows, left_out

    def _logprobs(self, episodes: Sequence[Episode]) -> tuple[Any, Any]:
        """log π and log π_ref of each completion, (N,) each."""
        sums = []
        prompts, completions = [e.prompt_ids for e in episodes], [e.ids for e in episodes]
        for reference in (False, True):
            with self._model(reference) as model, self.autocast():
                found = sequence_logprobs(model, prompts, completions, self.loaded.filler)
            sums.append(np.array([x.sum() for x in found]))
        return sums[0], sums[1]

    @contextmanager
    def _model(self, reference: bool) -> Iterator[Any]:
        """The live policy, or the model as it was before training."""
        if reference and self._frozen is not None:
            yield self._frozen
        else:
            with self.policy.disable_adapter() if reference else nullcontext():
                yield self.policy

    def autocast(self) -> Any:
        """A context in the precision of training."""
        if not self.settings.bf16:
            return nullcontext()
        return torch.autocast(self.policy.device.type, torch.bfloat16)

    # ---- learn

    def learn(self, index: int, rows: Sequence[Row]) -> dict[str, float]:
        """An optimiser step on some pairs; each process computes its share of them.

        The reference reads the very batch that the policy does, so that rewards begin at exactly 0.
        """
        s, device = self.settings, self.policy.device
        mine, total = share(rows), float(len(rows))
        collate = collator(self.loaded.filler, None)
        sums: dict[str, Any] = {}
        for part in token_batches([2 * row.length for row in mine], BATCH_TOKENS) if mine else []:
            batch = to_device(collate([mine[i] for i in part], total), device)
            with torch.no_grad(), self._model(reference=True) as model, self.autocast():
                batch["reference"] = pair_logprobs(model, batch)[0]
            with self.autocast():
                losses, statistics = self._loss(self.policy, batch)
            loss = losses.sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": losses, **statistics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double().sum() / total
        norm = descend(self.optimizer, [s.learning_rate], self.parameters, index, s)
        return {**_means(sums, device), "grad_norm": norm.item()}

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimiser: nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""


# what `learn` tells of the pairs, whether or not this process had any
STATISTICS = (
    "loss",
    "accuracy",
    "margin",
    "reward_chosen",
    "reward_rejected",
    "logp_chosen",
    "logp_rejected",
)


def _means(sums: dict[str, Any], device: Any) -> dict[str, float]:
    """The sums of all processes."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    table = summed(torch.stack([sums.get(name, zero) for name in STATISTICS]))
    return dict(zip(STATISTICS, table.tolist(), strict=True))
