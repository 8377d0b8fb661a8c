"""What `rlaif export` writes: labels, revisions and models of a run, with their cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rlaif.errors import ConfigError, DataError, nearest
from rlaif.files.rows import KINDS
from rlaif.files.writers import export_completions, export_rows
from rlaif.records import Preference, Prompt
from rlaif.report.card import dataset_card, model_card
from rlaif.stages.revising import current_revisions, labelled
from rlaif.steps.revising import SIDES, last_revisions, revision_pairs
from rlaif.store import RunStore
from rlaif.store.people import of_pair, require_people

_MODEL = "models/"
_OTHERS = ("people", "revision-pairs", "revisions")  # whose labels are not the run's


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be exported, and where to. `to` is None where it is only pushed."""

    what: str
    to: Path | None
    hub: bool
    push_to: str | None
    private: bool
    every_round: bool
    helpful: tuple[Path, ...]


def export_it(root: Path, wanted: Wanted, say: Callable[[str], None]) -> None:
    """Writes what is wanted of a run, pushes it where that is asked for, and says what it did."""
    store = RunStore(root, read_only=True)
    if wanted.what.startswith(_MODEL):
        _push_model(store, wanted, say)
        return
    if wanted.what not in (*KINDS, *_OTHERS):
        every = (*KINDS, *_OTHERS, "models/NAME")
        raise ConfigError(f"--what {wanted.what}: unknown.{nearest(wanted.what, every)}")
    if wanted.what == "revisions":
        if wanted.push_to or wanted.hub or wanted.to is None:
            raise ConfigError(
                "--what revisions is written to a file or folder: leave --hub and "
                "--push-to out, and name TO"
            )
        counts = export_revisions(store, wanted.to, wanted.every_round, wanted.helpful)
        say(f"{', '.join(f'{n:,} {k}' for k, n in counts.items())} written to {wanted.to}")
        return
    if wanted.push_to is None:
        assert wanted.to is not None
        _labels(store, wanted, wanted.to, say)
        return
    from rlaif.files.hub import push_folder, require_reach

    require_reach(wanted.push_to)
    with TemporaryDirectory(prefix="rlaif-export-") as folder:
        place = Path(folder, "data set") if wanted.to is None else wanted.to
        _labels(store, wanted, place, say)
        address = push_folder(place, wanted.push_to, "dataset", private=wanted.private)
    say(f"pushed to {address}")


def _labels(store: RunStore, wanted: Wanted, to: Path, say: Callable[[str], None]) -> None:
    """Labels, of the run or of people, or pairs of revisions, as rows of their kind."""
    kind = wanted.what if wanted.what in KINDS else "preferences"

    def preferences() -> Iterable[Preference]:
        if wanted.what == "revision-pairs":
            return revision_preferences(store)
        if wanted.what == "people":
            return people_preferences(store)
        return (p for batch in store.table("preferences").iter_batches() for p in batch)

    form = KINDS[kind]
    columns = form.schema.names if form.schema is not None else ()

    def card(rows: int) -> str:
        return dataset_card(store, wanted.what, form.about, rows, columns)

    hub = wanted.hub or wanted.push_to is not None
    counts = export_rows(kind, preferences, to, card=card, hub=hub)
    rows = counts.pop("rows")
    what = "preferences" if kind in ("preferences", "implicit") else "rows"
    text = f"{rows:,} {what}" + (
        "" if wanted.push_to and wanted.to is None else f" written to {to}"
    )
    taken = {"rewards": ("tie",), "prompts": counts, "argilla": counts}.get(kind, ())
    left_out = {k: v for k, v in counts.items() if k not in ("preferred", *taken) and v}
    if left_out:
        text += "; left out: " + ", ".join(f"{v:,} {k}" for k, v in left_out.items())
    say(text)


def _push_model(store: RunStore, wanted: Wanted, say: Callable[[str], None]) -> None:
    """Uploads a model of the run, its card made anew."""
    from rlaif.files.hub import push_folder
    from rlaif.files.small import write_text

    name = wanted.what.removeprefix(_MODEL)
    folder = store.path("models", name)
    if wanted.push_to is None or wanted.to is not None:
        raise ConfigError(
            f"--what {wanted.what}: a model is pushed, --push-to OWNER/NAME and no TO; as a folder "
            f"it lies in {folder}"
        )
    if not name or "/" in name or not (folder / "metrics.json").is_file():
        there = sorted(path.parent.name for path in store.path("models").glob("*/metrics.json"))
        raise DataError(
            f"{store.root} has no trained model '{name}': "
            + (f"there is {', '.join(there)}" if there else "run `rlaif train` first")
        )
    write_text(folder / "README.md", model_card(store, name))
    say(f"pushed to {push_folder(folder, wanted.push_to, 'model', private=wanted.private)}")


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
            if (p := of_pair(said, pair.id)) is not None:
                yield Preference(pair, "tie" if p == 0.5 else "preferred", p)


def _completions(store: RunStore) -> Iterator[tuple[Prompt, str, str]]:
    prompts = {p.id: p for batch in store.table("prompts").iter_batches() for p in batch}
    for batch in store.table("completions").iter_batches():
        for c in batch:
            asked_for = c.policy.endswith(SIDES)  # contrasts were asked to be good or bad
            if c.finish_reason == "stop" and c.text.strip() and not asked_for:
                yield prompts[c.prompt_id], c.text, "helpful"
