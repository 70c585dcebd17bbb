"""FeatureGaussian, in one file made of 4 modules; change those, not this copy.

Each after those that it needs: config_checks, safetensors_only, float32_component, feature_gaussian.
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


# %% feature_gaussian: needs config_checks, float32_component
"""Multivariate Gaussian of the features of good parts, one for each place of the image (PaDiM, Defard et al. 2020).

It goes beyond PaDiM where few good images are at hand: neighbouring places may share a covariance, and all of them
are shrunk towards the common one. Fitted by `training/fitting/feature_references.py`.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


LARGEST_CODE = 127
"""Whitening matrices are stored as whole numbers up to this one: half the space of float16. On tiles, screws and boards
it moves image AUROC by at most 0.002."""


class FeatureGaussian(Float32Component, ConfigMixin):
    """Mahalanobis distance of features from those of good parts at the same place.

    Args:
        num_features (`int`): channels C that are looked at: of features with more, the last ones, which are those of
            the coarsest strides.
        grid_size (`int`): height and width of the grid of means; finer features are average-pooled to it.
        num_cells (`int`): height and width of the coarser grid of covariances; divides `grid_size`.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["mean", "whitening_scale"]

    @register_to_config
    def __init__(self, num_features: int = 192, grid_size: int = 32, num_cells: int = 16):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("grid_size", grid_size, 1, 1024)
        check_whole("num_cells", num_cells, 1, 1024)
        if grid_size % num_cells:
            raise ValueError(f"num_cells {num_cells} does not divide grid_size {grid_size}.")
        self.register_buffer("mean", torch.zeros(num_features, grid_size, grid_size))
        packed = num_features * (num_features + 1) // 2
        self.register_buffer("packed_whitening", torch.zeros(num_cells**2, packed, dtype=torch.int8))
        self.register_buffer("whitening_scale", torch.ones(num_cells**2, num_features))
        self._whitening = None

    def set_covariance(self, covariance):
        """Keep the inverse Cholesky factor L^-1 of each cell's covariance L L^T, as whole numbers and a scale a row.

        Args:
            covariance (`torch.Tensor`): positive definite, (num_cells^2, C, C), cells in row-major order.
        """
        factor = torch.linalg.cholesky(covariance.double())
        identity = torch.eye(factor.shape[-1], dtype=torch.float64, device=factor.device).expand_as(factor)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        scale = (whitening.abs().amax(dim=2) / LARGEST_CODE).half()  # as checkpoints store it
        self.whitening_scale.copy_(scale)
        codes = (whitening / scale.double()[..., None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        rows, columns = torch.tril_indices(*whitening.shape[-2:])
        self.packed_whitening.copy_(codes[:, rows, columns])
        self._whitening = None

    def forward(self, features):
        """Distance of each place.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C or more, height, width), a multiple of the grid.

        Returns:
            `torch.Tensor`: Mahalanobis distance divided by sqrt(C), about 1 for a good part, float32,
            (batch, grid_size, grid_size).
        """
        cells, size = self.config.num_cells, self.config.grid_size
        features = features[:, -self.config.num_features :].float()
        deviation = F.adaptive_avg_pool2d(features, size) - self.mean
        white = self._unpacked() @ by_cell(deviation, cells)
        inside = size // cells
        distance = white.square().mean(dim=1).sqrt().view(cells, cells, features.shape[0], inside, inside)
        return distance.permute(2, 0, 3, 1, 4).reshape(-1, size, size)

    def _unpacked(self):
        """L^-1 of each cell, (num_cells^2, C, C), unpacked once."""
        if self._whitening is None or self._whitening.device != self.packed_whitening.device:
            channels = self.config.num_features
            with torch.inference_mode(False), torch.no_grad():  # kept beyond a call that may be one of inference
                codes, scale = self.packed_whitening, self.whitening_scale
                whitening = scale.new_zeros(len(codes), channels, channels)
                rows, columns = torch.tril_indices(channels, channels, device=whitening.device)
                whitening[:, rows, columns] = codes.to(scale.dtype)
                self._whitening = whitening.mul_(scale[..., None])
        return self._whitening


def by_cell(features, num_cells):
    """Sort places by cell: (batch, C, size, size) to (num_cells^2, C, batch * places in a cell), row-major cells."""
    batch, channels, size, _ = features.shape
    inside = size // num_cells
    places = features.reshape(batch, channels, num_cells, inside, num_cells, inside).permute(2, 4, 1, 0, 3, 5)
    return places.reshape(num_cells**2, channels, -1)
