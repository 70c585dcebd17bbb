"""What a repair is made of besides the network: masks, a first guess, fine texture. Pure functions.

A defect is replaced from coarse to fine: brightness from its surroundings, structure by the diffusion model, and grain
that is too fine for the model from the most similar good places of the same image.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .anomaly_maps import smooth

PATCH, PATCH_STEP = 16, 4
"""Size and distance, in pixels, of the patches whose grain is transferred."""

SOURCE_STEP = 2
"""Distance in pixels between the patches that grain may come from."""

TARGETS_AT_ONCE = 64

NO_SOURCE = -(2**31)
"""Stands for an offset where no grain is transferred."""


def grow_mask(anomaly_map, seed_threshold, share):
    """Regions of a map that reach `seed_threshold`, down to where it has fallen to a share of that and of their peak.

    Args:
        anomaly_map (`torch.Tensor`): float, (height, width).
        seed_threshold (`float`): a region holds a pixel of at least this value, or the map's largest.
        share (`float`): in [0, 1].

    Returns:
        `torch.Tensor`: bool, (height, width), not empty unless the map's largest value is 0 or below.
    """
    highest = anomaly_map.max().item()
    if not highest > 0:
        return torch.zeros_like(anomaly_map, dtype=torch.bool)
    seed_threshold = min(seed_threshold, highest) if seed_threshold > 0 else highest
    region = _spread((anomaly_map >= seed_threshold).float(), anomaly_map >= share * seed_threshold) > 0
    peak = _spread(torch.where(region, anomaly_map, 0.0), region)
    return region & (anomaly_map >= share * peak)


def _spread(values, allowed):
    """Give every place that is allowed the largest value that can be reached from it through allowed places."""
    while True:
        grown = torch.where(allowed, dilate(values, 1), 0.0)
        if torch.equal(grown, values):
            return grown
        values = grown


def dilate(mask, radius):
    """Grow a mask, float, (…, height, width), by a square of `radius` pixels on each side."""
    if not radius:
        return mask
    maps = mask.reshape(-1, 1, *mask.shape[-2:])
    return F.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius).reshape(mask.shape)


def close(mask, radius):
    """Close gaps of a mask, bool, (height, width), narrower than twice `radius`, but not those to the border."""
    grown = dilate(F.pad(mask.float(), (radius,) * 4), radius)
    closed = 1 - dilate(1 - grown, radius) > 0
    height, width = mask.shape
    return closed[radius : radius + height, radius : radius + width]


def feather(mask, radius, sigma):
    """A soft mask in [0, 1] that is about 1 on `mask` and falls to exactly 0 outside of it.

    Args:
        mask (`torch.Tensor`): bool, (height, width).
        radius (`int`): pixels that it is grown by.
        sigma (`float`): standard deviation, in pixels, of the Gaussian that softens its edge; it ends at 4 of them.
    """
    return smooth(dilate(mask.float(), radius)[None, None], sigma)[0, 0].clamp(0, 1)


def fill_from_surroundings(sample, hole):
    """Replace what lies in the hole by a smooth continuation of its surroundings (a pyramid of local means).

    Args:
        sample (`torch.Tensor`): float, (batch, channel, height, width).
        hole (`torch.Tensor`): float, 1 in the hole and 0 elsewhere, (batch, 1, height, width).

    Returns:
        `torch.Tensor`: the shape of `sample`; 0 where nothing at all is known.
    """
    known = 1 - hole
    if min(sample.shape[-2:]) < 2:
        mean = (sample * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return known * sample + hole * mean
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(sample * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = fill_from_surroundings(coarse, (share == 0).float())
    return known * sample + hole * F.interpolate(coarse, size=sample.shape[-2:], mode="bilinear", align_corners=False)


def transfer_grain(resampled, sample, denoised, hole):
    """Give a resampled region the grain of the most similar places outside of it.

    A network leaves grain out of what it draws; what it leaves out of the image itself, `sample - denoised`, shows
    how the grain looks. For each patch that touches the hole, the patch outside of it is found that the network sees as
    most similar, and what the network left out there is added. Overlapping patches are averaged under a Hann window.

    Args:
        resampled (`torch.Tensor`): the image with its hole redrawn by the network, (1, 3, height, width).
        sample (`torch.Tensor`): the image itself.
        denoised (`torch.Tensor`): the image as the network draws it.
        hole (`torch.Tensor`): 1 in the hole and 0 elsewhere, (1, 1, height, width).

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `resampled` with grain in its hole, and where the grain of every block of
        `PATCH_STEP` pixels comes from: int64, (2, height / PATCH_STEP, width / PATCH_STEP), rows and columns from there
        to its source, or `NO_SOURCE` where nothing is transferred.
    """
    height, width = sample.shape[-2:]
    offsets = torch.full((2, height // PATCH_STEP, width // PATCH_STEP), NO_SOURCE, device=hole.device)
    sources = F.unfold(denoised.mean(dim=1, keepdim=True), PATCH, stride=SOURCE_STEP)[0].T
    grain = F.unfold(sample - denoised, PATCH, stride=SOURCE_STEP)[0].T
    free = (F.unfold(hole, PATCH, stride=SOURCE_STEP)[0].amax(dim=0) == 0).nonzero()[:, 0]
    if not len(free):
        return resampled, offsets
    border = (PATCH,) * 4
    framed = F.pad(resampled.mean(dim=1, keepdim=True), border, mode="reflect")
    targets = F.unfold(framed, PATCH, stride=PATCH_STEP)[0].T
    touched = F.unfold(F.pad(hole, border), PATCH, stride=PATCH_STEP)[0].amax(dim=0) > 0
    nearest = free[
        torch.cat([torch.cdist(few, sources[free]).argmin(dim=1) for few in targets[touched].split(TARGETS_AT_ONCE)])
    ]

    window = torch.hann_window(PATCH + 2, periodic=False, device=hole.device)[1:-1]
    window = (window[:, None] * window).flatten().repeat(3)
    weights = touched.float()[:, None] * window
    patches = torch.zeros_like(weights)
    patches[touched] = grain[nearest] * window
    total, weight = (F.fold(p.T[None], framed.shape[-2:], PATCH, stride=PATCH_STEP) for p in (patches, weights))
    added = (total / weight.clamp(min=1e-6))[..., PATCH:-PATCH, PATCH:-PATCH]

    # The patch in whose middle a block lies; patches start at the frame's corner, one patch outside of the image.
    per_row = (framed.shape[-1] - PATCH) // PATCH_STEP + 1
    sources_per_row = (width - PATCH) // SOURCE_STEP + 1
    place = touched.nonzero()[:, 0]
    row, column = place // per_row * PATCH_STEP - PATCH, place % per_row * PATCH_STEP - PATCH
    source_row, source_column = nearest // sources_per_row * SOURCE_STEP, nearest % sources_per_row * SOURCE_STEP
    block_row, block_column = ((start + PATCH // 2) // PATCH_STEP for start in (row, column))
    inside = (block_row >= 0) & (block_row < offsets.shape[1]) & (block_column >= 0)
    inside &= block_column < offsets.shape[2]
    found = torch.stack([source_row - row, source_column - column])
    offsets[:, block_row[inside], block_column[inside]] = found[:, inside]
    return resampled + hole * added, offsets


def shift_detail(detail, offsets, rows, columns, scale):
    """Detail of the image at its own size, fetched from where the grain of the same place came from.

    Args:
        detail (`np.ndarray`): what the model's square does not hold, (height, width, channel).
        offsets (`np.ndarray`): from `transfer_grain`, in pixels of the square.
        rows, columns (`np.ndarray`): int, (n,), places of the image where detail is wanted.
        scale (`tuple[float, float]`): height and width of the image in those of the square.

    Returns:
        `np.ndarray`: (n, channel); 0 where nothing is transferred.
    """
    blocks = [
        np.minimum(places / factor / PATCH_STEP, length - 1).astype(int)
        for places, factor, length in zip((rows, columns), scale, offsets.shape[1:], strict=True)
    ]
    offset = offsets[:, blocks[0], blocks[1]]
    has_source = offset[0] != NO_SOURCE
    sources = [
        np.clip(np.rint(places + shift * factor).astype(int), 0, length - 1)
        for places, shift, factor, length in zip((rows, columns), offset, scale, detail.shape[:2], strict=True)
    ]
    return np.where(has_source[:, None], detail[sources[0], sources[1]], 0)
