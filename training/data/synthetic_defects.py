"""Synthetic defects put into good images: what separates them can be chosen without ever seeing a real defect.

Each kind changes a region of random place, size, shape and strength, in ways that defects of manufactured parts differ
from good ones: something is darker or brighter, scratched, displaced, smeared, or looks like another place of a part.
"""

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_opening, gaussian_filter, map_coordinates
from torch.utils.data import Dataset

MIN_AREA, MAX_AREA = 0.002, 0.08
"""Share of the image that a region covers; drawn log-uniformly between them."""

MIN_SHIFT, MAX_SHIFT = 0.05, 0.8
"""Change of brightness in [-1, 1]; drawn log-uniformly, darker or brighter."""

VISIBLE = 0.03
"""A pixel is defective if it has changed by more than this; 1/255 of the range is 0.008."""

MIN_VISIBLE_PIXELS = 20
MAX_ATTEMPTS = 20
CONTRAST_SHARE = 0.8
"""This share of the regions is placed where the image has edges and texture, the rest anywhere."""


class SyntheticDefects(Dataset):
    """Good images, each with one synthetic defect: samples, (3, height, width), and masks, bool, (height, width).

    The defect depends on the seed and the place in the sequence alone. An image that comes again gets another
    defect, and every kind of defect comes equally often.

    Args:
        images (`GoodImages`): the images, which also serve as donors of pasted patches.
        length (`int`): how many are served.
        seed (`int`): draws places, sizes, shapes and strengths.
    """

    def __init__(self, images, length, seed=0):
        self.images = images
        self.length = length
        self.seed = seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, index))
        kind = list(KINDS)[index % len(KINDS)]
        good, donor = self.images[index % len(self.images)], self.images[int(random.integers(len(self.images)))]
        sample, mask = add_defect(good.numpy(), donor.numpy(), kind, random)
        return torch.from_numpy(sample), torch.from_numpy(mask)


def add_defect(sample, donor, kind, random):
    """Put one defect into an image.

    Args:
        sample (`np.ndarray`): good image, float32 in [-1, 1], (3, height, width).
        donor (`np.ndarray`): another one, the same shape.
        kind (`str`): one of `KINDS`.
        random (`np.random.Generator`): draws everything else.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the image with the defect, float32, and the mask of its pixels, bool.
    """
    chance = _placement(sample)
    best, best_mask = sample, np.zeros(sample.shape[1:], bool)
    for _ in range(MAX_ATTEMPTS):
        changed = np.clip(KINDS[kind](sample, donor, chance, random), -1, 1).astype(np.float32)
        mask = gaussian_filter(np.abs(changed - sample).max(axis=0), 1.0) > VISIBLE
        mask |= binary_closing(mask, iterations=3)  # texture that is changed here and there is one defect
        if mask.sum() > best_mask.sum():
            best, best_mask = changed, mask
        if best_mask.sum() >= MIN_VISIBLE_PIXELS:
            break
    return best, best_mask


def _stain(sample, donor, chance, random):
    return sample + _shift(random, sample) * _region(sample.shape[1:], chance, random)


def _shade(sample, donor, chance, random):
    soft = gaussian_filter(_region(sample.shape[1:], chance, random, scale=3.0), sample.shape[-1] / 40)
    return sample + 0.5 * _shift(random, sample) * soft


def _scratch(sample, donor, chance, random):
    """A smooth curve of one to four pixels' width: its direction takes a random walk."""
    height, width = sample.shape[1:]
    length = int(np.exp(random.uniform(np.log(0.08), np.log(0.6))) * width)
    direction = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, random.uniform(0, 0.08), length))
    y, x = _centre(chance, random)
    rows = np.round(y + np.cumsum(np.sin(direction))).astype(int)
    columns = np.round(x + np.cumsum(np.cos(direction))).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    line = np.zeros((height, width))
    line[rows[inside], columns[inside]] = 1
    line = gaussian_filter(line, random.uniform(0.7, 1.6) * width / 256)
    return sample + _shift(random, sample) * np.clip(1.5 * line / max(line.max(), 1e-12), 0, 1)


