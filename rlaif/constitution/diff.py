"""What changed between two constitutions, and what that costs: which verdicts stay valid.

A verdict's key holds the principle's id and question. So a new weight or a new critique costs no
judgement, and another word in the question, or another id, costs that principle's column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlaif.constitution import Constitution, Principle

Kind = Literal["same", "added", "removed", "renamed", "reworded", "reweighted", "moved", "changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One principle, before and after; `id` is the new one, or the old where it is removed.

    `renamed`: the same question under another id. `reworded`: another question under the same id.
    `reweighted`: the weight alone. `moved`: the tier, or it and the weight. `changed`: other
    `fields`, none of which a verdict depends on.
    """

    id: str
    kind: Kind
    before: Principle | None
    after: Principle | None
    fields: tuple[str, ...] = ()

    @property
    def judged_again(self) -> bool:
        """Whether this principle's verdicts have to be made."""
        asks = self.after is not None and bool(self.after.compare)
        return asks and self.kind in ("added", "renamed", "reworded")


def diff(before: Constitution, after: Constitution) -> list[Change]:
    """The changes, in the new constitution's order, then what was removed."""
    old = {p.id: p for p in before.principles}
    new = {p.id: p for p in after.principles}
    gone = [p for p in before.principles if p.id not in new]
    out = []
    for p in after.principles:
        if p.id in old:
            out.append(_same_id(old[p.id], p))
            continue
        match = next((q for q in gone if q.compare and q.compare == p.compare), None)
        if match:
            gone.remove(match)
        fields = _fields(match, p) if match else ()
        out.append(Change(p.id, "renamed" if match else "added", match, p, fields))
    return out + [Change(p.id, "removed", p, None) for p in gone]


def _same_id(before: Principle, after: Principle) -> Change:
    fields = _fields(before, after)
    kind: Kind = "changed" if fields else "same"
    if "compare" in fields:
        kind = "reworded"
    elif fields == ("weight",):
        kind = "reweighted"
    elif "tier" in fields and set(fields) <= {"tier", "weight"}:
        kind = "moved"
    return Change(after.id, kind, before, after, fields)


def _fields(before: Principle, after: Principle) -> tuple[str, ...]:
    return tuple(
        name
        for name in Principle.model_fields
        if name != "id" and getattr(before, name) != getattr(after, name)
    )
