"""What is measured of an image before anything is known of good ones: KL (Eq. 9), feature error (Eq. 10), distances."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .anomaly_maps import resize_map
from .gaussian_diffusion import add_noise, posterior_kl, variational_bound
from .image_preprocessing import contrast_limits, contrast_scale, normalize_contrast


class Measurement(NamedTuple):
    """Maps of a batch before any normalisation, float32, on the score grid.

    kl (nats per channel) and feature_error (mean squared error of standardised features) have the shape
    (batch, timesteps, grid, grid); reference, (batch, references, grid, grid), the distances from good features;
    distance, (batch,), that of the whole image from those of the trained kind, NaN where the checkpoint cannot tell.
    """

    kl: torch.Tensor
    feature_error: torch.Tensor
    reference: torch.Tensor
    distance: torch.Tensor


class ScoredSamples(NamedTuple):
    """Scores of a batch, float32, in standard deviations of good images.

    score, (batch,); components, (batch, 2, grid, grid), pixel and feature component on the score grid; unfamiliarity,
    (batch,), above 1 for an image that is unlike all that the model knows, NaN where it cannot tell.
    """

    score: torch.Tensor
    components: torch.Tensor
    unfamiliarity: torch.Tensor


def measure(pipe, samples, timesteps, noise, mixed_precision=None):
    """Measure samples; arguments and what is returned are those of `TrainedModel.measure`."""
    device, grid = pipe._execution_device, pipe.config.score_grid
    batch, count = samples.shape[0], len(timesteps)
    sample = samples.to(device)
    features = pipe.feature_extractor(sample)
    distances = [resize_map(reference(features), (grid, grid)) for reference in pipe.references]
    of_image = features.new_full((batch,), torch.nan) if pipe.familiarity is None else pipe.familiarity(features)
    sample = normalize_contrast(sample, pipe.config.data_mean, pipe.config.data_std)
    sample = sample.repeat_interleave(count, dim=0)
    t = torch.tensor(timesteps, device=device).repeat(batch)
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(device)
    noisy_sample = add_noise(sample, noise.to(device).repeat(batch, 1, 1, 1), alphas_cumprod, t)
    predicted_noise, predicted_variance, predicted_features = pipe.predict(noisy_sample, t, mixed_precision)
    predicted_features = predicted_features.unflatten(0, (batch, count))
    feature_error = (features[:, None] - predicted_features).square_().mean(dim=2)
    del features, predicted_features  # the largest tensors of the call
    terms = (sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, t)
    if 0 in timesteps:
        statistics = pipe.config.data_mean, pipe.config.data_std
        bin_width = 2 / 255 * contrast_scale(statistics[1])
        kl = variational_bound(*terms, bin_width, limits=contrast_limits(*statistics))
    else:  # the same, without asking the device for the timesteps
        kl = posterior_kl(*terms)
    kl = kl.mean(dim=1)
    return Measurement(
        F.adaptive_avg_pool2d(kl.unflatten(0, (batch, count)), grid),
        F.adaptive_avg_pool2d(feature_error, grid),
        torch.stack(distances, dim=1) if distances else kl.new_zeros(batch, 0, grid, grid),
        of_image,
    )
