"""Line charts as inline SVG: axes, ticks, legend, hover data. Pure: numbers in, text out.

Coordinates are those of the ``viewBox`` (one unit is one CSS pixel at natural size); colours come from the page's
style sheet by class, so that one picture serves light and dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46
_MOST_POINTS = 1200
"""Points a line is drawn with; more would not be seen, and a long run has 10^5."""

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """One line: points in order of x; y is None (or not finite) where nothing was measured, which breaks the line.

    ``sparse`` series (a validation every thousand steps) are joined over what lies between and get dots.
    """

    name: str
    points: Sequence[Point]
    sparse: bool = False


@dataclass(frozen=True)
class Chart:
    """What one panel shows, over whole numbers of x."""

    title: str
    y_label: str
    series: Sequence[Series]
    x_label: str = "step"
    from_zero: bool = False
    marks: Sequence[float] = field(default_factory=tuple)
    """x of vertical lines, e.g. the steps at which the run was resumed."""


def finite(value: float | None) -> bool:
    """Whether there is a number to draw."""
    return value is not None and math.isfinite(value)


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """About ``target`` round numbers (steps of 1, 2, 2.5 or 5 times a power of ten) within ``[low, high]``."""
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within ``[low, high]``; the powers alone over more than two decades."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    return [f * 10.0**e for e in exponents for f in factors if low * 0.999 <= f * 10.0**e <= high * 1.001]


def tick_label(value: float, step: float, largest: float) -> str:
    """Short text of a tick: ``0``, ``2.5``, ``20k``, ``1.5e-4``.

    Args:
        step: distance of the ticks; says how many decimals are needed.
        largest: the largest tick of the axis; all ticks share its unit.
    """
    if value == 0:
        return "0"
    if largest < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    unit, size = next((u for u in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if largest >= u[1] * 10), ("", 1.0))
    # One decimal more than the step's magnitude (2.5), which goes again where it is a zero.
    decimals = max(0, 1 - math.floor(math.log10(step / size) + 1e-9))
    text = f"{value / size:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about ``most`` points that look the same: the lowest and the highest of each bucket, and every break."""
    if len(points) <= most:
        return list(points)
    bucket = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), bucket):
        part = points[start : start + bucket]
        numbers = [index for index, (_, y) in enumerate(part) if finite(y)]
        chosen = (
            {min(numbers, key=lambda i: part[i][1] or 0.0), max(numbers, key=lambda i: part[i][1] or 0.0)}
            if numbers
            else set()
        )
        if len(numbers) < len(part):
            chosen.add(next(index for index, (_, y) in enumerate(part) if not finite(y)))
        kept.extend(part[index] for index in sorted(chosen))
    return kept


@dataclass(frozen=True)
class _Scale:
    """Maps values to coordinates, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False
    whole: bool = False
    """Ticks at whole numbers only (there is no step 19.5)."""

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        at = math.log(value) if self.logarithmic else value
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self.logarithmic:
            return [(value, tick_label(value, value, value)) for value in log_ticks(self.low, self.high)]
        values = nice_ticks(self.low, self.high)
        if self.whole:
            values = [value for value in values if abs(value - round(value)) < 1e-6]
        step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
        largest = max(map(abs, values))
        return [(value, tick_label(value, step, largest)) for value in values]


def _x_scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    return _Scale(low, high, _LEFT, WIDTH - _RIGHT, whole=True)


def _y_scale(values: Sequence[float], from_zero: bool) -> _Scale:
    """Linear with a little air; logarithmic where a few spikes would press the rest onto the axis."""
    start, stop = HEIGHT - _BOTTOM, _TOP
    low, high = min(values), max(values)
    if low > 0 and high > 10 * sorted(values)[len(values) // 2]:
        return _Scale(low / 1.1, high * 1.1, start, stop, logarithmic=True)
    if from_zero and low >= 0:
        return _Scale(0.0, high * 1.06 or 1.0, start, stop)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return _Scale(low - air, high + air, start, stop)


def _path(points: Sequence[Point], x: _Scale, y: _Scale, join_over_gaps: bool) -> tuple[str, list[tuple[float, float]]]:
    """The ``d`` of a line and the points that stand alone (a line of one point would be invisible)."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value is not None and math.isfinite(value):
            runs[-1].append((x(at), y(value)))
        elif not join_over_gaps and runs[-1]:
            runs.append([])
    commands = ["M" + "L".join(f"{px:g} {py:g}" for px, py in run) for run in runs if len(run) > 1]
    return "".join(commands), [run[0] for run in runs if len(run) == 1]


def _axes(chart: Chart, x: _Scale, y: _Scale) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value, label in y.ticks:
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:g}" y2="{at:g}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:g}" text-anchor="end">{label}</text>')
    for value, label in x.ticks:
        at = x(value)
        parts.append(f'<line class="axis" x1="{at:g}" x2="{at:g}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{at:g}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    parts += [f'<line class="mark" x1="{x(v):g}" x2="{x(v):g}" y1="{_TOP}" y2="{bottom}"/>' for v in chart.marks]
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_TOP + bottom) / 2
    label = chart.y_label + (", log scale" if y.logarithmic else "")
    parts.append(
        f'<text class="label" x="{(_LEFT + right) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )
    parts.append(
        f'<text class="label" transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(label)}</text>"
    )
    return parts


def line_chart(chart: Chart) -> str:
    """One panel: a ``<figure>`` with title, legend (if there are several lines), SVG and the numbers for hovering.

    A chart without a single finite number says so instead.
    """
    drawn = [Series(s.name, thin(s.points), s.sparse) for s in chart.series if any(finite(p[1]) for p in s.points)]
    head = f"<figcaption>{escape(chart.title)}</figcaption>"
    if not drawn:
        return f'<figure class="chart">{head}<p class="empty">No numbers yet.</p></figure>'
    ys = [p[1] for s in drawn for p in s.points if p[1] is not None and math.isfinite(p[1])]
    x = _x_scale([p[0] for s in drawn for p in s.points])
    y = _y_scale(ys, chart.from_zero)
    marks = [mark for mark in chart.marks if x.low <= mark <= x.high]
    parts = _axes(Chart(chart.title, chart.y_label, drawn, chart.x_label, chart.from_zero, marks), x, y)
    hover = []
    for number, series in enumerate(drawn):
        path, singles = _path(series.points, x, y, join_over_gaps=series.sparse)
        known = [(at, value) for at, value in series.points if value is not None and math.isfinite(value)]
        dots = [(x(at), y(value)) for at, value in known] if series.sparse and len(known) <= 60 else singles
        if path:
            parts.append(f'<path class="line s{number}" d="{path}"/>')
        parts += [f'<circle class="dot s{number}" cx="{px:g}" cy="{py:g}" r="3.5"/>' for px, py in dots]
        hover.append({"name": series.name, "points": [[at, value, x(at), y(value)] for at, value in known]})
    legend = "".join(f'<span><i class="s{i}"></i>{escape(s.name)}</span>' for i, s in enumerate(drawn))
    numbers = json.dumps({"x": chart.x_label, "series": hover}, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<figure class="chart">{head}'
        + (f'<div class="legend">{legend}</div>' if len(drawn) > 1 else "")
        + f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        + "".join(parts)
        + f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg><div class="tip"></div>'
        + f'<script type="application/json">{numbers}</script></figure>'
    )
