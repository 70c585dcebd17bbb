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

from .config_checks import check_whole
from .float32_component import Float32Component

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
