"""Statistics of the good images that training starts from: channels of the features, brightness and contrast."""

from itertools import chain
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

STATISTICS_IMAGES = 256
"""They are measured on this many images, shared out among the categories."""

MIN_STATISTICS_IMAGES = 8
"""Of each category, however many there are."""

MIN_CONTRAST = 0.02


class DataStatistics(NamedTuple):
    """What a training starts from, measured once.

    Args:
        data_mean, data_std (`torch.Tensor`): brightness and contrast of each category, float32, (categories,).
        feature_mean, feature_std (`torch.Tensor`): of each channel of the features, float32.
        white_level (`int`): the value of white in 16-bit images.
    """

    data_mean: torch.Tensor
    data_std: torch.Tensor
    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    white_level: int

    def tensors(self):
        """As tensors by name, for a file."""
        return self._asdict() | {"white_level": torch.tensor(self.white_level)}

    @classmethod
    def of_tensors(cls, tensors):
        """From what `tensors` returned."""
        return cls(**(tensors | {"white_level": int(tensors["white_level"])}))


def fit_data_statistics(extractor, categories, batch_size, normalize_contrast, shows_progress=True):
    """Fit the extractor's channel statistics, and measure brightness and contrast of each category.

    Args:
        extractor (`TimmFeatureExtractor`, *optional*): changed in place.
        categories (`list[GoodImages]`): training images of each.
        batch_size (`int`): images per forward pass.
        normalize_contrast (`bool`): without it brightness and contrast are 0 and 0.5, which leaves images alone.
        shows_progress (`bool`): whether to show a progress bar.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and standard deviation of each category's grey levels, (categories,).
    """
    share = max(STATISTICS_IMAGES // len(categories), MIN_STATISTICS_IMAGES)
    chosen = []
    for images in categories:
        places = torch.linspace(0, len(images) - 1, min(len(images), share)).long().tolist()
        chosen.append(list(DataLoader(Subset(images, places), batch_size=batch_size)))
    if extractor is not None:
        count = sum(len(batch) for batches in chosen for batch in batches)
        with tqdm(total=count, desc="feature statistics", unit="image", disable=not shows_progress) as progress:
            fit_feature_statistics(extractor, chain.from_iterable(chosen), progress)
    if not normalize_contrast:
        return torch.zeros(len(categories)), torch.full((len(categories),), 0.5)
    pixels = [torch.cat(batches) for batches in chosen]
    # Contrast within an image: its overall brightness is none.
    contrast = torch.stack([values.var(dim=(2, 3)).mean().sqrt() for values in pixels])
    return torch.stack([values.mean() for values in pixels]), contrast.clamp(min=MIN_CONTRAST)


@torch.inference_mode()
def fit_feature_statistics(extractor, samples, progress):
    """Set the extractor's mean and standard deviation of each channel from samples, (batch, 3, height, width) each."""
    count, total, total_square = 0, 0.0, 0.0
    for sample in samples:
        features = extractor.raw_features(sample).double()
        count += features[:, 0].numel()
        total = total + features.sum(dim=(0, 2, 3))
        total_square = total_square + features.square().sum(dim=(0, 2, 3))
        progress.update(len(sample))
    mean = total / count
    deviation = (total_square / count - mean.square()).clamp(min=1e-12).sqrt()
    extractor.feature_mean.copy_(mean)
    extractor.feature_std.copy_(deviation.clamp(min=1e-3 * deviation.mean()))
