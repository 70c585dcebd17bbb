"""Fit what images of the trained kind look like as a whole, and the limit beyond which one is of another kind."""

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from pipelines.feature_familiarity import FeatureFamiliarity, image_statistics, spread_of
from training.runtime.collectives import gather_rows, is_main_process, own_share

RIDGE = 0.1
"""Added to every variance, as a share of their mean: few images say little of directions in which they hardly differ.
"""

NUM_AXES = 64
"""Principal axes of the statistics that are kept at most."""

MIN_VARIANCE = 1e-8

FAMILIAR_RATE = 0.01
"""Of good parts, at most this share may be called unfamiliar."""

SYNTHETIC_SHARE = 0.95
"""So many of the images with a synthetic defect lie within the limit before `MARGIN` is added."""

MARGIN = 2
"""Real defects are larger than synthetic ones, and other parts much farther: on six categories, 97 % of the defective
test images lie within 1.8 times what the limit is computed from, and every image of another category beyond 3.2."""

MIN_LIMIT = 1e-3


def fit_familiarity(statistics):
    """A `FeatureFamiliarity` of the statistics of the training images.

    Args:
        statistics (`torch.Tensor`): of `image_statistics`, (images, 2 C).
    """
    statistics = statistics.double()
    mean = statistics.mean(dim=0)
    _, lengths, axes = torch.linalg.svd(statistics - mean, full_matrices=False)
    variances = lengths.square() / len(statistics)
    count = min(NUM_AXES, len(statistics) - 1, len(axes))
    ridge = (RIDGE * variances.sum() / statistics.shape[1]).clamp(min=MIN_VARIANCE)
    familiarity = FeatureFamiliarity(statistics.shape[1] // 2, count)
    familiarity.mean.copy_(mean)
    familiarity.axes.copy_(axes[:count])
    familiarity.axis_variances.copy_(variances[:count] + ridge)
    familiarity.ridge.fill_(ridge)
    familiarity.flattest.fill_(spread_of(statistics).min())
    return familiarity


@torch.no_grad()
def measure_familiarity(extractor, images, batch_size=8):
    """A `FeatureFamiliarity` of images alone, for a checkpoint that has none; every process has to call this.

    Args:
        extractor (`TimmFeatureExtractor`): the checkpoint's.
        images (`GoodImages`): what it was trained on.
        batch_size (`int`): images per forward pass.
    """
    own = own_share(len(images), batch_size)
    statistics = [torch.zeros(0, 2 * extractor.num_features)]
    with tqdm(total=len(own), desc="what images look like", unit="image", disable=not is_main_process()) as progress:
        for sample in DataLoader(Subset(images, own), batch_size=batch_size):
            statistics.append(image_statistics(extractor(sample.to(extractor.device))).cpu())
            progress.update(len(sample))
    return fit_familiarity(gather_rows(torch.cat(statistics), len(images), batch_size))


def familiarity_limit(calibration, good, synthetic, first_limit=None):
    """The distance beyond which an image is called unfamiliar.

    Of new good parts at most 1 % lie beyond the conformal quantile, or as many as the smallest rate that the
    calibration can promise; images with a defect reach further. So the limit lies `MARGIN` times beyond both.

    Args:
        calibration (`ScoreCalibration`): that ranks the good images.
        good, synthetic (`torch.Tensor`): distances of ranked images and of those with a synthetic defect, (images,).
        first_limit (`float`, *optional*): of the calibration that the model was trained with. It stays, unless new good
            images need more: each recalibration could move it on to another part otherwise.

    Returns:
        `float` or None: None where distances are not known.
    """
    if good.isnan().any():
        return None
    reached = calibration.quantile_of_good(good, FAMILIAR_RATE)
    if first_limit is not None:
        return max(first_limit, reached)
    return MARGIN * max(reached, synthetic.double().quantile(SYNTHETIC_SHARE).item(), MIN_LIMIT)
