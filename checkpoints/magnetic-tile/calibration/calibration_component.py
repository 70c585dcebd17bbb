"""ScoreCalibration, in one file made of 6 modules; change those, not this copy.

Each after those that it needs: anomaly_maps, config_checks, calibration_checks, safetensors_only, float32_component,
score_calibration.
"""


# %% anomaly_maps: needs nothing
"""What becomes of maps: smoothing, blend of Eq. 11, other sizes, their worst places."""

import torch
import torch.nn.functional as F

WORST_SHARE = 0.01
"""An image is judged by the mean of this share of a map's largest values."""

SMOOTHING_SIGMA = 2.0
"""Deviation of the maps' smoothing in pixels of the model's square, by default. Bringing a map from its grid to the
square has smoothed it already: on synthetic defects of four categories 4 pixels, common elsewhere, had a lower PRO."""


def smooth(maps, sigma):
    """Gaussian filter with reflected borders over the last two axes; `sigma` in pixels, 0 leaves the maps as they are.

    Args:
        maps (`torch.Tensor`): float, (batch, channel, height, width).
        sigma (`float`): standard deviation in pixels.
    """
    radius = min(int(4 * sigma + 0.5), min(maps.shape[-2:]) - 1)
    if radius < 1:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="reflect"), kernel)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel.transpose(2, 3))
    return flat[:, 0].unflatten(0, maps.shape[:2])


def blend(kl_map, feature_map, alpha):
    """Eq. 11 after averaging over timesteps: alpha of the pixel component and 1 - alpha of the feature component."""
    return alpha * kl_map + (1 - alpha) * feature_map


def resize_map(anomaly_map, size):
    """Bring a map, (height, width), or several, (channel, height, width), to `size` (height, width), bilinearly."""
    maps = anomaly_map.reshape(1, -1, *anomaly_map.shape[-2:])
    resized = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.reshape(*anomaly_map.shape[:-2], *size)


def render(maps, resolution, sigma):
    """Bring maps of the score grid, (batch, channel, grid, grid), to the model's square and smooth them there."""
    maps = F.interpolate(maps, size=(resolution, resolution), mode="bilinear", align_corners=False)
    return smooth(maps, sigma)


def worst_mean(maps):
    """Mean of the largest values (`WORST_SHARE` of them) of each map, (…, height, width) to (…)."""
    flat = maps.flatten(-2)
    return flat.topk(max(1, round(WORST_SHARE * flat.shape[-1])), dim=-1).values.mean(dim=-1)


# %% config_checks: needs nothing
"""What a setting may be: configs come from anywhere, and a wrong one must not cost gigabytes before it is noticed."""

import inspect
import math
from numbers import Integral, Real

MAX_STOCK_NUMBER = 2**16
MAX_STOCK_LIST = 10_000
MAX_TEXT = 200

MAX_NOISE_STEPS = 10_000
"""Timesteps of a noise schedule."""

MAX_TIMESTEPS = 10
"""Of Eq. 11: tables have a row for every subset of them, 1023 of so many."""


def check_whole(name, value, low, high):
    """Check that a setting is a whole number in `low` to `high`.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a whole number from {low} to {high} is accepted.")


def check_number(name, value, low, high):
    """Check that a setting is a number in `low` to `high`.

    Raises:
        ValueError: if it is none, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a number from {low:g} to {high:g} is accepted.")


def check_rate(value):
    """Check that a false alarm rate is a share of good parts, above 0 and at most 1.

    Raises:
        ValueError: if it is none; of one in per cent it says the share.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        share = f": {value / 100:g} for {value:g} %" if is_number and 1 < value <= 100 else ""
        raise ValueError(f"false_alarm_rate is {shown(value)}; it must lie above 0 and at most at 1{share}.")


def check_list(name, values, shortest, longest):
    """Check that a setting is a list of so many values.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(values, (list, tuple)) or not shortest <= len(values) <= longest:
        counts = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        raise ValueError(f"{name} is {shown(values)}; a list of {counts} values is accepted.")


