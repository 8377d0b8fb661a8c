"""What the pages show, out of a run: plain dicts for the templates."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup

from rlaif.judges.ensembles import over_orders
from rlaif.records import Order, Pair, Verdict
from rlaif.report import formats
from rlaif.report.differences import differences
from rlaif.view.filters import TELLING
from rlaif.view.history import histories
from rlaif.view.index import Asked, Index, Json

PAIR_ID = re.compile(r"~?[0-9a-f]{20}")
EXCERPT = 220  # characters of a text in a list


def environment() -> jinja2.Environment:
    """The templates' own: all that is put in is escaped, and a name that is not given is an
    error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rlaif.view", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    made.filters |= {
        "count": formats.count,
        "percent": formats.percent,
        "fixed": formats.fixed,
        "words": formats.words,
        "excerpt": excerpt,
        "lean": lean,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
    }
    return made


def _printable(value: Any) -> Any:
    return formats.printable(value) if type(value) is str else value


def excerpt(text: str, letters: int = EXCERPT) -> str:
    """The text's beginning on one line."""
    line = " ".join(text.split())
    return line if len(line) <= letters else line[: letters - 1].rstrip() + "…"


def lean(p: float | None, what: str = "") -> Markup:
    """A bar from ½ towards the response that is preferred, 1 to the left and 2 to the right, and
    the probability in words: nothing is told by colour alone."""
    if p is None:
        return Markup('<span class="lean none">–</span>')
    side = "1" if p > 0.5 else "2" if p < 0.5 else "="
    sure, width = max(p, 1 - p), 50 * abs(2 * p - 1)
    x = 50 - width if p > 0.5 else 50
    title = f"{what}: " if what else ""
    text = f"{side} · {sure:.2f}"
    name = "response 1" if p > 0.5 else "response 2" if p < 0.5 else "neither"
    return Markup(
        '<span class="lean" title="{}{}, probability {}"><svg viewBox="0 0 100 12" '
        'aria-hidden="true"><rect x="0" y="4" width="100" height="4" class="rail"/>'
        '<rect x="{}" y="1" width="{}" height="10" class="fill side{}"/>'
        '<rect x="49" y="0" width="2" height="12" class="middle"/></svg>'
        "<b>{}</b></span>"
    ).format(title, name, f"{sure:.4f}", f"{x:.1f}", f"{width:.1f}", int(p < 0.5), text)


@dataclass
class Question:
    """A principle, of a juror where there is a jury, with its verdicts on a pair by order."""

    principle: str
    juror: str
    asked: Asked
    verdicts: dict[Order, Verdict] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The orders made one as the label rule does; None where one of them is an abstention."""
        found = [v.p_first for v in self.verdicts.values()]
        known = [p for p in found if p is not None]
        if not known or len(known) < len(found):
            return None
        return over_orders(known, self.asked.orders, agreeing=self.asked.agreeing)

    @property
    def conflict(self) -> bool:
        """Whether the orders lean to different sides, and not by a hair."""
        found = [v.p_first for v in self.verdicts.values() if v.p_first is not None]
        opposed = len(found) == 2 and (found[0] - 0.5) * (found[1] - 0.5) < 0
        return opposed and abs(found[0] - found[1]) >= TELLING


def pair_page(index: Index, pair: Pair) -> Json:
    """All that is known of a pair."""
    made = index.made
    [facts] = made.run("SELECT * FROM facts WHERE id = ?", [pair.id])
    said = index.verdicts(pair.id)
    questions: dict[tuple[int, str], Question] = {}
    for verdict, juror in said:
        if juror is not None and verdict.principle in made.principles:
            place = (made.principles.index(verdict.principle), juror)
            one = questions.setdefault(place, Question(verdict.principle, juror, made.asked))
            one.verdicts[verdict.order] = verdict
    first, second = differences(pair.first, pair.second)
    label = made.rows("preferences", "pair_id", [pair.id])
    wording = {p["id"]: p.get("compare") or "" for p in made.asked.principles}
    return {
        "pair": pair,
        "facts": facts,
        "sides": [("1", first, pair.first), ("2", second, pair.second)],
        "histories": histories(index, pair),
        "rewards": (facts["reward_first"], facts["reward_second"]),
        "label": label[0] if label else None,
        "counted": dict(zip(label[0]["principles"], label[0]["p_principles"], strict=True))
        if label
        else {},
        "questions": [questions[place] for place in sorted(questions)],
        "jury": any(q.juror for q in questions.values()),
        "wording": wording,
        "older": [v for v, juror in said if juror is None],
        "neighbours": made.run(
            "SELECT (SELECT id FROM facts WHERE n = ? - 1) AS before, "
            "(SELECT id FROM facts WHERE n = ? + 1) AS after",
            [facts["n"], facts["n"]],
        )[0],
    }
