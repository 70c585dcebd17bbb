"""What every pipeline of a checkpoint does alike: load, save, choose a category, measure a picture (Eq. 9 and 10)."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel

from .category_bank import CategoryBank
from .checkpoint_files import load_components, save_checkpoint
from .denoising_network import has_bfloat16, predict
from .feature_extraction import TimmFeatureExtractor
from .feature_gaussian import FeatureGaussian
from .feature_memory import FeatureMemory
from .gaussian_diffusion import add_noise, variational_bound
from .image_preprocessing import contrast_scale, normalize_contrast
from .score_calibration import Measurement, ScoreCalibration

BFLOAT16_TOLERANCE = 0.05
"""bfloat16 is used by itself if no calibration picture's score moved by more than this many deviations."""


SHARED_SETTINGS = ("patch_size", "timesteps", "alpha", "smoothing_sigma", "score_grid", "mixed_precision")
"""What the pipelines of all categories of a checkpoint have in common."""


class TrainedModel:
    """Base of the pipelines, beside `DiffusionPipeline`; its components and settings are those of the pipeline."""

    @property
    def resolution(self):
        """Height and width of the model's square, in pixels."""
        return self.unet.config.sample_size * self.config.patch_size

    @property
    def alpha(self):
        """Weight of the pixel part in Eq. 11, unless a call asks for another; None while nothing has set it."""
        if self.config.alpha is None and self.calibration is not None:
            return self.calibration.config.alpha
        return self.config.alpha

    def for_category(self, category=None):
        """The pipeline of one category: of a checkpoint for several, a view that shares all weights; else itself.

        Args:
            category (`str`, *optional*): its name.

        Raises:
            ValueError: if a checkpoint for several does not know it, or one for a single category is asked for it.
        """
        if self.categories is None:
            if category is not None:
                raise ValueError(f"this checkpoint knows one category only; leave category {category!r} out.")
            return self
        settings = {name: self.config[name] for name in SHARED_SETTINGS}
        view = type(self)(
            unet=self.unet,
            scheduler=self.scheduler,
            feature_extractor=self.feature_extractor,
            **self.categories.of(category),
            **settings,
        )
        view.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return view

    @torch.inference_mode()
    def measure(self, samples, timesteps, noise, mixed_precision=None):
        """KL (Eq. 9), feature error (Eq. 10) and distances from good features, before any normalisation.

        Args:
            samples (`torch.Tensor`): float in [-1, 1], (batch, 3, resolution, resolution).
            timesteps (`list[int]`): T.
            noise (`torch.Tensor`): one field per timestep, (len(timesteps), 3, resolution, resolution).
            mixed_precision (`str`, *optional*): overrides the pipeline's own setting.

        Returns:
            `Measurement`: averages over the cells of the score grid.
        """
        device, count, grid = self.unet.device, len(timesteps), self.config.score_grid
        sample = samples.to(device)
        features = self.feature_extractor(sample)
        distances = [
            F.interpolate(reference(features)[:, None], size=(grid, grid), mode="bilinear", align_corners=False)
            for reference in self.references
        ]
        sample = normalize_contrast(sample, self.config.data_mean, self.config.data_std)
        sample = sample.repeat_interleave(count, dim=0)
        t = torch.tensor(timesteps, device=device).repeat(len(samples))
        labels = None if self.config.class_label is None else torch.full_like(t, self.config.class_label)
        alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        noisy_sample = add_noise(sample, noise.to(device).repeat(len(samples), 1, 1, 1), alphas_cumprod, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._uses_bfloat16(mixed_precision)):
            predicted_noise, predicted_variance, predicted_features = predict(
                self.unet, self.scheduler, noisy_sample, t, self.config.patch_size, features.shape[-1], labels
            )
        predicted_features = predicted_features.unflatten(0, (len(samples), count))
        feature_error = (features[:, None] - predicted_features).square_().mean(dim=2)
        del features, predicted_features  # the largest tensors of the call
        bin_width = 2 / 255 * contrast_scale(self.config.data_std)
        kl = variational_bound(
            sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, t, bin_width
        ).mean(dim=1)
        return Measurement(
            F.adaptive_avg_pool2d(kl.unflatten(0, (len(samples), count)), grid),
            F.adaptive_avg_pool2d(feature_error, grid),
            torch.cat(distances, dim=1) if distances else kl.new_zeros(len(samples), 0, grid, grid),
        )

    @property
    def references(self):
        """What the features of a picture are compared with: Gaussian and memory, those that the checkpoint has."""
        return [reference for reference in (self.gaussian, self.memory) if reference is not None]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a checkpoint, a folder or a Hub id, with this project's own classes: no code from it is run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder that `save_pretrained` wrote, or a Hub id.
            **kwargs: `torch_dtype`; components or scalars to use instead of the checkpoint's; `revision`, `token`,
                `cache_dir` and `local_files_only` for the Hub.
        """
        classes = {
            "unet": UNet2DModel,
            "scheduler": DDPMScheduler,
            "feature_extractor": TimmFeatureExtractor,
            "gaussian": FeatureGaussian,
            "memory": FeatureMemory,
            "calibration": ScoreCalibration,
            "categories": CategoryBank,
        }
        return cls(**load_components(pretrained_model_name_or_path, cls, classes, kwargs))

    def save_pretrained(self, save_directory, half_precision=False, **kwargs):
        """Save weights (safetensors), configs, calibration, a short model card and the code that runs them.

        The folder loads in this project and, through `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)`, anywhere else. Nothing half-written is left if saving fails.

        Args:
            save_directory (`str` or `Path`): created if it does not exist.
            half_precision (`bool`): whether networks and references take half the space; they are read back as float32.
        """
        save_checkpoint(self, super().save_pretrained, save_directory, half_precision, kwargs)

    def _uses_bfloat16(self, mixed_precision=None):
        mixed_precision = mixed_precision or self.config.mixed_precision
        if mixed_precision != "auto":
            return mixed_precision == "bf16"
        deviation = None if self.calibration is None else self.calibration.config.bfloat16_deviation
        return deviation is not None and deviation <= BFLOAT16_TOLERANCE and has_bfloat16(self.unet.device)
