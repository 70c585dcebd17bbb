"""Two histograms over the same bins, as SVG in the colours of the page it stands in: a batch over good images."""

import html

import numpy as np

BINS = 24
WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 22, 46
ACCEPTED_COLOR, REJECTED_COLOR = "#3b8ec2", "#d55e00"
"""Blue and vermilion, which the colour-blind tell apart."""

EXPECTED_OPACITY = 0.22


def score_bins(good, batch, threshold):
    """Edges of common bins, (BINS + 1,), and the shares of both samples in them, (BINS,) each.

    The last bin holds all that lies beyond it too, so that one strange image does not squeeze the others; the
    threshold lies on an edge.

    Args:
        good, batch (`np.ndarray`): scores, (n,) and (m,), of which the first is not empty.
        threshold (`float`): images that score above it are rejected.
    """
    good, batch = np.asarray(good, float), np.asarray(batch, float)
    threshold = threshold if np.isfinite(threshold) else good.max()
    low = min(good.min(), batch.min(initial=np.inf), threshold - 1e-6)
    below = round(BINS * 0.6)
    width = (threshold - low) / below
    edges = threshold + width * (np.arange(BINS + 1) - below)
    # A score on the threshold is accepted: bins include their upper edge.
    places = [
        np.clip(np.ceil((values - edges[0]) / width - 1e-9).astype(int) - 1, 0, BINS - 1) for values in (good, batch)
    ]
    shares = [np.bincount(place, minlength=BINS) / max(len(place), 1) for place in places]
    return edges, *shares


def histogram_svg(good, batch, threshold, name="this batch"):
    """Draw both samples: good images as a pale ground, the batch as bars, the threshold as a dashed upright.

    Args:
        good, batch, threshold: as for `score_bins`.
        name (`str`): of the second sample, as who cannot see it is told; no HTML.

    Returns:
        `str`: an SVG element as wide as its place.
    """
    edges, expected, found = score_bins(good, batch, threshold)
    top = max(expected.max(), found.max(), 0.01)
    step = (WIDTH - LEFT - RIGHT) / BINS
    floor = HEIGHT - BOTTOM

    def bars(shares, inset, color):
        for place, share in enumerate(shares):
            height = share / top * (floor - TOP)
            fill = color(edges[place])
            yield (
                f'<rect x="{LEFT + place * step + inset:.1f}" y="{floor - height:.1f}" width="{step - 2 * inset:.1f}" '
                f'height="{height:.1f}" {fill}/>'
            )

    split = round(BINS * 0.6)
    pale = list(bars(expected, 0, lambda _: f'fill="currentColor" fill-opacity="{EXPECTED_OPACITY}"'))
    middle = (edges[split - 1] + edges[split]) / 2
    drawn = list(bars(found, step / 4, lambda x: f'fill="{ACCEPTED_COLOR if x < middle else REJECTED_COLOR}"'))
    mark = LEFT + split * step
    labels = [
        f'<text x="{LEFT + place * step:.1f}" y="{floor + 18}" text-anchor="middle">{edges[place]:.1f}</text>'
        for place in range(0, BINS - 4, 4)
    ]
    labels.append(f'<text x="{WIDTH - RIGHT}" y="{floor + 18}" text-anchor="end">and above</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram of scores: {html.escape(name)} over the '
        'good images of the calibration" font-size="12" fill="currentColor" style="width: 100%; height: auto">'
        f'<text x="{LEFT - 6}" y="{TOP + 4}" text-anchor="end">{top:.0%}</text>'
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">0%</text>'
        f"{''.join(pale)}{''.join(drawn)}"
        f'<line x1="{LEFT}" y1="{floor}" x2="{WIDTH - RIGHT}" y2="{floor}" stroke="currentColor"/>'
        f'<line x1="{mark:.1f}" y1="{TOP - 6}" x2="{mark:.1f}" y2="{floor}" stroke="currentColor" '
        'stroke-dasharray="4 3"/>'
        f'<text x="{mark + 6:.1f}" y="{TOP}">rejected above {edges[split]:.2f}</text>'
        f"{''.join(labels)}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">anomaly score</text></svg>'
    )
