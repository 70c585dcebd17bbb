"""What every pipeline of a checkpoint does alike: load, save, choose a category, measure an image (Eq. 9 and 10)."""

import logging
from typing import ClassVar

import torch
from diffusers import DDPMScheduler, ModelMixin, UNet2DModel

from .anomaly_maps import SMOOTHING_SIGMA
from .category_bank import CategoryBank
from .checkpoint_loading import load_components
from .checkpoint_saving import save_checkpoint
from .config_checks import shown
from .denoising_network import has_bfloat16, predict, without_tf32
from .feature_extraction import TimmFeatureExtractor
from .feature_familiarity import FeatureFamiliarity
from .feature_gaussian import FeatureGaussian
from .feature_memory import FeatureMemory
from .image_preprocessing import WHITE_LEVELS
from .image_processor import AnomalyImageProcessor
from .measurement import ScoredSamples, measure
from .model_checks import check_fit, check_settings
from .safetensors_only import SafetensorsUNet
from .score_calibration import REFERENCES, ScoreCalibration

BFLOAT16_TOLERANCE = 0.05
"""bfloat16 is used by itself if no calibration image's score moved by more than this many standard deviations."""

SHARED_SETTINGS = ("patch_size", "timesteps", "alpha", "smoothing_sigma", "score_grid", "mixed_precision")
SHARED_SETTINGS += ("white_level",)
"""What the pipelines of all categories of a checkpoint have in common."""

CATEGORY_SETTINGS = ("data_mean", "data_std", "class_label")

logger = logging.getLogger(__name__)


