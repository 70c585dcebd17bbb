"""Memory of features of good parts: how far is the nearest one? (PatchCore, Roth et al. 2022, on whitened features).

Where parts lie in any pose, no Gaussian for a place of the image can know what is normal there; the nearest good
feature anywhere can. Filled by `training/fitting/feature_references.py` with a greedy coreset.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config

from .config_checks import check_whole
from .float32_component import Float32Component

KEPT_AT_ONCE = 512
"""Kept features that all places of a batch are compared with at once: with all of them, the distances fill memory."""


class FeatureMemory(Float32Component, ConfigMixin):
    """Distance of features from the nearest feature of a good part, at any place.

    Args:
        num_features (`int`): channels C of the features.
        grid_size (`int`): height and width of the grid; finer features are average-pooled to it.
        size (`int`): features kept.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["whitening", "bank"]

    @register_to_config
    def __init__(self, num_features: int = 192, grid_size: int = 32, size: int = 3000):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("grid_size", grid_size, 1, 1024)
        check_whole("size", size, 1, 1_000_000)
        self.register_buffer("whitening", torch.eye(num_features))
        self.register_buffer("bank", torch.zeros(size, num_features))

    def whitened(self, features):
        """Pooled, decorrelated features, one a row: (batch, C, height, width) to (batch * grid_size^2, C)."""
        pooled = F.adaptive_avg_pool2d(features.float(), self.config.grid_size)
        return pooled.permute(0, 2, 3, 1).reshape(-1, pooled.shape[1]) @ self.whitening

    def forward(self, features):
        """Distance of each place.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C, height, width), a multiple of the grid.

        Returns:
            `torch.Tensor`: Euclidean distance in the whitened space, divided by sqrt(C), float32,
            (batch, grid_size, grid_size).
        """
        size = self.config.grid_size
        rows = self.whitened(features)
        distances = [torch.cdist(rows, kept).amin(dim=1) for kept in self.bank.split(KEPT_AT_ONCE)]
        return torch.stack(distances).amin(dim=0).view(-1, size, size) / self.bank.shape[1] ** 0.5
