"""Features of images that are trained on just as they are: each image's are computed once and kept.

An image that is rotated anew each time has other features each time; without rotation it comes again unchanged, and
the backbone has nothing new to say.
"""

import zlib

import torch

MAX_BYTES = 1 << 30
"""Of features that a process keeps: those of 1,365 images with the `balanced` preset. Of more, none are kept."""


def feature_source(extractor, sequence, rotation_degrees):
    """What gives a training the features of its batches: the extractor, or `KeptFeatures` where that saves work.

    Args:
        extractor (`TimmFeatureExtractor`): on its device.
        sequence (`ShuffledRotatedImages` or `StreamedRotatedImages`): what is trained on.
        rotation_degrees (`float`): largest rotation of its images.

    Returns:
        `Callable`: a batch of samples and their places in the sequence (`list[int]`) to features, as the extractor
        returns them.
    """
    bytes_of_image = 4 * extractor.num_features * extractor.config.grid_size**2
    is_stream = not hasattr(sequence, "image_at")  # each image is a new one
    if rotation_degrees or is_stream or sequence.num_images * bytes_of_image > MAX_BYTES:
        return lambda sample, places: extractor(sample)
    return KeptFeatures(extractor, sequence.image_at)


class KeptFeatures:
    """Computes the features of a batch if one of its images is new, and else takes those that are kept.

    An image is known again by its place and by its pixels: another one may have stood in for it.

    Args:
        extractor (`TimmFeatureExtractor`): computes them.
        image_at (`Callable[[int], Hashable]`): what image is at a place.
    """

    def __init__(self, extractor, image_at):
        self._extractor, self._image_at = extractor, image_at
        self._kept = {}

    def __call__(self, sample, places):
        """Features of a batch, (batch, channels, grid, grid), float32, on the device of `sample`."""
        digests = [zlib.crc32(each.numpy()) for each in sample.cpu()]
        images = list(zip(map(self._image_at, places), digests, strict=True))
        if all(image in self._kept for image in images):
            return torch.stack([self._kept[image] for image in images]).to(sample.device)
        features = self._extractor(sample)
        self._kept.update(zip(images, features.cpu().clone().unbind(), strict=True))
        return features
