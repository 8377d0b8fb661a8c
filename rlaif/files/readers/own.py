"""A reader of somebody's own, `pairs.format: module:function`: rows of a file made into pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from rlaif.errors import RlaifError
from rlaif.files import own
from rlaif.files.readers.fields import Left, Row
from rlaif.records import Pair


class PairReader(Protocol):
    """What `pairs.format: module:function` names: makes pairs of one row of a source.

    `row` is what a line of JSONL, a row of Parquet or of a data set holds, all columns of it;
    `where` its file and line. ValueError, KeyError or TypeError says that the row is malformed: the
    reading ends there, or goes on where `skip_bad` allows for it. No pair at all leaves the row
    out, counted and told as `no_pair`.
    """

    def __call__(self, row: dict[str, Any], where: str, /) -> Iterable[Pair]: ...


class _Every(Collection[str]):
    """All columns of a table."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


EVERY: Collection[str] = _Every()


def own_reader(name: str) -> Callable[[Sequence[tuple[str, Row]]], list[Pair]]:
    """The function that `module:function` names, as the loop of all readers takes it."""
    function: PairReader = own.load(name, "reader function")

    def pairs(rows: Sequence[tuple[str, Row]]) -> list[Pair]:
        ((where, row),) = rows
        try:
            found = list(function(dict(row), where))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Left("malformed", f"the reader {name} {own.did(error)}") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, RlaifError):
                raise
            raise own.raised(error, name, "reader") from error
        strange = next((x for x in found if not isinstance(x, Pair)), None)
        if strange is not None:
            raise Left("malformed", f"the reader {name} made {own.shown(strange)}, and no Pair")
        if not found:
            raise Left("no_pair", f"the reader {name} made none")
        return found

    return pairs
