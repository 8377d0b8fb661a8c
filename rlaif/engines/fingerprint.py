"""A hash of what a model is: weights, config, tokenizer and chat template. Not where it lies.

It is part of every resume key, so it is computed from contents. Hashing gigabytes takes seconds, so
the digest of a file is remembered by its path, size and time of change; the files of a Hugging Face
cache carry their digest as their name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from rlaif.records import content_id

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_REST = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def folder_fingerprint(*folders: Path) -> str:
    """The fingerprint of a model folder, or of a GGUF file with the texts that lie beside it, and,
    if given, of the adapters put on it."""
    memory = _Memory()
    parts = []
    for folder in folders:
        weights: list[tuple[str, str]] = []
        patterns = (*_WEIGHTS[: 1 if any(folder.glob("*.safetensors")) else None], *_REST)
        if folder.is_file():
            weights, patterns, folder = [("gguf", memory.digest(folder))], _REST, folder.parent
        files = {p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
        parts.append(weights + sorted((p.name, memory.digest(p)) for p in files))
    memory.save()
    return content_id("model", parts)


def run_fingerprint(
    weights: str, template_id: str, dtype: object, context: int, quantization: str | None = None
) -> str:
    """The fingerprint of a model as it is run: of all that can change what it answers.

    The same in every engine that runs it so. In bfloat16 a P differs by hundredths from float32's;
    with another context, other prompts are too long.
    """
    how = () if quantization is None else (quantization,)
    return content_id(weights, template_id, str(dtype).removeprefix("torch."), context, *how)


def module_fingerprint(model: Any, tokenizer: Any) -> str:
    """The fingerprint of a model in memory: it changes with every step of training."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    text = json.dumps(config, sort_keys=True, default=str)
    return content_id("module", digest.hexdigest(), text, words, tokenizer.chat_template)


class _Memory:
    """Digests of files seen before, kept under the user's cache folder. Losing it costs time."""

    def __init__(self) -> None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._file = Path(root) / "rlaif" / "digests.json"
        try:
            self._known: dict[str, str] = dict(json.loads(self._file.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}
        self._changed = False

    def digest(self, path: Path) -> str:
        real = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", real.name):  # a blob of the hub's cache
            return real.name
        stat = real.stat()
        key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if key not in self._known:
            with real.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            self._changed = True
        return self._known[key]

    def save(self) -> None:
        if not self._changed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside = self._file.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(dict(list(self._known.items())[-4096:])), "utf-8")
            aside.replace(self._file)
        except OSError:  # a read-only home: hash again next time
            pass