def check_timesteps(timesteps, num_timesteps=MAX_NOISE_STEPS):
    """Check T of Eq. 11: a list of timesteps of a noise schedule, each once.

    Args:
        timesteps (`list[int]`): in any order.
        num_timesteps (`int`): of the schedule.

    Raises:
        ValueError: with what is wrong with them.
    """
    check_list("timesteps", timesteps, 1, MAX_TIMESTEPS)
    for timestep in timesteps:
        check_whole("timesteps", timestep, 0, num_timesteps - 1)
    if len(set(timesteps)) < len(timesteps):
        raise ValueError(f"timesteps are {shown(timesteps)}; each is accepted once.")


def check_stock_config(component_class, config):
    """Check a config of a class of diffusers by what its settings are by default: kind, and a bound on size.

    Args:
        component_class (`type`): its `__init__` has a default for every setting.
        config (`dict`): settings by name.

    Raises:
        ValueError: with the name of a setting that cannot be right.
    """
    parameters = inspect.signature(component_class.__init__).parameters
    for name, value in config.items():
        default = parameters[name].default
        if not _is_of_kind(value, default):
            raise ValueError(
                f"{name} is {shown(value)}, of no kind or size that {component_class.__name__} takes; by default it is "
                f"{shown(default)}."
            )


def shown(value):
    """A value as it may stand in a message: on one line, without control characters, cut after 60 of them."""
    text = "".join(letter if letter.isprintable() else "?" for letter in repr(value)[:1000])
    return text if len(text) <= 60 else text[:60] + "…"


def _is_of_kind(value, default):
    if value is None or isinstance(value, bool):
        return default is None or (isinstance(default, bool) and value is not None)
    if isinstance(value, str):
        return (default is None or isinstance(default, str)) and len(value) <= MAX_TEXT
    if isinstance(value, Real):
        is_number = isinstance(default, Real) and not isinstance(default, bool)
        return (default is None or is_number) and math.isfinite(value) and abs(value) <= MAX_STOCK_NUMBER
    if isinstance(value, (list, tuple)):
        scalars = all(item is not None and not isinstance(item, (list, tuple)) for item in value)
        is_list = default is None or isinstance(default, (list, tuple))
        return is_list and len(value) <= MAX_STOCK_LIST and scalars and all(_is_of_kind(item, None) for item in value)
    return False


# %% calibration_checks: needs config_checks
"""Settings of a calibration, which may come from anywhere: checked before a table is made for them."""


IMAGE_RULES = ("max", "mean")
"""How the scores that components give an image become one."""


def check_calibration_settings(config):
    """Check the settings of a `ScoreCalibration`.

    Args:
        config (`FrozenDict`): all of them, by name.

    Raises:
        ValueError: with the first that is out of range.
    """
    check_timesteps(config.timesteps)
    check_whole("resolution", config.resolution, 1, 4096)
    check_whole("grid_size", config.grid_size, 1, 1024)
    check_number("alpha", config.alpha, 0, 1)
    check_list("map_weights", config.map_weights, 1, 8)
    for weight in config.map_weights:
        check_number("map_weights", weight, 0, 1)
    _check_score_components(config)
    for name in ("planted_pro", "planted_image_auroc"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1 + 1e-6)  # a mean of ones may be rounded up
    for name in ("unfamiliar_share", "synthetic_rejected"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1)
    for name in ("unfamiliar_distance", "first_unfamiliar_distance"):
        if config[name] is not None:
            check_number(name, config[name], 1e-6, 1e9)
    for images, groups in (("num_ranked", "num_groups"), ("num_fitted", "num_fitted_groups")):
        check_whole(images, config[images], 1, 1_000_000)
        if config[groups] is not None:
            check_whole(groups, config[groups], 1, config[images])
    for name in ("cross_fitted", "ranks_bfloat16"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{name} is {shown(config[name])}; true and false are accepted.")
    if config.bfloat16_deviation is not None:
        check_number("bfloat16_deviation", config.bfloat16_deviation, 0, 1e9)


def _check_score_components(config):
    if config.image_rule not in IMAGE_RULES:
        raise ValueError(f"image_rule is {shown(config.image_rule)}; {' and '.join(IMAGE_RULES)} are accepted.")
    deciding = config.image_parts
    if deciding is not None:
        components = 1 + len(config.map_weights)
        check_list("image_parts", deciding, components, components)
        if not all(isinstance(counts, bool) for counts in deciding) or not any(deciding):
            raise ValueError(f"image_parts is {shown(deciding)}; true and false are accepted, true at least once.")


# %% safetensors_only: needs nothing
"""Weights come from safetensors or not at all: whoever loads a component, no pickle in its folder is read."""

from pathlib import Path

from diffusers import UNet2DModel

PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
"""Loading one of these can run any code."""

WEIGHT_LISTS = ".index.json"
"""Ends the name of a list of weights in several files, which could name pickles; checkpoints here have one file."""


class SafetensorsOnly:
    """Base of a component, beside `ModelMixin`: diffusers would fall back to a pickle where it finds no safetensors."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `ModelMixin.from_pretrained`.

        Raises:
            ValueError: if there is a pickle in the folder.
        """
        refuse_pickles(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))


