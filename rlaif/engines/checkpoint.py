"""What a model's folder says of itself, for every engine that loads one.

Each refusal names what was expected, so that it is the same whichever engine is asked.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.engines.gguf import (
    check_file,
    dense_options,
    gguf_of,
    mend_model,
    mend_tokenizer,
    no_bar,
    read_metadata,
)
from rlaif.errors import ConfigError, EngineError, RlaifError
from rlaif.files.hub import check_name
from rlaif.files.resources import model_path

ADAPTER = "adapter_config.json"
OWN = "rlaif.json"  # what a folder says to this project beside Transformers' files


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies: a folder, a GGUF file or a hub name, and the LoRA adapter to be added in,
    if any."""

    model: str
    adapter: str | None = None

    def folders(self) -> list[Path]:
        """The folders, or the GGUF file, that decide what the model computes."""
        own = model_folder(self.model) if gguf_of(self.model) is None else Path(self.model)
        return [own, *([Path(self.adapter)] if self.adapter else [])]


def source_of(model: str, adapter: str | None = None) -> Source:
    """The parts of a model that a config names: `tiny`, a folder, a hub name, and an adapter.

    A folder that holds a GGUF file and no other weights stands for that file.

    A folder that holds an adapter only stands for the base that its config names, with the adapter
    added in.
    """
    path = model_path(model)
    if not (Path(path) / ADAPTER).is_file():
        check_name(path)
        return Source(str(gguf_of(path) or path), adapter)
    if adapter is not None:
        raise ConfigError(
            f"{model} is an adapter itself, and {adapter} cannot be put on top: give the base as "
            "`model`, or merge the first one into it"
        )
    own = [p for kind in ("*.safetensors", "*.bin") for p in Path(path).glob(kind)]
    if any(not p.name.startswith("adapter_") for p in own):
        raise EngineError(
            f"{model} holds both a whole model and an adapter, so it is not clear which is meant: "
            "move adapter_config.json and adapter_model.* into a folder of their own, and give it "
            "as `adapter` if it is to be added in"
        )
    base = check_adapter(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise EngineError(
            f"{path}/{ADAPTER} does not name its base model: give that as `model`, and this folder "
            "as `adapter`"
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise EngineError(
            f"the adapter {model} says that its base is {base}, and nothing is there: give the "
            "base as `model`, and this folder as `adapter`"
        )
    check_name(base)
    return Source(str(gguf_of(base) or base), path)


def read_config(model: str) -> Any:
    """A model's config: a folder's, a hub name's, or as a GGUF file tells it."""
    from transformers import AutoConfig

    place, how = _place(model)
    return AutoConfig.from_pretrained(place, **how)


def read_tokenizer(model: str) -> Any:
    """A model's tokenizer. That of a GGUF file begins texts as the file says; where the original
    model's tokenizer.json lies beside it, that is taken."""
    from transformers import AutoTokenizer

    place, how = _place(model)
    if how and (Path(place) / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(place, config=read_config(model))
    tokenizer = AutoTokenizer.from_pretrained(place, **how)
    if how:
        mend_tokenizer(tokenizer, read_metadata(Path(model)), model)
    return tokenizer


def read_model(auto: Any, model: str, **options: Any) -> tuple[Any, list[str]]:
    """A model of one of Transformers' auto classes, and the weights that its checkpoint lacks."""
    place, how = _place(model)
    if how:
        options = {**dense_options(), **options, **how}
    with no_bar() if how else nullcontext():
        loaded, info = auto.from_pretrained(place, output_loading_info=True, **options)
    if how:
        mend_model(loaded, read_metadata(Path(model)), Path(model))
    return loaded, sorted(info["missing_keys"])


def _place(model: str) -> tuple[str, dict[str, Any]]:
    """What Transformers is to load from, and how."""
    file = gguf_of(model)
    return (model, {}) if file is None else (str(file.parent), {"gguf_file": file.name})


def check_folder(model: str) -> None:
    """Refuses a path that holds no model; a name on the hub passes."""
    path = Path(model)
    file = gguf_of(model)
    if file is not None:
        check_file(file)
        return
    looks_like_path = model.startswith((".", "/", "~")) or path.exists()
    if looks_like_path and not (path / "config.json").is_file():
        raise EngineError(
            f"no model at {model}: expected a folder with config.json, weights and a tokenizer, or "
            "a GGUF file"
        )
    for name in _TEXTS:
        if (path / name).is_file():
            _check_json(path / name)
    if path.is_dir() and not any(p.is_file() for kind in _VOCABULARY for p in path.glob(kind)):
        raise EngineError(
            f"the model at {model} has no tokenizer: expected tokenizer.json in the folder. Copy "
            "it from the model that this one was made of"
        )


# Transformers reads a damaged generation config as none at all, and so forgets the model's ends.
_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_VOCABULARY = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def _check_json(file: Path) -> None:
    """EngineError unless a file holds a JSON object."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"cannot load the model '{file.parent}': {file.name} cannot be read as JSON ({error}). "
            "The file is damaged: save or download the model again"
        ) from error
    if not isinstance(found, dict):
        raise EngineError(
            f"cannot load the model '{file.parent}': {file.name} holds a {type(found).__name__}, "
            "and an object was expected. Save or download the model again"
        )


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Turns whatever Transformers, PEFT or safetensors raise over a model's files into one error.

    They raise errors of every kind over a folder that is cut, mixed up or damaged. And they send
    nothing: Transformers would have a server convert a hub's model that has no safetensors, telling
    it the model's name and the user's token. Their bars are not shown.
    """
    import torch

    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        with warnings.catch_warnings(), _no_bars(model):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (RlaifError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise cannot_load(model, error) from error


@contextmanager
def _no_bars(model: str) -> Iterator[None]:
    """Hides the bars of Transformers; a download's stays, on a terminal, as it may take long."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # the hub's too
    if hub and sys.stderr is not None and sys.stderr.isatty() and not Path(model).is_dir():
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        elif hub:
            enable_progress_bars()


def check_head(config: Any, model: str) -> None:
    """Refuses a model that predicts no next token."""
    heads = ("CausalLM", "LMHead", "ConditionalGeneration")
    names = config.architectures or []
    if names and not any(head in name for name in names for head in heads):
        raise EngineError(
            f"{model} has no language-model head (its config says {', '.join(names)}). "
            "An engine needs a causal language model, such as Qwen2ForCausalLM"
        )


def check_plain(loaded: Any, model: str) -> None:
    """Refuses a hub's adapter, which Transformers puts on its base without adding it in."""
    if getattr(loaded, "_hf_peft_config_loaded", False):
        raise EngineError(
            f"{model} is a LoRA adapter for {loaded.config._name_or_path}: give that as `model`, "
            "and a folder with the downloaded adapter as `adapter`"
        )


def check_adapter(adapter: str) -> dict[str, Any]:
    """The config of a LoRA folder."""
    file = Path(adapter) / ADAPTER
    if not file.is_file():
        raise EngineError(f"no LoRA adapter at {adapter}: expected adapter_config.json in it")
    _check_json(file)
    return dict(json.loads(file.read_text("utf-8")))


def add_adapter(model: Any, adapter: str) -> Any:
    """The model with a LoRA adapter added into its weights.

    PEFT only warns where names do not match, and leaves such layers as they were: here an adapter
    that was made for another model, or that is not whole, is an error.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    task = check_adapter(adapter).get("task_type")
    if task == "SEQ_CLS" and "score" not in model._modules:
        raise EngineError(
            f"the adapter {adapter} is a reward model's (its task is SEQ_CLS), and a policy or a "
            "judge needs one of a language model"
        )
    with loading(adapter):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that do not match: looked at below
            tuned = PeftModel.from_pretrained(model, adapter)
            wanted = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
        given = set(load_peft_weights(adapter, device="cpu"))
        lacking, unknown = sorted(wanted - given), sorted(given - wanted)
        unknown = [name for name in unknown if "lora_" in name]  # embeddings may lie beside
        if lacking or unknown:
            odd = (
                f"it lacks {lacking[0]}" if lacking else f"the model has no place for {unknown[0]}"
            )
            raise EngineError(
                f"the adapter {adapter} does not fit the model: {odd}. Give the base that it was "
                "trained on as `model`"
            )
        merged = tuned.merge_and_unload(safe_merge=True)
    merged.requires_grad_(True)  # PEFT froze it
    return merged


def cannot_load(model: str, error: Exception) -> EngineError:
    """The error for a folder or a hub name that Transformers cannot read: one paragraph."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    if isinstance(error, KeyError):
        reason = f"a file of it lacks the key {reason}"
    reason = reason if len(reason) <= 300 else reason[:300] + " …"
    if Path(model).exists():
        fix = "Its files are damaged, incomplete or not of one model: save or download it again"
    else:
        fix = (
            "Give a folder that holds a model, or a name on the Hugging Face hub (which needs a "
            "network or a filled cache)"
        )
    return EngineError(f"cannot load the model '{model}': {reason.rstrip('.')}. {fix}")


def model_folder(model: str) -> Path:
    """Where a model's files lie: the folder itself, that of a GGUF file, or the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    if gguf_of(model) is not None:
        return Path(model).parent
    from transformers.utils import cached_file

    try:
        return Path(cached_file(model, "config.json")).parent
    except OSError as error:
        raise cannot_load(model, error) from error


def own_templates(*folders: Path) -> dict[str, str]:
    """`templates` of an optional rlaif.json in the model's folder, beside its GGUF file, or in its
    adapter's folder. One that names a file of that folder is the file; others are shipped names or
    paths."""
    found: dict[str, str] = {}
    for folder in map(_folder_of, folders):
        file = folder / OWN
        if not file.is_file():
            continue
        try:
            templates = json.loads(file.read_text("utf-8"))["templates"]
            given = {str(k): str(v) for k, v in templates.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise EngineError(
                f'{file}: expected {{"templates": {{"pairwise": "pairwise/tiny"}}}}, got {error!r}'
            ) from error
        beside = {k: str(folder / v) for k, v in given.items() if (folder / v).is_file()}
        found |= {**given, **beside}
    return found


def own_files(folder: Path) -> list[Path]:
    """rlaif.json and the templates beside it that it names: what goes with a copy of the model."""
    folder = _folder_of(folder)
    beside = [Path(t) for t in own_templates(folder).values() if Path(t).parent == folder]
    return [folder / OWN, *dict.fromkeys(beside)] if (folder / OWN).is_file() else []


def _folder_of(model: Path) -> Path:
    """A model's folder, or that of its GGUF file."""
    return model.parent if model.is_file() else model


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
