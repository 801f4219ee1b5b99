"""Line charts as SVG, by hand: axes with round numbers, units, a legend, and times in minutes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Of Okabe and Ito: told apart by everybody.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 44, 70
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_LEGEND_LETTER = 6.6

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines by their names; times in seconds from the start, values in the unit that Grafana calls `unit`. `marked` are
    the begin and the end of what is shaded, and what it was."""

    title: str
    unit: str
    lines: Mapping[str, Points]
    seconds: float
    marked: Sequence[tuple[float, float, str]] = ()


def drawn(chart: Chart) -> str:
    """The chart as a document of its own."""
    highest = max((value for points in chart.lines.values() for _, value in points), default=0.0)
    # Shares are a little more than 1 where one of two rates is a scrape ahead.
    ticks = _ticks(1.0 if chart.unit == "percentunit" and highest < 1.05 else highest)
    top = ticks[-1]

    def x(seconds: float) -> float:
        return _LEFT + _PLOT_WIDTH * seconds / chart.seconds

    def y(value: float) -> float:
        return _TOP + _PLOT_HEIGHT * (1 - value / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{escape(chart.title)}</text>',
    ]
    for begin, end, name in chart.marked:
        parts += [
            f'<rect x="{x(begin):.1f}" y="{_TOP}" width="{x(end) - x(begin):.1f}" height="{_PLOT_HEIGHT}" '
            'fill="#f3dede"/>',
            f'<text x="{x((begin + end) / 2):.1f}" y="{_TOP - 6}" text-anchor="middle">{escape(name)}</text>',
        ]
    for tick in ticks:
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#dddddd"/>',
            f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_shown(tick, chart.unit, top)}</text>',
        ]
    for minute in range(int(chart.seconds // 60) + 1):
        parts += [
            f'<line x1="{x(minute * 60):.1f}" x2="{x(minute * 60):.1f}" y1="{_TOP + _PLOT_HEIGHT}" '
            f'y2="{_TOP + _PLOT_HEIGHT + 5}" stroke="#333333"/>',
            f'<text x="{x(minute * 60):.1f}" y="{_TOP + _PLOT_HEIGHT + 18}" text-anchor="middle">{minute} min</text>',
        ]
    for place, points in enumerate(chart.lines.values()):
        path = " ".join(f"{x(seconds):.1f},{y(value):.1f}" for seconds, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_color(place)}" stroke-width="1.8"/>')
    return "\n".join([*parts, *_legend(list(chart.lines)), "</svg>\n"])


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    left, top = float(_LEFT), _HEIGHT - 28
    for place, name in enumerate(names):
        width = 30 + len(name) * _LEGEND_LETTER
        if left + width > _WIDTH and left > _LEFT:
            left, top = float(_LEFT), top + 17
        parts += [
            f'<rect x="{left:.1f}" y="{top - 5}" width="12" height="4" fill="{_color(place)}"/>',
            f'<text x="{left + 17:.1f}" y="{top + 1}">{escape(name)}</text>',
        ]
        left += width
    return parts


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to the first one that is not below the highest, four to six of them."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _shown(value: float, unit: str, top: float) -> str:
    match unit:
        case "percentunit":
            return f"{value * 100:g} %"
        case "s" if top < 1:
            return f"{value * 1000:g} ms"
        case "s":
            return f"{value:g} s"
        case "ops":
            return f"{value:g} /s"
        case "Bps":
            return f"{value / 1000:g} kB/s"
        case "bytes":
            return f"{value / 1e6:g} MB"
        case _:
            return f"{value:g}"
