"""Numbers as people read them; `–` stands for a number that is not known."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_UP, Decimal, localcontext

MISSING = "–"
THIN = "\u202f"  # narrow no-break space, between a number and its unit
# What XML and HTML cannot hold: control characters but tab and newline, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _known(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: float, digits: int, scale: int = 1) -> str:
    """The number times `scale` with so many decimals, a half rounded away from 0 as it is written:
    0.945 and 0.935 by 100 are 95 and 94. Never −0."""
    step = Decimal(1).scaleb(-digits)
    exact = Decimal(repr(float(value))) * scale
    with localcontext(prec=400):  # the largest float has 309 digits before the point
        return f"{exact.quantize(step, ROUND_HALF_UP):z,f}"


def count(value: float | None) -> str:
    """12,345"""
    return f"{value:,.0f}" if value is not None and _known(value) else MISSING


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage. A share that is not all is never rounded up to all, nor to none."""
    if value is None or not _known(value):
        return MISSING
    text = rounded(value, digits, 100)
    if float(text.replace(",", "")) in (0.0, 100.0):
        if value in (0.0, 1.0):
            text = rounded(value, 0, 100)
        elif digits < 2:
            return percent(value, digits + 1)
    return f"{text}{THIN}%".replace("-", "−")


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    if value is None or not _known(value):
        return MISSING
    whole = int(rounded(value, 0, 100).replace(",", ""))
    unit = "point" if abs(whole) == 1 else "points"
    return f"{whole:+d}{THIN}{unit}".replace("-", "−").replace("+0", "0")


def fixed(value: float | None, digits: int = 3) -> str:
    """A plain number with so many decimals."""
    if value is None or not _known(value):
        return MISSING
    return rounded(value, digits).replace("-", "−")


def duration(value: float | None) -> str:
    """8.3 s, 2 min 15 s, 3 h 4 min."""
    if value is None or not _known(value):
        return MISSING
    if value < 10:
        return f"{value:.1f}{THIN}s" if value >= 0.1 or value == 0 else f"{value:.2f}{THIN}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600:,}{THIN}h {whole % 3600 // 60}{THIN}min"


def printable(text: str) -> str:
    """The text with � for each character that a page cannot hold."""
    return _UNPRINTABLE.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


def cut(text: str, letters: int) -> tuple[str, int]:
    """The text's beginning, and how many characters were left out."""
    return (text, 0) if len(text) <= letters else (text[:letters], len(text) - letters)


def words(name: str) -> str:
    """`not_sycophantic` as words."""
    return name.replace("_", " ")


def plain(value: object) -> str:
    """A value of unknown kind: whole numbers with separators, others to four digits, texts."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return count(value).replace("-", "−")
    return f"{value:,.4g}".replace("-", "−") if math.isfinite(value) else MISSING
