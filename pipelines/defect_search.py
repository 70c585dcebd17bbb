"""Where the defect of an image is that is to be repaired: what is marked, and the hole with its soft edge."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .anomaly_maps import blend, render
from .repair_masks import close, feather, grow_mask

MASK_SHARE, WIDE_MASK_SHARE = 0.75, 0.35
"""The found mask reaches down to this share of the pixel threshold and of a region's peak, in the last of several
searches down to the second. What a mask leaves out is found in the next search; where it takes in too much, structure
is lost that no network of this size draws again."""

RATE_GROWTH, LARGEST_RATE = 4, 0.5
"""The pixel threshold is that of the false alarm rate in the first search, and of so many times the last one's rate in
each further one, up to the largest: what stands out in an image that is still rejected is likely a defect, too."""

CLOSING = 1 / 16
"""Gaps in the found mask are closed that are narrower than twice this share of the model's square: inside of a large
defect, where a map may be weaker than at its edge."""

FOUND_GROWTH, GIVEN_GROWTH, FEATHER_SIGMA = 1 / 64, 1 / 128, 1.5 / 256
"""What a found mask and a given one are grown by, and the standard deviation of a mask's soft edge, as shares of the
model's square. A map may end within a defect; who gives a mask knows where it ends."""


class RepairMask(NamedTuple):
    """What is replaced.

    Args:
        marked (`torch.Tensor`): what was found or given, bool, (height, width).
        soft (`torch.Tensor`): how much of what is drawn shows, float in [0, 1], (1, 1, height, width).
        hole (`torch.Tensor`): 1 where anything of it shows, else 0, of the same shape.
    """

    marked: torch.Tensor
    soft: torch.Tensor
    hole: torch.Tensor


def find_defect(pipe, components, rate, search=0, share=MASK_SHARE):
    """What scoring marks: regions of the map around the pixels that exceed the threshold.

    Args:
        pipe (`GradientDenoisePipeline`): of the image's category.
        components (`torch.Tensor`): as its `score` returns them, (1, 2, grid, grid).
        rate (`float`): the false alarm rate.
        search (`int`): how often was searched before; each time the threshold falls.
        share (`float`): of the threshold and a region's peak that the mask reaches down to.

    Returns:
        `torch.Tensor`: bool, (resolution, resolution).
    """
    config, timesteps = pipe.config, list(pipe.config.timesteps)
    anomaly_map = blend(*render(components, pipe.resolution, config.smoothing_sigma)[0], pipe.alpha)
    rate = max(rate, min(rate * RATE_GROWTH**search, LARGEST_RATE))
    threshold = pipe.calibration.pixel_threshold(rate, pipe.alpha, timesteps, pipe.uses_bfloat16())
    return close(grow_mask(anomaly_map, threshold, share), round(CLOSING * pipe.resolution))


def with_soft_edge(marked, growth):
    """The `RepairMask` of what is marked, bool, (size, size), grown by a share of the square."""
    size = len(marked)
    soft = torch.zeros(marked.shape, device=marked.device)
    if marked.all():
        soft = torch.ones_like(soft)
    elif marked.any():
        soft = feather(marked, max(1, round(growth * size)), FEATHER_SIGMA * size)
    soft = soft[None, None]
    return RepairMask(marked, soft, (soft > 0).float())


def squash_mask(mask, resolution):
    """Bring a mask, (height, width), to the model's square: a pixel is marked if anything in it is."""
    return F.adaptive_max_pool2d(mask.float()[None, None], resolution)[0, 0] > 0
