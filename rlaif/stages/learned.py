"""labelled pairs, candidate principles → verdicts → a constitution that explains the labels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.config import Config
from rlaif.constitution import Constitution, Principle, require
from rlaif.engines.base import Sampling
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.learned import FEWEST_PROMPTS, Learned, Table, is_held_out, learn
from rlaif.evaluation.learned_file import HEADER, table_of, written
from rlaif.evaluation.proposing import distinct, principles_of, question
from rlaif.files.small import is_file, read_text, write_text
from rlaif.files.templates import load_template
from rlaif.judges.load import judge_class
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Pair, content_id
from rlaif.stages.asking import fill
from rlaif.stages.jury import Judges, judges_of
from rlaif.stages.labelling import known
from rlaif.stages.record import finish
from rlaif.stages.run import Run
from rlaif.store import write_json
from rlaif.store.kept import Kept

FILE, PROPOSALS = "learned.json", "proposals.jsonl"  # in evaluation/
PROPOSAL_TOKENS = 64
Labelled = Sequence[tuple[Pair, float]]


@dataclass
class Candidates:
    """Principles to choose from, each under an id of its own, and the constitutions they came from,
    with their weights and tiers."""

    principles: list[Principle] = field(default_factory=list)
    sets: dict[str, list[Principle]] = field(default_factory=dict)

    def add(self, given: str) -> None:
        """The principles of a constitution. A question that is there already is not taken again;
        an id that is, for another question, gets the constitution's name before it."""
        found = Constitution.load(given)
        require(found.principles, "label")
        name = found.name if found.name not in self.sets else given
        own = self.sets.setdefault(name, [])
        for p in found.principles:
            same = next((q for q in self.principles if q.compare == p.compare), None)
            if same is None:
                taken = {q.id for q in self.principles}
                new = p.id if p.id not in taken else f"{found.name}-{p.id}"
                if new in taken:
                    raise ConfigError(
                        f"{given}: '{p.id}' asks something else in another of the candidates, and "
                        f"'{new}' does so too: give one of them another id"
                    )
                same = Principle(**{**p.model_dump(), "id": new})
                self.principles.append(same)
            own.append(Principle(**{**p.model_dump(), "id": same.id}))


def candidates_of(config: Config) -> Candidates:
    """Those that the config names. ConfigError where there is nothing to choose from, where the
    file to write is another's, or where the model that is to propose cannot."""
    settings, found = config.learn, Candidates()
    for given in settings.candidates:
        found.add(given)
    if not settings.propose and len(found.principles) < 2:
        raise ConfigError(
            f"{len(found.principles)} candidates: there is nothing to choose from. Name "
            "constitutions that have some, as --candidates sixteen --candidates ours.yaml, or have "
            "a model propose them: --propose 30 --policy MODEL"
        )
    folder = Path(config.policy.model)
    if settings.propose and (config.policy.model == "tiny" or is_file(folder / "rlaif.json")):
        raise ConfigError(
            "--propose: the embedded model knows its own small world only and cannot write "
            "principles: name another by --policy MODEL, or give lists (--candidates)"
        )
    path = None if settings.to is None else Path(settings.to)
    if path is not None and path.exists() and not read_text(path, DataError).startswith(HEADER):
        raise DataError(f"{path} exists, and was not learnt: remove it, or name another file")
    return found


def learn_constitution(run: Run) -> None:
    """labelled pairs → verdicts under the candidates → learned.yaml, evaluation/learned.json."""
    clock, settings = time.monotonic(), run.config.learn
    found, labelled = candidates_of(run.config), _labelled(run)
    if settings.propose:
        _propose(run, found, labelled)
    judged = run.under(found.principles)
    judges = judges_of(judged)
    table = _judged(judged, judges, labelled)
    result = learn(table, settings, found.sets)
    about = {
        **result.as_dict(),
        "labels": settings.labels,
        "principles": [p.model_dump(mode="json", exclude_defaults=True) for p in found.principles],
        "judge": judges.about(),
    }
    write_json(run.store.path("evaluation", FILE), about)
    run.reporter.say(table_of(result))
    facts = {"rows": len(labelled), "new_rows": judges.new_rows, **judges.facts()}
    finish(run, "learn-constitution", clock, facts)
    _write(run, result, found)


def _write(run: Run, result: Learned, found: Candidates) -> None:
    if not result.kept:
        raise DataError(
            "no candidate explains these labels beyond chance, again and again when prompts are "
            "drawn anew: no constitution is written. evaluation/learned.json has what each one "
            "does alone. Give more pairs, other candidates, or a judge that tells the responses "
            "apart"
        )
    if result.held_out is not None and result.held_out.low <= 0.5:
        run.reporter.warn(
            "on the prompts that are held out, what is learnt agrees with the labels no better "
            "than a coin might"
        )
    by_id = {p.id: p for p in found.principles}
    path = Path(run.config.learn.to or run.store.path("learned.yaml"))
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem).strip("-._")
    write_text(path, written(result, by_id, name or "learned"))
    run.reporter.say(
        f"{len(result.kept)} principles written to {path}. To label by them, without asking the "
        f"judge again about these pairs: rlaif label {run.store.root} --constitution {path} "
        "--set preferences.aggregate=weighted"
    )


