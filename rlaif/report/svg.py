"""Charts as inline SVG: text in, text out, no library and no script.

Colours are CSS classes (`s0`, `s1`, … for series): the page decides them, for light and for dark.
Every chart is drawn on a canvas about as wide as a phone's screen and scaled up from there, so its
letters stay legible at any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from rlaif.report.formats import THIN, percent
from rlaif.statistics.intervals import Interval

WIDTH = 440  # of a chart, two a row, in px
NARROW = 310  # three a row
LETTER = 6.2  # width of an average letter at the charts' 11 px, in px
ROW_LETTER = 7.0  # and of a row's name


@dataclass(frozen=True, slots=True)
class Series:
    """A named line: points (x, y) with x rising from 0."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps a data range linearly onto a pixel range."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high] from within, about so many."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def plain(value: float) -> str:
    """A tick's number: at most three significant digits, thousands as k."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.3g}k"
    if abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def percent_tick(value: float) -> str:
    """A share as a whole percentage."""
    return f"{value * 100:.0f}{THIN}%"


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", css, anchor, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        f"{width:.0f}", f"{height:.0f}", label
    )
    return opening + Markup("".join(parts)) + Markup("</svg>")


def _shorten(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


@dataclass(frozen=True, slots=True)
class Plot:
    """The area inside the axes of one chart."""

    x: Scale
    y: Scale

    def frame(
        self,
        x_label: str,
        y_label: str,
        x_tick: Callable[[float], str] = plain,
        y_tick: Callable[[float], str] = plain,
        y_about: int = 4,
    ) -> list[str]:
        """Grid, ticks and the axes' labels. The y label stands above its axis, to be read."""
        out: list[str] = []
        for v in ticks(self.y.low, self.y.high, y_about):
            out.append(_line(self.x.start, self.y(v), self.x.end, self.y(v), "grid"))
            out.append(_text(self.x.start - 6, self.y(v) + 3.5, y_tick(v), anchor="end"))
        out.append(_line(self.x.start, self.y.start, self.x.end, self.y.start, "axis"))
        for v in ticks(self.x.low, self.x.high):
            out.append(_line(self.x(v), self.y.start, self.x(v), self.y.start + 4, "axis"))
            out.append(_text(self.x(v), self.y.start + 16, x_tick(v)))
        out.append(_text((self.x.start + self.x.end) / 2, self.y.start + 33, x_label, "label"))
        out.append(_text(4, self.y.end - 10, y_label, "label", "start"))
        return out


def _plot(
    x: tuple[float, float], y: tuple[float, float], height: float, width: float = WIDTH
) -> Plot:
    return Plot(Scale(*x, 46, width - 14), Scale(*y, height - 40, 26))


def histogram(
    counts: Sequence[int],
    low: float,
    high: float,
    *,
    label: str,
    x_label: str,
    y_label: str,
    marker: float | None = None,
) -> Markup:
    """Counts in equal bins over [low, high]; `marker` draws a line, such as at ½."""
    top = max(max(counts, default=0), 1)
    p = _plot((low, high), (0, top * 1.05), 240, NARROW)
    parts = p.frame(x_label, y_label)
    width = (p.x.end - p.x.start) / max(len(counts), 1)
    for i, count in enumerate(counts):
        if count:
            y = p.y(count)
            start, end = (low + (high - low) * (i + d) / len(counts) for d in (0, 1))
            tip = f"{start:.2f} to {end:.2f}: {count:,}"
            parts.append(
                f'<rect x="{p.x.start + i * width + 0.6:.1f}" y="{y:.1f}" '
                f'width="{width - 1.2:.1f}" height="{p.y.start - y:.1f}" class="fill s0">'
                f"<title>{tip}</title></rect>"
            )
    if marker is not None:
        parts.append(_line(p.x(marker), p.y.start, p.x(marker), p.y.end, "reference"))
    return _svg(NARROW, 240, label, parts)


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    y_tick: Callable[[float], str] = plain,
) -> Markup:
    """Curves over steps. Points that are not finite leave a gap."""
    xs = [x for s in series for x in s.xs]
    ys = [y for s in series for y in s.ys if math.isfinite(y)]
    low, high = y_range or _padded(ys)
    p = _plot((0, max(xs, default=1)), (low, high), 200, NARROW)
    parts = p.frame(x_label, y_label, y_tick=y_tick)
    for i, s in enumerate(series):
        parts += _polylines(p, s, i)
    if len(series) > 1:
        classes = [f"s{i}" for i in range(len(series))]
        parts += _legend([s.name for s in series], classes, p.x.end, 12)
    return _svg(NARROW, 200, label, parts)


