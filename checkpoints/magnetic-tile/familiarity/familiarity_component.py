"""FeatureFamiliarity, in one file made of 4 modules; change those, not this copy.

Each after those that it needs: config_checks, safetensors_only, float32_component, feature_familiarity.
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


# %% feature_familiarity: needs config_checks, float32_component
"""Is this the kind of image that the model was trained on at all? Mean and spread of its features as a whole tell.

A defect is local; another part, another camera or an image of nothing changes the features nearly everywhere. Mean and
standard deviation of each feature channel over the image sum up what it looks like as a whole (the "style" of Huang and
Belongie 2017), and the Mahalanobis distance from those of good images says how far it is from all of them (Lee et al.
2018). Fitted by `training/fitting/familiarity.py`; the limit is that of `ScoreCalibration`.
"""

from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


FLAT = 0.75
"""An image whose features vary less than this share of the flattest image that was trained on shows next to nothing."""


MIN_SPREAD = 1e-3


class FeatureFamiliarity(Float32Component, ConfigMixin):
    """Mahalanobis distance of an image's feature statistics from those of the images that were trained on.

    Their covariance is a ridge in every direction plus what a few principal axes have beyond it. Where good parts
    differ much, an image of nothing may be nearer to their mean than any of them; so the distance of one that is
    flatter than `FLAT` allows grows with the square of how much flatter it is.

    Args:
        num_features (`int`): channels C of the features.
        num_axes (`int`): principal axes that are kept.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["mean", "axes", "axis_variances", "ridge", "flattest"]

    @register_to_config
    def __init__(self, num_features: int = 192, num_axes: int = 64):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("num_axes", num_axes, 0, 2 * num_features)
        self.register_buffer("mean", torch.zeros(2 * num_features))
        self.register_buffer("axes", torch.zeros(num_axes, 2 * num_features))
        self.register_buffer("axis_variances", torch.ones(num_axes))
        self.register_buffer("ridge", torch.ones(1))
        self.register_buffer("flattest", torch.ones(1))

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if something would be divided by what is not above 0.
        """
        if not (self.axis_variances > 0).all() or not (self.ridge > 0).all():
            raise ValueError("axis_variances or ridge holds a variance that is not above 0.")

    def forward(self, features):
        """Distance of each image.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C, height, width).

        Returns:
            `torch.Tensor`: Mahalanobis distance divided by sqrt(2 C), float32, (batch,), about 1 for a good image.
        """
        return self.distance(image_statistics(features))

    def distance(self, statistics):
        """As `forward`, of `image_statistics`, (batch, 2 C)."""
        deviation = statistics - self.mean
        along = deviation @ self.axes.T
        across = deviation - along @ self.axes
        squared = (along.square() / self.axis_variances).sum(dim=1) + across.square().sum(dim=1) / self.ridge
        flatter = FLAT * self.flattest / spread_of(statistics).clamp(min=MIN_SPREAD)
        return (squared / deviation.shape[1]).sqrt() * flatter.clamp(min=1).square()


def image_statistics(features):
    """Mean and standard deviation of each channel over the image, (batch, 2 C), of features, (batch, C, …), float32."""
    std, mean = torch.std_mean(features.float().flatten(2), dim=2, correction=0)
    return torch.cat([mean, std], dim=1)


def spread_of(statistics):
    """How much the features vary within an image, on average over the channels, (batch,), of `image_statistics`."""
    return statistics[:, statistics.shape[1] // 2 :].mean(dim=1)
