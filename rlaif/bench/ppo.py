"""`rlaif bench ppo`: episodes a second of whole PPO steps, from prompts to updated weights.

Policy, reference, reward model and value model have the shape of one model, each with its own
weights. Every completion is asked for all its tokens: random weights hardly ever end one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlaif.bench.machine import Clock, device_name, peak_rss_mib, set_threads, together
from rlaif.errors import DataError
from rlaif.files.readers import read_pairs
from rlaif.records import Prompt
from rlaif.training.rl.settings import PPOSettings

if TYPE_CHECKING:
    from rlaif.engines.tokens import Encoder, Ids

WARM_UP = 1  # steps before those that are timed


@dataclass(frozen=True, slots=True)
class PPOReport:
    """What was measured: `--json` prints exactly these. Seconds are as `Clock` counts them."""

    episodes_per_s: float
    parameters: int  # the policy's: a model's name may say otherwise
    episodes: int  # timed
    steps: int  # timed
    prompt_tokens: int  # a prompt
    completion_tokens: float  # an episode, on average
    value: str
    first_ratio_gap: float  # largest |ρ − 1| of the first minibatches: 0
    rollout_gap: float  # largest |Δ log p| between decoding and training
    seconds: float
    step_seconds: list[float]
    wall_seconds: float
    peak_rss_mib: float
    device: str


def bench_ppo(
    model: str,
    prompts: Sequence[Prompt],
    settings: PPOSettings,
    *,
    reward: str | None = None,
    threads: int | None = None,
    device: str = "auto",
    between: Callable[[], None] | None = None,
) -> PPOReport:
    """Times the `steps` of the settings after one more that warms up.

    Completions that never end score like any other. `reward` is a reward model, from which a
    separate value model starts too; None makes one of `model`, with a random head. `between` is
    called after every step and not timed.
    """
    from rlaif.training.models import load_policy
    from rlaif.training.processes import join
    from rlaif.training.rl.actor_critic import ActorCritic
    from rlaif.training.rl.loop import prompts_of_step
    from rlaif.training.rl.ppo import PPO
    from rlaif.training.rl.rollout import Sampler
    from rlaif.training.rl.scorers import ModelScorer

    threads, steps = set_threads(threads, device), settings.steps
    settings = settings.but(steps=steps + WARM_UP, no_end_score=None)
    place = join(device)
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
        reward = reward or str(save_reward_model(model, Path(folder)))
        if settings.value == "separate":
            settings = settings.but(value_model=reward)
        scorer = ModelScorer(reward, device=str(place))
        loaded = load_policy(model)
        sampler = Sampler(loaded, temperature=settings.temperature, max_new_tokens=settings.longest)
        nets = ActorCritic(loaded, str(place), settings)
    ppo = PPO(nets, sampler, scorer, settings)
    size = settings.batch_size
    batches = [prompts_of_step(prompts, i, size, 0) for i in range(settings.steps)]
    facts, taken = [], []
    for i, batch in enumerate(batches):
        clock = Clock(one_core=place.type == "cpu" and threads == 1)
        facts.append(ppo.step(i, batch))
        taken.append(clock.read())
        if between is not None:
            between()
    facts, taken = facts[WARM_UP:], taken[WARM_UP:]
    seconds = together(taken)
    sizes = {len(sampler.encode(p)) for p in prompts}
    return PPOReport(
        episodes_per_s=steps * size / seconds["seconds"],
        parameters=sum(p.numel() for p in nets.policy.parameters()),
        episodes=steps * size,
        steps=steps,
        prompt_tokens=max(sizes),
        completion_tokens=float(np.mean([f["length"] for f in facts])),
        value=settings.value,
        first_ratio_gap=max(f["first_ratio_gap"] for f in facts),
        rollout_gap=max(f["rollout_gap"] for f in facts),
        peak_rss_mib=peak_rss_mib(),
        device=device_name(str(place)),
        **seconds,
    )


def save_reward_model(model: str, folder: Path) -> Path:
    """Writes a reward model with the trunk of a causal one and a random head; returns its place."""
    from rlaif.training.models import load_reward, save_model

    loaded = load_reward(model)
    save_model(loaded, folder, lora=False, merge=False)
    return folder


def prompts_of_length(pairs: str | Path, model: str, n: int, tokens: int) -> list[Prompt]:
    """`n` prompts that the model's tokenizer and template make exactly `tokens` ids of.

    They are cut out of the pairs' texts, from where a text begins. DataError if these give fewer.
    """
    encoder = _encoder(model)
    found: dict[str, Prompt] = {}
    for pair in read_pairs(pairs, on_bad=lambda _: None):
        for text in (pair.prompt.messages[-1].content, pair.first, pair.second):
            prompt = _cut(encoder, text, tokens)
            if prompt is not None:
                found[prompt.id] = prompt
            if len(found) == n:
                return list(found.values())
    raise DataError(
        f"{pairs}: {n} prompts of {tokens} tokens were asked for, its texts give {len(found)}"
    )


def _cut(encoder: Encoder, text: str, tokens: int) -> Prompt | None:
    """The prompt of as many of a text's words as make exactly `tokens` ids; None if none do."""
    words = text.split()
    low, high = 1, len(words)
    while low <= high:
        middle = (low + high) // 2
        prompt = Prompt.user(" ".join(words[:middle]))
        size = len(_ids(encoder, prompt))
        if size == tokens:
            return prompt
        low, high = (middle + 1, high) if size < tokens else (low, middle - 1)
    return None


def tokenised(model: str, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids of prompts by the model's tokenizer and template, up to where its turn begins."""
    encoder = _encoder(model)
    return [_ids(encoder, prompt).tolist() for prompt in prompts]


def _ids(encoder: Encoder, prompt: Prompt) -> Ids:
    from rlaif.files.templates import Rendered

    return encoder.prompt(Rendered.chat(prompt.messages))


def _encoder(model: str) -> Encoder:
    from rlaif.engines.checkpoint import read_tokenizer, source_of
    from rlaif.engines.tokens import Encoder

    return Encoder(read_tokenizer(source_of(model).model), model)
