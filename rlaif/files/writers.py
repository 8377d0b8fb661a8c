"""Write preferences and samples in TRL's formats, for TRL and whatever else reads them.

https://huggingface.co/docs/trl/dataset_formats#preference

A data set may carry a card: README.md in a folder, NAME.card.md beside a file.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError
from rlaif.files.rows import KINDS, TURNS, Again, Row
from rlaif.files.small import commit, reason, remove, write_text
from rlaif.records import Message, Preference, Prompt, content_id, messages_to_json

Card = Callable[[int], str]  # the card's text, of the number of rows
Write = Callable[[Path, Iterator[Row], pa.Schema | None], None]

_DATA = "data/train-00000-of-00001.parquet"
_CHUNK = 4096


def export_preferences(
    preferences: Iterable[Preference], path: str | Path, *, conversational: bool = True
) -> dict[str, int]:
    """Write the preferred rows; returns how many were `preferred`, `tie` and `abstained`.

    The path decides the form: `.jsonl`, `.parquet`, or a folder for `datasets.load_from_disk`. The
    columns are prompt, chosen, rejected (messages, or else transcripts as in hh-rlhf), p_chosen
    (the soft label, in (0.5, 1]) and pair_id. Written aside and renamed: what stood there before
    stays until the new file is whole.

    Raises DataError for another suffix, a folder that holds something else, no preferred row at
    all, or a disk that refuses.
    """
    counts: Counter[str] = Counter(preferred=0, tie=0, abstained=0)
    rows = _rows(preferences, counts, conversational)
    if not _export(rows, Path(path), _schema(conversational)):
        raise DataError(
            f"nothing to export to {path}: no preferred pair among {counts['tie']} ties and "
            f"{counts['abstained']} abstentions. Lower preferences.min_margin or label more"
        )
    return dict(counts)


def export_rows(
    kind: str, preferences: Again, path: str | Path, *, card: Card | None = None, hub: bool = False
) -> dict[str, int]:
    """Write labels in one of the forms of `KINDS`; returns how many `rows` were written, and the
    pairs of each status.

    `preferences` gives them from their beginning each time that it is called. The path decides the
    form of the file, as in `export_preferences`; with `hub` it is a folder as the Hugging Face hub
    has it, README.md and Parquet, which `datasets.load_dataset` reads. `card` makes the card's text
    of the number of rows. The errors are the same, and DataError for a kind that is written as
    JSONL alone.
    """
    form, target, counts = KINDS[kind], Path(path), Counter[str]()
    if form.schema is None and (hub or target.suffix != ".jsonl"):
        raise DataError(f"{path}: {kind} is written as JSONL: name a .jsonl file")
    written = _export(form.rows(preferences, counts), target, form.schema, card=card, hub=hub)
    if not written:
        told = ", ".join(f"{n:,} {status}" for status, n in counts.items()) or "no labels"
        raise DataError(
            f"nothing to export to {path} as {kind}, of {told}. Lower preferences.min_margin or "
            "label more"
        )
    return {"rows": written, **counts}


def export_completions(
    samples: Iterable[tuple[Prompt, str, str]], path: str | Path
) -> dict[str, int]:
    """Write (prompt, completion, source) as TRL's prompt-completion rows, for supervised training.

    The columns are prompt and completion (messages) and source; a prompt's completion that comes
    again is left out. Returns how many were written of each source, and `repeated`. The path
    decides the form, as in `export_preferences`, and the errors are the same.
    """
    counts: Counter[str] = Counter()
    seen: set[str] = set()

    def rows() -> Iterator[Row]:
        for prompt, text, source in samples:
            key = content_id(prompt.id, text)
            counts["repeated" if key in seen else source] += 1
            if key not in seen:
                seen.add(key)
                completion = messages_to_json([Message("assistant", text)])
                prompt_turns = messages_to_json(prompt.messages)
                yield {"prompt": prompt_turns, "completion": completion, "source": source}

    schema = pa.schema([("prompt", TURNS), ("completion", TURNS), ("source", pa.string())])
    if not _export(rows(), Path(path), schema):
        raise DataError(f"nothing to export to {path}: no usable sample")
    return dict(counts)


def _export(
    rows: Iterator[Row],
    path: Path,
    schema: pa.Schema | None,
    *,
    card: Card | None = None,
    hub: bool = False,
) -> int:
    """Writes aside, then puts it in place unless it is empty; returns how many rows there are."""
    write = _hub_writer(path) if hub else _writer(path)
    written = 0

    def counted() -> Iterator[Row]:
        nonlocal written
        for row in rows:
            written += 1
            yield row

    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
    aside = path.with_name(f".{path.name}.aside-{os.getpid()}")
    try:
        with _explained(path):
            write(aside, counted(), schema)
            if written:
                if card is not None and aside.is_dir():
                    (aside / "saved" / "README.md").write_text(card(written), encoding="utf-8")
                _put(aside, path)
                if card is not None and not path.is_dir():
                    write_text(path.with_name(f"{path.stem}.card.md"), card(written))
    finally:
        remove(aside)
    return written


def _clear(path: Path) -> None:
    """Removes what a killed export to the same place left behind: it may be large."""
    start = f".{path.name}.aside-"
    for left in path.parent.iterdir():
        number = left.name.removeprefix(start)
        if left.name.startswith(start) and number.isdecimal():
            try:
                os.kill(int(number), 0)
            except (ProcessLookupError, OverflowError):
                remove(left)
            except PermissionError:  # somebody else's, and alive
                continue


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"cannot write {path}: a text is not valid Unicode: {error}") from error
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {reason(error)}. Allow or free space there, then try again"
        ) from error


def _writer(path: Path) -> Write:
    if path.suffix == ".jsonl":
        return _write_jsonl
    if path.suffix == ".parquet":
        return _write_parquet
    if path.suffix:
        raise DataError(
            f"{path}: expected .jsonl, .parquet or a folder without a suffix, got '{path.suffix}'"
        )
    if path.exists() and not (path / "state.json").exists():
        raise DataError(f"{path} exists and is no saved data set: choose another folder")
    return _write_folder


def _hub_writer(path: Path) -> Write:
    """A folder as the hub has it; one that holds something else is left alone."""
    if path.suffix in (".jsonl", ".parquet"):
        raise DataError(f"{path}: a data set for the hub is a folder: name one without a suffix")
    if path.exists() and not (path / _DATA).exists():
        raise DataError(f"{path} exists and is no data set for the hub: choose another folder")
    return _write_for_hub


def _write_for_hub(path: Path, rows: Iterator[Row], schema: pa.Schema | None) -> None:
    target = path / "saved" / _DATA
    target.parent.mkdir(parents=True)
    _write_parquet(target, rows, schema)


def _rows(
    preferences: Iterable[Preference], counts: Counter[str], conversational: bool
) -> Iterator[Row]:
    form = _messages if conversational else _transcripts
    for preference in preferences:
        counts[preference.status] += 1
        if preference.status == "preferred":
            yield {
                **form(preference),
                "p_chosen": preference.p_chosen,
                "pair_id": preference.pair.id,
            }


def _messages(preference: Preference) -> Row:
    return {
        "prompt": messages_to_json(preference.pair.prompt.messages),
        "chosen": messages_to_json([Message("assistant", preference.chosen)]),
        "rejected": messages_to_json([Message("assistant", preference.rejected)]),
    }


def _transcripts(preference: Preference) -> Row:
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    turns = [f"\n\n{names[m.role]}: {m.content}" for m in preference.pair.prompt.messages]
    return {
        "prompt": "".join(turns) + "\n\nAssistant:",
        "chosen": " " + preference.chosen,
        "rejected": " " + preference.rejected,
    }


def _schema(conversational: bool) -> pa.Schema:
    side = TURNS if conversational else pa.string()
    sides = [(name, side) for name in ("prompt", "chosen", "rejected")]
    return pa.schema([*sides, ("p_chosen", pa.float64()), ("pair_id", pa.string())])


def _write_jsonl(path: Path, rows: Iterator[Row], _schema: pa.Schema | None) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _tables(rows: Iterator[Row], schema: pa.Schema | None) -> Iterator[pa.Table]:
    while chunk := list(islice(rows, _CHUNK)):
        yield pa.Table.from_pylist(chunk, schema=schema)


def _write_parquet(path: Path, rows: Iterator[Row], schema: pa.Schema | None) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _tables(rows, schema):
            writer.write_table(table)


def _write_folder(path: Path, rows: Iterator[Row], schema: pa.Schema | None) -> None:
    """Through an Arrow file, so that a large data set is mapped and not held in memory."""
    import datasets

    path.mkdir()
    arrow = path / "rows.arrow"
    with pa.ipc.new_stream(str(arrow), schema) as writer:
        for table in _tables(rows, schema):
            writer.write_table(table)
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_file(str(arrow)).save_to_disk(str(path / "saved"))
    finally:
        if bars:
            datasets.enable_progress_bars()


def _put(aside: Path, path: Path) -> None:
    """Puts what was written in place, in one step: a kill leaves the old or the new."""
    if not aside.is_dir():
        commit(aside, path)
    elif not path.exists():
        os.rename(aside / "saved", path)
    else:  # a folder cannot be renamed over another that has something in it
        _exchange(aside / "saved", path)


def _exchange(new: Path, old: Path) -> None:
    """Each folder takes the place of the other, at once: Linux's `renameat2`."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and not rename(here, os.fsencode(new), here, os.fsencode(old), exchange):
        return
    code = errno.ENOSYS if rename is None else ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise DataError(
            f"{old} exists, and a folder cannot be replaced at once on this file system: remove it "
            "first, or name another"
        )
    raise OSError(code, os.strerror(code), str(old))
