"""Good images from a data set that is read while training: a bounded sample first, then pass after pass.

Nothing but the sample is kept on the disk.
"""

import logging
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from pipelines.image_preprocessing import preprocess, to_rgb
from training.data.augmentation import rotate_at_random
from training.data.groups import group_rule
from training.data.hub_dataset import data_set_sentences
from training.data.hub_images import HubImage, key_of
from training.data.image_reading import read_image
from training.data.near_identical import LookAlikes

SAMPLE_SIZE = 1024
"""So many images, the first of a shuffled pass, are split into those held out and those that statistics and
references are fitted to."""

SHUFFLE_BUFFER = 256
"""Rows that wait to be drawn from."""

MAX_RUNS = 64
"""A pass takes the files of a data set in at most so many runs, in a random order."""

SAMPLE_PASS, FIRST_PASS = 0, 1

logger = logging.getLogger(__name__)


class ImageStream:
    """The readable good images of a data set, shuffled anew for each pass.

    Args:
        source (`GoodRows`): a stream.
        seed (`int`): draws the order of every pass.
        held_out (`HeldOutOfStream`, *optional*): says which images are never served.
    """

    def __init__(self, source, seed, held_out=None):
        self.source, self.seed, self.held_out = source, seed, held_out

    def images(self, number):
        """Yield name, key, content and decoded image (`PIL.Image`) of one pass.

        The order depends on the seed, the pass's number and the commit alone, for the same version of `datasets`.
        """
        rows = shuffled(self.source.rows, np.random.default_rng((self.seed, number)))
        for name, content, refusal, group in self.source.fetch(filter(self.source.is_good, rows)):
            try:
                if refusal is not None:
                    raise refusal
                key = key_of(content)
                image = read_image(BytesIO(content), name)
                if self.held_out is not None and self.held_out.contains(name, key, group, image):
                    continue
            except ValueError as error:
                if number <= FIRST_PASS:
                    logger.warning("left out: %s", error)
                continue
            yield name, key, content, image, group

    def take_sample(self, folder, size=SAMPLE_SIZE):
        """Keep the first images of a pass of their own in a folder, `list[HubImage]`; copies are left out.

        Raises:
            ValueError: if the Hub, the network or the disk does not allow it.
        """
        sample = {}
        with data_set_sentences(self.source.name, self.source.token):
            for name, key, content, _, group in tqdm(
                islice(self.images(SAMPLE_PASS), size), total=size, desc="checking images", unit="image"
            ):
                if key not in sample:
                    path = Path(folder, key)
                    path.write_bytes(content)
                    sample[key] = HubImage(len(sample), name, key, partial(Path.read_bytes, path), group, name)
        return list(sample.values())


class HeldOutOfStream:
    """Which images of a stream show a part that is held out: copies, those of its group, or nearly identical ones.

    Args:
        keys (`frozenset[str]`): of the images held out.
        groups (`frozenset[str]`): of their parts, where the data set or an expression tells them.
        group_of (`Callable[[str, str | None], str | None]`): from an image's name and its row's group to its part.
        alike (`LookAlikes`, *optional*): finds nearly identical ones.
    """

    def __init__(self, keys, groups=frozenset(), group_of=None, alike=None):
        self.keys, self.groups, self.group_of, self.alike = keys, groups, group_of, alike

    @classmethod
    def of(cls, held_out, sample, groups, rule):
        """Of held-out images.

        Args:
            held_out, sample (`list[HubImage]`): the images, and all that were compared with each other.
            groups (`dict`, *optional*): the part that each shows; None where each shows one of its own.
            rule (`str`, *optional*): of `--groups`.
        """
        keys = frozenset(image.key for image in held_out)
        if groups is None:
            return cls(keys)
        group_of = group_rule(rule, held_out[0])
        if group_of is not None:
            return cls(keys, frozenset(groups[image] for image in held_out), group_of)
        return cls(keys, alike=LookAlikes(sample, held_out))

    def contains(self, name, key, group, image):
        """Whether an image, by its name, key, its row's group and itself (`PIL.Image.Image`), is held out."""
        if key in self.keys:
            return True
        if self.group_of is not None:
            return self.group_of(name, group) in self.groups
        return self.alike is not None and self.alike.contains(to_rgb(image))


def shuffled(rows, random):
    """Yield the rows of a `datasets.IterableDataset` by runs of its files in a random order, through a shuffle buffer.

    Here and not by its own `shuffle`, which reads ten files at a time and whose order is another in other versions.
    """
    runs = min(rows.num_shards, MAX_RUNS)
    waiting = []
    for row in chain.from_iterable(rows.shard(runs, int(run)) for run in random.permutation(runs)):
        if len(waiting) < SHUFFLE_BUFFER:
            waiting.append(row)
            continue
        drawn = int(random.integers(SHUFFLE_BUFFER))
        yield waiting[drawn]
        waiting[drawn] = row
    for index in random.permutation(len(waiting)):
        yield waiting[index]


class StreamedRotatedImages(IterableDataset):
    """An endless sequence of streamed images, each rotated at random, cut to `start` … `start + length`.

    What is at a place depends on the seed and the place alone, as in `ShuffledRotatedImages`. To begin at a later
    place, what comes before it is read again: at most two passes, for all of them serve equally many images.

    Args:
        stream (`ImageStream`): each of its images comes once before any comes again.
        resolution (`int`): images are squashed to this square.
        white_level (`int`): the value of white in 16-bit images.
        length (`int`): how many places of the sequence are served.
        rotation_degrees (`float`): largest rotation either way.
        seed (`int`): fixes the rotations.
        start (`int`): first place served.

    Returns:
        `tuple[torch.Tensor, int, int]`: a sample as in `GoodImages`, 0, the number of the only category, and its place.
    """

    def __init__(self, stream, resolution, white_level, length, rotation_degrees, seed, start=0):
        self.stream, self.resolution, self.white_level, self.length = stream, resolution, white_level, length
        self.rotation_degrees, self.seed, self.start = rotation_degrees, seed, start

    def __iter__(self):
        epoch, skipped, left = 0, self.start, self.length
        with data_set_sentences(self.stream.source.name, self.stream.source.token):
            while left:
                count = 0
                for _, _, _, image, _ in self.stream.images(FIRST_PASS + epoch):
                    if count >= skipped:
                        sample = preprocess(to_rgb(image), self.resolution, self.white_level)[0][0]
                        sample = rotate_at_random(sample, self.rotation_degrees, (self.seed, 0, epoch, count))
                        yield sample, 0, self.start + self.length - left
                        left -= 1
                        if not left:
                            return
                    count += 1
                if not count:
                    raise ValueError(f"{self.stream.source.name} holds no images beside those held out.")
                epochs, skipped = divmod(max(skipped - count, 0), count)
                epoch += 1 + epochs
