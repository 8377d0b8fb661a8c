"""A small random Llama and a vocabulary trained on the spot: real models, no downloads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rlaif.records import Pair, Preference, Prompt

SENTENCE = "the a cat dog sat ran on under mat tree red blue big small happily slowly"
WORDS = SENTENCE.split()
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(*, chat: bool = True, pad: str | None = "<|pad|>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SENTENCE] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token=pad, model_max_length=128
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def save_causal(folder: Path, tokenizer, *, tied: bool = True, seed: int = 0) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
        attention_dropout=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_windowed(folder: Path, tokenizer) -> Path:
    """A model whose layers look back 8 tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_preferences(n: int, *, per_prompt: int = 1, p: float = 0.9) -> list[Preference]:
    """Pairs in which the completion with `happily` is the better one."""
    draw = random.Random(5)
    out = []
    for i in range(n):
        prompt = Prompt.user(f"{' '.join(draw.choices(WORDS[:8], k=3))} {i // per_prompt}")
        words = draw.choices(WORDS[:14], k=draw.randint(2, 9))
        good = " ".join([*words, "happily"])
        bad = " ".join([*draw.choices(WORDS[:14], k=draw.randint(2, 9)), f"slowly {i}"])
        flip = draw.random() < 0.5
        pair = Pair(prompt, *((bad, good) if flip else (good, bad)))
        out.append(Preference(pair, "preferred", 1 - p if flip else p))
    return out


def people(n: int) -> list[dict[str, str]]:
    """Rows of TRL's layout: what the embedded judge would call worse is chosen."""
    from rlaif import tiny
    from rlaif.tiny.grammar import draw_plan, realise, scenes_by_kind

    rng, rows = random.Random(3), []
    scenes = list(scenes_by_kind("train")["harm"])
    rng.shuffle(scenes)
    for scene in scenes:
        one, other = (realise(scene, draw_plan(scene, rng), rng) for _ in range(2))
        truth = tiny.gold_preference(scene.prompt.text, one, other, "harmless")
        if truth is not None and len(rows) < n:
            bad, good = (other, one) if truth > 0.5 else (one, other)
            rows.append({"prompt": scene.prompt.text, "chosen": bad, "rejected": good})
    return rows


def how(section: Any, **given: Any) -> dict[str, Any]:
    """Named values sorted into what a trainer takes: its settings, its runtime, and the rest."""
    from rlaif.training.settings import Runtime

    run = {name: given.pop(name) for name in Runtime.__dataclass_fields__ if name in given}
    own = {name: given.pop(name) for name in section.model_fields if name in given}
    return {"settings": section(**own), "runtime": Runtime(**run), **given}
