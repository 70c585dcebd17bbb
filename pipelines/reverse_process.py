"""The reverse process of the diffusion model within a hole, given what lies around it (paper, Eq. 1 and 3).

All tensors are on the model's square, (batch, 3, height, width), in units in which good images have standard
deviation 0.5 (`normalize_contrast`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from .gaussian_diffusion import add_noise, model_gaussian, noise_from_sample, predict_sample
from .repair_masks import transfer_grain

GRAIN_TIMESTEP, GRAIN_DRAWS = 5, 2
"""Grain is what the network leaves out of the image at this timestep, averaged over so many draws of noise."""


@dataclass
class ReverseProcess:
    """Steps of the diffusion model, either way.

    Args:
        predict (`Callable`): x_t and timesteps to noise, variance and features, as `TrainedModel.predict`.
        alphas_cumprod (`torch.Tensor`): the noise schedule, on the device that computes.
        pixel_range (`list[float]`): the least and the largest value that a pixel can have.
        generator (`torch.Generator`): draws all noise.
    """

    predict: Callable
    alphas_cumprod: torch.Tensor
    pixel_range: list
    generator: torch.Generator

    def randn_like(self, sample):
        """Standard normal noise of a sample's shape."""
        return randn_tensor(sample.shape, generator=self.generator, device=sample.device)

    def add_noise(self, sample, timestep):
        """x_t of x_0 (Eq. 1)."""
        t = torch.full((1,), timestep, device=sample.device)
        return add_noise(sample, self.randn_like(sample), self.alphas_cumprod, t)

    def forward(self, noisy_sample, timestep, step_size):
        """Add the noise between the previous timestep and this one again (Eq. 1)."""
        ratio = self.alphas_cumprod[timestep] / self.alphas_cumprod[timestep - step_size]
        return ratio.sqrt() * noisy_sample + (1 - ratio).sqrt() * self.randn_like(noisy_sample)

    def reverse(self, noisy_sample, timestep, step_size):
        """x_0 as the network sees it, and mean and log variance of p_theta for the previous timestep (Eq. 3).

        A network has never seen what half a repair looks like: its x_0 is clipped to what pixels can be, and its
        variance to the bounds that it interpolates between, lest one bad step be amplified by the next.
        """
        t = torch.full((1,), timestep, device=noisy_sample.device)
        predicted_noise, predicted_variance, _ = self.predict(noisy_sample, t)
        drawn = predict_sample(noisy_sample, predicted_noise, self.alphas_cumprod, t).clamp(*self.pixel_range)
        mean, log_variance = model_gaussian(
            noisy_sample,
            noise_from_sample(noisy_sample, drawn, self.alphas_cumprod, t),
            predicted_variance.clamp(-1, 1),
            self.alphas_cumprod,
            t,
            min(step_size, timestep + 1),
        )
        return drawn, mean, log_variance


def resample(process, known, start, hole, schedule, num_resamples):
    """Draw a hole anew by the reverse process, the noisy image itself outside of it (Lugmayr et al. 2022).

    Args:
        process (`ReverseProcess`): the diffusion model.
        known (`torch.Tensor`): the image, (1, 3, height, width).
        start (`torch.Tensor`): what noise is added to at first, of the same shape.
        hole (`torch.Tensor`): 1 where the image is drawn anew, else 0, float, (1, 1, height, width).
        schedule (`tuple[list[int], int]`): as `reverse_timesteps` returns it.
        num_resamples (`int`): times that every step but the last is done.

    Yields:
        `tuple[int, torch.Tensor]`: after each step the timestep, and x_0 as it is drawn by then.
    """
    timesteps, step_size = schedule
    noisy_sample = process.add_noise(start, timesteps[0])
    for timestep in timesteps:
        is_last = timestep == timesteps[-1]
        for repeat in range(1 if is_last else num_resamples):
            if repeat:
                noisy_sample = process.forward(noisy_sample, timestep, step_size)
            drawn, mean, log_variance = process.reverse(noisy_sample, timestep, step_size)
            yield timestep, drawn
            if not is_last:
                sampled = mean + (0.5 * log_variance).exp() * process.randn_like(mean)
                noisy_sample = hole * sampled + (1 - hole) * process.add_noise(known, timestep - step_size)


def with_grain(process, drawn, known, hole):
    """What was drawn with the grain of its surroundings, and where each pixel's grain is from (`transfer_grain`).

    Both draws of noise are denoised in one call; without surroundings there is no grain to be had.
    """
    repeated = known.expand(GRAIN_DRAWS, -1, -1, -1)
    t = torch.full((GRAIN_DRAWS,), GRAIN_TIMESTEP, device=known.device)
    noisy_sample = add_noise(repeated, process.randn_like(repeated), process.alphas_cumprod, t)
    predicted_noise, _, _ = process.predict(noisy_sample, t)
    denoised = predict_sample(noisy_sample, predicted_noise, process.alphas_cumprod, t).mean(dim=0, keepdim=True)
    return transfer_grain(drawn, known, denoised, hole)


def descend(process, sample, known, hole, gradient_of, settings):
    """Eq. 13 within a hole, and the denoising of Algorithm 1 if it is asked for.

    Args:
        process (`ReverseProcess`): denoises.
        sample, known (`torch.Tensor`): what was drawn so far, and the image itself, (1, 3, height, width).
        hole (`torch.Tensor`): 1 where the sample is moved, else 0, float, (1, 1, height, width).
        gradient_of (`Callable`): a sample to the gradient of Eq. 12 with respect to it.
        settings (`RepairSettings`): steps, their size, and when to denoise.

    Yields:
        `torch.Tensor`: the sample after each iteration.
    """
    factor = None
    sample = hole * sample + (1 - hole) * known
    added = (settings.learning_rate * settings.gradient_scale) ** 2  # beta hat of one iteration
    for iteration in range(1, settings.num_gradient_steps + 1):
        gradient = gradient_of(sample) * hole
        if factor is None:
            size = (gradient.square().sum() / (hole.sum() * 3)).sqrt()
            factor = settings.gradient_scale / size.clamp(min=1e-12)
        moved = (1 - added) ** 0.5 * sample - settings.learning_rate * factor * gradient
        if settings.denoise_every and iteration % settings.denoise_every == 0:
            enough = 1 - process.alphas_cumprod >= settings.denoise_every * added
            timestep = int(enough.int().argmax())
            _, mean, log_variance = process.reverse(moved, timestep, 1)
            moved = mean + (0.5 * log_variance).exp() * process.randn_like(mean) if timestep else mean
        sample = hole * moved + (1 - hole) * known
        yield sample