def _patch(sample, donor, chance, random):
    """A piece of the donor from elsewhere, turned by any angle."""
    region = _region(sample.shape[1:], chance, random)
    return region * _transformed(donor, random) + (1 - region) * sample


def _smear(sample, donor, chance, random):
    region = _region(sample.shape[1:], chance, random)
    sigma = random.uniform(2, 6) * sample.shape[-1] / 256
    return region * gaussian_filter(sample, (0, sigma, sigma)) + (1 - region) * sample


def _bend(sample, donor, chance, random):
    """What lies in the region is displaced by up to its own radius."""
    region = gaussian_filter(_region(sample.shape[1:], chance, random, scale=2.0), 2)
    radius = np.sqrt(max(region.sum(), 1) / np.pi)
    angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.3, 1.0) * radius
    grid = np.mgrid[: sample.shape[1], : sample.shape[2]].astype(float)
    places = grid + distance * region * np.array([np.sin(angle), np.cos(angle)])[:, None, None]
    return np.stack([map_coordinates(channel, places, order=1, mode="reflect") for channel in sample])


KINDS = {"stain": _stain, "scratch": _scratch, "patch": _patch, "smear": _smear, "bend": _bend, "shade": _shade}


def _placement(sample):
    """Probability of each pixel to be the centre of a defect, (height, width)."""
    grey = sample.mean(axis=0)
    energy = gaussian_filter(np.hypot(*np.gradient(gaussian_filter(grey, 1.0))), grey.shape[-1] / 32)
    energy = energy / max(energy.sum(), 1e-12)
    return CONTRAST_SHARE * energy + (1 - CONTRAST_SHARE * energy.sum()) / energy.size


def _centre(chance, random):
    flat = np.cumsum(chance.ravel())
    return np.unravel_index(min(np.searchsorted(flat, random.uniform(0, flat[-1])), flat.size - 1), chance.shape)


def _region(shape, chance, random, scale=1.0):
    """An irregular region with soft edges, float in [0, 1], (height, width)."""
    area = scale * np.exp(random.uniform(np.log(MIN_AREA), np.log(MAX_AREA))) * shape[0] * shape[1]
    radius = np.sqrt(area / np.pi)
    stretch, angle = np.exp(random.uniform(-0.8, 0.8)), random.uniform(0, np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(_centre(chance, random))[:, None, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(along / stretch, across * stretch) / radius
    wobble = gaussian_filter(random.normal(size=shape), max(radius / 2, 1))
    region = distance + 0.35 * wobble / max(wobble.std(), 1e-12) < 1
    opened = binary_opening(region, iterations=1)
    return gaussian_filter((opened if opened.any() else region).astype(float), random.uniform(0.7, 1.5))


def _shift(random, sample):
    """Change of brightness, mostly the same in all channels, (3, 1, 1)."""
    shift = np.exp(random.uniform(np.log(MIN_SHIFT), np.log(MAX_SHIFT))) * random.choice([-1, 1])
    is_grey = np.ptp(sample, axis=0).max() < VISIBLE
    tint = np.ones(3) if is_grey else random.uniform(0.5, 1.0, 3)
    return (shift * tint)[:, None, None]


def _transformed(donor, random):
    """The donor rotated by any angle, perhaps mirrored, and moved, with reflected borders."""
    height, width = donor.shape[1:]
    angle, mirror = random.uniform(0, 2 * np.pi), random.choice([-1, 1])
    offset = random.uniform(-0.5, 0.5, 2) * (height, width)
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    rows = np.cos(angle) * y - np.sin(angle) * x * mirror + height / 2 + offset[0]
    columns = np.sin(angle) * y + np.cos(angle) * x * mirror + width / 2 + offset[1]
    return np.stack([map_coordinates(channel, [rows, columns], order=1, mode="reflect") for channel in donor])
