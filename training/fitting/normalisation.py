"""What good images measure on average and how far they vary: what is divided out before Eq. 11."""

import torch

from pipelines.anomaly_maps import smooth, worst_mean
from pipelines.score_calibration import timestep_subsets

PRIOR_IMAGES = 100
"""Mean and standard deviation at a position are shrunk to those of all, as if this many images had shown them."""

POSITION_SIGMA = 1.0
"""Mean and standard deviation per position are smoothed by a Gaussian of this many cells, for neighbours are alike."""


def fit_normalisation(calibration, measured):
    """Set mean and standard deviation of each component's maps, then of its worst places, from good images."""
    for name in ("kl", "feature_error"):
        mean, std = _shrunk_statistics(getattr(measured, name))
        getattr(calibration, f"{name}_mean").copy_(mean)
        getattr(calibration, f"{name}_std").copy_(std)
    if calibration.reference_mean.numel():
        std, mean = torch.std_mean(measured.reference, dim=(0, 2, 3))
        calibration.reference_mean.copy_(mean)
        calibration.reference_std.copy_(std.clamp(min=1e-6))
    std, mean = torch.std_mean(component_scores_of(calibration, measured), dim=1)
    calibration.part_score_mean.copy_(mean)
    calibration.part_score_std.copy_(std.clamp(min=1e-6))


def _shrunk_statistics(maps):
    """Mean and standard deviation per timestep and place, (timesteps, grid, grid), of maps, (images, timesteps, …).

    They are smoothed over places and shrunk towards those of all places.
    """
    maps = maps.double()
    mean = smooth(maps.mean(dim=0)[None], POSITION_SIGMA)[0]
    variance = smooth(maps.square().mean(dim=0)[None], POSITION_SIGMA)[0] - mean.square()
    weight = len(maps) / (len(maps) + PRIOR_IMAGES)
    common_mean = mean.mean(dim=(1, 2), keepdim=True)
    common_variance = (maps - common_mean).square().mean(dim=(0, 2, 3)).view(-1, 1, 1)
    mean = weight * mean + (1 - weight) * common_mean
    variance = weight * variance + (1 - weight) * common_variance
    return mean.float(), variance.clamp(min=1e-6 * common_variance).sqrt().float()


def component_scores_of(calibration, measured):
    """The worst places of each component for every subset of timesteps, (subsets, images, components)."""
    return torch.stack([worst_mean(components) for components in standardized_subsets(calibration, measured)])


def standardized_subsets(calibration, measured):
    """Yield the standardised components, (images, components, grid, grid), for every subset of the timesteps."""
    timesteps = list(calibration.config.timesteps)
    for subset in timestep_subsets(timesteps):
        chosen = [timesteps.index(timestep) for timestep in subset]
        subset_measured = measured._replace(kl=measured.kl[:, chosen], feature_error=measured.feature_error[:, chosen])
        yield calibration.standardize(subset_measured, list(subset))
