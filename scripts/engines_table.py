"""Writes the table of architectures in docs/engines.md: how the `hf` engine scores each.

python scripts/engines_table.py            # every causal language model that Transformers knows
python scripts/engines_table.py llama mpt  # the rows of some, the others stay

Each is built small, with random weights and with every kind of layer that its default config has,
and scores the requests of one pair under four principles in both orders, which are longer than its
windows. The table tells which way the engine took, what it computed against the bound (the distinct
tokens), and how far its log-probabilities lie from those of one plain pass for each request.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.files.templates import Rendered, RenderedMessage, Segment

PAGE = Path(__file__).resolve().parent.parent / "docs/engines.md"
BEGIN, END = "<!-- table: scripts/engines_table.py -->", "<!-- end of table -->"
LARGEST = 3_000_000  # weights

# What the sizes of configs are called, and how small they are made.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 32),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_hidden_size",
            "intermediate_size_mlp",
            "dff",
            "dim_ff",
            "mlp_hidden_size",
        ),
        48,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "q_lora_rank",
            "kv_lora_rank",
            "moe_shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "index_head_dim",
            "hidden_size_per_layer_input",
            "o_lora_rank",
        ),
        16,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "qk_nope_head_dim", "v_head_dim", "d_kv"), 8),
    **dict.fromkeys(("qk_rope_head_dim",), 4),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length"),
        512,
    ),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(
        (
            "state_size",
            "mamba_d_state",
            "ssm_state_size",
            "linear_key_head_dim",
            "linear_value_head_dim",
        ),
        8,
    ),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    "floor_scale": 20,
    "rotary_dim": 4,
    "index_topk": 16,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Where a size has another meaning, and what else a config needs.
_TWICE = ["sliding_attention", "full_attention"] * 2
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_GEMMA_3N = {
    "layer_types": _TWICE,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "vocab_size_per_layer_input": 1_024,
    "activation_sparsity_pattern": [0.0] * 4,
}
_GEMMA_4 = {
    "layer_types": _TWICE,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": 1_024,
}
_DECODER = {"is_decoder": True}
_LONG_BERT = {**_DECODER, "max_position_embeddings": 600}  # positions begin behind the padding id
_ROPES = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in _TWICE}
_QSA = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 100,
    "split_ngram_parts": 1,
    "hc_lowrank": 8,
}
MORE: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": _DECODER,
    "camembert": _LONG_BERT,
    "cohere_compass_text": {
        "layer_types": _TWICE,
        "num_hidden_layers": 4,
        "rope_parameters": _ROPES,
    },
    "data2vec-text": _LONG_BERT,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "electra": _DECODER,
    "ernie": _DECODER,
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "num_hidden_layers": 2},
    "falcon_mamba": {"state_size": 8},
    "gemma3n": _GEMMA_3N,
    "gemma3n_text": _GEMMA_3N,
    "gemma4": _GEMMA_4,
    "gemma4_text": _GEMMA_4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 32,
        "num_hidden_layers": 2,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
    },
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_hidden_layers": 2,
        "num_dense_layers": 1,
    },
    "longcat_flash": {"head_dim": 4, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "megatron-bert": _DECODER,
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "num_hidden_layers": 4,
        "layer_types": ...,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "olmo_hybrid": {"linear_num_key_heads": 4},
    "qwen4_exp": _QSA,
    "qwen4_exp_text": _QSA,
    "roc_bert": {
        **_DECODER,
        "shape_embed_dim": 8,
        "shape_vocab_size": 50,
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 50,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3},
    "rembert": {**_DECODER, "input_embedding_size": 32, "output_embedding_size": 32},
    "roberta": _LONG_BERT,
    "roberta-prelayernorm": _LONG_BERT,
    "roformer": _DECODER,
    "rwkv": {"attention_hidden_size": 32},
    "xlm-roberta": _LONG_BERT,
    "xlm-roberta-xl": _LONG_BERT,
    "xlstm": {"num_blocks": 2, "chunk_size": 16},
    "xmod": {**_LONG_BERT, "default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["hybrid", "mamba"] * 2,
        "num_hidden_layers": 4,
        "n_mamba_heads": 2,
        "layer_types": ...,
    },
    "zamba2": {
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 3,
        "layer_types": ...,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_expand": 2,
        "mamba_ngroups": 2,
        "chunk_size": 16,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
    },
    "zaya": {"num_experts_per_tok": 1},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture: `way` is packed, walked, padded or –; `ratio` is computed/bound; `apart`
    the largest difference from plain passes; `why` the reason where it is not packed."""

    name: str
    way: str
    ratio: float | None
    apart: float | None
    why: str

    def cells(self) -> list[str]:
        """The row as the page has it."""
        ratio = "–" if self.ratio is None else f"{self.ratio:.2f}"
        apart = "–" if self.apart is None else f"{self.apart:.0e}"
        return [self.name, self.way, ratio, apart, self.why]


