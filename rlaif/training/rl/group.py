"""GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024) by TRL's trainers, with our rewards.

TRL brings advantages, clipping, the penalty on the KL, optimiser and checkpoints. Ours are the
rewards (any `Scorer`), and the completions: sampled by the engine's own decoder from prompts that
are encoded as everywhere else, so that nothing in a prompt's text becomes a control token, and a
completion depends on prompt, step and seed only. A killed run goes on from its last checkpoint and,
on the CPU, ends with the same weights bit for bit.

A completion without a score is None to TRL, which leaves it out of its group's baseline and gives
it no advantage; under GRPO the penalty on the KL still acts on it.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlaif.engines.faster import apply
from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Message, Prompt, content_id, messages_to_json
from rlaif.training.before import keeps_the_model
from rlaif.training.by_trl import sends_nothing
from rlaif.training.checkpoints import JOURNAL, Sealing, last_checkpoint, steps_from
from rlaif.training.loop import argument_values
from rlaif.training.models import (
    Loaded,
    Start,
    own_ends,
    quiet,
)
from rlaif.training.private import on_trl, one_gpu
from rlaif.training.rl.loop import OnlineRun, TrainingResult, prompts_of_step
from rlaif.training.rl.rollout import Episode, Sampler, occurrences
from rlaif.training.rl.scorers import Scorer, Spent, check_scorer, score_all, without_reward
from rlaif.training.rl.settings import GroupSettings, GRPOSettings, RLOOSettings
from rlaif.training.rl.watch import Watch
from rlaif.training.settings import Runtime, TrainSettings


@keeps_the_model
def train_group(
    prompts: Sequence[Prompt],
    model: str | Start,
    out: str | Path,
    scorer: Scorer,
    settings: GRPOSettings | RLOOSettings = GRPOSettings(),
    *,
    spent: Spent | None = None,
    judge: Scorer | None = None,
    runtime: Runtime = Runtime(),
) -> TrainingResult:
    """Trains a policy on what `scorer` gives its completions, and writes it to `out`.

    Every pass over the prompts is in an order of its own. The scorer gets whole groups of `group`
    completions of a prompt, side by side. `spent` tells the judge's tokens so far, for the journal;
    `judge` looks on as `settings.held_out` says.
    """
    check_scorer(scorer)
    s, folder = settings, Path(out)
    run = OnlineRun(s.algorithm, Start.of(model), folder, s, runtime, judge)
    run.join()
    arguments = one_gpu(_arguments(s, argument_values(_loop_settings(s), runtime, folder)))
    done = run.done(run.key(prompts, run.start.fingerprint, scorer.key, s.key()))
    if done is not None:
        return done

    loaded = run.load()
    apply.train(loaded.model, arguments.device)
    sampler = Sampler(loaded, temperature=s.temperature, max_new_tokens=s.longest)
    run.take(prompts, sampler, s.batch_size // s.group)
    checkpoint = last_checkpoint(folder)
    watch = run.watch(sampler, checkpoint, s.iterations)
    reward = Reward(scorer, s.no_end_score, spent)
    with closing(watch.journal), quiet(), _still(), sends_nothing(), own_ends(loaded):
        trainer = _trainer(loaded, sampler, reward, s, arguments, run.prompts)
        trainer.add_callback(Writer(watch))
        trainer.add_callback(Sealing(folder / JOURNAL, s.iterations))
        with steps_from(checkpoint):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        loaded.model = trainer.accelerator.unwrap_model(trainer.model)
    return run.finish(loaded, watch.journal.lines)


def _loop_settings(s: GroupSettings) -> TrainSettings:
    parts = s.gradient_accumulation * PartialState().num_processes
    if s.batch_size % (parts * s.group):
        raise ConfigError(
            f"batch_size {s.batch_size} cannot be shared among {PartialState().num_processes} "
            f"processes x {s.gradient_accumulation} forward passes in whole groups of {s.group}: "
            f"take a multiple of {parts * s.group}"
        )
    return TrainSettings(
        epochs=1,
        learning_rate=s.learning_rate,
        batch_size=s.batch_size // parts,
        gradient_accumulation=s.gradient_accumulation,
        warmup=s.warmup,
        weight_decay=s.weight_decay,
        max_grad_norm=s.max_grad_norm,
        seed=s.seed,
        lora=s.lora,
        bf16=s.bf16,
        gradient_checkpointing=s.gradient_checkpointing,
        # a checkpoint lies where completions are sampled anew: TRL does not keep them
        checkpoint_every=s.checkpoint_every * s.iterations,
    )


def _arguments(s: GRPOSettings | RLOOSettings, values: dict[str, Any]) -> Any:
    """TRL's config. All steps are one epoch of a data set that holds them in order."""
    common = {
        **values,
        "max_steps": s.steps * s.iterations,
        "num_generations": s.group,
        "num_iterations": s.iterations,
        "max_completion_length": s.longest,
        "temperature": s.temperature,
        "beta": s.beta,
        "epsilon": s.clip,
        "shuffle_dataset": False,
        "disable_dropout": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(s, RLOOSettings):
            return RLOOConfig(**common)
        return GRPOConfig(**common, scale_rewards=s.scale, loss_type=s.loss)


def _trainer(
    loaded: Loaded,
    sampler: Sampler,
    reward: Reward,
    s: GroupSettings,
    arguments: Any,
    prompts: Sequence[Prompt],
) -> Any:
    count = s.batch_size // s.group
    of_steps = (prompts_of_step(prompts, step, count, s.seed) for step in range(s.steps))
    rows = [
        {"prompt": messages_to_json(prompt.messages), "draw": draw}
        for step in of_steps
        for prompt, draw in zip(step, occurrences(step), strict=True)
    ]
    adapters: Any = None
    if s.lora is not None:
        from peft import LoraConfig

        targets = s.lora.targets
        adapters = LoraConfig(
            r=s.lora.rank,
            lora_alpha=s.lora.alpha,
            lora_dropout=s.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
    kind = RLOO if isinstance(s, RLOOSettings) else GRPO
    with quiet(), _still(), sends_nothing():
        trainer = kind(
            model=loaded.model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(loaded.tokenizer),  # TRL changes its padding
            peft_config=adapters,
        )
    if trainer.ref_model is not None:  # TRL loads it anew: it must be the policy, and compute as it
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        reference.load_state_dict(loaded.model.state_dict())
        apply.train(reference, arguments.device)
    trainer.remove_callback(PrinterCallback)
    trainer.sampler, trainer.reward, trainer.draw = sampler, reward, s.seed
    return trainer


class Reward:
    """What TRL asks for the rewards of the completions that were sampled last."""

    __name__ = "score"

    def __init__(self, scorer: Scorer, no_end_score: float | None, spent: Spent | None) -> None:
        self._scorer, self._no_end, self._spent = scorer, no_end_score, spent
        self.episodes: list[Episode] = []

    def __call__(self, *, log_metric: Callable[[str, float], None], **_: Any) -> list[float | None]:
        before = self._spent() if self._spent is not None else 0.0
        # Whole groups are scored, those that never ended among them: their rivals need them.
        found = score_all(self._scorer, self.episodes)
        rewards = without_reward(found, [e.ended for e in self.episodes], self._no_end)
        self._check(rewards)
        log_metric("abstained", sum(x is None for x in rewards) / len(rewards))
        log_metric("ended", sum(e.ended for e in self.episodes) / len(rewards))
        if self._spent is not None:
            log_metric("judge_tokens", (self._spent() - before) * PartialState().num_processes)
        return rewards

    @staticmethod
    def _check(rewards: Sequence[float | None]) -> None:
        if all(x is None for x in rewards):
            raise TrainingError(
                f"none of {len(rewards)} completions has a score: the scorer abstained on all of "
                "them. Look at what it is asked"
            )
        strange = [x for x in rewards if x is not None and not math.isfinite(x)]
        if strange:
            raise TrainingError(f"a score is not finite: {strange[0]}")


class _Sampled:
    """The part of TRL's trainers that makes completions, done by our sampler."""

    sampler: Sampler
    reward: Reward
    draw: int  # the seed of completions
    _prompts: list[Prompt]
    _draws: list[int]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._draws = [row["draw"] for row in inputs]
        trainer: Any = super()
        return trainer._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._prompts = [
            Prompt(tuple(Message(m["role"], m["content"]) for m in messages))
            for messages in prompts
        ]
        return [self.sampler.encode(prompt).tolist() for prompt in self._prompts], None, {}

    def sample(self) -> list[list[int]]:
        """The ids of the completions of the prompts, each of which stands there `group` times."""
        trainer: Any = self
        n = trainer.num_generations
        seed = int(content_id("rollout", self.draw, trainer.state.global_step)[:15], 16)
        live = trainer.accelerator.unwrap_model(trainer.model)
        self.reward.episodes = self.sampler.sample(
            live, self._prompts[::n], seed, n, draws=self._draws[::n]
        )
        return [episode.ids.tolist() for episode in self.reward.episodes]


@on_trl("_generate_and_score_completions", "_tokenize_prompts", "_generate_single_turn")
class GRPO(_Sampled, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO on our completions."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return self.sample(), None


@on_trl("_generate_and_score_completions", "_tokenize_prompts", "_generate_single_turn")
class RLOO(_Sampled, RLOOTrainer):  # type: ignore[misc]
    """TRL's RLOO on our completions."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self.sample()


# What TRL calls what the journal holds.
NAMES = {
    "loss": "loss",
    "reward": "score",
    "reward_std": "score_std",
    "frac_reward_zero_std": "equal_groups",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "length",
    "abstained": "abstained",
    "ended": "ended",
    "judge_tokens": "judge_tokens",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}


class Writer(TrainerCallback):  # type: ignore[misc]
    """Writes the journal, in the words of PPO's, and has the held-out judge look on."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._kept: dict[str, float] = {}  # of the completions of earlier iterations' batch

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        del args, control
        batch, again = divmod(state.global_step, self._watch.lines_a_step)
        if not again:  # the policy that samples this batch
            self._watch.look(batch, model)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        del args, control
        if not logs or "loss" not in logs:  # Trainer's closing summary
            return
        found = {ours: logs[theirs] for theirs, ours in NAMES.items() if theirs in logs}
        self._kept |= found
        if "kl" in logs:  # TRL's is a mean over tokens
            self._kept["kl"] = logs["kl"] * self._kept["length"]
        self._watch.write(state.global_step, self._kept)
        if "judge_tokens" in self._kept:  # spent once a batch of completions
            self._kept["judge_tokens"] = 0.0


@contextmanager
def _still() -> Iterator[None]:
    """Silences TRL, which would print every completion that has no score; they are counted."""
    found = [logging.getLogger(f"trl.trainer.{name}_trainer") for name in ("grpo", "rloo")]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