def _padded(ys: Sequence[float]) -> tuple[float, float]:
    if not ys:
        return 0.0, 1.0
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < high / 2 else low - pad), high + pad


def _polylines(p: Plot, series: Series, i: int) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.xs, series.ys, strict=True):
        if math.isfinite(y):
            runs[-1].append((p.x(x), min(max(p.y(y), p.y.end), p.y.start)))
        elif runs[-1]:
            runs.append([])
    out = []
    for run in runs:
        if len(run) == 1:
            out.append(f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2.5" class="s{i}"/>')
        elif run:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            out.append(f'<polyline points="{points}" class="curve s{i}"/>')
    return out


def _classes(n: int, hollow: bool) -> list[str]:
    """Of n policies the first may be what the others are compared with, drawn hollow."""
    names = [f"s{i}" for i in range(n)]
    return ["base", *names[:-1]] if hollow and n > 1 else names


def _legend(names: Sequence[str], classes: Sequence[str], right: float, y: float) -> list[str]:
    out: list[str] = []
    x = right
    for name, css in reversed(list(zip(names, classes, strict=True))):
        x -= len(name) * LETTER
        out.append(_text(x, y + 3.5, name, anchor="start"))
        out.append(f'<circle cx="{x - 9:.1f}" cy="{y:.1f}" r="4" class="dot {css}"/>')
        x -= 26
    return out


def whiskers(
    rows: Sequence[tuple[str, Sequence[Interval | None]]],
    names: Sequence[str],
    *,
    label: str,
    x_label: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
    hollow: bool = True,
) -> Markup:
    """A dot with its interval for each row and policy; `hollow`: the first of several, drawn so, is
    what the others are compared with."""
    letters = min(max((len(name) for name, _ in rows), default=0), 22)
    classes = _classes(len(names), hollow)
    left = letters * ROW_LETTER + 14
    pitch = 14.0 * max(len(names), 1) + 12
    top = 26 if len(names) > 1 else 10
    bottom = top + pitch * len(rows)
    x = Scale(*x_range, left, WIDTH - 18)
    parts: list[str] = []
    for v in ticks(*x_range):
        parts.append(_line(x(v), top, x(v), bottom, "grid"))
        parts.append(_text(x(v), bottom + 14, percent_tick(v)))
    if reference is not None:
        parts.append(_line(x(reference), top, x(reference), bottom, "reference"))
    for r, (name, estimates) in enumerate(rows):
        middle = top + pitch * (r + 0.5)
        parts.append(_text(left - 10, middle + 4, _shorten(name, 22), "row", "end"))
        for i, estimate in enumerate(estimates):
            y = middle + 12 * (i - (len(estimates) - 1) / 2)
            if estimate is not None:
                parts += _whisker(x, y, estimate, classes[i], f"{name}, {names[i]}")
    parts.append(_text((x.start + x.end) / 2, bottom + 32, x_label, "label"))
    if len(names) > 1:
        parts += _legend(names, classes, WIDTH - 18, 11)
    return _svg(WIDTH, bottom + 40, label, parts)


def _whisker(x: Scale, y: float, e: Interval, css: str, name: str) -> list[str]:
    tip = escape(f"{name}: {percent(e.value)} ({percent(e.low)} to {percent(e.high)})")
    return [
        _line(x(e.low), y, x(e.high), y, f"whisker {css}"),
        f'<circle cx="{x(e.value):.1f}" cy="{y:.1f}" r="4" class="dot {css}">'
        f"<title>{tip}</title></circle>",
    ]


def reliability(points: Sequence[tuple[float, Interval]], *, label: str) -> Markup:
    """Confidence against the share right, a dot a bin; its area grows with the bin's labels."""
    p = _plot((0.5, 1), (0, 1), 240, NARROW)
    parts = p.frame("probability of what the label prefers", "share right", y_tick=percent_tick)
    parts.append(_line(p.x(0.5), p.y(0.5), p.x(1), p.y(1), "reference"))
    most = max((true.n for _, true in points), default=1)
    for stated, true in points:
        cx, cy = p.x(stated), p.y(true.value)
        tip = f"{stated:.2f}: {percent(true.value)} of {true.n:,} right"
        parts.append(_line(cx, p.y(true.low), cx, p.y(true.high), "whisker s0"))
        parts.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{2 + 5 * math.sqrt(true.n / most):.1f}" '
            f'class="dot s0"><title>{tip}</title></circle>'
        )
    return _svg(NARROW, 240, label, parts)


