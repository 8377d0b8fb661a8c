"""Models in a GGUF file, llama.cpp's format: which file is meant, and what Transformers leaves out.

Transformers reads such a file into an ordinary model with dense weights. It leaves out what the
file says beside that: the token that begins every text, without which a model such as Gemma is
broken, and the token that ends a turn. Both are put in here, and noted.

A GGUF file begins with its metadata: pairs of a key and a typed value
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlaif.errors import EngineError, missing_extra

Metadata = dict[str, Any]
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# Vocabularies before which llama.cpp puts a beginning where the file does not say whether to:
# those of SentencePiece, and of BPE these kinds (src/llama-vocab.cpp).
_SENTENCEPIECE = "llama"
_BPE_WITH_BEGINNING = frozenset(
    {
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "tekken",
        "chameleon",
    }
)


def gguf_of(model: str) -> Path | None:
    """The GGUF file that a path names: itself, or the one in a folder without other weights.

    EngineError where a folder holds several: they are then listed.
    """
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not found or any(any(path.glob(kind)) for kind in ("*.safetensors", "*.bin")):
        return None
    if len(found) > 1:
        listed = "".join(f"\n  {file}" for file in found)
        raise EngineError(
            f"{model} holds {len(found)} GGUF files, and one model is needed. Give the path of one "
            f"of them as `model`:{listed}"
        )
    return found[0]


def check_file(file: Path) -> Metadata:
    """The metadata of a GGUF file that can be loaded; an error that says why it cannot."""
    found = find_spec("gguf")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise missing_extra("gguf", "gguf", f"the GGUF file {file}")
    metadata = read_metadata(file)
    parts = metadata.get("split.count", 0)
    if parts > 1:
        raise EngineError(
            f"{file} is one of {parts} parts of a model, which Transformers does not put together: "
            "join them into one file first, by llama.cpp's `llama-gguf-split --merge`"
        )
    return metadata


def read_metadata(file: Path) -> Metadata:
    """What a GGUF file says of its model, by key. Of arrays only the length is told."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            return _read(m)
    except (OSError, ValueError, struct.error) as error:
        raise EngineError(
            f"{file} cannot be read as a GGUF file ({error}): it is damaged, or was not downloaded "
            "to its end"
        ) from error


def _read(data: mmap.mmap) -> Metadata:
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    version, _, count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, and 2 or 3 was expected")
    metadata: Metadata = {}
    at = 24
    for _ in range(count):
        key, at = _value(data, at, _STRING)
        (kind,) = struct.unpack_from("<I", data, at)
        metadata[key], at = _value(data, at + 4, kind)
    return metadata


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """A value of a kind that begins at a place, and the place after it."""
    if kind in _NUMBERS:
        form = _NUMBERS[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 8 + length
        if end > len(data):
            raise ValueError("it ends within its metadata")
        return data[at + 8 : end].decode("utf-8", "replace"), end
    if kind != _ARRAY:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _NUMBERS:
        return count, at + count * struct.calcsize(_NUMBERS[inner])
    for _ in range(count):
        _, at = _value(data, at, inner)
    return count, at


def adds_beginning(metadata: Metadata) -> bool:
    """Whether a beginning-of-sequence token belongs before every text, as llama.cpp decides it."""
    said = metadata.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return metadata.get("tokenizer.ggml.pre") in _BPE_WITH_BEGINNING
    return bool(kind == _SENTENCEPIECE)


def mend_tokenizer(tokenizer: Any, metadata: Metadata, name: str) -> None:
    """Has the tokenizer put the beginning-of-sequence token in front, where the file says so.

    Transformers makes tokenizers of GGUF files that never do. EngineError where there is no such
    token although one is asked for.
    """
    if not adds_beginning(metadata) or _begins(tokenizer):
        return
    bos = tokenizer.bos_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if bos is None or backend is None:
        raise EngineError(
            f"{name} says that a beginning-of-sequence token belongs before every text, and names "
            "none that its tokenizer knows. Put the tokenizer.json of the original model beside "
            "the GGUF file: it is taken instead"
        )
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.bos_token_id)],
    )
    warnings.warn(
        f"{name}: the tokenizer that Transformers makes of a GGUF file puts no {bos} in front of a "
        f"text, though the file says that it belongs there: {bos} is put there",
        stacklevel=4,
    )


def _begins(tokenizer: Any) -> bool:
    ids = tokenizer("x").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def dense_options() -> dict[str, Any]:
    """Options that have Transformers unpack the weights, as training and packed passes need."""
    try:
        from transformers import GgufConfig
    except ImportError:  # older ones always unpack them
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def no_bar() -> Iterator[None]:
    """Hides the bar of Transformers' unpacking, which heeds none of its own settings."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    bar = unpacking.tqdm
    unpacking.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        unpacking.tqdm = bar


def mend_model(model: Any, metadata: Metadata, file: Path) -> None:
    """Makes an ordinary model of one that was read from a GGUF file: it can be saved and trained.

    Its config would call it quantised, and Transformers would refuse to save it. A token that ends
    a turn, beside the one that ends a text, is added to those that end a completion.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
    model.name_or_path = model.config.name_or_path = str(file)
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    first = generation.eos_token_id
    ends = [first] if isinstance(first, int) else list(first or [])
    more = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom")]
    ends += [end for end in more if end is not None and end not in ends]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
