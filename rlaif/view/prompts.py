"""The exact prompt of a verdict, rendered by the judge's own template without loading its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlaif.config import load_config
from rlaif.constitution import Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import RlaifError
from rlaif.files.templates import Rendered
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.base import Ask
from rlaif.judges.cot import CotJudge
from rlaif.judges.listwise import ListwiseJudge
from rlaif.judges.load import make_judge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.scores import ScoreJudge
from rlaif.judges.settings import JudgingSettings
from rlaif.judges.text import TextJudge
from rlaif.records import Pair, Verdict

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge
    from rlaif.store import RunStore

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt as the judge got it, or why it cannot be shown; `note` says what is not sure."""

    title: str
    prompt: Rendered | None
    note: str = ""


class Prompts:
    """Renders the prompts of a run's judge, or of its jurors by name."""

    def __init__(self, store: RunStore, manifest: Json) -> None:
        self.manifest = manifest
        self._judges: dict[str, AnyJudge | str] = {}
        self._store = store
        made = manifest.get("labelled") or manifest.get("constitution") or {}
        self._principles = {p["id"]: p for p in made.get("principles") or ()}

    def of(self, pair: Pair, verdict: Verdict, juror: str, together: Sequence[str]) -> list[Shown]:
        """The prompts of a verdict: one, or one a completion where each is marked by itself.

        `together`: all completions of the prompt, for a judge that lists them.
        """
        told = self._told(juror)
        if not told:
            return [Shown("", None, "the manifest does not say which judge this was")]
        judge = self._judge(juror)
        if isinstance(judge, str):
            return [Shown("", None, judge)]
        said = self._principles.get(verdict.principle)
        if said is None:
            return [Shown("", None, f"no principle '{verdict.principle}' in the constitution now")]
        principle = Principle(id=said["id"], compare=said.get("compare") or "")
        ask = Ask(pair, principle, verdict.order, tuple(sorted(together)))
        changed = judge.about().get("template_hash") != told.get("template_hash")
        note = "the template has changed since: this is how it would be asked now" * changed
        try:
            found = _prompts(judge, ask, verdict)
        except RlaifError as error:
            return [Shown("", None, str(error))]
        if not found:
            return [Shown("", None, "a judge of your own asks in its own way")]
        return [Shown(title, prompt, note) for title, prompt in found]

    def _told(self, juror: str) -> Json:
        judge: Json = self.manifest.get("judge") or {}
        jury: Json = judge.get("jury") or {}
        found: Json = jury.get(juror, {}) if jury else judge
        return found

    def _judge(self, juror: str) -> AnyJudge | str:
        """The judge on an engine that knows no answer; in words why there is none."""
        if juror not in self._judges:
            try:
                self._judges[juror] = self._made(juror)
            except (RlaifError, OSError, ValueError) as error:
                self._judges[juror] = f"the prompt cannot be shown: {error}"
        return self._judges[juror]

    def _made(self, juror: str) -> AnyJudge | str:
        config = load_config(str(self._store.path("run.yaml")))
        sections: dict[str, JudgingSettings] = {j.name: j for j in config.jury}
        section = sections.get(juror, config.judge)
        told = self._told(juror)
        examples = told.get("examples") or {}
        given: dict[str, Any] = {
            "template": section.template or told.get("template"),
            "method": told.get("method"),
            "examples": examples.get("from", "none"),
            "shots": examples.get("shots"),
        }
        if given["method"] == "adaptive":  # two judges, whose templates it finds itself
            given["template"] = section.template
        if "seed" in examples:
            given["examples_seed"] = examples["seed"]
        return make_judge(ScriptedEngine(), section.model_copy(update=given))


def _prompts(judge: AnyJudge, ask: Ask, verdict: Verdict) -> list[tuple[str, Rendered]]:
    """What a judge asks, by its method, with titles; nothing for one of somebody's own."""
    if isinstance(judge, AdaptiveJudge):
        return _prompts(judge.slow if verdict.rationales else judge.fast, ask, verdict)
    prompt, compare = ask.pair.prompt, ask.principle.compare
    if isinstance(judge, CotJudge):
        wrote = [("after what it wrote", judge.render(ask, r)) for r in verdict.rationales[:1]]
        return [("before it wrote" if wrote else "", judge.render(ask)), *wrote]
    if isinstance(judge, ScoreJudge):
        texts = (("response 1", ask.pair.first), ("response 2", ask.pair.second))
        return [(name, judge.render(prompt, text, compare)) for name, text in texts]
    if isinstance(judge, ListwiseJudge):
        listed = ask.group if ask.order == "first_second" else ask.group[::-1]
        return [("the list before any rotation", judge.render(prompt, listed, compare))]
    if isinstance(judge, PairwiseJudge | TextJudge):
        return [("", judge.render(ask))]
    return []
