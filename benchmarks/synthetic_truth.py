"""Clear synthetic defects in good images at their own size, and what a repair leaves of them: the truth is known."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from training.data.image_reading import read_as_8_bits
from training.data.synthetic_defects import add_defect

KINDS = ("stain", "scratch", "patch", "missing")

MAX_SIDE = 512
"""Larger images are scaled down to this many pixels before a defect is put into them, for the sake of time."""

STRENGTH = 2.0
"""A synthetic defect changes its pixels by at least this many standard deviations of the texture (root mean square)."""

ALWAYS_CLEAR = 0.25
"""A change of this much, of a range of 2, is clear on any image: one in black and white is all texture."""

TEXTURE_SIGMA = 1 / 32
"""Texture is what a Gaussian filter takes away whose deviation is this share of the image's shorter side."""

MAX_ATTEMPTS = 50


@dataclass
class DefectiveImage:
    """A good image, the same with a defect, (3, height, width) in [-1, 1], and the defect's pixels, bool."""

    kind: str
    good: np.ndarray
    defective: np.ndarray
    mask: np.ndarray


def add_clear_defects(samples, count, seed=0):
    """Put `count` clear defects into good images, every kind equally often.

    Args:
        samples (`list[np.ndarray]`): good images, (3, height, width) in [-1, 1], of any sizes.
        count (`int`): how many.
        seed (`int`): draws everything.

    Raises:
        ValueError: if no clear defect can be put into some image.
    """
    found = []
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        good = samples[index % len(samples)]
        sigma = TEXTURE_SIGMA * min(good.shape[1:])
        texture = (good - gaussian_filter(good, (0, sigma, sigma))).std()
        clear = min(STRENGTH * texture, ALWAYS_CLEAR)
        for attempt in range(MAX_ATTEMPTS):
            random = np.random.default_rng((seed, index, attempt))
            donor = _resized(samples[int(random.integers(len(samples)))], good.shape[1:])
            defective, mask = add_defect(good, donor, "stain" if kind == "missing" else kind, random)
            if kind == "missing":
                defective = _without(good, mask)
            if mask.any() and np.sqrt(((defective - good)[:, mask] ** 2).mean()) > clear:
                break
        else:
            raise ValueError(f"no clear {kind} could be put into good image {index % len(samples)}.")
        found.append(DefectiveImage(kind, good, defective, mask))
    return found


def read_good(path, white_level):
    """A good image as `plant_defects` takes it; `white_level` is white in one of 16 bits."""
    image = read_as_8_bits(path, white_level)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return as_sample(np.asarray(image))


def _resized(sample, size):
    return np.stack([np.asarray(Image.fromarray(channel).resize(size[::-1])) for channel in sample])


def _without(good, mask):
    """A piece is missing: an even dark or light grey of the image is seen there, the one that differs more."""
    greys = np.quantile(good.mean(axis=0), [0.02, 0.98])
    grey = greys[np.abs(greys - good[:, mask].mean()).argmax()] if mask.any() else greys[0]
    return np.where(mask, grey, good).astype(np.float32)


def structural_similarity(first, second):
    """SSIM of each pixel (Wang et al. 2004, Gaussian window of 1.5 pixels) of two grey images in [-1, 1]."""

    def mean(values):
        return gaussian_filter(values, 1.5, truncate=3.5)

    mean1, mean2 = mean(first), mean(second)
    variance1, variance2 = mean(first**2) - mean1**2, mean(second**2) - mean2**2
    covariance = mean(first * second) - mean1 * mean2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return ((2 * mean1 * mean2 + c1) * (2 * covariance + c2)) / (
        (mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2)
    )


def compare(synthetic, repaired):
    """Share of the defect's squared error that is left inside of its mask, and PSNR and SSIM outside of it."""
    inside, outside = synthetic.mask, ~synthetic.mask
    before, after = ((image - synthetic.good) ** 2 for image in (synthetic.defective, repaired))
    mean_square = max(after[:, outside].mean(), 1e-10)
    similarity = structural_similarity(synthetic.good.mean(axis=0), repaired.mean(axis=0))
    return (
        after[:, inside].sum() / before[:, inside].sum(),
        10 * np.log10(4 / mean_square),
        similarity[outside].mean(),
    )


def as_image(sample):
    """A sample, (3, height, width) in [-1, 1], as an 8-bit image."""
    return Image.fromarray(np.rint((sample.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8))


def as_sample(image):
    """An 8-bit image, (height, width, 3), as a sample."""
    return image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
