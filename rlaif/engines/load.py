"""The one loader of engines: it knows all of them, so that none of them need know another.

What an engine needs is imported when one is loaded, not before.
"""

from __future__ import annotations

from typing import Any

from rlaif.engines.base import Engine
from rlaif.errors import ConfigError
from rlaif.files import own

ENGINES = ("hf", "http", "vllm")


def load_engine(model: str, engine: str = "hf", **options: Any) -> Engine:
    """Loads a model: `tiny` (embedded), a folder, or a Hugging Face name.

    Options of `hf`: `device` ("auto", "cpu", "cuda"), `dtype` ("auto", "float32", "bfloat16",
    "float16"), `batch_tokens` (padded tokens a forward pass), `adapter` (a LoRA folder),
    `attention` ("pieces", or "flex": one compiled call a layer on CUDA, never run there yet).

    `http` takes the name a server gives to the model; its options are those of `HTTPEngine`, such
    as `base_url`.

    `vllm` takes the options of `hf` but `attention`, and those of `VLLMEngine`, such as
    `tensor_parallel_size`.

    `module:function` is an engine of your own (`rlaif.engines.own`).
    """
    if engine in ("hf", "vllm"):  # a name that leads nowhere is told before anything heavy loads
        from rlaif.engines.checkpoint import source_of

        source_of(model, options.get("adapter"))
    if engine == "hf":
        from rlaif.engines.hf import HFEngine

        return HFEngine(model, **options)
    if engine == "http":
        from rlaif.engines.http import HTTPEngine

        return HTTPEngine(model, **options)
    if engine == "vllm":
        from rlaif.engines.vllm import VLLMEngine

        return VLLMEngine(model, **options)
    if said := unknown_engine(engine):
        raise ConfigError(said)
    from rlaif.engines.own import load_own

    return load_own(model, engine, options)


def unknown_engine(name: str) -> str | None:
    """What is wrong with the name of an engine; None for a listed one and `module:function`."""
    engine = "An engine of your own is named `module:function`"
    return own.unknown(name, ENGINES, "unknown engine", engine)
