"""Read pairs and prompts that others wrote, one at a time, whatever the size of the source.

Sources: `.jsonl`, `.jsonl.gz`, `.parquet`, `.txt` (prompts, one a line), a folder saved by
`datasets.save_to_disk`, or the name of a data set on the hub. A folder or hub name may end in
`:split`.

Two things can be wrong with a row. A *malformed* one breaks the format (cut-off JSON, bytes that
are not UTF-8, a missing field) and ends the run, unless `skip_bad` allows for it. An *unusable* one
is well formed but makes no pair or prompt (both responses the same, nothing asked); it is reported
and left out. Neither is ever dropped silently.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError, nearest
from rlaif.records import Message, Pair, Prompt, Role

BadReason = Literal[
    "malformed",
    "unlike_prefixes",  # the two transcripts part before their last turn
    "identical_responses",
    "empty_prompt",
    "no_single_answer",  # chosen or rejected is not one assistant turn
    "ends_with_assistant",  # a prompt that waits for the user
]
Format = Literal["auto", "hh", "trl"]
Row = Mapping[str, Any]
R = TypeVar("R", Pair, Prompt)

FILES = {".jsonl", ".json", ".gz", ".parquet", ".txt", ".csv"}  # never taken for a hub name
KINDS = ".jsonl, .jsonl.gz, .parquet, a folder saved by datasets.save_to_disk, or a hub name"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out. `source` is `file:line`, or `file:row` where there are no lines."""

    source: str
    reason: BadReason
    excerpt: str
    detail: str = ""


OnBad = Callable[[BadRow], None]


class _Left(Exception):
    """Why a row is left out. Never leaves this module."""

    def __init__(self, reason: BadReason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_pairs(
    source: str | Path,
    *,
    format: str = "auto",
    limit: int | None = None,
    skip_bad: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[Pair]:
    """Pairs of a source; the chosen response stands first.

    `format`: "hh" (transcripts in `chosen` and `rejected`), "trl" (preference rows, standard or
    conversational, prompt explicit or implicit) or "auto", which tells them apart row by row.
    `label` is the row's `p_chosen`, or 1.0. An empty response is kept: judges abstain on it.
    `limit` counts pairs. `on_bad` is told of every row left out; without it one warning sums up.

    Raises DataError for a source that is missing, of an unknown kind or cut off, for an unknown
    format, and at the malformed row after `skip_bad` skipped ones.
    """
    formats = get_args(Format)
    if format not in formats:
        raise DataError(f"no pair format '{format}'.{nearest(format, formats)}")
    raw = _open(str(source), {"prompt", "chosen", "rejected", "p_chosen"}, allow_text=False)

    def convert(row: Row, where: str) -> Pair:
        return _pair(row, where, format)

    return _read(str(source), raw, convert, limit, skip_bad, on_bad)


def read_prompts(
    source: str | Path,
    *,
    limit: int | None = None,
    skip_bad: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[Prompt]:
    """Prompts of a source: rows with `prompt` (text or messages), `messages` or `text`.

    `limit`, `skip_bad`, `on_bad` and the errors are those of `read_pairs`.
    """
    raw = _open(str(source), {"prompt", "messages", "text"}, allow_text=True)
    return _read(str(source), raw, _prompt, limit, skip_bad, on_bad)


def _read(
    source: str,
    raw: Iterator[tuple[str, bytes | Row]],
    convert: Callable[[Row, str], R],
    limit: int | None,
    skip_bad: int,
    on_bad: OnBad | None,
) -> Iterator[R]:
    left: Counter[str] = Counter()
    made = 0
    if limit is not None and limit <= 0:
        return
    for where, content in raw:
        try:
            record = convert(_row(content), Path(where).name)
        except _Left as reason:
            left[reason.reason] += 1
            if reason.reason == "malformed" and left["malformed"] > skip_bad:
                raise DataError(_malformed(where, reason.detail, skip_bad)) from None
            if on_bad:
                on_bad(BadRow(where, reason.reason, _excerpt(content), reason.detail))
            continue
        yield record
        made += 1
        if made == limit:
            break
    if left and on_bad is None:
        counts = ", ".join(f"{reason} {n}" for reason, n in sorted(left.items()))
        warnings.warn(f"{source}: {left.total()} rows left out ({counts})", stacklevel=2)


def _malformed(where: str, detail: str, skipped: int) -> str:
    after = f" (after {skipped} skipped ones)" if skipped else ""
    return f"{where}: {detail}{after}. Fix the row, or leave it out: --skip-bad {skipped + 1}"


def _excerpt(content: bytes | Row) -> str:
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
    return text if len(text) <= 120 else text[:119] + "…"


# ---------------------------------------------------------------------------- sources


def _open(source: str, columns: set[str], *, allow_text: bool) -> Iterator[tuple[str, bytes | Row]]:
    """The raw rows of a source with their places. Finds the source now, reads it later."""
    known = ".txt, " + KINDS if allow_text else KINDS
    path = Path(source)
    if path.is_file():
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return _lines(path)
        if path.suffix == ".parquet":
            return _parquet_rows(path, columns)
        if path.suffix == ".txt" and allow_text:
            return _text_rows(path)
        raise DataError(f"{source}: expected {known}, got '{path.suffix}'; convert or rename it")
    folder, _, split = source.rpartition(":")
    if path.is_dir():
        return _saved_rows(path, "")
    if folder and Path(folder).is_dir():
        return _saved_rows(Path(folder), split)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:\w+)?", source) and path.suffix not in FILES:
        return _hub_rows(folder or source, split if folder else "")
    raise DataError(f"no such file or folder: {source} (looked in {Path.cwd()}). Known: {known}")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
                if line.strip():
                    yield f"{path}:{number}", line
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path}: the file cannot be read beyond line {number}: {error}. "
            f"Fetch it again, or use what is there with --limit"
        ) from error


