"""Charts as SVG: a line for each system over steps of equal width, or bars where the steps are no sizes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bench.results import Chart

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 64, 64
# Those that stand in several charts have the same colour in all of them.
_COLOURS = {"famulus": "#0b6e99", "bare": "#8a8f98", "LiteLLM": "#c8553d", "direct": "#5b8c3a"}
_FURTHER = ("#0b6e99", "#c8553d", "#5b8c3a", "#8a8f98")
_TEXT = "#333333"
# Where lines are further apart than this, those at the bottom would lie on the axis.
_LOGARITHMIC_FROM = 12.0
_TICKS = 5


def draw(chart: Chart) -> str:
    """The file's text."""
    values = [value for line in chart.lines.values() for value in line if value is not None and value > 0]
    scale = _Scale(values or [1.0])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="13" fill="{_TEXT}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_WIDTH / 2, 22, chart.title, size=15),
        _text(_WIDTH / 2, _HEIGHT - 14, chart.x),
        f'<text transform="translate(18 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(chart.y)}</text>',
        *_grid(scale),
        *_steps(chart.steps),
        *(_bars(chart, scale) if chart.bars else _lines(chart, scale)),
        *_legend(_coloured(chart)),
        "</svg>\n",
    ]
    return "\n".join(parts)


class _Scale:
    """Where a value is, from the bottom up; logarithmic where the values are far apart."""

    def __init__(self, values: Sequence[float]) -> None:
        self.logarithmic = max(values) / min(values) > _LOGARITHMIC_FROM
        if self.logarithmic:
            low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
            self.ticks = [10.0**power for power in range(low, high + 1)]
        else:
            step = _round_up(max(values) / _TICKS)
            self.ticks = [step * number for number in range(math.ceil(max(values) / step) + 1)]

    def y(self, value: float) -> float:
        """Pixels from the top."""
        bottom, top = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            bottom, top, value = math.log10(bottom), math.log10(top), math.log10(max(value, bottom))
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)


def _coloured(chart: Chart) -> dict[str, str]:
    """The colour of each line."""
    further = iter(_FURTHER)
    return {name: _COLOURS.get(name) or next(further) for name in chart.lines}


def _round_up(step: float) -> float:
    """The next 1, 2 or 5 of its power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(number * power for number in (1, 2, 5, 10) if number * power >= step)


def _x(number: int, steps: int) -> float:
    """The middle of a step."""
    return _LEFT + (number + 0.5) * (_WIDTH - _LEFT - _RIGHT) / steps


def _grid(scale: _Scale) -> Iterator[str]:
    for tick in scale.ticks:
        y = scale.y(tick)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>'
        yield _text(_LEFT - 8, y + 4, f"{tick:,g}", anchor="end")


def _steps(steps: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(steps):
        yield _text(_x(number, len(steps)), _HEIGHT - _BOTTOM + 20, name)


def _lines(chart: Chart, scale: _Scale) -> Iterator[str]:
    for colour, line in zip(_coloured(chart).values(), chart.lines.values(), strict=True):
        points = [(_x(number, len(line)), scale.y(value)) for number, value in enumerate(line) if value is not None]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)


def _bars(chart: Chart, scale: _Scale) -> Iterator[str]:
    width = (_WIDTH - _LEFT - _RIGHT) / len(chart.steps) * 0.7 / len(chart.lines)
    for row, (colour, line) in enumerate(zip(_coloured(chart).values(), chart.lines.values(), strict=True)):
        for number, value in enumerate(line):
            if value is None:
                continue
            x, y = _x(number, len(line)) + (row - len(chart.lines) / 2) * width, scale.y(value)
            height = _HEIGHT - _BOTTOM - y
            yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.92:.1f}" height="{height:.1f}" fill="{colour}"/>'
            yield _text(x + width * 0.46, y - 5, f"{value:.2f}")


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = float(_LEFT)
    for name, colour in colours.items():
        yield f'<rect x="{x:.1f}" y="36" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, 46, name, anchor="start")
        x += 18 + 8.5 * len(name) + 24


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
