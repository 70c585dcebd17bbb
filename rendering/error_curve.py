"""Both errors over the false alarm rate, as SVG in the colours of the page it stands in: what a rate costs."""

import numpy as np

from .curves import ticks
from .histogram import ACCEPTED_COLOR, REJECTED_COLOR
from .words import percent

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 44, 40
NUM_RATES = 400
"""Rates at which the errors are looked up: finer than what can be seen."""

GOOD_REJECTED, DEFECTS_ACCEPTED = "good images rejected", "defective images accepted"
LINES = {DEFECTS_ACCEPTED: (ACCEPTED_COLOR, ""), GOOD_REJECTED: (REJECTED_COLOR, 'stroke-dasharray="6 3"')}
"""Colour and dashes of each error: they can be told apart without colours too."""


def error_curve_svg(errors_at, rate, rate_range):
    """Draw both errors as stairs, which they are, with the chosen rate marked.

    Args:
        errors_at (`Callable[[float], dict[str, float]]`): share of images at a rate, in [0, 1], of `GOOD_REJECTED`,
            `DEFECTS_ACCEPTED` or both; always the same of them.
        rate (`float`): the chosen one, within the range.
        rate_range (`tuple[float, float]`): ends of the horizontal axis, both in [0, 1].

    Returns:
        `str`: an SVG element as wide as its place.
    """
    low, high = rate_range
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(value):
        return LEFT + (value - low) / (high - low) * (right - LEFT)

    def height_of(share):
        return floor - share * (floor - TOP)

    mark = across(rate)
    parts = [
        f'<line x1="{mark:.1f}" y1="{TOP - 4}" x2="{mark:.1f}" y2="{floor}" stroke="currentColor" opacity="0.6"/>',
        f'<line x1="{LEFT}" y1="{floor}" x2="{right}" y2="{floor}" stroke="currentColor"/>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">accepted false alarms, in %</text>',
    ]
    for share in (0, 0.5, 1):
        y = height_of(share)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{percent(share)}</text>')
    for value in ticks(100 * low, 100 * high):
        parts.append(f'<text x="{across(value / 100):.1f}" y="{floor + 15}" text-anchor="middle">{value:g}</text>')
    rates = np.linspace(low, high, NUM_RATES)
    errors, chosen = [errors_at(each) for each in rates], errors_at(rate)
    for place, (name, share) in enumerate(chosen.items()):
        color, dashes = LINES[name]
        stroke = f'fill="none" stroke="{color}" stroke-width="2" {dashes}'
        points = _stairs([across(each) for each in rates], [height_of(each[name]) for each in errors])
        key = 12 + 17 * place
        parts += [
            f'<polyline points="{points}" {stroke}/>',
            f'<circle cx="{mark:.1f}" cy="{height_of(share):.1f}" r="4" fill="{color}"/>',
            f'<line x1="{LEFT}" y1="{key - 4}" x2="{LEFT + 24}" y2="{key - 4}" {stroke}/>',
            f'<text x="{LEFT + 30}" y="{key}">{name}: {percent(share)}</text>',
        ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Both errors over the accepted false alarm rate, '
        f'now {percent(rate)}" font-size="12" fill="currentColor" style="width: 100%; height: auto">'
        f"{''.join(parts)}</svg>"
    )


def _stairs(x, y):
    """Points of a line that is flat until it jumps."""
    points = [(x[0], y[0])]
    for place, height in zip(x[1:], y[1:], strict=True):
        if height != points[-1][1]:
            points += [(place, points[-1][1]), (place, height)]
    points.append((x[-1], y[-1]))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
