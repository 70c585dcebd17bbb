"""Training loss: the hybrid of Eq. 4 to 8 (variance through the bound, after Nichol and Dhariwal) and Eq. 10.

Each part is a few lines that read as the equation. The loss owns its noise distribution and nothing else.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from pipelines.denoising_network import predict
from pipelines.gaussian_diffusion import add_noise, variational_bound
from pipelines.image_preprocessing import contrast_limits, contrast_scale


@dataclass
class LossTerms:
    """Losses of a batch, scalars: noise (Eq. 4), bound (Eq. 6 and 7, nats per channel), features (Eq. 10), total."""

    total: torch.Tensor
    noise: torch.Tensor
    bound: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class LossSettings:
    """Weights of the loss, and how timesteps are drawn; fields are named as the options of `training/train.py`.

    Args:
        vlb_weight (`float`): lambda of Nichol and Dhariwal, 0.001, of L_{t-1} in nats (theirs is in bits, which makes
            their 0.001 one of 0.00144 here).
        feature_weight (`float`): weight of Eq. 10.
        low_noise_share (`float`): share of timesteps drawn below `low_noise_limit`, where scoring looks; the rest are
            uniform over all timesteps, as in the paper.
        low_noise_limit (`int`): see `low_noise_share`.
        snr_gamma (`float`, *optional*): the error of the noise weighs min(SNR, gamma) / SNR (min-SNR weighting, Hang et
            al. 2023), SNR the signal-to-noise ratio of x_t; without it every timestep weighs the same, as in the paper.
    """

    vlb_weight: float = 0.001
    feature_weight: float = 1.0
    low_noise_share: float = 0.0
    low_noise_limit: int = 200
    snr_gamma: float | None = None


@dataclass
class DenoisingLoss:
    """L_mse + vlb_weight * T * L_{t-1} + feature_weight * L^f_mse on a batch of good images.

    L_T (Eq. 8) has no parameters and is left out. The gradient of L_{t-1} reaches the variance alone. Where timesteps
    are drawn uniformly (`low_noise_share` 0, the paper), T times its mean estimates the sum over t of Eq. 5. Otherwise
    it does not: terms of low noise, where scoring looks, then count for more than Eq. 5 gives them.

    Args:
        scheduler (`DDPMScheduler`): noise schedule, and what the network predicts.
        patch_size (`int`): pixel-unshuffle factor of the UNet.
        data_mean, data_std (`torch.Tensor`): brightness and contrast by which the samples were normalised, float32,
            (categories,).
        feature_grid (`int`): height and width of the features.
        settings (`LossSettings`): its weights, and how timesteps are drawn.
    """

    scheduler: DDPMScheduler
    patch_size: int
    data_mean: torch.Tensor
    data_std: torch.Tensor
    feature_grid: int
    settings: LossSettings = LossSettings()

    @property
    def num_timesteps(self):
        """T of the noise schedule."""
        return self.scheduler.config.num_train_timesteps

    def draw_noise(self, seed, places, shape, device):
        """Noise and timestep of each image, which follow from the seed and its place in the training alone.

        So a resumed run, or one of more processes, draws the same. A GPU draws noise of its own, other than a CPU's:
        beside an H100 the CPU took a third to half of a step for it.

        Args:
            seed (`int`): of the training.
            places (`list[int]`): of the images, as `ShuffledRotatedImages` numbers them.
            shape (`tuple[int]`): of an image.
            device (`torch.device`): where the noise is drawn.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: float32, (images, *shape), and int64, (images,), on `device`.
        """
        seeds = [seed * 1_000_003 + place for place in places]
        generators = [torch.Generator().manual_seed(each) for each in seeds]
        timesteps = torch.cat([self.draw_timesteps(1, generator) for generator in generators])
        if device.type != "cpu":
            generators = [torch.Generator(device).manual_seed(each) for each in seeds]
        noise = [torch.randn(shape, generator=generator, device=device) for generator in generators]
        return torch.stack(noise), timesteps.to(device)

    def draw_timesteps(self, batch_size, generator):
        """int64, (batch_size,), from the mixture of uniform distributions."""
        uniform = torch.rand(2, batch_size, generator=generator)
        limit = torch.where(
            uniform[0] < self.settings.low_noise_share,
            self.settings.low_noise_limit,
            self.scheduler.config.num_train_timesteps,
        )
        return (uniform[1] * limit).long()

    def __call__(self, unet, sample, features, noise, timesteps, labels):
        """Losses for x_0 `sample`, its standardised `features`, standard normal `noise`, `timesteps` and categories."""
        alphas_cumprod = self.scheduler.alphas_cumprod
        noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
        class_labels = labels if len(self.data_std) > 1 else None
        statistics = [values.to(labels.device)[labels].view(-1, 1, 1, 1) for values in (self.data_mean, self.data_std)]
        predicted_noise, predicted_variance, predicted_features = predict(
            unet, self.scheduler, noisy_sample, timesteps, self.patch_size, self.feature_grid, class_labels
        )
        noise_error = (noise - predicted_noise).square()
        if self.settings.snr_gamma is not None:
            snr = compute_snr(self.scheduler, timesteps)
            noise_error = noise_error * (snr.clamp(max=self.settings.snr_gamma) / snr).view(-1, 1, 1, 1)
        noise_loss = noise_error.mean()
        bound = variational_bound(
            sample,
            noisy_sample,
            predicted_noise.detach(),
            predicted_variance,
            alphas_cumprod,
            timesteps,
            bin_width=2 / 255 * contrast_scale(statistics[1]),
            limits=contrast_limits(*statistics),
        ).mean()
        feature_loss = (features - predicted_features).square().mean()
        total = (
            noise_loss
            + self.settings.vlb_weight * self.scheduler.config.num_train_timesteps * bound
            + self.settings.feature_weight * feature_loss
        )
        return LossTerms(total, noise_loss.detach(), bound.detach(), feature_loss.detach())
