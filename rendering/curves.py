"""Curves over the steps of a training, as SVG in the colours of the page it stands in."""

import html
import math

import numpy as np

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 28, 38
NUM_TICKS = 4
COLORS = ("#0072b2", "#d55e00", "#009e73")
"""Blue, vermilion and green, which the colour-blind tell apart."""

DOTTED = 30
"""Curves of at most so many points show each of them."""


def ticks(low, high, count=NUM_TICKS):
    """Round values that divide a range into about `count` parts, ascending `list[float]`, all of them within it.

    Args:
        low, high (`float`): ends of the range; `high` lies above `low`.
        count (`int`): parts wanted.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def curves_svg(title, steps, curves, value_range=None):
    """Draw curves over the same steps.

    Args:
        title (`str`): what is drawn; as all text here it is no HTML.
        steps (`list[float]`): ascending, (n,), not empty.
        curves (`dict[str, list[float]]`): name to values, (n,) each, finite; at most as many as `COLORS`. A single
            one's name is not written.
        value_range (`tuple[float, float]`, *optional*): ends of the vertical axis; what lies beyond is drawn at an end.
            By default it holds all values.

    Returns:
        `str`: an SVG element as wide as its place.
    """
    x, values = np.asarray(steps, float), {name: np.asarray(each, float) for name, each in curves.items()}
    low, high = value_range or _range_of(np.concatenate(list(values.values())))
    first, last = (x[0], x[-1]) if x[-1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    across = LEFT + (x - first) / (last - first) * (right - LEFT)

    def height_of(value):
        return floor - (np.clip(value, low, high) - low) / (high - low) * (floor - TOP)

    parts = [f'<text x="{LEFT}" y="14" font-weight="600">{html.escape(title)}</text>']
    for value in ticks(low, high):
        y = height_of(value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(first, last):
        if value == round(value):
            place = LEFT + (value - first) / (last - first) * (right - LEFT)
            parts.append(f'<text x="{place:.1f}" y="{floor + 16}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<line x1="{LEFT}" y1="{floor}" x2="{right}" y2="{floor}" stroke="currentColor"/>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    for place, ((name, each), color) in enumerate(zip(values.items(), COLORS, strict=False)):
        points = [f"{a:.1f},{b:.1f}" for a, b in zip(across, height_of(each), strict=True)]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(points) <= DOTTED:
            centres = (point.split(",") for point in points)
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{color}"/>' for a, b in centres]
        if len(values) > 1:
            y = floor - 8 - 16 * (len(values) - 1 - place)
            parts.append(f'<text x="{right}" y="{y}" text-anchor="end" fill="{color}">{html.escape(name)}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}" font-size="12" '
        f'fill="currentColor" style="width: 100%; height: auto">{"".join(parts)}</svg>'
    )


def _range_of(values):
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin
