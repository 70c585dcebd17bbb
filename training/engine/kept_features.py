"""Features of pictures that are trained on just as they are: each picture's are computed once and kept.

A picture that is rotated anew each time has other features each time; without rotation it comes again unchanged, and
the backbone has nothing new to say.
"""

import zlib

import torch

MAX_BYTES = 1 << 30
"""Of features that a process keeps: those of 1,365 pictures with the `balanced` preset. Of more, none are kept."""


def feature_source(extractor, sequence, rotation_degrees):
    """What gives a training the features of its batches: the extractor, or `KeptFeatures` where that saves work.

    Args:
        extractor (`TimmFeatureExtractor`): on its device.
        sequence (`ShuffledRotatedImages` or `StreamedRotatedImages`): what is trained on.
        rotation_degrees (`float`): largest rotation of its pictures.

    Returns:
        `Callable`: a batch of samples and their places in the sequence (`list[int]`) to features, as the extractor
        returns them.
    """
    bytes_of_picture = 4 * extractor.num_features * extractor.config.grid_size**2
    is_stream = not hasattr(sequence, "picture_at")  # each picture is a new one
    if rotation_degrees or is_stream or sequence.num_pictures * bytes_of_picture > MAX_BYTES:
        return lambda sample, places: extractor(sample)
    return KeptFeatures(extractor, sequence.picture_at)


class KeptFeatures:
    """Computes the features of a batch if one of its pictures is new, and else takes those that are kept.

    A picture is known again by its place and by its pixels: another one may have stood in for it.

    Args:
        extractor (`TimmFeatureExtractor`): computes them.
        picture_at (`Callable[[int], Hashable]`): what picture is at a place.
    """

    def __init__(self, extractor, picture_at):
        self._extractor, self._picture_at = extractor, picture_at
        self._kept = {}

    def __call__(self, sample, places):
        """Features of a batch, (batch, channels, grid, grid), float32, on the device of `sample`."""
        digests = [zlib.crc32(each.numpy()) for each in sample.cpu()]
        pictures = list(zip(map(self._picture_at, places), digests, strict=True))
        if all(picture in self._kept for picture in pictures):
            return torch.stack([self._kept[picture] for picture in pictures]).to(sample.device)
        features = self._extractor(sample)
        self._kept.update(zip(pictures, features.cpu().clone().unbind(), strict=True))
        return features
