"""What a shard's name says, and whether its bytes are those that were written.

    000001-0d3f8c2a91b4e765.parquet         some rows of a table
    000004-base-5a77c1e0b2948d3f.parquet    all of them: it supersedes every shard of a lower number

Parquet's page checksums leave its footer open, where a flipped bit can exchange two columns. So the
name ends with a digest of all bytes, the first 16 digits of what `sha256sum` prints. A name never
stands for other bytes, one rename puts a shard and its digest in place, and both are copied
together.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_DIGITS = 16
# Before there was a digest in the name, it was in the footer, under this key; see `_is_sealed`.
_SHARD = re.compile(r"(\d{6,})-(?:(base-)?([0-9a-f]{16})|base|[0-9a-f]{8})\.parquet")
_SEAL = b"rlaif.sha256"


def shards_of(folder: Path) -> list[Path]:
    """The shards in a table's folder, by number."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _SHARD.fullmatch(path.name)]
    return sorted(found, key=lambda path: (number(path), path.name))


def live(shards: list[Path]) -> list[Path]:
    """Those that no base shard supersedes."""
    base = max((number(shard) for shard in shards if "-base" in shard.name), default=0)
    return [shard for shard in shards if number(shard) >= base]


def number(shard: Path) -> int:
    """The place of a shard among those of its table."""
    return int(shard.name.partition("-")[0])


def name_of(number: int, written: Path, *, base: bool = False) -> str:
    """The name of a shard whose bytes are those of a file."""
    return f"{number:06d}-{'base-' * base}{_digest(written)}.parquet"


def is_damaged(shard: Path) -> bool:
    """Whether a shard's bytes are other than they were when it was written."""
    match = _SHARD.fullmatch(shard.name)
    said = match and match[3]
    return _digest(shard) != said if said else not _is_sealed(shard)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _is_sealed(shard: Path) -> bool:
    """The same of a shard of the first versions, whose footer holds its SHA-256, computed with
    zeros in its own place."""
    with shard.open("rb") as file:
        try:
            seal: bytes = (pq.read_metadata(file).metadata or {})[_SEAL]
        except (pa.ArrowException, OSError, KeyError):
            return False
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
        ):
            at = whole.rfind(seal)
            digest = hashlib.sha256(view[:at])
            digest.update(b"0" * len(seal))
            digest.update(view[at + len(seal) :])
    return digest.hexdigest().encode() == seal
