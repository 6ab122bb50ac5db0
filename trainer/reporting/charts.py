"""Line charts as SVG text that scales with the page and takes its colours from the page's CSS."""

import html
import math
from dataclasses import dataclass

from trainer.reporting.records import Points

WIDTH, HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 24
_MOST_POINTS = 240  # more would only make the page larger
_TICKS = 5  # about so many numbers along an axis
_SERIES_COLOURS = 6  # --series-0 ... of the page


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: what the legend says.
        points: (step, value), by rising step.
        colour: number of a colour of the page.
        dashed: whether the line is dashed, as those of the training split are.
    """

    label: str
    points: Points
    colour: int
    dashed: bool = False


def line_chart(title: str, series: list[Series], *, logarithmic: bool = False) -> str:
    """Return a chart as an HTML figure; an empty string where there is nothing to draw.

    Args:
        title: the caption.
        series: the lines; one of a single point is drawn as a dot.
        logarithmic: whether the vertical axis is, which takes positive values.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    steps = [step for one in drawn for step, _ in one.points]
    values = [value for one in drawn for _, value in one.points]
    logarithmic = logarithmic and min(values) > 0 and max(values) > 30 * min(values)
    x_ticks = _linear_ticks(min(steps), max(steps))
    y_ticks = _log_ticks(min(values), max(values)) if logarithmic else None
    y_ticks = y_ticks or _linear_ticks(min(values), max(values))
    x = _Axis(min(steps), max(steps), _LEFT, WIDTH - _RIGHT, False)
    low, high = min(*values, y_ticks[0]), max(*values, y_ticks[-1])
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP, logarithmic)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        *(_horizontal_line(y(tick), number(tick)) for tick in y_ticks),
        *(_x_label(x(tick), number(tick)) for tick in x_ticks if min(steps) <= tick <= max(steps)),
        *(_line(one, x, y) for one in drawn),
        "</svg>",
    ]
    legend = "".join(
        f'<span class="key{" dashed" if one.dashed else ""}" style="--c:{_colour(one)}">'
        f"{html.escape(one.label)} <b>{number(one.points[-1][1])}</b></span>"
        for one in drawn
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<div class="legend">{legend}</div>{"".join(parts)}</figure>'
    )


def number(value: float) -> str:
    """Return a number in about three digits, for people."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e9:
        return f"{value / 1e9:.3g}G"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.2g}".replace("e-0", "e-")
    return f"{value:.3g}" if size < 100 else f"{value:.0f}"


@dataclass(frozen=True)
class _Axis:
    """Maps values to places: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def _colour(series: Series) -> str:
    return f"var(--series-{series.colour % _SERIES_COLOURS})"


def _line(series: Series, x: _Axis, y: _Axis) -> str:
    points = _thinned(series.points)
    places = [(x(step), y(value)) for step, value in points]
    dashes = ' stroke-dasharray="4 3"' if series.dashed else ""
    shape = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    dots = ""
    if len(points) <= 30:
        dots = "".join(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="2.6"><title>'
            f"{html.escape(series.label)}, step {step:,}: {value:.4g}</title></circle>"
            for (left, top), (step, value) in zip(places, points, strict=True)
        )
    return (
        f'<g style="--c:{_colour(series)}"><polyline points="{shape}"{dashes}/>{dots}</g>'
        if len(points) > 1
        else f'<g style="--c:{_colour(series)}">{dots}</g>'
    )


def _thinned(points: Points) -> Points:
    """Return at most `_MOST_POINTS` points, the last one included: means of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _horizontal_line(top: float, label: str) -> str:
    return (
        f'<path class="grid" d="M{_LEFT} {top:.1f}H{WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 5}" y="{top + 3.5:.1f}" text-anchor="end">{label}</text>'
    )


def _x_label(left: float, label: str) -> str:
    anchor = "end" if left > WIDTH - _RIGHT - 14 else "middle"
    return f'<text x="{left:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>'


def _linear_ticks(low: float, high: float) -> list[float]:
    """Return about `_TICKS` round numbers from at most `low` to at least `high`."""
    if low == high:
        return [low]
    rough = (high - low) / _TICKS
    scale = 10 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten around the values, at most six of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + stride, stride)]
