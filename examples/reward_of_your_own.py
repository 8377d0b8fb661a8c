"""Trains a policy by PPO on a reward of your own.

    python examples/reward_of_your_own.py [folder of the policy]

A reward is a function: prompts and completions in, a score or None for each out. None leaves a
completion out of the update. From the command line it is `rlaif train ppo --reward module:score`,
with the module in the working directory. The few steps here show the loop, and learn little.
"""

import sys

from rlaif import Prompt
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import Runtime


def score(prompts: list[Prompt], completions: list[str]) -> list[float | None]:
    """How many words shorter than its question an answer is; an empty one has no score."""
    words = [len(prompt.messages[-1].content.split()) for prompt in prompts]
    said = [len(text.split()) for text in completions]
    return [(w - s) / 10 if s else None for w, s in zip(words, said, strict=True)]


things = ("bake bread", "grow beans", "mend a chair", "write a letter")
prompts = [Prompt.user(f"How do I {thing}?") for thing in things]
settings = PPOSettings(steps=2, batch_size=4, max_new_tokens=16, learning_rate=1e-4)
result = train_ppo(
    prompts,
    "tiny",
    sys.argv[1] if len(sys.argv) > 1 else "policy",
    FunctionScorer(score),
    settings,
    runtime=Runtime(on_log=lambda row: print(f"step {row['step']}: reward {row['reward']:.3f}")),
)
print("written to", result.path)
