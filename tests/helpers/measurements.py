"""Measurements that are drawn."""

import torch

from pipelines.measurement import Measurement


def images(count, seed, shift=0.0):
    """Measurement of made-up images, each with its own level of normal errors."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(count, 1, 1, 1, generator=generator) + shift
    kl, feature_error = (level + 0.1 * torch.randn(count, 1, 4, 4, generator=generator) for _ in range(2))
    return Measurement(kl, feature_error, kl[:, :0], kl[:, 0, 0, 0])
