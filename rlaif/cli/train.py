"""`rlaif train`: what learns from a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.cli.common import execute
from rlaif.cli.options import App, Decorator, on_a_run

if TYPE_CHECKING:
    from rlaif.config import Config

app = App(help="Train on a run's preferences.", no_args_is_help=True)


def _on_pairs(*more: str, section: str, **keys: str) -> Decorator:
    """Options of what learns from a run's preferences, or from a file of pairs."""
    keys |= {name: f"train.{section}.{name}" for name in ("labels", "seed")}
    common = {"column": "pairs", "limit": "pairs.limit", "skip_bad": "pairs.skip_bad"}
    return on_a_run("pairs", "format", *more, section=section, resolve=None, **common, **keys)


def _on_prompts(section: str, *more: str) -> Decorator:
    """Options of what learns from completions that it samples as it goes."""
    keys = {name: f"train.{section}.{name}" for name in (*more, "steps", "seed")}
    common = {"column": "prompts", "limit": "prompts.limit", "skip_bad": "prompts.skip_bad"}
    names = ("prompts", "constitution", "policy", "judge", "method")
    return on_a_run(*names, section=section, resolve=None, **common, **keys)


@app.command("sft")
@on_a_run(
    "policy",
    "data",
    column="train.sft",
    limit="train.sft.limit",
    skip_bad="train.sft.skip_bad",
    seed="train.sft.seed",
    section="sft",
)
def train_sft(config: Config) -> None:
    """Train the policy on answers: a file's, or the best of the run's own completions.

    Example: rlaif train sft --out runs/demo --data demonstrations.jsonl
    """
    from rlaif import stages

    execute(config, stages.train_sft, together=True)


@app.command("judge")
@_on_pairs("constitution", "judge", section="judge", model="train.judge.model")
def train_judge(config: Config) -> None:
    """Train a judge on labelled pairs, to label with by `--judge RUN/models/judge`.

    Example: rlaif train judge --pairs pairs.jsonl.gz --judge Qwen/Qwen3-0.6B --out runs/judge

    Example: rlaif train judge --model Qwen/Qwen3-0.6B --labels verdicts --out runs/labelled
    """
    from rlaif import stages

    execute(config, stages.train_judge, together=True)


@app.command("reward")
@_on_pairs(section="reward", model="train.reward.model")
def train_reward(config: Config) -> None:
    """Train a reward model on the run's preferences, or on pairs that people compared.

    Example: rlaif train reward --out runs/demo --set train.reward.epochs=2

    Example: rlaif train reward --pairs pairs.jsonl.gz --labels own --model Qwen/Qwen3-0.6B
    --set train.reward.trunk=frozen --out runs/reward
    """
    from rlaif import stages

    execute(config, stages.train_reward, together=True)


@app.command("dpo")
@_on_pairs("policy", section="dpo")
def train_dpo(config: Config) -> None:
    """Train the policy by DPO with soft labels: the run's preferences, or those of people.

    Example: rlaif train dpo --out runs/demo --set train.dpo.beta=0.2
    """
    from rlaif import stages

    execute(config, stages.train_dpo, together=True)


@app.command("ppo")
@_on_prompts("ppo", "reward")
def train_ppo(config: Config) -> None:
    """Train the policy by PPO on a reward model, a live judge or a Python function.

    Example: rlaif train ppo --out runs/demo --reward judge --steps 30
    """
    from rlaif import stages

    execute(config, stages.train_ppo, together=True)


@app.command("grpo")
@_on_prompts("grpo", "reward")
def train_grpo(config: Config) -> None:
    """Train the policy by GRPO: completions of a prompt, compared with each other by the judge.

    Example: rlaif train grpo --out runs/demo --steps 60 --set train.grpo.learning_rate=1.0e-4
    """
    from rlaif import stages

    execute(config, stages.train_grpo, together=True)


@app.command("rloo")
@_on_prompts("rloo", "reward")
def train_rloo(config: Config) -> None:
    """Train the policy by RLOO: REINFORCE, the baseline being the prompt's other completions.

    Example: rlaif train rloo --out runs/demo --steps 60 --reward judge
    """
    from rlaif import stages

    execute(config, stages.train_rloo, together=True)


@app.command("online-dpo")
@_on_prompts("online_dpo")
def train_online_dpo(config: Config) -> None:
    """Train the policy by DPO on pairs that it samples and the judge labels as it learns.

    Example: rlaif train online-dpo --out runs/demo --steps 60
    """
    from rlaif import stages

    execute(config, stages.train_online_dpo, together=True)