def names() -> list[str]:
    """The model types that `AutoModelForCausalLM` knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str, vocabulary: int) -> Any:
    """The default config of a model type, made small: one layer of each kind, and two at least."""
    whole = AutoConfig.for_model(name)
    text = whole.get_text_config(decoder=True)
    base = whole if type(text) is type(whole) else text
    kind, settings = type(base), base.to_dict()
    known = set(settings) | set(getattr(kind, "attribute_map", {}))
    sizes = {k: v for k, v in {**SIZES, "vocab_size": vocabulary}.items() if k in known}
    if "kv_lora_rank" in settings:  # latent attention: as many keys as queries
        sizes["num_key_value_heads"] = 4
        sizes.pop("head_dim", None)  # that of the rotary part
    layers = list(dict.fromkeys(settings.get("layer_types") or []))
    if layers:
        sizes["layer_types"] = layers if len(layers) > 1 else layers * 2
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    sizes |= MORE.get(name, {})
    fixed = {k for k in sizes if isinstance(vars(kind).get(k), property)}
    return kind(**{k: v for k, v in sizes.items() if v is not ... and k not in fixed})


def tiny_model(name: str, vocabulary: int) -> Any:
    """A model of random weights, spread out so that its probabilities differ."""
    config = tiny_config(name, vocabulary)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its smallest config here has {size / 1e6:.0f} million weights")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "A_log" in key:
                parameter.uniform_(-3, -1)  # states that last
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif key.endswith("sinks"):
                parameter.normal_(0, 1)
    return model


def requests() -> list[Rendered]:
    """One pair under four principles in both orders."""
    one = "I will not help you with that. Wait until dark and ask a friend. " * 2
    two = "To do that, wait until dark. Good luck with it! The end of the story is near. "
    out = []
    for first, second in ((one, two), (two, one)):
        for principle in ("Which is kind?", "Which is kind and short?", "Is it true?", "Good?"):
            body = f"How do I do it?\nA: {first}\nB: {second}\n"
            parts = (Segment("Which is better? ", False), Segment(body, True))
            parts = (*parts, Segment(principle + " ", False))
            out.append(Rendered((RenderedMessage("user", parts),)))
    return out


def measure(name: str) -> Row:
    """How the engine scores an architecture."""
    tokenizer = AutoTokenizer.from_pretrained(str(TINY_WEIGHTS))
    try:
        with quiet():
            model = tiny_model(name, len(tokenizer))
    except Exception as error:  # whatever a foreign config says no with
        return Row(name, "–", None, None, f"not built small: {_line(error)}")
    asked = requests()
    try:
        with quiet() as said:
            engine = HFEngine.from_loaded(model, tokenizer, name)
            found = _scores(engine, asked)
            plain = HFEngine.from_loaded(model, tokenizer, name, EngineSettings(batch_tokens=1))
            plain._packing, plain._sharing = 0, False
            apart = float(np.abs(found - _scores(plain, asked)).max())
    except Exception as error:  # whatever foreign code says no with
        return Row(name, "–", None, None, f"not scored: {_line(error)}")
    ratio = engine.usage.computed_tokens / engine.usage.bound_tokens
    packed = engine._packing == 2**30
    why = "" if packed else next((_reason(w) for w in said if "not packed" in w), "")
    way = ("walked" if engine._packed._recurrent() else "packed") if packed else "padded"
    return Row(name, way, ratio, apart, why)


def _scores(engine: HFEngine, asked: list[Rendered]) -> np.ndarray[Any, Any]:
    scores = engine.score(asked, [(" A", " B")] * len(asked))
    failures = {s.failure for s in scores} - {None}
    if failures:
        raise ValueError(f"scores fail: {', '.join(sorted(map(str, failures)))}")
    return np.array([s.logprobs for s in scores])


def _reason(warning: str) -> str:
    why = warning.split("not packed, because ")[1].split("; scoring goes on")[0]
    return _line(why)


def _line(text: object) -> str:
    line = " ".join(str(text).split()).replace("|", "/").replace("<", "‹").replace(">", "›")
    return line if len(line) <= 110 else line[:107] + "…"


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Nothing is printed or warned of while inside; yields the warnings."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        logging.disable(logging.WARNING)
        try:
            yield said
        finally:
            logging.disable(logging.NOTSET)
            said += [str(w.message) for w in caught]


def table(rows: list[list[str]]) -> str:
    """The rows as Markdown, with what they were made by."""
    ways = {way: sum(r[1] == way for r in rows) for way in ("packed", "walked", "padded", "–")}
    head = (
        f"Transformers {transformers.__version__}, {len(rows)} types: {ways['packed']} packed, "
        f"{ways['walked']} walked, {ways['padded']} padded, {ways['–']} not built or scored.\n\n"
        "| model type | way | computed/bound | largest difference | why not packed |\n"
        "|---|---|---|---|---|\n"
    )
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read_table(text: str) -> dict[str, list[str]]:
    """The cells of each row of the page's table, by model type."""
    inside = text.split(BEGIN)[1].split(END)[0].splitlines()
    rows = [[c.strip() for c in line[1:-1].split("|")] for line in inside if line[:2] == "| "]
    return {cells[0]: cells for cells in rows[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="model types to measure; none: all")
    args = parser.parse_args()
    rows = read_table(PAGE.read_text()) if args.names else {}
    for name in args.names or names():
        rows[name] = measure(name).cells()
        print(*rows[name], sep="\t", flush=True)
        gc.collect()
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    made = table([rows[name] for name in sorted(rows)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main()
