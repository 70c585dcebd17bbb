"""Rivals on the same backbone and images: PaDiM, PatchCore and SPADE's nearest neighbours, by hand.

Each takes an extractor, good training images and test images, both as iterables of batches in [-1, 1], (batch, 3,
height, width), and returns one map a test image on its grid. The training images are all the good ones: a rival
holds none back for calibration.
"""

import numpy as np
import torch
import torch.nn.functional as F

from training.fitting.feature_references import greedy_coreset

PADIM_REGULARIZATION = 0.01
PADIM_REDUCED = 100
"""Random channels that PaDiM's reduced form keeps for EfficientNet-sized features (paper: 100 of ResNet-18's 448)."""

PADIM_STRIDES, PATCHCORE_STRIDES = (4, 8, 16), (8, 16)
"""Of the features that their own implementations look at."""

PATCHCORE_GRID = 32
PATCHCORE_SHARE = 0.01
SPADE_IMAGES = 50
SPADE_NEIGHBOURS = 5


@torch.inference_mode()
def padim(extractor, training, test, generator, strides=(2, 4, 8, 16), num_channels=None):
    """Mahalanobis distance, (images, grid, grid), from a Gaussian with full covariance at each place.

    Args:
        strides (`tuple[int]`): of the features that are kept.
        num_channels (`int`, *optional*): random channels of these that are kept; all by default.
    """
    channels = _channels_of(extractor, strides)
    if num_channels:
        channels = channels[torch.randperm(len(channels), generator=generator)[:num_channels].sort().values]
    good = torch.cat([extractor.raw_features(batch)[:, channels].half() for batch in training])
    new = torch.cat([extractor.raw_features(batch)[:, channels].half() for batch in test])
    grid = good.shape[-1]
    good, new = (features.flatten(2).permute(2, 0, 1) for features in (good, new))  # (places, images, channels)
    distances = torch.empty(grid * grid, new.shape[1])
    for start in range(0, grid * grid, 64):
        place = slice(start, start + 64)
        mean = good[place].float().mean(dim=1, keepdim=True)
        deviation = good[place].float() - mean
        covariance = deviation.transpose(1, 2) @ deviation / (deviation.shape[1] - 1)
        factor = torch.linalg.cholesky(covariance + PADIM_REGULARIZATION * torch.eye(len(channels)))
        white = torch.linalg.solve_triangular(factor, (new[place].float() - mean).transpose(1, 2), upper=False)
        distances[place] = white.square().sum(dim=1).sqrt()
    return distances.T.reshape(-1, grid, grid)


def _channels_of(extractor, strides):
    """Where the features of some strides are among all, int64, (channels,)."""
    counts = extractor.backbone.feature_info.channels()
    stride_of = np.repeat(extractor.config.feature_strides, counts)
    return torch.from_numpy(np.flatnonzero(np.isin(stride_of, strides)))


@torch.inference_mode()
def patchcore(extractor, training, test, generator, strides=(2, 4, 8, 16)):
    """Distance, (images, 32, 32), to the nearest of a greedy coreset of 1 % of all good patch features.

    Features are averaged over 3×3 neighbours at their own stride first, as PatchCore does.
    """
    good = torch.cat([_patches(extractor, batch, strides) for batch in training])
    bank = good[greedy_coreset(good, max(1, int(PATCHCORE_SHARE * len(good))), generator)]
    return torch.cat(
        [
            torch.cdist(_patches(extractor, batch, strides), bank).amin(dim=1).view(-1, PATCHCORE_GRID, PATCHCORE_GRID)
            for batch in test
        ]
    )


def _patches(extractor, batch, strides):
    image = ((batch + 1) / 2 - extractor.pixel_mean) / extractor.pixel_std
    maps = extractor.backbone(image.contiguous(memory_format=torch.channels_last))
    chosen = []
    for stride, feature_map in zip(extractor.config.feature_strides, maps, strict=True):
        if stride in strides:
            averaged = F.avg_pool2d(feature_map, 3, stride=1, padding=1)
            if averaged.shape[-1] >= PATCHCORE_GRID:
                chosen.append(F.adaptive_avg_pool2d(averaged, PATCHCORE_GRID))
            else:
                chosen.append(F.interpolate(averaged, size=(PATCHCORE_GRID,) * 2, mode="bilinear"))
    return torch.cat(chosen, dim=1).permute(0, 2, 3, 1).flatten(0, 2)


@torch.inference_mode()
def spade(extractor, training, test, generator):
    """Distance, (images, 32, 32), to features of the most similar good images (SPADE, Cohen and Hoshen 2020).

    The nearest good images are found by pooled features, then each place by its nearest features in those. The
    image's own distance, SPADE's image score, is not used: maps are judged like everyone else's.
    """
    del generator  # nothing is drawn
    good = torch.cat([_gallery(extractor, batch) for batch in training])
    pooled = good.mean(dim=2)
    maps = []
    for batch in test:
        for features in _gallery(extractor, batch):
            nearest = torch.cdist(features.mean(dim=1)[None], pooled)[0].topk(
                min(SPADE_IMAGES, len(good)), largest=False
            )
            gallery = good[nearest.indices].permute(0, 2, 1).reshape(-1, features.shape[0])
            distances = torch.cdist(features.T, gallery).topk(SPADE_NEIGHBOURS, largest=False).values.mean(dim=1)
            maps.append(distances.view(PATCHCORE_GRID, PATCHCORE_GRID))
    return torch.stack(maps)


def _gallery(extractor, batch):
    return F.adaptive_avg_pool2d(extractor.raw_features(batch), PATCHCORE_GRID).flatten(2)
