"""The one loader of engines: it knows all of them, so that none of them need know another.

What an engine needs is imported when one is loaded, not before.
"""

from __future__ import annotations

from typing import Any

from rlaif.engines.base import Engine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import ConfigError


def load_engine(model: str, settings: EngineSettings | None = None, **options: Any) -> Engine:
    """Loads a model: `tiny` (embedded), a folder, a Hugging Face name, or the name that a server
    gives to it.

    `settings.engine` says by what, Transformers unless given; `module:function` is an engine of
    your own (`rlaif.engines.own`). `options` are settings by their names, such as
    `load_engine("tiny", device="cpu")`. ConfigError for those that there are not.
    """
    if isinstance(settings, str):
        raise ConfigError(
            f"load_engine({model!r}, {settings!r}): an engine is named by its settings: "
            f"load_engine({model!r}, engine={settings!r})"
        )
    settings = (settings or EngineSettings()).but(**options)
    if settings.engine in ("hf", "vllm"):  # a name that leads nowhere is told before all else
        from rlaif.engines.checkpoint import source_of

        source_of(model, settings.adapter)
    if settings.engine == "hf":
        from rlaif.engines.hf import HFEngine

        return HFEngine(model, settings)
    if settings.engine == "http":
        from rlaif.engines.http import HTTPEngine

        return HTTPEngine(model, settings.http)
    if settings.engine == "vllm":
        from rlaif.engines.vllm import VLLMEngine

        return VLLMEngine(model, settings)
    from rlaif.engines.own import load_own

    return load_own(model, settings)
