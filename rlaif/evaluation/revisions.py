"""What revisions did, round by round, where the truth is known: in the embedded world."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlaif.records import Revision
from rlaif.tiny.gold import is_violated, parse, plan_traits
from rlaif.tiny.grammar import scenes


def violations(rows: Iterable[Revision], traits: Sequence[str]) -> dict[str, Any]:
    """For each trait, counts by round (0: the first response) over the chains whose first response
    is legal and has the trait at stake.

    `violated` at first; then of these `fixed` (legal, and no longer violated) after each round; of
    the others `broken` (illegal, or violated) after each round. A round that failed leaves the
    response as it was.
    """
    chains: dict[tuple[str, int], list[Revision]] = defaultdict(list)
    for row in rows:
        chains[row.prompt.id, row.sample].append(row)
    rounds = max((row.round for chain in chains.values() for row in chain), default=0)
    return {trait: _of_trait(list(chains.values()), trait, rounds) for trait in traits}


def _of_trait(chains: Sequence[Sequence[Revision]], trait: str, rounds: int) -> dict[str, Any]:
    violated = fine = 0
    fixed, broken = [0] * rounds, [0] * rounds
    known = scenes()
    for chain in chains:
        scene = known.get(chain[0].prompt.messages[-1].content.strip())
        first = scene and parse(scene, chain[0].response)
        if not scene or not first or plan_traits(scene, first)[trait] is None:
            continue
        bad = is_violated(scene, first, trait)
        violated, fine = violated + bad, fine + (not bad)
        text = chain[0].response
        for row in sorted(chain, key=lambda row: row.round):
            text = text if row.revision is None else row.revision
            plan = parse(scene, text)
            if (plan is not None and not is_violated(scene, plan, trait)) == bad:
                (fixed if bad else broken)[row.round - 1] += 1
    return {"violated": violated, "fine": fine, "fixed": fixed, "broken": broken}
