"""Lists too long for a listwise judge, found before anything is sampled, judged or trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from rlaif.engines.checkpoint import own_templates, source_of
from rlaif.errors import ConfigError, EngineError
from rlaif.files.templates import load_template
from rlaif.judges.base import by_prompt
from rlaif.judges.listwise import listed
from rlaif.judges.methods import method_of
from rlaif.judges.settings import JudgingSettings
from rlaif.stages.jury import jurors
from rlaif.stages.run import Run

SHOWN = 80  # characters of a prompt in a message


def require_room(run: Run, completions: int, given: str) -> None:
    """ConfigError where a listwise judge of the run has fewer labels than `completions`.

    `given` says where the number comes from, such as `sampling.n=20`.
    """
    for who, template, labels in _listwise(run):
        if completions > labels:
            raise ConfigError(
                f"{given} puts {completions} completions of a prompt into one list, but {who}'s "
                f"template {template} has {labels} labels: set it lower, or {_else(who)}"
            )


def require_short_lists(run: Run) -> None:
    """ConfigError where a prompt has more completions in the run's pairs than a listwise judge has
    labels. Reads all pairs, where there is such a judge."""
    for who, template, labels in _listwise(run):
        lengths = ((same[0].prompt, len(listed(texts))) for same, texts in by_prompt(run.pairs()))
        long = [(prompt, n) for prompt, n in lengths if n > labels]
        if long:
            prompt, most = max(long, key=lambda row: row[1])
            text = " ".join(prompt.messages[-1].content.split())
            have = "prompts have" if len(long) > 1 else "prompt has"
            raise ConfigError(
                f"{len(long):,} {have} more completions than {who}'s template {template} has "
                f"labels ({labels}); the most, {most}, prompt {prompt.id}: "
                f"{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}\nNothing was judged. Sample "
                f"fewer (sampling.n), leave such prompts out of the pairs, or {_else(who)}"
            )


def _else(who: str) -> str:
    section = "judge" if who == "the judge" else "the juror"
    return f"give {section} a template with more options, or a method other than listwise"


def _listwise(run: Run) -> Iterator[tuple[str, str, int]]:
    """Of each listwise judge: what to call it, its template and how many labels that has."""
    for juror in jurors(run):
        if method_of(juror.section.method).lists:
            name = juror.section.template or _own_template(juror.section)
            who = "the judge" if juror.name is None else f"juror {juror.name}"
            yield who, name, len(load_template(name).options)


def _own_template(section: JudgingSettings) -> str:
    """The model's template for lists, or the default one; no weights are loaded."""
    found: dict[str, str] = {}
    if section.engine != "http":
        with suppress(EngineError):  # no such model: its engine will say so
            found = own_templates(*source_of(section.model, section.adapter).folders())
    return found.get("listwise", "listwise/default")