def is_pickle(name):
    """Whether a file's name, `str`, is that of a pickle."""
    return name.lower().endswith(PICKLES)


def refuse_pickles(folder):
    """Check the names of the files in a component's folder.

    Raises:
        ValueError: with the name of the first pickle, or of a list of weights that could name some.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_pickle(path.name):
            raise ValueError(
                f"{folder.name}/{path.name} is a pickle, which is never read, for it can run any code; delete it, or "
                "ask for weights as safetensors."
            )
        if path.name.endswith(WEIGHT_LISTS):
            raise ValueError(f"{folder.name}/{path.name} splits the weights into several files; one is accepted.")


class SafetensorsUNet(UNet2DModel):
    """What diffusers is told to load instead of a `UNet2DModel`: the same, but from safetensors or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """A `UNet2DModel`; a folder with a pickle in it is a `ValueError`."""
        refuse_pickles(pretrained_model_name_or_path)
        return UNet2DModel.from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))


# %% float32_component: needs safetensors_only
"""A component that stays in float32 whatever dtype its pipeline is cast to: statistics lose their meaning in half."""

import torch
from diffusers import ModelMixin



class Float32Component(SafetensorsOnly, ModelMixin):
    """Buffers follow a move to another device, but no change of dtype."""

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if buffer.is_floating_point() and moved.dtype != torch.float32:
                setattr(self, name, buffer.to(device=moved.device, dtype=torch.float32))
        return self


# %% score_calibration: needs anomaly_maps, calibration_checks, float32_component
"""What good images look like to the score: normalisation of Eq. 11 and conformal p-values, as a component.

Fitted by `training/calibration.py` on held-out good images alone, in two disjoint halves: the first gives mean and
standard deviation of the maps, the second only ranks scores. Where each image shows another part, a new one's rank
among those is uniform, so p-values and thresholds hold for any number of images (Vovk et al., "Algorithmic Learning
in a Random World"): of good parts, at most `false_alarm_rate` are rejected. Where parts have several images, one of a
new part is exchangeable with parts, not with images: each ranked part weighs one, and its images share that weight
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data"; Dunn, Wasserman and Ramdas,
"Distribution-free prediction sets for two-layer hierarchical models").

An image is measured in several components: KL (Eq. 9), feature error (Eq. 10) and, beyond the paper, its distance from
each reference of good features. Each is standardised, then the maps are blended as in Eq. 11. An image's
score is the largest that the deciding components give it, or their mean.
"""

import math
from itertools import combinations
from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


SLACK = 1e-9
"""p-values are sums of weights: a rate is compared with them up to rounding."""

NUM_ALPHAS = 21
"""The largest map values of good images are kept for alpha = 0, 0.05, …, 1 and every subset of the timesteps."""

REFERENCES = {
    "gaussian": "the Gaussian of good features",
    "memory": "the memory of good features",
    "coarse_gaussian": "the coarse Gaussian of good features",
}
"""Components that the features of an image are compared with, in their order, and what they are called.
"""