def _text_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for where, line in _lines(path):
        try:
            yield where, {"text": line.decode().strip()}
        except UnicodeDecodeError:
            yield where, {"text": line}  # no text: refused like any row with a wrong field


def _parquet_rows(path: Path, columns: set[str]) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(1024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read beyond row {number}: {error}. Fetch or write it again"
        ) from error


def _saved_rows(folder: Path, split: str) -> Iterator[tuple[str, Row]]:
    if not any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"{folder}: expected a folder saved by datasets.save_to_disk, got one without "
            "state.json or dataset_dict.json; name one of the files in it instead"
        )
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: the saved data set cannot be read: {error}") from error
    return _numbered(str(folder), _one_split(loaded, str(folder), split))


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, streaming=True)
    except Exception as error:  # offline, unknown, gated: the library has a class for each
        raise DataError(
            f"no file or folder '{name}' in {Path.cwd()}, and no data set of that name could be "
            f"read from the hub: {_first_line(error)}. "
            "Check the name and the network, or download it first"
        ) from error
    return _numbered(name, _one_split(loaded, name, split))


def _one_split(loaded: Any, name: str, split: str) -> Any:
    """The split asked for, the only one, or `train`. One data set alone has no splits."""
    if not isinstance(loaded, Mapping):
        return loaded
    splits = sorted(loaded)
    wanted = split or (splits[0] if len(splits) == 1 else "train")
    if wanted not in splits:
        raise DataError(f"{name} has no split '{wanted}'; name one: {name}:{'|'.join(splits)}")
    return loaded[wanted]