class TrainedModel:
    """Base of the pipelines, beside `DiffusionPipeline`: a checkpoint's components and settings.

    Args:
        unet (`UNet2DModel`): predicts noise, variance and features of x_0 from the pixel-unshuffled x_t.
        scheduler (`DDPMScheduler`): noise schedule with `variance_type="learned_range"`.
        feature_extractor (`TimmFeatureExtractor`): the frozen backbone of Eq. 10.
        gaussian (`FeatureGaussian`, *optional*): features of good parts, place by place.
        memory (`FeatureMemory`, *optional*): features of good parts at any place.
        coarse_gaussian (`FeatureGaussian`, *optional*): as the other Gaussian, of the coarsest features on a coarser
            grid: what is odd only as a whole.
        familiarity (`FeatureFamiliarity`, *optional*): what images of the trained kind look like as a whole; without it
            `is_unfamiliar` is always False.
        calibration (`ScoreCalibration`, *optional*): what good images score; without it only `measure` works.
        categories (`CategoryBank`, *optional*): for several categories, what belongs to each; the other five are then
            left out.
        patch_size (`int`): pixel-unshuffle factor of the UNet.
        data_mean, data_std (`float`): brightness and contrast of good images in [-1, 1]; see `normalize_contrast`.
        timesteps (`list[int]`): default T of Eq. 11.
        alpha (`float`, *optional*): default weight of the pixel component in the map (Eq. 11); without it, that
            of the calibration.
        smoothing_sigma (`float`): Gaussian smoothing of the maps, in pixels of the model's square.
        score_grid (`int`): height and width of the grid that images are scored on.
        mixed_precision (`str`): "auto" runs the UNet in bfloat16 where the hardware has it and calibration has ranked
            scores in it and found them to agree, "no" never does, "bf16" always. Verdicts in bfloat16 are ranked among
            scores in bfloat16.
        class_label (`int`, *optional*): of a UNet for several categories, the one that this pipeline scores.
        white_level (`int`): the value of white in 16-bit images, as in those that were trained on.
    """

    _warned_of_precision = False
    model_cpu_offload_seq = "feature_extractor->unet"
    _exclude_from_cpu_offload: ClassVar = ["calibration", "categories"]  # their tables are read, no network is run
    _optional_components: ClassVar = [*REFERENCES, "familiarity", "calibration", "categories"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        feature_extractor: ModelMixin,
        gaussian: ModelMixin | None = None,
        memory: ModelMixin | None = None,
        coarse_gaussian: ModelMixin | None = None,
        familiarity: ModelMixin | None = None,
        calibration: ModelMixin | None = None,
        categories: ModelMixin | None = None,
        patch_size: int = 4,
        data_mean: float = 0.0,
        data_std: float = 0.5,
        timesteps: list[int] = (5, 50, 100),
        alpha: float | None = None,
        smoothing_sigma: float = SMOOTHING_SIGMA,
        score_grid: int = 32,
        mixed_precision: str = "auto",
        class_label: int | None = None,
        white_level: int = WHITE_LEVELS[-1],
    ):
        super().__init__()
        check_settings(
            patch_size, data_mean, data_std, timesteps, alpha, smoothing_sigma, score_grid, class_label, white_level
        )
        if scheduler.config.variance_type != "learned_range":
            raise ValueError(f"the scheduler predicts {scheduler.config.variance_type} variance, not learned_range.")
        if mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"mixed_precision is {shown(mixed_precision)}; auto, no and bf16 are accepted.")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            gaussian=gaussian,
            memory=memory,
            coarse_gaussian=coarse_gaussian,
            familiarity=familiarity,
            calibration=calibration,
            categories=categories,
        )
        self.register_to_config(
            patch_size=patch_size,
            data_mean=data_mean,
            data_std=data_std,
            timesteps=list(timesteps),
            alpha=alpha,
            smoothing_sigma=smoothing_sigma,
            score_grid=min(score_grid, feature_extractor.config.grid_size),
            mixed_precision=mixed_precision,
            class_label=class_label,
            white_level=white_level,
        )

    @property
    def resolution(self):
        """Height and width of the model's square, in pixels."""
        return self.unet.config.sample_size * self.config.patch_size

    @property
    def alpha(self):
        """Weight of the pixel component in the map (Eq. 11), unless a call asks for another; None if not set."""
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
    @without_tf32()
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
        return measure(self, samples, timesteps, noise, mixed_precision)

    @torch.inference_mode()
    def score(self, samples, timesteps, noise):
        """Judge samples by the calibration; arguments are those of `measure`.

        Returns:
            `ScoredSamples`.
        """
        measured, calibration = self.measure(samples, timesteps, noise), self.calibration
        components = calibration.standardize(measured, timesteps)
        return ScoredSamples(
            calibration.image_score(components, timesteps),
            calibration.two_components(components),
            calibration.unfamiliarity(measured.distance),
        )

    def predict(self, noisy_sample, timesteps, mixed_precision=None):
        """Noise, variance and features that the UNet predicts for x_t; see `denoising_network.predict`.

        The precision is the pipeline's own, unless `mixed_precision` is given.
        """
        label = self.config.class_label
        labels = None if label is None else torch.full_like(timesteps, label)
        grid = self.feature_extractor.config.grid_size
        with torch.autocast(noisy_sample.device.type, torch.bfloat16, enabled=self.uses_bfloat16(mixed_precision)):
            return predict(self.unet, self.scheduler, noisy_sample, timesteps, self.config.patch_size, grid, labels)

    @property
    def image_processor(self):
        """Draws results: `pipe.image_processor.visualize(result, image)`, see `AnomalyImageProcessor`."""
        return AnomalyImageProcessor(self)

    @property
    def references(self):
        """What the features of an image are compared with, in the order of `REFERENCES`; all that there are."""
        return [reference for name in REFERENCES if (reference := getattr(self, name)) is not None]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a checkpoint, a folder or a Hub id, with this project's own classes: no code from it is run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder that `save_pretrained` wrote, or a Hub id.
            **kwargs: `dtype` (or `torch_dtype`); `variant="fp16"`, for a checkpoint that is stored in half precision
                the same as without it; components or scalars to use instead of the checkpoint's; `revision`, `token`,
                `cache_dir` and `local_files_only` for the Hub.

        Raises:
            ValueError: with the file or component that is missing, damaged, not safe to read, or does not fit the
                others; or with what keeps it from being fetched.
        """
        classes = {
            "unet": UNet2DModel,
            "scheduler": DDPMScheduler,
            "feature_extractor": TimmFeatureExtractor,
            "gaussian": FeatureGaussian,
            "memory": FeatureMemory,
            "coarse_gaussian": FeatureGaussian,
            "familiarity": FeatureFamiliarity,
            "calibration": ScoreCalibration,
            "categories": CategoryBank,
        }
        arguments = load_components(pretrained_model_name_or_path, cls, classes, kwargs)
        try:
            pipe = cls(**arguments)
            check_fit(pipe)
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path} does not fit together: {error}") from error
        return pipe

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As in diffusers, which asks it what to load; the UNet is loaded from safetensors alone."""
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        if isinstance(init_dict.get("unet"), list | tuple):
            init_dict["unet"] = [SafetensorsUNet.__module__, SafetensorsUNet.__name__]
        return init_dict, unused, hidden

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline of this class that shares every component with another one of the checkpoint; nothing is copied.

        Args:
            pipeline (`TrainedModel`): the other pipeline.
            **kwargs: components or settings to use instead of its own.
        """
        settings = {name: pipeline.config[name] for name in (*SHARED_SETTINGS, *CATEGORY_SETTINGS)}
        return cls(**(pipeline.components | settings | kwargs))

    def save_pretrained(self, save_directory, half_precision=False, **kwargs):
        """Save weights (safetensors), configs, calibration, a short model card and the code that runs them.

        The folder loads in this project and, through `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)`, anywhere else. Nothing half-written is left if saving fails.

        Args:
            save_directory (`str` or `Path`): created if it does not exist.
            half_precision (`bool`): whether networks and references take half the space; they are read back as float32.
            **kwargs: those of diffusers, safetensors only; `variant="fp16"` means `half_precision`.
        """
        save_checkpoint(self, super().save_pretrained, save_directory, half_precision, kwargs)

    def check_precision(self):
        """Check that good images were ranked in the precision that this pipeline scores in.

        Raises:
            ValueError: if it is asked for bfloat16 and they were not.
        """
        if self.uses_bfloat16() and not self.calibration.config.ranks_bfloat16:
            raise ValueError(
                "this checkpoint was not calibrated in bfloat16, so that it promises no rate for it; set "
                'mixed_precision to "no", or run training/calibration.py where the processor computes in bfloat16.'
            )
        if self.unet.dtype != torch.float32 and not self._warned_of_precision:
            logger.warning(
                "the network's weights are in %s, and good images were ranked in float32: the false alarm rate is an "
                "estimate, not a promise",
                str(self.unet.dtype).removeprefix("torch."),
            )
            self._warned_of_precision = True

    def uses_bfloat16(self, mixed_precision=None):
        """Whether the UNet computes in bfloat16: as `mixed_precision` says, by default the pipeline's own setting."""
        mixed_precision = mixed_precision or self.config.mixed_precision
        if mixed_precision != "auto":
            return mixed_precision == "bf16"
        if self.calibration is None or not self.calibration.config.ranks_bfloat16:
            return False
        deviation = self.calibration.config.bfloat16_deviation
        return deviation is not None and deviation <= BFLOAT16_TOLERANCE and has_bfloat16(self._execution_device)
