"""Choose the weights of Eq. 11 and what decides a score without a real defect: on synthetic ones in good images.

The map's weights are those with the largest PRO on the synthetic defects; the components that may decide an image's
score are those with the largest image AUROC of images with a synthetic defect against good ones, either the one that
finds an image worst or their mean. A synthetic defect is no real one, so a difference must be clear before it counts:
of all choices that are not clearly worse, the map takes the one nearest to even shares, and as many components as can
be may decide. Even is half to the network's feature error and half to the references, for these look at the same
features.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.ndimage import label

from pipelines.anomaly_maps import blend, render, worst_mean
from pipelines.calibration_checks import IMAGE_RULES
from pipelines.score_calibration import combine
from training.evaluation.metrics import EIGHT_CONNECTED, MAX_FALSE_POSITIVE_RATE

ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Candidates for the weight of the pixel component. The paper uses 0.5 or less throughout."""

WEIGHT_STEPS = 6
"""The feature component is shared out in sixths: half to the network and a third of the other half to each of three."""

CLEAR_OVERLAP = 2
"""A difference of PRO is clear beyond so many standard errors. Regions share images, which these do not know of."""

CLEAR_PLACEMENT = 1
"""A difference of image AUROC is clear beyond so many standard errors."""

REDUCTION = 2
"""PRO of the candidates is measured on maps this many times smaller than the model's square."""


@dataclass
class BlendWeights:
    """Choices as in `ScoreCalibration`, with what the synthetic defects said of them: PRO and image AUROC."""

    alpha: float
    map_weights: list
    image_parts: list
    image_rule: str
    planted_pro: float
    planted_image_auroc: float


def choose_weights(good, synthetic, masks, resolution, sigma, alpha=None):
    """Weights of the map, and components of the image's score, that separate synthetic defects best.

    Args:
        good (`torch.Tensor`): standardised components of good images, (images, components, grid, grid).
        synthetic (`torch.Tensor`): those of images with synthetic defects, (images, components, grid, grid).
        masks (`torch.Tensor`): the synthetic defects' pixels, bool, (images, resolution, resolution).
        resolution (`int`): height and width of the model's square.
        sigma (`float`): smoothing of the maps in its pixels.
        alpha (`float`, *optional*): kept if given.

    Returns:
        `BlendWeights`.
    """
    alpha, map_weights, planted_pro = choose_map_weights(synthetic, masks, resolution, sigma, alpha)
    image_parts, image_rule, planted_image_auroc = choose_image_components(good, synthetic)
    return BlendWeights(alpha, map_weights, image_parts, image_rule, planted_pro, planted_image_auroc)


def choose_map_weights(synthetic, masks, resolution, sigma, alpha=None, even=None):
    """First the feature component is shared out among feature error and references, then alpha is chosen.

    Arguments are those of `choose_weights`, and `even` (`list[float]`, *optional*): the shares to keep near to.

    Returns:
        `tuple[float, list[float], float]`: alpha, the shares, and their PRO on the synthetic defects.
    """
    shares = _shares(synthetic.shape[1] - 1)
    even = even_shares(synthetic.shape[1] - 2) if even is None else even
    regions = [label(mask, structure=EIGHT_CONNECTED)[0] for mask in masks[:, ::REDUCTION, ::REDUCTION].numpy()]
    maps = render(synthetic, resolution // REDUCTION, sigma / REDUCTION)

    def overlaps(share, weight):
        feature_map = torch.einsum("npyx,p->nyx", maps[:, 1:], torch.tensor(share))
        return _region_overlaps(np.stack(regions), blend(maps[:, 0], feature_map, weight).numpy())

    by_share = {share: overlaps(share, alpha or 0.0) for share in shares}
    best = max(by_share.values(), key=np.mean)
    as_good = [share for share, each in by_share.items() if _is_as_good(CLEAR_OVERLAP, best - each)]
    map_share = min(as_good, key=lambda share: (round(_distance(share, even), 9), -by_share[share].mean()))
    by_alpha = {weight: overlaps(map_share, weight).mean() for weight in (ALPHAS if alpha is None else [alpha])}
    alpha = max(by_alpha, key=by_alpha.get)
    return alpha, list(map_share), float(by_alpha[alpha])


def even_shares(num_references):
    """Half of the feature component to the feature error, half to the references evenly; without any, all to it."""
    return [0.5, *[0.5 / num_references] * num_references] if num_references else [1.0]


def choose_image_components(good, synthetic):
    """Which components may decide an image's score, and by which rule.

    Returns:
        `tuple[list[bool], str, float]`: for each component; one of `IMAGE_RULES`; image AUROC of the synthetic defects.
    """
    std, mean = torch.std_mean(worst_mean(good), dim=0)
    good, synthetic = ((worst_mean(each) - mean) / std.clamp(min=1e-6) for each in (good, synthetic))
    choices = [each for each in product(product((False, True), repeat=good.shape[1]), IMAGE_RULES) if any(each[0])]
    placements = {
        (components, rule): _placements(*(combine(each[:, components], rule).numpy() for each in (good, synthetic)))
        for components, rule in choices
    }
    best = max(placements.values(), key=lambda each: each[0].mean())
    as_good = [
        choice
        for choice, each in placements.items()
        if _is_as_good(CLEAR_PLACEMENT, best[0] - each[0], best[1] - each[1])
    ]
    components, rule = max(as_good, key=lambda choice: (sum(choice[0]), placements[choice][0].mean()))
    return list(components), rule, float(placements[components, rule][0].mean())


def _is_as_good(clear, *differences):
    """Whether the best is ahead, by the mean of the first differences, by no more than `clear` standard errors."""
    variance = sum(each.var(ddof=1) / len(each) for each in differences)
    return differences[0].mean() <= clear * np.sqrt(variance)


def _region_overlaps(regions, maps):
    """Each synthetic region's own PRO, (regions,): its overlap, averaged over false positive rates up to the limit."""
    good = np.sort(maps[regions == 0])
    found = []
    for labels, anomaly_map in zip(regions, maps, strict=True):
        inside = labels > 0
        rate = 1 - np.searchsorted(good, anomaly_map[inside]) / len(good)
        share = np.clip(1 - rate / MAX_FALSE_POSITIVE_RATE, 0, None)
        areas = np.bincount(labels[inside])[1:]
        found.append(np.bincount(labels[inside], share)[1:] / areas)
    return np.concatenate(found)


def _placements(good, synthetic):
    """Share of good scores below each synthetic one, and of synthetic ones above each good one; means are the AUROC."""
    below = (good[None] < synthetic[:, None]) + 0.5 * (good[None] == synthetic[:, None])
    return below.mean(axis=1), below.mean(axis=0)


def _shares(count):
    """Every way to share 1 out among `count` components in steps of 1 / WEIGHT_STEPS."""

    def ways(count, left):
        if count == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in ways(count - 1, left - first)]

    return [tuple(share / WEIGHT_STEPS for share in way) for way in ways(count, WEIGHT_STEPS)]


def _distance(share, even):
    return sum((given - target) ** 2 for given, target in zip(share, even, strict=True))
