"""Training curves as inline SVG: no script, no fonts, the page's colours, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Scale = Callable[[float], float]
WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
POINTS = 240  # more would not be seen
SMOOTHING_SHARE = 0.06  # of the run, for the bold line


@dataclass(frozen=True)
class CurveKind:
    """How a figure is shown."""

    key: str
    title: str
    explanation: str
    reference: float | None = None  # a level worth a line
    log: bool = False
    raw: bool = True  # thin line of single steps; not for what is only ever 0 or 1


KINDS = (
    CurveKind("loss", "Loss", "the weighted sum that is minimised"),
    CurveKind("loss_subject", "Subject loss", "how far predictions on the photos are off"),
    CurveKind("loss_prior", "Prior loss", "the same on class images: it keeps the class as it was"),
    CurveKind("loss_sude", "SuDe loss", "how much of the class the subject still lacks"),
    CurveKind(
        "rho",
        "ρ",
        "how much of the class the subject's prediction carries; SuDe rests from 1 up",
        1.0,
    ),
    CurveKind("hinge_share", "SuDe on", "share of samples on which SuDe acts", raw=False),
    CurveKind("grad_norm", "Gradient norm", "before clipping", log=True),
    CurveKind("lr", "Learning rate", "of each step"),
)


@dataclass(frozen=True)
class Curve:
    """One panel: title, explanation, the drawing, and the figure it ends with."""

    title: str
    explanation: str
    svg: str
    last: str


def curves(history: Sequence[Mapping[str, float]]) -> list[Curve]:
    """A panel for each figure that the history holds.

    Args:
        history: one mapping per step, in any order, with "step" and the figures of that step.
    """
    rows = sorted(history, key=lambda row: row.get("step", 0.0))
    panels = []
    for kind in KINDS:
        points = [
            (float(row.get("step", index)), float(row[kind.key]))
            for index, row in enumerate(rows)
            if row.get(kind.key) is not None and math.isfinite(float(row[kind.key]))
        ]
        if len(points) > 1:
            smooth = smoothed([y for _, y in points])
            panels.append(
                Curve(
                    kind.title, kind.explanation, _panel(kind, points, smooth), number(smooth[-1])
                )
            )
    return panels


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start, over about `SMOOTHING_SHARE` of the values."""
    window = max(1.0, SMOOTHING_SHARE * len(values))
    keep = 1 - 1 / window
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def number(value: float) -> str:
    """Three significant digits, short."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}"


def _panel(kind: CurveKind, points: list[tuple[float, float]], smooth: list[float]) -> str:
    xs = [x for x, _ in points]
    values = [y for _, y in points]
    low, high = _limits(kind, values, smooth)
    log = kind.log and low > 0
    to_x = _scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    level: Scale = math.log10 if log else float
    to_y = _scale(level(low), level(high), HEIGHT - BOTTOM, TOP)

    def path(series: Sequence[float]) -> str:
        pairs = _thinned([(to_x(x), to_y(level(min(max(y, low), high))))
                          for x, y in zip(xs, series, strict=True)])  # fmt: skip
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pairs)

    parts = [_grid(low, high, level, to_y), _steps(xs, to_x)]
    if kind.reference is not None and low < kind.reference < high:
        y = to_y(level(kind.reference))
        parts.append(f'<path class="ref" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    if kind.raw:
        parts.append(f'<path class="raw" d="{path(values)}"/>')
    parts.append(f'<path class="mean" d="{path(smooth)}"/>')
    label = escape(
        f"{kind.title} over {int(xs[-1])} steps, {number(smooth[-1])} at the end", quote=True
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _limits(kind: CurveKind, values: list[float], smooth: list[float]) -> tuple[float, float]:
    """Most of the raw values, all of the bold line: a single outlier must not flatten the rest."""
    ordered = sorted(values)
    at = [ordered[round(share * (len(ordered) - 1))] for share in (0.02, 0.98)]
    low, high = min(at[0], *smooth), max(at[1], *smooth)
    if kind.key in ("loss", "loss_subject", "loss_prior", "loss_sude", "hinge_share", "lr"):
        low = min(low, 0.0)
    if kind.key == "hinge_share":
        high = max(high, 1.0)
    if kind.reference is not None:
        low, high = min(low, kind.reference - 0.1), max(high, kind.reference + 0.1)
    if high - low < 1e-12 * max(1.0, abs(high)):
        gap = abs(high) or 1.0
        low, high = (low, high + 0.25 * gap) if low <= 0 else (low - 0.25 * gap, high + 0.25 * gap)
    if kind.log and low > 0:
        return low / 1.1, high * 1.1
    margin = 0.06 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `POINTS` points: of each stretch its lowest and its highest, so that spikes
    stay.
    """
    if len(pairs) <= POINTS:
        return pairs
    size = math.ceil(2 * len(pairs) / POINTS)
    out = []
    for start in range(0, len(pairs), size):
        chunk = pairs[start : start + size]
        out += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
    return out


def _grid(low: float, high: float, level: Scale, to_y: Scale) -> str:
    log = level is not float
    parts = []
    for tick in _log_ticks(low, high) if log else ticks(low, high):
        y = to_y(level(tick))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_label(LEFT - 6, y + 3.5, number(tick), "end"))
    return "".join(parts)


def _steps(xs: list[float], to_x: Scale) -> str:
    found = [tick for tick in ticks(xs[0], xs[-1], 4) if tick == int(tick)]
    return "".join(
        _label(to_x(tick), HEIGHT - 7, str(int(tick)), "middle")
        for tick in found
        if to_x(tick) < WIDTH - RIGHT - 8 or tick == xs[-1]
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values inside [low, high], about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low) > 1.2
    found = [10.0**d * m for d in decades for m in ((1,) if wide else (1, 2, 5))]
    return [tick for tick in found if low <= tick <= high]
