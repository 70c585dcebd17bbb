"""From maps per timestep to one anomaly map and one score: smoothing, blend of Eq. 11, image score."""

import torch
import torch.nn.functional as F

WORST_SHARE = 0.01
"""The image score is the mean of this share of the anomaly map's largest values."""


def smooth(maps, sigma):
    """Gaussian filter with reflected borders over the last two axes; `sigma` in pixels, 0 leaves the maps as they are.

    Args:
        maps (`torch.Tensor`): float, (batch, channel, height, width).
        sigma (`float`): deviation in pixels.
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
    """Eq. 11 after averaging over timesteps: alpha of the pixel part and 1 - alpha of the feature part."""
    return alpha * kl_map + (1 - alpha) * feature_map


def resize_map(anomaly_map, size):
    """Bring a map, (height, width), or several, (channel, height, width), to `size` (height, width), bilinearly."""
    maps = anomaly_map.reshape(1, -1, *anomaly_map.shape[-2:])
    resized = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.reshape(*anomaly_map.shape[:-2], *size)


def image_score(anomaly_map):
    """Mean of the largest values (`WORST_SHARE` of them) of each map, (batch, height, width) to (batch,)."""
    flat = anomaly_map.flatten(1)
    return flat.topk(max(1, round(WORST_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)
