"""`rlaif train`: what learns from a run."""

from __future__ import annotations

from typing import Annotated

import typer

from rlaif.cli.common import (
    ColumnOption,
    ConfigOption,
    JudgeOption,
    LimitOption,
    OutOption,
    PolicyOption,
    SetOption,
    SkipOption,
    columns_of,
    configure,
    execute,
    with_section,
)

RewardOption = Annotated[
    str | None,
    typer.Option(help="`model`, `judge`, a reward model's folder, or `module:function`."),
]
StepsOption = Annotated[int | None, typer.Option(help="Batches to sample and learn from.")]

app = typer.Typer(help="Train on a run's preferences.", no_args_is_help=True)


@app.command("sft")
def train_sft(
    config: ConfigOption = None,
    out: OutOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="Rows with `messages`, or `prompt` and `completion`; or `best`."),
    ] = None,
    column: ColumnOption = None,
    policy: PolicyOption = None,
    limit: LimitOption = None,
    skip_bad: SkipOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy on answers: a file's, or the best of the run's own completions.

    Example: rlaif train sft --out runs/demo --data demonstrations.jsonl
    """
    from rlaif import stages

    named = {
        "policy.model": policy, "train.sft.data": data, "train.sft.limit": limit,
        "train.sft.skip_bad": skip_bad, **columns_of("train.sft", column),
    }  # fmt: skip
    execute(with_section("sft", config, out, overrides, named), stages.train_sft, together=True)


@app.command("reward")
def train_reward(
    config: ConfigOption = None,
    out: OutOption = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint to start from.")] = None,
    overrides: SetOption = None,
) -> None:
    """Train a reward model on the run's preferences.

    Example: rlaif train reward --out runs/demo --set train.reward.epochs=2
    """
    from rlaif import stages

    named = {"train.reward.model": model}
    execute(configure(config, out, overrides, named), stages.train_reward, together=True)


@app.command("dpo")
def train_dpo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy on the run's preferences by DPO with soft labels.

    Example: rlaif train dpo --out runs/demo --set train.dpo.beta=0.2
    """
    from rlaif import stages

    execute(
        configure(config, out, overrides, {"policy.model": policy}), stages.train_dpo, together=True
    )


@app.command("ppo")
def train_ppo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    reward: RewardOption = None,
    steps: StepsOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy by PPO on a reward model, a live judge or a Python function.

    Example: rlaif train ppo --out runs/demo --reward judge --steps 30
    """
    from rlaif import stages

    named = {"policy.model": policy, "train.ppo.reward": reward, "train.ppo.steps": steps}
    execute(with_section("ppo", config, out, overrides, named), stages.train_ppo, together=True)


@app.command("grpo")
def train_grpo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    reward: RewardOption = None,
    steps: StepsOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy by GRPO: completions of a prompt, compared with each other by the judge.

    Example: rlaif train grpo --out runs/demo --steps 60 --set train.grpo.learning_rate=1.0e-4
    """
    from rlaif import stages

    named = {
        "policy.model": policy, "judge.model": judge, "train.grpo.reward": reward,
        "train.grpo.steps": steps,
    }  # fmt: skip
    execute(with_section("grpo", config, out, overrides, named), stages.train_grpo, together=True)


@app.command("rloo")
def train_rloo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    reward: RewardOption = None,
    steps: StepsOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy by RLOO: REINFORCE, the baseline being the prompt's other completions.

    Example: rlaif train rloo --out runs/demo --steps 60 --reward judge
    """
    from rlaif import stages

    named = {
        "policy.model": policy, "judge.model": judge, "train.rloo.reward": reward,
        "train.rloo.steps": steps,
    }  # fmt: skip
    execute(with_section("rloo", config, out, overrides, named), stages.train_rloo, together=True)


@app.command("online-dpo")
def train_online_dpo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    steps: StepsOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy by DPO on pairs that it samples and the judge labels as it learns.

    Example: rlaif train online-dpo --out runs/demo --steps 60
    """
    from rlaif import stages

    named = {
        "policy.model": policy, "judge.model": judge, "train.online_dpo.steps": steps,
    }  # fmt: skip
    execute(
        with_section("online_dpo", config, out, overrides, named),
        stages.train_online_dpo,
        together=True,
    )
