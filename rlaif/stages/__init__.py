"""The stages of a run, each from files to files: what the commands call.

A stage reads what earlier ones left in the run directory, does what is not yet done, and writes its
section of the manifest last. So any stage can be killed at any moment and run again.
"""

from __future__ import annotations

from rlaif.stages.attacks import attack
from rlaif.stages.audit import audit, require_fit, stored_labels
from rlaif.stages.best_of_n import best_of_n
from rlaif.stages.evaluation import POLICIES, evaluate, trained_policies, winrate_file
from rlaif.stages.inputs import (
    TINY_PROMPTS,
    held_out_section,
    is_tiny,
    load_prompts,
    sampling_of,
    tiny_target,
    truth,
)
from rlaif.stages.jury import READ_PAIRS
from rlaif.stages.labelling import current_verdicts, label, prefer, prefer_stream, read
from rlaif.stages.learning import cut_completions, lora_of, train_dpo, train_reward
from rlaif.stages.online import train_grpo, train_online_dpo, train_rloo
from rlaif.stages.origins import tell_stale
from rlaif.stages.ppo import train_ppo
from rlaif.stages.record import Rejected, describe, finish, git_commit, versions
from rlaif.stages.reporting import report, write_report
from rlaif.stages.revising import contrast, revise
from rlaif.stages.rewards import judge_tokens, live_label, reward_folder, scorer_of
from rlaif.stages.run import Reporter, Run
from rlaif.stages.sampling import sample
from rlaif.stages.sft import train_sft

__all__ = [
    "POLICIES",
    "READ_PAIRS",
    "TINY_PROMPTS",
    "Rejected",
    "Reporter",
    "Run",
    "attack",
    "audit",
    "best_of_n",
    "contrast",
    "current_verdicts",
    "cut_completions",
    "describe",
    "evaluate",
    "finish",
    "git_commit",
    "held_out_section",
    "is_tiny",
    "judge_tokens",
    "label",
    "live_label",
    "load_prompts",
    "lora_of",
    "prefer",
    "prefer_stream",
    "read",
    "report",
    "require_fit",
    "revise",
    "reward_folder",
    "sample",
    "sampling_of",
    "scorer_of",
    "stored_labels",
    "tell_stale",
    "tiny_target",
    "train_dpo",
    "train_grpo",
    "train_online_dpo",
    "train_ppo",
    "train_reward",
    "train_rloo",
    "train_sft",
    "trained_policies",
    "truth",
    "versions",
    "winrate_file",
    "write_report",
]
