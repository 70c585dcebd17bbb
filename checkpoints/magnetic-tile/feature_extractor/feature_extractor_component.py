"""TimmFeatureExtractor, in one file made of 3 modules; change those, not this copy.

Each after those that it needs: config_checks, safetensors_only, feature_extraction.
"""


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


# %% feature_extraction: needs config_checks, safetensors_only
"""Frozen timm backbone whose pooled, standardised features the diffusion model learns to predict (paper, Eq. 10).

Feature maps of several strides are brought to one grid and concatenated (paper, section 4.4 and Table 2).
"""

import timm
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config



class TimmFeatureExtractor(SafetensorsOnly, ModelMixin, ConfigMixin):
    """Features f(x_0) of a frozen timm backbone as a diffusers component.

    Built without weights from the network: the backbone starts at random and is filled by `from_pretrained` (a
    checkpoint's safetensors) or by whoever trains a new model. It never asks the Hub for anything.

    Args:
        backbone_name (`str`): name of a timm model that supports `features_only`.
        feature_strides (`list[int]`): strides whose feature maps are used.
        grid_size (`int`): height and width of the common grid. Finer maps are average-pooled to it, coarser ones
            interpolated bilinearly.
        image_mean, image_std (`list[float]`): normalisation that the backbone was trained with, for RGB in [0, 1].

    Raises:
        ValueError: if timm does not know the backbone or it has no map of one of the strides, or a setting is out of
            range.
    """

    @register_to_config
    def __init__(
        self,
        backbone_name: str = "tf_efficientnet_lite0",
        feature_strides: list[int] = (2, 4, 8, 16),
        grid_size: int = 64,
        image_mean: list[float] = (0.5, 0.5, 0.5),
        image_std: list[float] = (0.5, 0.5, 0.5),
    ):
        super().__init__()
        check_list("feature_strides", feature_strides, 1, 16)
        for stride in feature_strides:
            check_whole("feature_strides", stride, 1, 1024)
        check_whole("grid_size", grid_size, 1, 1024)
        for name, values, low in (("image_mean", image_mean, -10), ("image_std", image_std, 1e-3)):
            check_list(name, values, 3, 3)
            for value in values:
                check_number(name, value, low, 10)
        self.backbone = _create_backbone(backbone_name, tuple(feature_strides))
        self.num_features = sum(self.backbone.feature_info.channels())
        self.register_buffer("pixel_mean", torch.tensor(image_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(image_std).view(1, 3, 1, 1))
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in evaluation mode: the backbone is frozen, batch statistics included."""
        return super().train(False)

    def forward(self, sample):
        """Extract standardised features.

        Args:
            sample (`torch.Tensor`): RGB in [-1, 1], float, (batch, 3, height, width).

        Returns:
            `torch.Tensor`: float32, (batch, num_features, grid_size, grid_size), each channel with mean 0 and
            deviation 1 over the images that `feature_mean` and `feature_std` were measured on.
        """
        features = self.raw_features(sample)
        return (features - self.feature_mean.float().view(1, -1, 1, 1)) / self.feature_std.float().view(1, -1, 1, 1)

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if pixels or features would be divided by what is not above 0.
        """
        for name in ("pixel_std", "feature_std"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} holds a standard deviation that is not above 0.")

    def raw_features(self, sample):
        """The concatenated feature maps before standardisation, float32, (batch, num_features, grid, grid)."""
        image = ((sample + 1) / 2 - self.pixel_mean) / self.pixel_std
        grid_size = self.config.grid_size
        maps = self.backbone(image.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return torch.cat([_to_grid(feature_map.float(), grid_size) for feature_map in maps], dim=1)


def _create_backbone(name, strides):
    if not isinstance(name, str) or len(name) > MAX_TEXT or not timm.is_model(name):
        raise ValueError(f"timm has no model named {shown(name)}; `timm.list_models()` prints the names it knows.")
    try:
        available = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{name} cannot return intermediate features (timm's features_only): {error}") from error
    missing = [stride for stride in strides if stride not in available]
    if missing:
        raise ValueError(f"{name} has feature maps of strides {available}, not of {missing}; choose among them.")
    out_indices = tuple(available.index(stride) for stride in strides)
    backbone = timm.create_model(name, pretrained=False, features_only=True, out_indices=out_indices)
    if hasattr(backbone, "blocks"):  # timm's EfficientNet runs every stage, also those after the last one asked for
        last_stage = max(info["stage"] for info in backbone.feature_info.get_dicts())
        backbone.blocks = backbone.blocks[:last_stage]
    return backbone.to(memory_format=torch.channels_last)


def _to_grid(feature_map, grid_size):
    if feature_map.shape[-1] >= grid_size and feature_map.shape[-2] >= grid_size:
        return F.adaptive_avg_pool2d(feature_map, grid_size)
    return F.interpolate(feature_map, size=(grid_size, grid_size), mode="bilinear", align_corners=False)
