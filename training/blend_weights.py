"""Choose the weights of Eq. 11 without a real defect: on defects planted into held-out good pictures.

The map's weights are those with the largest PRO on the planted defects, the image score's those with the largest image
AUROC of pictures with a planted defect against good ones.
"""

from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score

from pipelines.anomaly_maps import blend, render, worst_mean
from training.metrics import per_region_overlap

ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Candidates for the weight of the pixel part. The paper uses 0.5 or less throughout."""

WEIGHT_STEPS = 4
"""The feature part is shared out in quarters."""

REDUCTION = 2
"""PRO of the candidates is measured on maps this many times smaller than the model's square."""


@dataclass
class BlendWeights:
    """Weights as in `ScoreCalibration`, with what the planted defects said of them: PRO and image AUROC."""

    alpha: float
    map_weights: list
    image_weights: list
    planted_pro: float
    planted_image_auroc: float


def choose_weights(good, planted, masks, resolution, sigma, alpha=None):
    """Weights that separate planted defects best.

    First the feature part is shared out among feature error and references, then alpha is chosen; with the map's alpha
    the image score's shares are chosen.

    Args:
        good (`torch.Tensor`): standardised parts of good pictures, (pictures, parts, grid, grid).
        planted (`torch.Tensor`): those of pictures with planted defects, (pictures, parts, grid, grid).
        masks (`torch.Tensor`): the planted defects' pixels, bool, (pictures, resolution, resolution).
        resolution (`int`): height and width of the model's square.
        sigma (`float`): smoothing of the maps in its pixels.
        alpha (`float`, *optional*): kept if given.

    Returns:
        `BlendWeights`.
    """
    shares = _shares(good.shape[1] - 1)
    small_masks = list(masks[:, ::REDUCTION, ::REDUCTION].numpy())
    maps = render(planted, resolution // REDUCTION, sigma / REDUCTION)

    def pro(share, weight):
        feature_map = torch.einsum("npyx,p->nyx", maps[:, 1:], torch.tensor(share))
        return per_region_overlap(small_masks, list(blend(maps[:, 0], feature_map, weight).numpy()))

    map_share = max(shares, key=lambda share: pro(share, alpha or 0.0))
    by_alpha = {weight: pro(map_share, weight) for weight in (ALPHAS if alpha is None else [alpha])}
    alpha = max(by_alpha, key=by_alpha.get)

    good_scores, planted_scores = worst_mean(good), worst_mean(planted)
    std, mean = torch.std_mean(good_scores, dim=0)
    scores = (torch.cat([good_scores, planted_scores]) - mean) / std.clamp(min=1e-6)
    is_planted = torch.arange(len(scores)) >= len(good)

    def auroc(share):
        weights = torch.tensor([alpha] + [(1 - alpha) * part for part in share])
        return float(roc_auc_score(is_planted, scores @ weights))

    image_share = max(shares, key=auroc)
    return BlendWeights(alpha, list(map_share), list(image_share), by_alpha[alpha], auroc(image_share))


def _shares(count):
    """Every way to share 1 out among `count` parts in steps of 1 / WEIGHT_STEPS, the most even first."""

    def ways(parts, left):
        if parts == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in ways(parts - 1, left - first)]

    found = sorted(ways(count, WEIGHT_STEPS), key=lambda way: sum(part**2 for part in way))
    return [tuple(part / WEIGHT_STEPS for part in way) for way in found]
