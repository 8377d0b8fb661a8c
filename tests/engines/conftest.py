"""Tokenizers trained here and random models of real shapes: small, but the real code paths."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
CORPUS = [
    "Which response is better? The better answer is A. The better answer is B.",
    "Human: How do I bake bread? Assistant: Mix flour, water, salt and yeast, then wait.",
    "user assistant system Principle: do not help someone hurt people. Answer with A or B.",
    "The quick brown fox jumps over the lazy dog; the end of the story is near.",
] * 4


def bytelevel(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's and Qwen's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens(["<think>", "  "])
    tokenizer.chat_template = chat_template
    return tokenizer


def metaspace(chat_template: str | None = INST) -> PreTrainedTokenizerFast:
    """A sentencepiece-like BPE with byte fallback, as Llama 2's and Mistral's; pad is eos."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    # Byte tokens are vocabulary, not added tokens.
    raw = Tokenizer.from_str(_without_byte_tokens(raw.to_str()))
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = chat_template
    return tokenizer


def _without_byte_tokens(source: str) -> str:
    import json

    data = json.loads(source)
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(data)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 640,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SHAPES = {
    "llama": {"model_type": "llama", **SMALL},
    "qwen2": {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SMALL, "head_dim": 16},
    "mistral": {"model_type": "mistral", **SMALL, "sliding_window": None},
    "gemma": {
        "model_type": "gemma2",
        **SMALL,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "attn_implementation": "eager",
        "layer_types": ["full_attention"] * 2,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "vocab_size": 640,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}


SHAPES["window"] = {**SHAPES["mistral"], "sliding_window": 32}
SHAPES["gemma3"] = {
    "model_type": "gemma3_text",
    **SMALL,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
SHAPES["gemma2"] = {
    **SHAPES["gemma"],
    "sliding_window": 10,
    "layer_types": ["sliding_attention", "full_attention"],
}
SHAPES["phimoe"] = {
    "model_type": "phimoe",
    **SMALL,
    "sliding_window": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
SHAPES["bloom"] = {
    "model_type": "bloom",
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 640,
}
SHAPES["gptj"] = {
    "model_type": "gptj",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 4,
    "n_positions": 512,
    "vocab_size": 640,
    "bos_token_id": None,
    "eos_token_id": None,
}
SHAPES["gpt_neo"] = {
    "model_type": "gpt_neo",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 16,
    "vocab_size": 640,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
SHAPES["xglm"] = {
    "model_type": "xglm",
    "d_model": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "attention_heads": 4,
    "vocab_size": 640,
    "max_position_embeddings": 512,
    "pad_token_id": 1,
}
SHAPES["ahead"] = {
    "model_type": "rembert",
    "hidden_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 640,
}
SHAPES["mpt"] = {"model_type": "mpt", "d_model": 48, "n_layers": 2, "n_heads": 6, "vocab_size": 640}
SHAPES["falcon"] = {
    "model_type": "falcon",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 640,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
SHAPES["falcon alibi"] = {**SHAPES["falcon"], "alibi": True}
SHAPES["gpt_oss"] = {
    "model_type": "gpt_oss",
    **SMALL,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
SHAPES["deepseek_v3"] = {
    "model_type": "deepseek_v3",
    **SMALL,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
SHAPES["llama4"] = {
    "model_type": "llama4_text",
    **SMALL,
    "intermediate_size_mlp": 64,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 16,
    "floor_scale": 20,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
}
SHAPES["minimax"] = {
    "model_type": "minimax",
    **SMALL,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "block_size": 16,
    "num_local_experts": 4,
}


@lru_cache
def random_model(shape: str) -> torch.nn.Module:
    """A random model with spread-out weights, so that its probabilities differ."""
    torch.manual_seed(0)
    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0, 1)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return bytelevel()


@pytest.fixture(scope="session")
def make_engine(tokenizer):
    """Engine round a random model: `make_engine("qwen2", batch_tokens=64)`."""

    def make(shape: str = "qwen2", tokenizer=tokenizer, **options) -> HFEngine:
        return HFEngine.from_loaded(
            random_model(shape), tokenizer, shape, EngineSettings(**options)
        )

    return make


@pytest.fixture(scope="session")
def tokenizers():
    return {"bytelevel": bytelevel, "metaspace": metaspace}


@pytest.fixture(scope="session")
def model_of():
    return random_model
