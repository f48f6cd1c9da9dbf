"""Charts of an evaluation as inline SVG: fidelity against alignment, figures by training steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dreamfleet.evaluation.curves import number, ticks

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 26, 14, 44
MARGIN = 0.08  # of the range, around the points
SERIES_COLOURS = 6  # classes s0 … s5 of the style sheet


@dataclass(frozen=True)
class Point:
    """One dot: x is alignment, y is fidelity."""

    label: str
    x: float
    y: float
    series: int = 0
    faint: bool = False  # a single subject behind its arm's mean


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Dots with labels at those that are not faint; empty where there is nothing to draw."""
    drawn = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not drawn:
        return ""
    frame = _Frame([p.x for p in drawn], [p.y for p in drawn], x_title, y_title)
    parts = [frame.axes()]
    for point in sorted(drawn, key=lambda p: not p.faint):
        x, y = frame.x(point.x), frame.y(point.y)
        kind = f"dot s{point.series % SERIES_COLOURS}" + (" faint" if point.faint else "")
        radius = 3.2 if point.faint else 6
        tip = escape(f"{point.label}: {x_title} {number(point.x)}, {y_title} {number(point.y)}")
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{tip}</title></circle>"
        )
    parts += _labels([p for p in drawn if not p.faint], frame)
    return _svg(parts, f"{y_title} against {x_title}")


def by_steps(series: Mapping[str, Mapping[int, float]], title: str) -> str:
    """A line per host over training steps; empty with fewer than two steps."""
    known = {
        name: {step: value for step, value in points.items() if math.isfinite(value)}
        for name, points in series.items()
    }
    steps = sorted({step for points in known.values() for step in points})
    values = [value for points in known.values() for value in points.values()]
    if len(steps) < 2 or not values:
        return ""
    frame = _Frame([float(step) for step in steps], values, "training steps", "")
    parts = [frame.axes(whole_x=True)]
    for index, points in enumerate(known.values()):
        path = [(frame.x(step), frame.y(value)) for step, value in sorted(points.items())]
        colour = f"s{index % SERIES_COLOURS}"
        line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in path)
        parts.append(f'<path class="line {colour}" d="{line}"/>')
        parts += [f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                  for x, y in path]  # fmt: skip
    return _svg(parts, title)


class _Frame:
    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], x_title: str, y_title: str
    ) -> None:
        self._x, self._y = _padded(xs), _padded(ys)
        self._x_title, self._y_title = x_title, y_title

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, whole_x: bool = False) -> str:
        parts = []
        for tick in ticks(*self._y, 5):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 7, y + 4, number(tick), "end"))
        for tick in ticks(*self._x, 5):
            x = self.x(tick)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            text = str(int(tick)) if whole_x else number(tick)
            parts.append(_text(x, HEIGHT - BOTTOM + 17, text, "middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(_text(middle, HEIGHT - 8, self._x_title, "middle", "axis"))
        height = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(
            f'<text class="axis" text-anchor="middle" transform="translate(14 {height:.0f}) '
            f'rotate(-90)">{escape(self._y_title)}</text>'
        )
        return "".join(parts)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    span = (high - low) or max(0.1, abs(high) * 0.1)
    return low - MARGIN * span, high + MARGIN * span


def _labels(points: Sequence[Point], frame: _Frame) -> list[str]:
    """Beside their dots, moved down where two would lie upon each other."""
    placed: list[tuple[float, float]] = []
    parts = []
    for point in sorted(points, key=lambda p: -p.y):
        right = frame.x(point.x) < WIDTH * 0.62
        x = frame.x(point.x) + (10 if right else -10)
        y = frame.y(point.y) + 4
        while any(abs(y - other) < 13 and abs(x - beside) < 150 for beside, other in placed):
            y += 13
        placed.append((x, y))
        parts.append(_text(x, min(y, HEIGHT - BOTTOM), point.label, "start" if right else "end",
                           "name"))  # fmt: skip
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<div class="narrow"><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg></div>'
    )
