"""The stages of a run, each from files to files: what the commands call.

A stage reads what earlier ones left in the run directory, does what is not yet done, and writes its
section of the manifest last. So any stage can be killed at any moment and run again.

Names load on first use, so that a command pays for its own stages only. `audit` and `best_of_n` lie
in the modules of their names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.stages.attacks import attack as attack
    from rlaif.stages.audit import require_fit as require_fit
    from rlaif.stages.audit import stored_labels as stored_labels
    from rlaif.stages.evaluation import evaluate as evaluate
    from rlaif.stages.inputs import TINY_PROMPTS as TINY_PROMPTS
    from rlaif.stages.inputs import held_out_section as held_out_section
    from rlaif.stages.inputs import is_tiny as is_tiny
    from rlaif.stages.inputs import load_prompts as load_prompts
    from rlaif.stages.inputs import sampling_of as sampling_of
    from rlaif.stages.inputs import tiny_target as tiny_target
    from rlaif.stages.inputs import truth as truth
    from rlaif.stages.judge import train_judge as train_judge
    from rlaif.stages.labelling import label as label
    from rlaif.stages.labelling import prefer as prefer
    from rlaif.stages.labelling import prefer_stream as prefer_stream
    from rlaif.stages.labelling import read as read
    from rlaif.stages.learned import learn_constitution as learn_constitution
    from rlaif.stages.learning import cut_completions as cut_completions
    from rlaif.stages.learning import train_dpo as train_dpo
    from rlaif.stages.learning import train_reward as train_reward
    from rlaif.stages.online import train_grpo as train_grpo
    from rlaif.stages.online import train_online_dpo as train_online_dpo
    from rlaif.stages.online import train_rloo as train_rloo
    from rlaif.stages.origins import tell_stale as tell_stale
    from rlaif.stages.ppo import train_ppo as train_ppo
    from rlaif.stages.record import Rejected as Rejected
    from rlaif.stages.record import finish as finish
    from rlaif.stages.record import git_commit as git_commit
    from rlaif.stages.record import versions as versions
    from rlaif.stages.reporting import report as report
    from rlaif.stages.reporting import write_beside as write_beside
    from rlaif.stages.reporting import write_report as write_report
    from rlaif.stages.revising import contrast as contrast
    from rlaif.stages.revising import revise as revise
    from rlaif.stages.rewards import judge_tokens as judge_tokens
    from rlaif.stages.rewards import live_label as live_label
    from rlaif.stages.rewards import reward_folder as reward_folder
    from rlaif.stages.rewards import scorer_of as scorer_of
    from rlaif.stages.run import READ_PAIRS as READ_PAIRS
    from rlaif.stages.run import Reporter as Reporter
    from rlaif.stages.run import Run as Run
    from rlaif.stages.sampling import sample as sample
    from rlaif.stages.settings import described as described
    from rlaif.stages.sft import train_sft as train_sft

_HOME = {
    "POLICIES": "policies",
    "READ_PAIRS": "run",
    "Rejected": "record",
    "Reporter": "run",
    "Run": "run",
    "TINY_PROMPTS": "inputs",
    "attack": "attacks",
    "contrast": "revising",
    "cut_completions": "learning",
    "described": "settings",
    "evaluate": "evaluation",
    "finish": "record",
    "git_commit": "record",
    "held_out_section": "inputs",
    "is_tiny": "inputs",
    "judge_tokens": "rewards",
    "label": "labelling",
    "learn_constitution": "learned",
    "live_label": "rewards",
    "load_prompts": "inputs",
    "prefer": "labelling",
    "prefer_stream": "labelling",
    "read": "labelling",
    "report": "reporting",
    "require_fit": "audit",
    "revise": "revising",
    "reward_folder": "rewards",
    "sample": "sampling",
    "sampling_of": "inputs",
    "scorer_of": "rewards",
    "stored_labels": "audit",
    "tell_stale": "origins",
    "tiny_target": "inputs",
    "train_dpo": "learning",
    "train_grpo": "online",
    "train_judge": "judge",
    "train_online_dpo": "online",
    "train_ppo": "ppo",
    "train_reward": "learning",
    "train_rloo": "online",
    "train_sft": "sft",
    "trained_policies": "policies",
    "truth": "inputs",
    "versions": "record",
    "winrate_file": "winrates",
    "write_beside": "reporting",
    "write_report": "reporting",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlaif.stages' has no attribute '{name}'")
    found = getattr(import_module(f"rlaif.stages.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
