"""What a run of PPO is made of: nets, sampler, ptx sequences; the loop does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from rlaif.engines.tokens import Ids
from rlaif.records import Demonstration, Prompt
from rlaif.training.before import keeps_the_model
from rlaif.training.models import Loaded, Start, fingerprint_of
from rlaif.training.processes import same_parameters
from rlaif.training.rl.actor_critic import ActorCritic
from rlaif.training.rl.loop import OnlineRun, TrainingResult
from rlaif.training.rl.ppo import PPO
from rlaif.training.rl.rollout import Sampler
from rlaif.training.rl.rollout_vllm import VLLMSampler
from rlaif.training.rl.scorers import Scorer, check_scorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import Runtime


@keeps_the_model
def train_ppo(
    prompts: Sequence[Prompt],
    model: str | Start,
    out: str | Path,
    scorer: Scorer,
    settings: PPOSettings = PPOSettings(),
    *,
    ptx: Sequence[Ids | Demonstration] = (),
    judge: Scorer | None = None,
    runtime: Runtime = Runtime(),
) -> TrainingResult:
    """Trains a policy on what `scorer` gives its completions, and writes it to `out`.

    Every pass over the prompts is in an order of its own. `ptx`, for `ptx_weight`: demonstrations,
    or the token ids of any text; those that do not fit the context are left out and counted.
    `judge` looks on as `settings.held_out` says, and changes no weight. Each line of
    `training.jsonl` has `alarms`, which say what has gone wrong; where `runtime.on_log` does not
    get them they are warned of.
    """
    check_scorer(scorer)
    s = settings
    run = OnlineRun("ppo", Start.of(model), Path(out), s, runtime, judge)
    place = run.join()
    done = run.done(_run_key(run, s, prompts, scorer, ptx), s.value_model)
    if done is not None:
        return done

    loaded, a_step = run.load(), s.batch_size // s.samples
    held = _fitting(ptx, loaded)
    # Before the policy is on the GPU, of whose free memory vLLM takes its share.
    with closing(_sampler(loaded, s, place)) as sampler:
        run.take(prompts, sampler, a_step)
        run.refused["ptx"] = len(ptx) - len(held)
        ppo = PPO(_nets(loaded, s, place), sampler, scorer, s, held)
        lines = run.steps(ppo, sampler, a_step)
    return run.finish(loaded, lines, counted=True)


def _sampler(
    loaded: Loaded,
    settings: PPOSettings,
    place: torch.device,
) -> Sampler:
    temperature, longest = settings.temperature, settings.longest
    if settings.rollouts == "hf":
        return Sampler(loaded, temperature=temperature, max_new_tokens=longest)
    return VLLMSampler(
        loaded,
        loaded.source,  # its weights come anew each time, with what was added into them
        temperature=temperature,
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


def _run_key(
    run: OnlineRun,
    settings: PPOSettings,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    ptx: Sequence[Ids | Demonstration],
) -> str:
    """Hash of all that decides the weights; a value model counts by content, not where it lies."""
    chosen, room = settings.key(), None  # a context into which fewer prompts fit than the model's
    if settings.rollouts == "vllm":
        room = settings.vllm.max_model_len
    value = chosen["value_model"]
    if value:
        chosen["value_model"] = "given"
    models = [run.start.fingerprint, *([fingerprint_of(value)] if value else [])]
    held = [x.id if isinstance(x, Demonstration) else x.tolist() for x in ptx]
    return run.key(prompts, models, scorer.key, chosen, held, room)
