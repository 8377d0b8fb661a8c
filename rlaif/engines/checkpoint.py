"""What a model's folder says of itself, for every engine that loads one.

Each refusal names what was expected, so that it is the same whichever engine is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif.errors import EngineError


def check_folder(model: str) -> None:
    """Refuses a path that holds no model; a name on the hub passes."""
    path = Path(model)
    looks_like_path = model.startswith((".", "/", "~")) or path.exists()
    if looks_like_path and not (path / "config.json").is_file():
        raise EngineError(
            f"no model at {model}: expected a folder with config.json, weights and a tokenizer"
        )


def check_head(config: Any, model: str) -> None:
    """Refuses a model that predicts no next token."""
    heads = ("CausalLM", "LMHead", "ConditionalGeneration")
    names = config.architectures or []
    if names and not any(head in name for name in names for head in heads):
        raise EngineError(
            f"{model} has no language-model head (its config says {', '.join(names)}). "
            "An engine needs a causal language model, such as Qwen2ForCausalLM"
        )


def check_adapter(adapter: str) -> dict[str, Any]:
    """The config of a LoRA folder."""
    file = Path(adapter) / "adapter_config.json"
    if not file.is_file():
        raise EngineError(f"no LoRA adapter at {adapter}: expected adapter_config.json in it")
    return dict(json.loads(file.read_text("utf-8")))


def cannot_load(model: str, error: Exception) -> EngineError:
    """The error for a folder or a hub name that Transformers cannot read."""
    reason = str(error).strip().splitlines()[0]
    return EngineError(
        f"cannot load the model '{model}': {reason}. Give a folder that holds a model, "
        "or a name on the Hugging Face hub (which needs a network or a filled cache)"
    )


def model_folder(model: str) -> Path:
    """Where the files of a model lie: the folder itself, or the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils import cached_file

    return Path(cached_file(model, "config.json")).parent


def own_templates(folder: Path) -> dict[str, str]:
    """`templates` of an optional rlaif.json in the model's folder."""
    file = folder / "rlaif.json"
    if not file.is_file():
        return {}
    try:
        templates = json.loads(file.read_text("utf-8"))["templates"]
        return {str(k): str(v) for k, v in templates.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise EngineError(
            f'{file}: expected {{"templates": {{"pairwise": "pairwise/tiny"}}}}, got {error!r}'
        ) from error


def context_length(config: Any, tokenizer: Any) -> int:
    """Tokens of context: what the config says, else the tokenizer, else no limit."""
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    length: int = tokenizer.model_max_length
    return length if length < 10**9 else 2**30


def end_tokens(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a completion: the model's own list, and the tokenizer's."""
    eos = generation_config.eos_token_id if generation_config else None
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    return frozenset(i for i in (*ends, tokenizer.eos_token_id) if i is not None)
