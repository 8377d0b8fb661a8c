"""The embedded default: a small world with known answers, and a small model trained on it.

    from rlaif.tiny import gold, gold_preference, prompts

    prompt = prompts("test", limit=1)[0]
    gold(prompt.text, "No.").legal          # False: the grammar does not say that

The grammar and the gold checker load without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlaif.tiny.gold import Gold, gold, gold_preference, principle_trait
from rlaif.tiny.grammar import KINDS, TRAITS, TinyPrompt, kinds_at_stake, prompts
from rlaif.tiny.principles import HELD_OUT_PHRASINGS, PHRASINGS, PRINCIPLES

WEIGHTS: Final = Path(__file__).parent / "weights"
"""The shipped model: a Hugging Face folder that `from_pretrained` and vLLM load as it is."""

__all__ = [
    "HELD_OUT_PHRASINGS",
    "KINDS",
    "PHRASINGS",
    "PRINCIPLES",
    "TRAITS",
    "WEIGHTS",
    "Gold",
    "TinyPrompt",
    "gold",
    "gold_preference",
    "kinds_at_stake",
    "principle_trait",
    "prompts",
]