def heatmap(grid: Sequence[Sequence[int]], *, label: str, x_label: str, y_label: str) -> Markup:
    """Counts over the unit square, grid[row][column] with row 0 at y = 0; shade by log count."""
    p = _plot((0, 1), (0, 1), 300)
    parts = p.frame(x_label, y_label)
    n = len(grid)
    width, height = (p.x.end - p.x.start) / n, (p.y.start - p.y.end) / n
    most = math.log1p(max((c for row in grid for c in row), default=0)) or 1.0
    for r, row in enumerate(grid):
        for c, count in enumerate(row):
            if count:
                shade = 0.08 + 0.92 * math.log1p(count) / most
                parts.append(
                    f'<rect x="{p.x.start + c * width:.1f}" y="{p.y.start - (r + 1) * height:.1f}" '
                    f'width="{width - 0.6:.1f}" height="{height - 0.6:.1f}" class="fill s0" '
                    f'fill-opacity="{shade:.2f}"><title>{count:,}</title></rect>'
                )
    parts.append(_line(p.x(0), p.y(0), p.x(1), p.y(1), "reference"))
    return _svg(WIDTH, 300, label, parts)


def bars(rows: Sequence[tuple[str, float, str]], *, label: str, x_label: str) -> Markup:
    """Horizontal bars: (name, value, the text beside the bar)."""
    left = min(max((len(name) for name, _, _ in rows), default=0), 22) * ROW_LETTER + 14
    room = max((len(text) for _, _, text in rows), default=0) * LETTER + 8
    x = Scale(0, max((v for _, v, _ in rows), default=0) or 1.0, left, WIDTH - room)
    parts: list[str] = []
    for r, (name, value, text) in enumerate(rows):
        y = 6 + 24 * r
        parts.append(_text(left - 10, y + 13, _shorten(name, 22), "row", "end"))
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{max(x(value) - left, 1):.1f}" height="17" '
            'class="fill s0"/>'
        )
        parts.append(_text(x(value) + 6, y + 13, text, anchor="start"))
    bottom = 6 + 24 * len(rows)
    parts.append(_line(left, 2, left, bottom, "axis"))
    parts.append(_text((left + WIDTH - room) / 2, bottom + 14, x_label, "label"))
    return _svg(WIDTH, bottom + 22, label, parts)


def strip(first: float | None, second: float | None) -> Markup:
    """P(first) of one principle on a line from 0 to 1, in both orders."""
    parts = [_line(4, 8, 116, 8, "axis"), _line(60, 3, 60, 13, "axis")]
    for value, css in ((second, "s1"), (first, "s0")):
        if value is not None:
            parts.append(f'<circle cx="{4 + 112 * value:.1f}" cy="8" r="3.5" class="dot {css}"/>')
    return Markup('<svg viewBox="0 0 120 16" class="strip" aria-hidden="true">{}</svg>').format(
        Markup("".join(parts))
    )
