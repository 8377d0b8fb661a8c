"""Verdicts, attacked: how often a text behind the worse response turns them round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlaif.errors import DataError
from rlaif.evaluation.attacks import Labels, clear_questions, draw, report, trials
from rlaif.files.small import read_object
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.own import OwnJudge
from rlaif.judges.scores import ScoreJudge
from rlaif.stages.asking import answered, require_one_judge
from rlaif.stages.record import finish
from rlaif.stages.run import READ_PAIRS, Run
from rlaif.steps.executors import chunks, judged_before
from rlaif.store import RunStore, write_json

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

FILE = "attacks.json"


def attack(run: Run, limit: int = 50, families: Sequence[str] | None = None) -> None:
    """verdicts → evaluation/attacks.json: flips by family of attack, under each judge method.

    Attacks at most `limit` questions that the run's judge has answered clearly; their verdicts lie
    in `evaluation/attacks/`, so that it resumes. Another method's results stay in the file.
    """
    require_one_judge(run.config, "attacks are made on")
    clock, judge, orders = time.monotonic(), run.judge(), run.orders()
    rule, asked = run.config.preferences.orders, run.asked()
    find = run.store.table("verdicts").finder()
    clear = [
        question
        for pairs in chunks(run.pairs(), READ_PAIRS)
        for question in clear_questions(
            pairs,
            run.principles(),
            judged_before(pairs, judge, asked, orders, find),
            orders,
            rule=rule,
        )
    ]
    questions = draw(clear, limit)
    if not questions:
        raise DataError(
            f"{run.store.root}: no clear verdict of this judge to attack: run `rlaif label` first"
        )
    labels, fences = _knowledge(judge)
    todo = list(trials(questions, orders, labels, fences=fences, families=families))
    with RunStore(run.store.path("evaluation", "attacks"), command="attack") as store:
        rows, new = answered(run, store.table("verdicts"), judge, todo, "attacks")
    found = report(rows, rule)
    path = run.store.path("evaluation", FILE)
    method = run.config.judge.method
    known = read_object(path, "`rlaif eval attacks`")
    write_json(path, {**known, method: {"questions": len(questions), "families": found}})
    _tell(run, method, len(questions), found)
    finish(
        run,
        f"attacks {method}",
        clock,
        {
            "rows": len(todo) * len(orders),
            "new_rows": new,
            "questions": len(questions),
            "fingerprint": judge.fingerprint,
        },
    )


def _knowledge(judge: AnyJudge) -> tuple[Labels, tuple[str, ...]]:
    """What an attacker may know of a judge: the label of his place, and the template's tags. Of one
    of somebody's own nothing is known: he takes the places for A and B."""
    if isinstance(judge, OwnJudge):
        return (lambda place: "AB"[place]), ()
    template = judge.fast.template if isinstance(judge, AdaptiveJudge) else judge.template
    names = [option.strip().strip("[]()") for option in template.options]
    best = isinstance(judge, ScoreJudge)  # each response by itself: all want the highest
    return (lambda place: names[-1] if best else names[place]), template.fences


def _tell(run: Run, method: str, n: int, found: dict[str, Any]) -> None:
    run.reporter.say("\n".join([f"{method}: {n:,} verdicts attacked; flipped", *_rows(found)]))


def _rows(found: dict[str, Any]) -> Iterator[str]:
    for family, row in found.items():
        share, lost = row["flipped"], sum(row["abstained"].values())
        text = "none could be judged"
        if share is not None:
            text = f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['n']}"
            text += f", P of the attacker {row['shift']:+.3f}"
        yield f"  {family:<16} {text}" + (f"; {lost} abstained" if lost else "")
