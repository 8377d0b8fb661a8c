"""A reward of your own: pays for short completions, and abstains on empty ones.

rlaif train ppo --policy tiny --reward extending_reward:short --out runs/short
"""

from rlaif import Prompt


def short(prompts: list[Prompt], completions: list[str]) -> list[float | None]:
    del prompts  # what was asked does not matter here
    return [1 / len(text.split()) if text.strip() else None for text in completions]