def _labelled(run: Run) -> Labelled:
    """The pairs whose label prefers a side."""
    settings = run.config.learn
    if settings.labels == "preferences":
        rows = run.store.table("preferences").read()
        if not rows:
            raise DataError(f"{run.store.root}: no labels to learn from: run `rlaif label` first")
        said = [(r.pair, r.p_first) for r in rows if r.p_first is not None]
    else:
        said = list(known(run, settings.labels))
    found = [(pair, p) for pair, p in said if p != 0.5]
    if len(found) < len(said):
        run.reporter.warn(f"{len(said) - len(found):,} ties say nothing of a side: left out")
    prompts = {pair.prompt.id for pair, _ in found}
    if len(prompts) < FEWEST_PROMPTS:
        raise DataError(
            f"{run.store.root}: labelled pairs of {len(prompts)} prompts, and at least "
            f"{FEWEST_PROMPTS} are needed to tell what holds of others too"
        )
    asked: Sequence[JudgingSettings] = run.config.jury or (run.config.judge,)
    one_order = any(j.orders != "both" and judge_class(j.method).both_orders for j in asked)
    if one_order and len({p > 0.5 for _, p in found}) == 1:
        raise DataError(
            f"{run.store.root}: all labels prefer the same side, and the judge is asked in one "
            "order: its liking for a place would pass for agreement. Ask in both: --set "
            "judge.orders=both"
        )
    return found


def _judged(run: Run, judges: Judges, labelled: Labelled) -> Table:
    """The columns of verdicts: P(first is better) under each candidate, orders and jurors made
    one."""
    config, pairs = run.config, [pair for pair, _ in labelled]
    names = tuple(p.id for p in run.principles())
    rule = config.preferences
    settings = PreferenceSettings(orders=rule.orders, jury=rule.jury, quorum=rule.quorum)
    weights, rows = {j.name: j.weight for j in config.jury}, dict[str, Mapping[str, float]]()
    sink = run.store.table("verdicts")
    with closing(judges.verdicts(lambda: pairs, len(pairs), sink, "judge")) as parts:
        for part in parts:
            for one in aggregate(
                part.items, part.rows, settings, judge_weights=weights, orders=judges.orders
            ):
                rows[one.pair.id] = dict(zip(one.principles, one.p_principles, strict=True))
    p = np.array([[rows[pair.id].get(name, np.nan) for name in names] for pair in pairs])
    silent = [name for name, column in zip(names, p.T, strict=True) if np.isnan(column).all()]
    if silent:
        run.reporter.warn(f"the judge could not tell of any pair under {', '.join(silent)}")
    labels = np.array([label for _, label in labelled])
    return Table(names, p, labels, tuple(pair.prompt.id for pair in pairs))


# ------------------------------------------------------------------------------------ proposing


def _propose(run: Run, found: Candidates, labelled: Labelled) -> None:
    """Adds what the policy writes after reading pairs of training prompts, one pair a candidate."""
    settings, policy = run.config.learn, run.config.policy
    assert settings.propose is not None
    out = is_held_out([p.prompt.id for p, _ in labelled], settings.held_out, settings.seed)
    shown = [one for one, held in zip(labelled, out.tolist(), strict=True) if not held]
    shown.sort(key=lambda one: content_id("propose", settings.seed, one[0].id))
    known_texts = [p.compare for p in found.principles]
    texts: list[str | None] = []
    kept, left, most = list[str](), Counter[str](), settings.propose * settings.attempts
    for start in range(0, min(most, len(shown)), settings.propose):
        part = list(islice(shown, start, min(start + settings.propose, most)))
        texts += _written(run, part)
        kept, left = distinct(texts, known_texts, settings.similarity)
        if len(kept) >= settings.propose:
            break
    run.release(policy, keep=[*run.config.jury, run.config.judge])
    kept = kept[: settings.propose]
    why = ", ".join(f"{n:,} {reason}" for reason, n in sorted(left.items()))
    run.reporter.say(
        f"{len(kept):,} principles proposed of {len(texts):,} written" + (f" ({why})" * bool(why))
    )
    if not kept and len(found.principles) < 2:
        raise DataError(
            f"{policy.model} has written no principle that can be used: take another model "
            "(--policy), or give lists (--candidates)"
        )
    found.principles += principles_of(kept, {p.id for p in found.principles})


def _written(run: Run, shown: Labelled) -> list[str | None]:
    """What the policy writes after each of some pairs; what it has written is not asked again."""
    settings, policy = run.config.learn, run.config.policy
    template, engine = load_template("write/principle"), run.engine(policy)
    sampling = Sampling(
        n=1,
        temperature=settings.temperature,
        max_new_tokens=PROPOSAL_TOKENS,
        seed=settings.seed,
        stop=template.stop,
    )
    kept = Kept(run.store.path("evaluation", PROPOSALS))
    about = (engine.fingerprint, template.hash, settings.temperature, settings.seed)
    keys = [content_id("propose", *about, pair.id, p > 0.5) for pair, p in shown]

    def made(part: Sequence[int]) -> dict[str, Any]:
        asked = []
        for i in part:
            pair, p = shown[i]
            sides = (pair.first, pair.second) if p > 0.5 else (pair.second, pair.first)
            asked.append(
                template.render(messages=pair.prompt.messages, chosen=sides[0], rejected=sides[1])
            )
        rows = engine.generate(asked, sampling)
        return {
            keys[i]: question(r.text, r.finish_reason) for i, (r,) in zip(part, rows, strict=True)
        }

    fill(run, kept, [[key] for key in keys], made, "propose")
    return [kept[key] for key in keys]