def _numbered(name: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{name}:{number}", row
    except Exception as error:  # a damaged file, a connection lost: again one class for each
        raise DataError(
            f"{name}: cannot be read beyond row {number}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------- rows


def _row(content: bytes | Row) -> Row:
    if not isinstance(content, bytes):
        return content
    try:
        row = json.loads(content.decode())
    except UnicodeDecodeError as error:
        got = f"{error.reason} at byte {error.start}"
        raise _Left("malformed", f"expected UTF-8, got {got}") from error
    except (ValueError, RecursionError) as error:
        raise _Left("malformed", f"expected a JSON object, got {_json_error(error)}") from error
    if not isinstance(row, dict):
        raise _Left("malformed", f"expected a JSON object, got {_kind(row)}")
    return row


def _json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"text that is not JSON or is cut off ({error.msg} at column {error.colno})"
    return f"text that is not JSON ({error})"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    names |= {int: "a number", float: "a number", type(None): "null", bytes: "no UTF-8"}
    return names.get(type(value), type(value).__name__)


def _expect(condition: bool, field: str, expected: str, value: Any) -> None:
    if not condition:
        raise _Left("malformed", f"expected '{field}' to be {expected}, got {_kind(value)}")


def _field(row: Row, name: str) -> Any:
    if row.get(name) is None:
        have = ", ".join(f"{key} (null)" if row[key] is None else str(key) for key in row)
        raise _Left("malformed", f"expected a field '{name}', got the fields: {have or 'none'}")
    return row[name]


def _text(value: Any, field: str) -> str:
    _expect(isinstance(value, str), field, "a text", value)
    text: str = value
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON and no legal text
        detail = f"expected '{field}' to be Unicode text, got a lone surrogate"
        raise _Left("malformed", detail) from error
    return text


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    _expect(isinstance(value, list), field, "a text or a list of messages", value)
    roles = get_args(Role)
    messages = []
    for i, item in enumerate(value):
        place = f"{field}[{i}]"
        _expect(isinstance(item, dict), place, "a message {role, content}", item)
        role = item.get("role")
        if role not in roles:
            expected = f"expected '{place}.role' to be {'|'.join(roles)}"
            raise _Left("malformed", f"{expected}, got {role!r}")
        messages.append(Message(role, _text(item.get("content"), f"{place}.content")))
    return tuple(messages)


def _conversation(value: Any, field: str) -> tuple[Message, ...]:
    """Messages as they are; a transcript's turns; any other text as one user turn."""
    if not isinstance(value, str):
        return _messages(value, field)
    text = _text(value, field)
    return _turns(text) if _TURN.match(text) else (Message("user", text),)


def _prompt(row: Row, where: str) -> Prompt:
    field = next((name for name in ("prompt", "messages", "text") if row.get(name) is not None), "")
    if not field:
        _field(row, "prompt")
    messages = _conversation(row[field], field)
    _refuse_empty(messages)
    if messages[-1].role == "assistant":
        raise _Left("ends_with_assistant")
    return Prompt(messages, where)


def _refuse_empty(messages: Sequence[Message]) -> None:
    if not messages or not messages[-1].content.strip():
        raise _Left("empty_prompt")


def _pair(row: Row, where: str, format: str) -> Pair:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    _expect(isinstance(chosen, (str, list)), "chosen", "a text or a list of messages", chosen)
    _expect(type(rejected) is type(chosen), "rejected", f"{_kind(chosen)} like 'chosen'", rejected)
    prompt, first, second = (
        _hh(row) if format == "hh" or (format == "auto" and _is_transcript(row)) else _trl(row)
    )
    _refuse_empty(prompt)
    if first.strip() == second.strip():
        raise _Left("identical_responses")
    return Pair(Prompt(prompt, where), first, second, _label(row), where)


def _label(row: Row) -> float:
    p = row.get("p_chosen")
    if p is None:
        return 1.0
    _expect(type(p) in (int, float) and 0 <= p <= 1, "p_chosen", "a number from 0 to 1", p)
    return float(p)


# Anthropic's hh-rlhf: https://github.com/anthropics/hh-rlhf
_TURN = re.compile(r"(?:\A\s*|\n\n(?!System))(System|Human|Assistant):")
_ANSWER = "\n\nAssistant:"
_ROLES: dict[str, Role] = {"System": "system", "Human": "user", "Assistant": "assistant"}


def _is_transcript(row: Row) -> bool:
    chosen = row["chosen"]
    return row.get("prompt") is None and isinstance(chosen, str) and bool(_TURN.match(chosen))


def _hh(row: Row) -> tuple[tuple[Message, ...], str, str]:
    """The last assistant turn is the response; what stands before it is the prompt."""
    sides = []
    for side in ("chosen", "rejected"):
        text = _text(row[side], side)
        head, answer, tail = text.rpartition(_ANSWER)
        if not answer or not _TURN.match(text):
            expected = f"expected '{side}' to be a transcript \\n\\nHuman: … \\n\\nAssistant: …"
            raise _Left("malformed", f"{expected}, got {_excerpt({side: text})}")
        sides.append((head, tail.strip()))
    (head, first), (other, second) = sides
    if head != other:
        raise _Left("unlike_prefixes")
    return _turns(head), first, second


def _turns(text: str) -> tuple[Message, ...]:
    """A transcript as messages, without the cue for the next answer."""
    _, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    messages = [Message(_ROLES[name], content.strip()) for name, content in turns]
    if messages and messages[-1] == Message("assistant", ""):
        messages.pop()
    return tuple(messages)


def _trl(row: Row) -> tuple[tuple[Message, ...], str, str]:
    """TRL's preference formats: https://huggingface.co/docs/trl/dataset_formats#preference"""
    prompt = row.get("prompt")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        if prompt is None:
            shared = _shared_words(chosen, rejected)
            chosen, rejected, prompt = chosen[len(shared) :], rejected[len(shared) :], shared
        elif isinstance(prompt, str) and _TURN.match(prompt):
            chosen, rejected = chosen.strip(), rejected.strip()  # turns of a transcript
        return _conversation(prompt, "prompt"), chosen, rejected
    one, two = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    # Some data sets give the prompt as a text and repeat it as the first turn of both sides.
    if prompt is None or (isinstance(prompt, str) and len(one) > 1):
        if one[:-1] != two[:-1]:
            raise _Left("unlike_prefixes")
        return one[:-1], _answer(one[-1:]), _answer(two[-1:])
    return _conversation(prompt, "prompt"), _answer(one), _answer(two)


def _answer(messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise _Left("no_single_answer")
    return messages[0].content


def _shared_words(a: str, b: str) -> str:
    """The common beginning up to the last whole word; the space stays with the responses."""
    length = min(len(a), len(b))
    length = next((i for i in range(length) if a[i] != b[i]), length)
    return a[: max(a.rfind(" ", 0, length), a.rfind("\n", 0, length), 0)]
