"""A small random model, and GGUF files made of it by llama.cpp's own writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = ["bread", "flour", "water", "salt", "oven", "Human", "Assistant", "good", "bad", "is"]
LAYERS = 2


def random_model() -> Any:
    """Qwen 2 in small: its weights are written to GGUF files as they are."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        vocab_size=320,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE with <bos> 0, <eos> 1 and <turn> 2, which puts nothing in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>", "<turn>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Tokens by id, and merges."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    return tokens, [" ".join(merge) for merge in data["merges"]]


def write_gguf(path: Path, model: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Path:
    """Writes the model to a GGUF file. `more`: pre, add_bos, eot and parts, its metadata."""
    out = gguf.GGUFWriter(path, "qwen2")
    config = model.config
    out.add_name("small")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens, merges = vocabulary(tokenizer)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(str(more.pop("pre", "default")))
    out.add_token_list(tokens + [f"unused{i}" for i in range(config.vocab_size - len(tokens))])
    out.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
    out.add_token_merges(merges)
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    if "add_bos" in more:
        out.add_add_bos_token(bool(more.pop("add_bos")))
    if "eot" in more:
        out.add_eot_token_id(int(str(more.pop("eot"))))
    if "parts" in more:
        out.add_uint16("split.count", int(str(more.pop("parts"))))
    assert not more
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, LAYERS)
    for key, value in model.state_dict().items():
        key = names.get_name(key, try_suffixes=(".weight", ".bias"))
        out.add_tensor(key, value.numpy().astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
