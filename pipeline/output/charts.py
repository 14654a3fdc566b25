"""Numbers to small SVG drawings for the HTML page: crisp at any size, in the colours of the page, dark or light.

Colours come from the page's style sheet by class; series differ in dashes and marks, too, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 284  # units of the drawing's own coordinates; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 28, 46  # the legend is above the frame


@dataclass(frozen=True)
class Series:
    """A line: its name, values along both axes, and the number of its style (``s0``, ``s1``, … in the style sheet)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int


@dataclass(frozen=True)
class Point:
    """A mark that leads somewhere: where it stands, its style, what it says, and the fragment it links to."""

    x: float
    y: float
    style: int
    title: str
    target: str


def percent(value: float) -> str:
    """A share as text: ``85 %``."""
    return f"{100 * value:g} %"


def plain(value: float) -> str:
    """A number as text, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that span ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= count), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: powers of ten, with 2 and 5 between when there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p * (1 + 1e-9) <= high * (1 + 1e-6)]
        if len(ticks) >= 3:
            return ticks
    return ticks or [low, high]


class _Plot:
    """Axes to be drawn on."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log_x: bool) -> None:
        self._log = log_x and min(xs) > 0
        self._whole = all(float(x).is_integer() for x in xs) and max(xs) - min(xs) > 1  # there is no half iteration
        self._x_low, self._x_high = min(xs), max(xs)
        if self._x_low == self._x_high:
            factor = 1.5 if self._log else 1.0
            self._x_low, self._x_high = (
                (self._x_low / factor, self._x_high * factor) if self._log else (self._x_low - 1, self._x_high + 1)
            )
        low, high = min(ys), max(ys)
        margin = 0.06 * (high - low) or 0.05
        self._y_low, self._y_high = low - margin, high + margin
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self._x_low, self._x_high
        if self._log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self._y_low) / (self._y_high - self._y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(
        self, x_label: str, y_label: str, say_y: Callable[[float], str], say_x: Callable[[float], str] = plain
    ) -> None:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for tick in nice_ticks(self._y_low, self._y_high):
            at = self.y(tick)
            self.parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
            self.parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(say_y(tick))}</text>')
        ticks = (log_ticks if self._log else nice_ticks)(self._x_low, self._x_high)
        for tick in (tick for tick in ticks if not self._whole or tick == round(tick)):
            at = self.x(tick)
            self.parts.append(f'<path class="tick" d="M{at:.1f} {bottom}v4"/>')
            self.parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(say_x(tick))}</text>')
        self.parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        middle = (LEFT + right) / 2
        self.parts.append(
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" class="label">{escape(x_label)}</text>'
        )
        along = (TOP + bottom) / 2
        self.parts.append(
            f'<text transform="translate(13 {along}) rotate(-90)" text-anchor="middle" class="label">'
            f"{escape(y_label)}</text>"
        )

    def svg(self, title: str, role: str = "img") -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="{role}" aria-label="{escape(title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    say_x: Callable[[float], str] = plain,
    say_y: Callable[[float], str] = plain,
    log_x: bool = False,
    kept: float | None = None,
    diagonal: bool = False,
) -> str:
    """Draw lines with a legend; return SVG.

    Parameters
    ----------
    title : str
        What a screen reader says.
    series : sequence of Series
        At least one value each.
    x_label, y_label : str
    say_x, say_y : callable
        From a value of an axis to its text.
    log_x : bool
    kept : float, optional
        Where to mark the step whose model was kept.
    diagonal : bool
        Whether to draw where both axes are equal.
    """
    xs = [x for line in series for x in line.xs] + ([0.0, 1.0] if diagonal else [])
    ys = [y for line in series for y in line.ys] + ([0.0, 1.0] if diagonal else [])
    plot = _Plot(xs, ys, log_x)
    plot.frame(x_label, y_label, say_y, say_x)
    if diagonal:
        plot.parts.append(f'<path class="kept" d="M{plot.x(0):.1f} {plot.y(0):.1f}L{plot.x(1):.1f} {plot.y(1):.1f}"/>')
    if kept is not None:
        plot.parts.append(f'<path class="kept" d="M{plot.x(kept):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for line in series:
        points = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        plot.parts.append(f'<polyline class="line s{line.style}" points="{points}"/>')
        if len(line.xs) <= 25:
            plot.parts += [
                f'<circle class="mark s{line.style}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.6"/>'
                for x, y in zip(line.xs, line.ys, strict=True)
            ]
    plot.parts += _legend([(line.name, f'<path class="line s{line.style}" d="M0 0h22"/>') for line in series])
    return plot.svg(title)


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, at = [], LEFT + 8
    for name, mark in entries:
        parts.append(f'<g transform="translate({at} 12)">{mark}<text x="27" y="4">{escape(name)}</text></g>')
        at += 38 + 7 * len(name)
    return parts


MARKS = (
    '<circle r="5"/>',
    '<path d="M-4.6 -4.6h9.2v9.2h-9.2z"/>',
    '<path d="M0 -5.6L5.6 4.4H-5.6Z"/>',
    '<path d="M0 -6L6 0L0 6L-6 0Z"/>',
    '<path d="M-6 -2h4v-4h4v4h4v4h-4v4h-4v-4h-4z"/>',
    '<path d="M0 5.6L5.6 -4.4H-5.6Z"/>',
)


def scatter(
    title: str, points: Sequence[Point], names: Sequence[str], *, x_label: str, y_label: str, log_x: bool = True
) -> str:
    """Draw linked marks, a shape and a style for each name; return SVG."""
    xs = [point.x for point in points]
    # Room on both sides, so that no mark lies on the frame.
    room = (max(xs) / min(xs)) ** 0.05 if log_x else 1.0
    plot = _Plot([min(xs) / room, *xs, max(xs) * room], [point.y for point in points], log_x)
    plot.frame(x_label, y_label, percent)
    for point in points:
        style = point.style % len(MARKS)
        plot.parts.append(
            f'<a href="#{escape(point.target)}" aria-label="{escape(point.title)}">'
            f'<g class="point s{style}" transform="translate({plot.x(point.x):.1f} {plot.y(point.y):.1f})">'
            f"{MARKS[style]}<title>{escape(point.title)}</title></g></a>"
        )
    plot.parts += _legend(
        [
            (
                name,
                f'<g class="point s{index % len(MARKS)}" transform="translate(14 0)">{MARKS[index % len(MARKS)]}</g>',
            )
            for index, name in enumerate(names)
        ]
    )
    return plot.svg(title, role="group")  # an image would hide its links from screen readers
