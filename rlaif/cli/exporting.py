"""Revisions of a run as rows to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlaif.files.writers import export_completions
from rlaif.records import Preference, Prompt, mirrored
from rlaif.stages.revising import current_revisions, labelled
from rlaif.steps.revising import SIDES, last_revisions, revision_pairs
from rlaif.store import RunStore
from rlaif.store.people import require_people


def export_revisions(
    store: RunStore, to: Path, every: bool, helpful: Sequence[Path]
) -> dict[str, int]:
    """All or the last revisions, and the whole completions of other runs."""
    rows = current_revisions(store)
    chosen = [row for row in rows if row.revision] if every else last_revisions(rows)

    def samples() -> Iterator[tuple[Prompt, str, str]]:
        for row in chosen:
            yield row.prompt, row.revision or "", "revision"
        for other in helpful:
            yield from _completions(RunStore(other, read_only=True))

    return export_completions(samples(), to)


def revision_preferences(store: RunStore) -> list[Preference]:
    """The last revision of each chain over its first answer."""
    return labelled(revision_pairs(current_revisions(store)))


def people_preferences(store: RunStore) -> Iterator[Preference]:
    """What people decided in `rlaif view`, the mean over those who did; a tie is a tie.

    DataError where nobody has.
    """
    said = require_people(store.root, "all")
    for batch in store.table("pairs").iter_batches():
        for pair in batch:
            p = said.get(pair.id)
            if p is None and (other := said.get(mirrored(pair.id))) is not None:
                p = 1.0 - other
            if p is not None:
                yield Preference(pair, "tie" if p == 0.5 else "preferred", p)


def _completions(store: RunStore) -> Iterator[tuple[Prompt, str, str]]:
    prompts = {p.id: p for batch in store.table("prompts").iter_batches() for p in batch}
    for batch in store.table("completions").iter_batches():
        for c in batch:
            asked_for = c.policy.endswith(SIDES)  # contrasts were asked to be good or bad
            if c.finish_reason == "stop" and c.text.strip() and not asked_for:
                yield prompts[c.prompt_id], c.text, "helpful"
