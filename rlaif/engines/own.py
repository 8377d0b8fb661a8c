"""An engine of somebody's own, `engine: module:function`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlaif.engines.base import Engine, Generation, Sampling, Scores, Thinker
from rlaif.engines.settings import EngineSettings
from rlaif.engines.thinking import Mode
from rlaif.files import own
from rlaif.files.templates import Rendered
from rlaif.records import content_id

ENGINE_MEMBERS = (
    "name",
    "max_length",
    "device",
    "usage",
    "templates",
    "fingerprint",
    "generate",
    "score",
    "close",
)


class EngineFunction(Protocol):
    """What `engine: module:function` names: makes the engine of a model.

    `model` is the section's `model`, whatever that says; `options` are its `device`, `dtype`, and
    where they are given `batch_tokens` and `adapter`.
    """

    def __call__(self, model: str, /, **options: Any) -> Engine: ...


class OwnEngine:
    """An engine of somebody's own, whose fingerprint holds the code that made it too: rows of an
    edited engine are made anew."""

    def __init__(self, engine: Engine, code: str) -> None:
        self._engine = engine
        self.name, self.max_length, self.device = engine.name, engine.max_length, engine.device
        self.usage, self.templates = engine.usage, engine.templates
        self.fingerprint = content_id("own", code, engine.fingerprint)

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        return self._engine.generate(prompts, sampling)

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        return self._engine.score(prompts, options)

    def close(self) -> None:
        self._engine.close()


class OwnThinker(OwnEngine):
    """One whose model can be told to think, or not to."""

    def __init__(self, engine: Any, code: str) -> None:
        super().__init__(engine, code)
        self._thinker: Thinker = engine
        self.closes_thoughts = engine.closes_thoughts

    def thinking_id(self, mode: Mode) -> str:
        return self._thinker.thinking_id(mode)


def load_own(model: str, settings: EngineSettings) -> Engine:
    """The engine that `module:function` makes. ConfigError where it lacks something."""
    name = settings.engine
    function = own.load(name, "engine function")
    try:
        engine = function(model, **settings.options())
    except (Exception, SystemExit) as error:
        raise own.raised(error, name, "engine function") from error
    own.require(engine, ENGINE_MEMBERS, name, "an Engine")
    kind = OwnThinker if isinstance(engine, Thinker) else OwnEngine
    # What it holds is told by its own `fingerprint`: devices and counters change no row.
    return kind(engine, own.key_of([function, type(engine)], name))
