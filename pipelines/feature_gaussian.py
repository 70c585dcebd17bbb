"""Multivariate Gaussian of the features of good parts, one for each place of the image (PaDiM, Defard et al. 2020).

It goes beyond PaDiM where few good images are at hand: neighbouring places may share a covariance, and all of them
are shrunk towards the common one. Fitted by `training/fitting/feature_references.py`.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config

from .config_checks import check_whole
from .float32_component import Float32Component

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
