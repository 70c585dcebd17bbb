"""The endless sequence of good images that is trained on: shuffled, and each rotated a little at random."""

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2


class ShuffledRotatedImages(Dataset):
    """An endless shuffled sequence of good images, each rotated at random, cut to `start` … `start + length`.

    Image and rotation at a place of the sequence depend on the seed and the place alone: not on the number of
    workers or processes, nor on where an interrupted run takes it up again.

    Args:
        categories (`list[GoodImages]`): the images of each category. Categories take turns, however many images
            they have; within one each image comes once before any comes again.
        length (`int`): how many places of the sequence are served.
        rotation_degrees (`float`): largest rotation either way; borders are reflected, so that no corner turns black.
        seed (`int`): fixes order and rotations.
        start (`int`): first place served.

    Returns:
        `tuple[torch.Tensor, int, int]`: a sample as in `GoodImages`, the number of its category, and its place.
    """

    def __init__(self, categories, length, rotation_degrees, seed, start=0):
        self.categories = categories
        self.length = length
        self.rotation_degrees = rotation_degrees
        self.seed = seed
        self.start = start
        self._orders = {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        label, epoch, place = self._locate(self.start + index)
        sample = self.categories[label][int(self._order(label, epoch)[place])]
        rotated = rotate_at_random(sample, self.rotation_degrees, (self.seed, label, epoch, place))
        return rotated, label, self.start + index

    @property
    def num_images(self):
        """Of all categories."""
        return sum(map(len, self.categories))

    def image_at(self, place):
        """Which image, before it is rotated, is at a place: its category and its number there, `tuple[int, int]`."""
        label, epoch, place = self._locate(place)
        return label, int(self._order(label, epoch)[place])

    def _locate(self, place):
        """Category, epoch and place within the epoch of a place in the whole sequence."""
        turn, label = divmod(place, len(self.categories))
        return label, *divmod(turn, len(self.categories[label]))

    def _order(self, label, epoch):
        if self._orders.get(label, (None,))[0] != epoch:
            shuffled = np.random.default_rng((self.seed, label, epoch)).permutation(len(self.categories[label]))
            self._orders[label] = epoch, shuffled
        return self._orders[label][1]


def rotate_at_random(sample, limit, place):
    """Rotate a sample by up to `limit` degrees either way; `place`, a tuple of whole numbers, fixes how far."""
    return _rotate(sample, float(np.random.default_rng(place).uniform(-1, 1)) * limit)


def _rotate(sample, degrees):
    """Rotate about the centre with reflected borders, (channel, height, width)."""
    if degrees == 0:
        return sample
    size = sample.shape[-1]
    angle = np.deg2rad(abs(degrees))
    border = int(np.ceil(size / 2 * (np.cos(angle) + np.sin(angle) - 1))) + 1
    padded = torch.nn.functional.pad(sample[None], [border] * 4, mode="reflect")[0]
    rotated = v2.functional.rotate(padded, degrees, interpolation=v2.InterpolationMode.BILINEAR)
    return v2.functional.center_crop(rotated, [size, size])
