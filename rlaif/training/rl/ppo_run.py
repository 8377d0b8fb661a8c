"""A run of PPO: prompts in, a policy out, with checkpoints, a journal and alarms.

A killed run goes on from its last checkpoint and, on one device, ends with the same weights bit for
bit: what is drawn depends on the step, and the scores on their completions.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif.engines.tokens import Ids
from rlaif.errors import TrainingError
from rlaif.records import Demonstration, Prompt, content_id
from rlaif.training.before import keeps_the_model
from rlaif.training.checkpoints import (
    JOURNAL,
    Due,
    last_checkpoint,
    read_checkpoint,
    steps_from,
    write_checkpoint,
)
from rlaif.training.data import thinking_key
from rlaif.training.loop import Journal, finish, prepare
from rlaif.training.models import Loaded, fingerprint_of, load_policy, save_model
from rlaif.training.processes import join, rank, refuse_spread, same_parameters
from rlaif.training.rl.actor_critic import ActorCritic
from rlaif.training.rl.held_out import HeldOut, held_out_alarm
from rlaif.training.rl.ppo import PPO
from rlaif.training.rl.rollout import Sampler
from rlaif.training.rl.rollout_vllm import VLLMSampler
from rlaif.training.rl.scorers import Scorer, check_scorer
from rlaif.training.rl.settings import AlarmLimits, PPOSettings
from rlaif.training.settings import Runtime
from rlaif.training.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class PPOResult:
    """Where the policy lies, and how training went. `metrics` is what metrics.json holds."""

    path: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


@keeps_the_model
def train_ppo(
    prompts: Sequence[Prompt],
    model: str,
    out: str | Path,
    scorer: Scorer,
    settings: PPOSettings = PPOSettings(),
    *,
    adapter: str | None = None,
    thinking: int | None = None,
    ptx: Sequence[Ids | Demonstration] = (),
    judge: Scorer | None = None,
    runtime: Runtime = Runtime(),
) -> PPOResult:
    """Trains a policy on what `scorer` gives its completions, and writes it to `out`.

    Every pass over the prompts is in an order of its own. `adapter` is a LoRA folder to add into
    the model first, and so into the reference. `thinking` (tokens, 0 for none) has the policy think
    before it answers, of which the answer alone is scored. `ptx`, for `ptx_weight`: demonstrations,
    or the token ids of any text; those that do not fit the context are left out and counted.
    `judge` looks on as `settings.held_out` says, and changes no weight. Each line of
    `training.jsonl` has `alarms`, which say what has gone wrong; where `runtime.on_log` does not
    get them they are warned of.
    """
    check_scorer(scorer)
    folder = Path(out)
    check_trackers(runtime.log_to)
    refuse_spread()
    place = join(runtime.device)
    key = _run_key(prompts, model, adapter, scorer, settings, ptx, thinking)
    done = prepare(folder, key, runtime.resume, (model, adapter, settings.value_model))
    if done is not None:
        return PPOResult(folder, done["steps"], done["seconds"], done)

    loaded = load_policy(model, adapter=adapter, thinking=thinking, **settings.precision)
    held = _fitting(ptx, loaded)
    # Before the policy is on the GPU, of whose free memory vLLM takes its share.
    with closing(_sampler(loaded, settings, place)) as sampler:
        kept = [prompt for prompt in prompts if sampler.fits(prompt)]
        if len(kept) * settings.samples < settings.batch_size:
            raise TrainingError(
                f"{len(kept)} of {len(prompts)} prompts fit the context with "
                f"{settings.longest} tokens of completion; a step takes "
                f"{settings.batch_size // settings.samples}"
            )
        ppo = PPO(_nets(loaded, settings, place), sampler, scorer, settings, held)
        watch = (
            None
            if judge is None or settings.held_out is None
            else HeldOut(judge, settings.held_out)
        )
        journal = _run(ppo, kept, folder, runtime, watch)
    made = None
    if rank() == 0:
        save_model(loaded, folder, lora=settings.lora is not None, merge=True)
        made = {
            **summary(journal.lines),
            "prompts": len(kept),
            "refused": {"too_long": len(prompts) - len(kept), "ptx": len(ptx) - len(held)},
            "notes": loaded.notes,
            "settings": {**settings.key(), "alarms": settings.alarms.model_dump()},
        }
    metrics = finish(folder, made)
    return PPOResult(folder, metrics["steps"], metrics["seconds"], metrics)


def _sampler(
    loaded: Loaded,
    settings: PPOSettings,
    place: torch.device,
) -> Sampler:
    heat, longest = settings.temperature, settings.longest
    if settings.rollouts == "hf":
        return Sampler(loaded, temperature=heat, max_new_tokens=longest)
    return VLLMSampler(
        loaded,
        loaded.source,  # its weights come anew each time, with what was added into them
        temperature=heat,
        max_new_tokens=longest,
        dtype="bfloat16" if settings.bf16 else "float32",
        sleeps=place.type == "cuda",
        options=settings.vllm.model_dump(exclude_none=True),
    )


def _nets(loaded: Loaded, settings: PPOSettings, place: torch.device) -> ActorCritic:
    nets = ActorCritic(loaded, str(place), settings)
    same_parameters(nets.trainable().values())
    return nets


def _fitting(ptx: Sequence[Ids | Demonstration], loaded: Loaded) -> list[Ids]:
    """The sequences of PPO-ptx as token ids, those that the context holds."""
    encoded = [
        np.concatenate(loaded.encoder.sequence(x.prompt, x.text))
        if isinstance(x, Demonstration)
        else x
        for x in ptx
    ]
    return [ids for ids in encoded if 1 < len(ids) <= loaded.limit(None)]


def _run(
    ppo: PPO,
    prompts: Sequence[Prompt],
    out: Path,
    runtime: Runtime,
    held_out: HeldOut | None = None,
) -> Journal:
    """All steps that are not yet done."""
    settings = ppo.settings
    checkpoint = last_checkpoint(out)
    done = 0 if checkpoint is None else restore(ppo, checkpoint)
    journal = Journal(out / JOURNAL, checkpoint, settings.steps, 1, runtime)
    told = {name for line in journal.lines for name in line["alarms"]}
    due = Due(settings.checkpoint_every)
    with steps_from(checkpoint):
        for index in range(done, settings.steps):
            count = settings.batch_size // settings.samples
            seen = {}
            if held_out is not None and held_out.due(index, settings.steps):
                seen["held_out"] = held_out.measure(ppo, prompts)
            facts = ppo.step(index, prompts_of_step(prompts, index, count, settings.seed)) | seen
            if rank():
                continue  # the main process writes
            first = journal.lines[0] if journal.lines else facts
            facts["alarms"] = find_alarms(facts, first, settings.alarms)
            if held_out is not None:
                lines, limit = [*journal.lines, facts], settings.alarms.held_out
                if parted := held_out_alarm(lines, held_out.settings.every, limit):
                    facts["alarms"]["held_out"] = parted
            if runtime.on_log is None:
                for name in facts["alarms"].keys() - told:
                    warnings.warn(f"PPO step {index + 1}: {facts['alarms'][name]}", stacklevel=3)
            told |= facts["alarms"].keys()
            journal.write(index + 1, facts)
            due.after(index + 1, settings.steps, lambda n: save(ppo, n, out))
    journal.close()
    return journal


def prompts_of_step(prompts: Sequence[Prompt], index: int, count: int, seed: int) -> list[Prompt]:
    """`count` prompts of the endless stream of shuffled passes over all of them."""
    order: list[int] = []
    for turn in range(index * count // len(prompts), ((index + 1) * count - 1) // len(prompts) + 1):
        order += np.random.default_rng([seed, turn]).permutation(len(prompts)).tolist()
    begin = index * count % len(prompts)
    return [prompts[i] for i in order[begin : begin + count]]


def find_alarms(
    facts: dict[str, Any], first: dict[str, Any], limits: AlarmLimits
) -> dict[str, str]:
    """What has gone wrong by this step, by name. `first` is the run's first step."""
    found = {}
    if limits.kl is not None and facts["kl"] > limits.kl:
        found["kl"] = (
            f"the KL to the reference is {facts['kl']:.1f} nats an episode, above {limits.kl:g}: "
            "raise beta, or set target_kl"
        )
    if limits.entropy is not None and facts["entropy"] < limits.entropy * first["entropy"]:
        found["entropy"] = (
            f"the entropy fell to {facts['entropy']:.3f} nats a token from {first['entropy']:.3f}: "
            "the policy says ever the same. Raise beta or entropy_weight, or lower learning_rate"
        )
    drift = facts["length"] / first["length"]
    if limits.length is not None and not 1 / limits.length <= drift <= limits.length:
        found["length"] = (
            f"completions have {facts['length']:.1f} tokens on average, at first "
            f"{first['length']:.1f}: look whether length is what is rewarded"
        )
    if limits.ended is not None and facts["ended"] < limits.ended:
        found["ended"] = (
            f"only {facts['ended']:.0%} of completions end by themselves: raise max_new_tokens, or "
            "lower no_end_score"
        )
    return found


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Steps, seconds, what was abstained on, alarms, and the means over the last tenth."""
    last = lines[-max(1, len(lines) // 10) :]
    skip = {"step", "total_steps", "epoch", "seconds", "learning_rate", "abstained", "alarms"}
    skip.add("held_out")  # not in every line
    means = {k: math.fsum(x[k] for x in last) / len(last) for k in last[0] if k not in skip}
    alarms = Counter(name for line in lines for name in line["alarms"])
    texts = {name: text for line in reversed(lines) for name, text in line["alarms"].items()}
    judged = [line["held_out"] for line in lines if "held_out" in line]
    return {
        **({"held_out": judged[-1]} if judged else {}),
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "abstained": sum(line["abstained"] for line in lines),
        "alarms": {name: {"steps": n, "first": texts[name]} for name, n in alarms.items()},
        **means,
    }


# ---- checkpoints


def save(ppo: PPO, step: int, out: Path) -> None:
    """Weights that learn, optimiser and β."""
    state = {
        "weights": {name: p.detach() for name, p in ppo.parameters.items()},
        "optimizer": ppo.optimizer.state_dict(),
        "beta": ppo.kl.beta,
        "mask": None if ppo.masker is None else ppo.masker.weights(set(ppo.parameters)),
    }
    write_checkpoint(out, step, state)


def restore(ppo: PPO, checkpoint: Path) -> int:
    """Puts a checkpoint's state into `ppo`; returns the steps done."""
    step, state = read_checkpoint(checkpoint, ppo.nets.device)
    with torch.no_grad():
        for name, parameter in ppo.parameters.items():
            parameter.copy_(state["weights"][name])
    ppo.optimizer.load_state_dict(state["optimizer"])
    ppo.kl.beta = state["beta"]
    if ppo.masker is not None:
        ppo.masker.restore(state["mask"])
    return step


def _run_key(
    prompts: Sequence[Prompt],
    model: str,
    adapter: str | None,
    scorer: Scorer,
    settings: PPOSettings,
    ptx: Sequence[Ids | Demonstration],
    thinking: int | None = None,
) -> str:
    """Hash of all that decides the weights; alarms only look on."""
    room = None  # a context that is smaller than the model's, into which fewer prompts fit
    if settings.rollouts == "vllm":
        room = settings.vllm.max_model_len
    chosen = settings.key()
    value = chosen["value_model"]
    if value:  # its content counts, not where it lies
        chosen["value_model"] = "given"
    models = [fingerprint_of(model, adapter), *([fingerprint_of(value)] if value else [])]
    ids = [p.id for p in prompts]
    held = [x.id if isinstance(x, Demonstration) else x.tolist() for x in ptx]
    told = thinking_key(thinking)
    return content_id("ppo", models, ids, scorer.key, chosen, held, room, *told)