class ScoreCalibration(Float32Component, ConfigMixin):
    """Noise fields, normalisation of the maps and the scores of good images; always float32.

    Args:
        timesteps (`list[int]`): the calibrated T of Eq. 11.
        resolution (`int`): height and width of the model's square.
        grid_size (`int`): height and width of the score grid.
        alpha (`float`): weight of the pixel component in the map (Eq. 11), unless a caller asks for another.
        map_weights (`list[float]`): shares of the feature component in the map, adding to 1: feature error (Eq. 10),
            then each reference of good features that the image is compared with.
        image_parts (`list[bool]`, *optional*): whether KL, feature error and each reference may decide the score of the
            whole image; by default all of them.
        image_rule (`str`): "max" if the score is the largest that those components give, "mean" if it is their mean.
        planted_pro, planted_image_auroc (`float`, *optional*): PRO and image AUROC of these choices on the synthetic
            defects that they were made on.
        num_ranked (`int`): good images whose scores are ranked.
        num_fitted (`int`): good images that the normalisation was fitted on.
        num_groups (`int`, *optional*): parts that the ranked images show, where some show the same; None where each
            shows a part of its own.
        num_fitted_groups (`int`, *optional*): the same of the images that the normalisation was fitted on.
        cross_fitted (`bool`): both sets are the same images, normalised in turn by the others. The rate is then an
            estimate, not a guarantee.
        unfamiliar_distance (`float`, *optional*): an image whose distance (`FeatureFamiliarity`) is larger is unlike
            all that the model was calibrated on; None where that is not known.
        first_unfamiliar_distance (`float`, *optional*): the same of the calibration that the model was trained with,
            which a recalibration is held against.
        unfamiliar_share (`float`, *optional*): of the images of a recalibration, the share that lies beyond that.
        synthetic_rejected (`float`, *optional*): share of good images with a synthetic defect that are rejected at the
            default rate.
        bfloat16_deviation (`float`, *optional*): largest difference of a good image's score between bfloat16 and
            float32, in standard deviations of the good scores; None if not measured.
        ranks_bfloat16 (`bool`): whether the ranked images were scored in bfloat16 as well, so that verdicts in that
            precision are ranked among scores in it.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = [
        "noise",
        "kl_mean",
        "kl_std",
        "feature_error_mean",
        "feature_error_std",
        "reference_mean",
        "reference_std",
        "part_score_mean",
        "part_score_std",
        "part_scores",
        "map_maxima",
        "bfloat16_part_scores",
        "bfloat16_map_maxima",
    ]

    @register_to_config
    def __init__(
        self,
        timesteps: list[int] = (5, 50, 100),
        resolution: int = 256,
        grid_size: int = 32,
        alpha: float = 0.5,
        map_weights: list[float] = (1.0,),
        image_parts: list[bool] | None = None,
        image_rule: str = "max",
        planted_pro: float | None = None,
        planted_image_auroc: float | None = None,
        num_ranked: int = 1,
        num_fitted: int = 1,
        num_groups: int | None = None,
        num_fitted_groups: int | None = None,
        cross_fitted: bool = False,
        unfamiliar_distance: float | None = None,
        first_unfamiliar_distance: float | None = None,
        unfamiliar_share: float | None = None,
        synthetic_rejected: float | None = None,
        bfloat16_deviation: float | None = None,
        ranks_bfloat16: bool = False,
    ):
        super().__init__()
        check_calibration_settings(self.config)
        num_references = len(map_weights) - 1
        count, subsets, components = len(timesteps), 2 ** len(timesteps) - 1, 2 + num_references
        self.register_buffer("noise", torch.zeros(count, 3, resolution, resolution))
        for name in ("kl", "feature_error"):
            self.register_buffer(f"{name}_mean", torch.zeros(count, grid_size, grid_size))
            self.register_buffer(f"{name}_std", torch.ones(count, grid_size, grid_size))
        self.register_buffer("reference_mean", torch.zeros(num_references))
        self.register_buffer("reference_std", torch.ones(num_references))
        self.register_buffer("part_score_mean", torch.zeros(subsets, components))
        self.register_buffer("part_score_std", torch.ones(subsets, components))
        for prefix in ("", "bfloat16_") if ranks_bfloat16 else ("",):
            self.register_buffer(f"{prefix}part_scores", torch.zeros(subsets, num_ranked, components))
            self.register_buffer(f"{prefix}map_maxima", torch.zeros(subsets, NUM_ALPHAS, num_ranked))
        if num_groups is not None:
            self.register_buffer("ranked_groups", torch.arange(num_ranked).clamp(max=num_groups - 1))

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if a map or a score would be divided by what is not above 0, or a part has no image.
        """
        for name in ("kl_std", "feature_error_std", "reference_std", "part_score_std"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} holds a standard deviation that is not above 0.")
        count = self.config.num_groups
        if count is not None and self.ranked_groups.unique().tolist() != list(range(count)):
            raise ValueError(f"ranked_groups does not number {count} parts from 0.")

    @property
    def num_ranked_groups(self):
        """Parts that the ranked images show: what a promise can rest on."""
        return self.config.num_ranked if self.config.num_groups is None else self.config.num_groups

    @property
    def weights(self):
        """Weight of each ranked image, float64, (n,): those of a part share 1 evenly."""
        if self.config.num_groups is None:
            return torch.ones(self.config.num_ranked, dtype=torch.float64, device=self.part_scores.device)
        return 1 / (self.ranked_groups[:, None] == self.ranked_groups).sum(dim=1).double()

    @property
    def image_parts(self):
        """Whether each component (KL, feature error, references) may decide the image's score, `list[bool]`."""
        return list(self.config.image_parts or [True] * self.part_scores.shape[-1])

    @property
    def map_shares(self):
        """Weight of KL, feature error and each reference in the map at the calibrated alpha, adding to 1."""
        return [self.config.alpha, *((1 - self.config.alpha) * weight for weight in self.config.map_weights)]

    def noise_fields(self, timesteps):
        """The fixed standard normal noise of each timestep, float32, (len(timesteps), 3, resolution, resolution)."""
        return self.noise[self._indices(timesteps)]

    def standardize(self, measured, timesteps):
        """Subtract the mean of good images, divide by their standard deviation, average over timesteps (Eq. 11).

        KL and feature error have a mean and standard deviation for each timestep and place; a reference knows the place
        already, and has one for all.

        Args:
            measured (`Measurement`): at `timesteps`.
            timesteps (`list[int]`): a subset of the calibrated ones.

        Returns:
            `torch.Tensor`: (batch, components, grid, grid), in standard deviations of good images.
        """
        indices = self._indices(timesteps)
        kl = (measured.kl - self.kl_mean[indices]) / self.kl_std[indices]
        error = (measured.feature_error - self.feature_error_mean[indices]) / self.feature_error_std[indices]
        mean, std = self.reference_mean.view(-1, 1, 1), self.reference_std.view(-1, 1, 1)
        reference = (measured.reference - mean) / std
        return torch.cat([kl.mean(dim=1, keepdim=True), error.mean(dim=1, keepdim=True), reference], dim=1)

    def two_components(self, components):
        """Pixel component, and feature error with the references as one: (batch, components, …) to (batch, 2, …)."""
        weights = torch.tensor(self.config.map_weights, device=components.device).view(-1, 1, 1)
        return torch.stack([components[:, 0], (components[:, 1:] * weights).sum(dim=1)], dim=1)

    def image_score(self, components, timesteps):
        """Anomaly score of each image: the worst places of each component, standardised, and of these `image_rule`.

        Args:
            components (`torch.Tensor`): from `standardize`, (batch, components, grid, grid).
            timesteps (`list[int]`): what they were measured at.

        Returns:
            `torch.Tensor`: (batch,), in standard deviations of good images.
        """
        return self._combined_score(worst_mean(components), timesteps)

    def unfamiliarity(self, distance):
        """How unlike all that the model was calibrated on images are, float32, (batch,); above 1, another kind.

        Args:
            distance (`torch.Tensor`): of `Measurement`, (batch,).

        Returns:
            `torch.Tensor`: NaN where it is not known.
        """
        limit = self.config.unfamiliar_distance
        return distance / limit if limit is not None else torch.full_like(distance, torch.nan)

    def effective_rate(self, false_alarm_rate=None):
        """The promised false alarm rate: the one asked for, but no smaller than 1 / (g + 1), g the ranked parts.

        By default 1 %.
        """
        rate = 0.01 if false_alarm_rate is None else float(false_alarm_rate)
        return max(rate, 1 / (self.num_ranked_groups + 1))

    def p_value(self, anomaly_score, timesteps, bfloat16=False):
        """Share of good parts whose images score at least as high, the image's own part counted among them.

        Args:
            anomaly_score (`torch.Tensor`): (batch,).
            timesteps (`list[int]`): the timesteps it was computed with.
            bfloat16 (`bool`): whether the network computed in bfloat16, so that it is ranked among such scores.

        Returns:
            `torch.Tensor`: float64, (batch,), from 1 / (g + 1) to 1. An image of a new good part has a p-value of at
            most p with probability at most p.
        """
        ranked = self.ranked_scores(timesteps, bfloat16)
        anomaly_score = anomaly_score.to(device=ranked.device, dtype=ranked.dtype)
        at_least = ((ranked[None] >= anomaly_score[:, None]) * self.weights).sum(dim=1)
        return (1 + at_least) / (self.num_ranked_groups + 1)

    def ranked_scores(self, timesteps, bfloat16=False):
        """Scores of the good images that a new one is ranked among, float32, (n,)."""
        return self._combined_score(self._table("part_scores", bfloat16)[self._subset(timesteps)], timesteps)

    def independent_scores(self, timesteps, bfloat16=False):
        """Scores of one good image of each part, float32, (g,): what tests of independent scores may look at."""
        ranked = self.ranked_scores(timesteps, bfloat16)
        if self.config.num_groups is None:
            return ranked
        groups = self.ranked_groups.tolist()
        return ranked[[groups.index(group) for group in range(self.config.num_groups)]]

    def image_threshold(self, false_alarm_rate, timesteps, bfloat16=False):
        """An image whose score is above this has a p-value of at most the (effective) rate."""
        return self.quantile_of_good(self.ranked_scores(timesteps, bfloat16), false_alarm_rate)

    def pixel_threshold(self, false_alarm_rate, alpha, timesteps, bfloat16=False):
        """Conformal quantile of the largest value in each good image's anomaly map."""
        maxima = self._column(self._table("map_maxima", bfloat16), alpha, timesteps)
        return self.quantile_of_good(maxima, false_alarm_rate)

    def pixel_thresholds(self, alpha, timesteps, bfloat16=False):
        """All that `pixel_threshold` may return above minus infinity: float32, ascending, (up to n,)."""
        return self._column(self._table("map_maxima", bfloat16), alpha, timesteps).unique()

    def _table(self, name, bfloat16):
        return getattr(self, f"bfloat16_{name}" if bfloat16 else name)

    def quantile_of_good(self, values, false_alarm_rate=None):
        """Conformal quantile: the smallest value that at most the effective rate of new good parts lies above.

        Args:
            values (`torch.Tensor`): something measured of each ranked image, (n,).
            false_alarm_rate (`float`, *optional*): by default 1 %.
        """
        allowed = self.effective_rate(false_alarm_rate) * (self.num_ranked_groups + 1) + SLACK
        scores, order = values.sort(descending=True)
        above = 1 + self.weights[order].cumsum(dim=0)  # weight of all down to each score, and of the new part
        if above[-1] <= allowed:
            return -math.inf
        return scores[int((above <= allowed).sum())].item()

    def _combined_score(self, worst, timesteps):
        subset = self._subset(timesteps)
        standardized = (worst - self.part_score_mean[subset]) / self.part_score_std[subset]
        counting = [component for component, counts in enumerate(self.image_parts) if counts]
        return combine(standardized[..., counting], self.config.image_rule)

    def _column(self, table, alpha, timesteps):
        """Largest map values of the good images for one alpha and subset of timesteps, (n,).

        Between two alphas of the table they are interpolated. The maximum is convex in alpha, so that this can only
        overstate the good images' values: the promise holds for every alpha.
        """
        rows = table[self._subset(timesteps)]
        place = alpha * (NUM_ALPHAS - 1)
        lower = min(int(place), NUM_ALPHAS - 2)
        return torch.lerp(rows[lower], rows[lower + 1], place - lower)

    def _subset(self, timesteps):
        return timestep_subsets(self.config.timesteps).index(tuple(sorted(timesteps)))

    def _indices(self, timesteps):
        return [list(self.config.timesteps).index(timestep) for timestep in timesteps]


def combine(part_scores, rule):
    """The score of an image, (…), from those of its components, (…, components), by one of `IMAGE_RULES`."""
    return part_scores.amax(dim=-1) if rule == "max" else part_scores.mean(dim=-1)


def timestep_subsets(timesteps):
    """Every non-empty subset of the timesteps, each sorted, in the order of the score tables."""
    ordered = sorted(timesteps)
    return [subset for size in range(1, len(ordered) + 1) for subset in combinations(ordered, size)]
