"""Models with random weights in real shapes, and a tokenizer trained on given text.

What a model costs does not depend on what it has learnt, so a benchmark needs no download.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError, nearest
from rlaif.files.readers import read_pairs
from rlaif.files.readers.settings import PairReading

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "rope_theta": 1e6}
_MEDIUM = {
    "hidden_size": 384,
    "intermediate_size": 1_024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 8_192,
    "max_position_embeddings": 4_096,
    "tie_word_embeddings": True,
}
_THREE_TO_ONE = (["linear_attention"] * 3 + ["full_attention"]) * 2
# Qwen2's sizes: `15m` for one CPU core, those in billions of Qwen2.5's models. The others are other
# architectures as wide and deep as `15m`, with recurrent layers.
SHAPES: dict[str, dict[str, Any]] = {
    "smoke": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 1_024,
        "max_position_embeddings": 8_192,
        "tie_word_embeddings": True,
    },
    "15m": _MEDIUM,
    "qwen3.5-20m": {
        "model_type": "qwen3_5_text",
        **_MEDIUM,
        "head_dim": 64,
        "layer_types": _THREE_TO_ONE,
        "linear_num_key_heads": 6,
        "linear_num_value_heads": 12,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "granite-hybrid-20m": {
        "model_type": "granitemoehybrid",
        **_MEDIUM,
        "layer_types": _THREE_TO_ONE,
        "shared_intermediate_size": 1_024,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "mamba_n_heads": 12,
        "mamba_d_head": 64,
        "mamba_d_state": 64,
        "mamba_expand": 2,
    },
    "lfm2-15m": {
        "model_type": "lfm2",
        **_MEDIUM,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "conv", "conv", "full_attention"] * 2,
    },
    "mamba2-10m": {
        "model_type": "mamba2",
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "vocab_size": 8_192,
        "state_size": 64,
        "num_heads": 12,
        "head_dim": 64,
        "n_groups": 1,
        "tie_word_embeddings": True,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        **_QWEN,
    },
    "1.5b": {
        "hidden_size": 1_536,
        "intermediate_size": 8_960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        **_QWEN,
    },
    "7b": {
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        **_QWEN,
        "vocab_size": 152_064,
    },
}


def make_model(
    folder: Path, shape: str, texts: Iterable[str], *, seed: int = 0, device: str = "cpu"
) -> Path:
    """Writes a model of a shape, of Qwen2's kind where it names no other.

    In float32 up to some millions of parameters, and in bfloat16 above.

    `device` is where the weights are drawn: a GPU draws billions of them in seconds.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape not in SHAPES:
        raise ConfigError(f"no shape '{shape}'.{nearest(shape, SHAPES)}")
    sizes = {"model_type": "qwen2", **SHAPES[shape]}
    tokenizer = train_tokenizer(texts, min(sizes["vocab_size"], 8_192))
    config = AutoConfig.for_model(
        **sizes,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=sizes["hidden_size"] ** -0.5,  # so that requests differ in their answers
    )
    dtype = torch.bfloat16 if shape.endswith("b") else torch.float32
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_of(pairs: str | Path, limit: int = 1_000) -> Iterable[str]:
    """The texts of a source of pairs, for a tokenizer."""
    for pair in read_pairs(pairs, PairReading(limit=limit), on_bad=lambda _: None):
        yield "\n\n".join([*(m.content for m in pair.prompt.messages), pair.first, pair.second])


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE with Qwen's turn markers, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer
