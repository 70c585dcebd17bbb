"""Fit what the features of good parts look like: Gaussians for each place, and a memory of features at any place.

All are fitted to the training images as they are, without augmentation.
"""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from pipelines.feature_familiarity import FeatureFamiliarity, image_statistics
from pipelines.feature_gaussian import FeatureGaussian, by_cell
from pipelines.feature_memory import FeatureMemory
from training.fitting.familiarity import fit_familiarity
from training.networks.unet import round_to_half
from training.runtime.collectives import gather_rows, is_main_process, own_share, sum_over_processes

GRID_SIZE = 32
NUM_CELLS = 16
PRIOR_IMAGES = 50
"""A cell's covariance is shrunk towards the common one as if this many images had shown the latter (PaDiM: none)."""

REGULARIZATION = 0.01
"""Added to the diagonal of every covariance of standardised features, as in PaDiM."""

NUM_COARSE_STRIDES = 2
"""The coarse Gaussian looks at so many of the coarsest strides (of the default ones at 8 and 16, as PatchCore does), on
a grid half as fine, with a covariance for each place."""

MAX_IMAGES = 4000
"""Of more, so many are taken at even distances: neither Gaussian nor memory has a use for all of them."""

MEMORY_SIZE = 3000
NUM_CANDIDATES = 60_000
"""Features at random places that the memory is chosen from."""

WHITENING_FLOOR = 0.05
"""Added to the eigenvalues before whitening, so that directions without variance are not blown up."""

NUM_PROJECTED = 64
"""The greedy coreset is chosen by distances in a random projection to this many dimensions, as PatchCore does."""


class FeatureReferences(NamedTuple):
    """References by the names of their components."""

    gaussian: FeatureGaussian
    memory: FeatureMemory
    coarse_gaussian: FeatureGaussian
    familiarity: FeatureFamiliarity


@torch.no_grad()
def fit_feature_reference(extractor, images, seed=0, batch_size=8):
    """Fit Gaussians, memory and familiarity to the standardised features of images.

    Several processes share the images out; each of them has to call this, and each gets the same.

    Args:
        extractor (`TimmFeatureExtractor`): with its channel statistics.
        images (`GoodImages`): the training images.
        seed (`int`): draws the candidates of the memory and where its choice begins.
        batch_size (`int`): images per forward pass.

    Returns:
        `FeatureReferences`: on the CPU, rounded to half precision, in which they are stored, but for the familiarity.
    """
    if len(images) > MAX_IMAGES:
        images = Subset(images, torch.linspace(0, len(images) - 1, MAX_IMAGES).long().tolist())
    size = min(GRID_SIZE, extractor.config.grid_size)
    coarse_size = max(1, size // 2)
    channels = extractor.num_features
    coarse_channels = sum(extractor.backbone.feature_info.channels()[-NUM_COARSE_STRIDES:])
    generator = torch.Generator().manual_seed(seed)
    per_image = min(size * size, math.ceil(NUM_CANDIDATES / len(images)))
    moments = Moments(channels, size, math.gcd(NUM_CELLS, size))
    coarse_moments = Moments(coarse_channels, coarse_size, coarse_size)
    # every process draws for all images, so that which ones are its own makes no difference
    chosen = [torch.randperm(size * size, generator=generator)[:per_image] for _ in range(len(images))]
    own = own_share(len(images), batch_size)
    first = own.start
    candidates = [torch.zeros(0, per_image, channels)]
    statistics = [torch.zeros(0, 2 * channels)]
    with tqdm(total=len(own), desc="features of good parts", unit="image", disable=not is_main_process()) as progress:
        for sample in DataLoader(Subset(images, own), batch_size=batch_size):
            features = extractor(sample.to(extractor.device)).cpu()
            statistics.append(image_statistics(features))
            coarse_moments.add(adaptive_avg_pool2d(features[:, -coarse_channels:], coarse_size))
            features = adaptive_avg_pool2d(features, size)
            moments.add(features)
            rows = features.flatten(2).transpose(1, 2)
            places = torch.stack(chosen[first : first + len(sample)])
            first += len(sample)
            candidates.append(rows.gather(1, places[..., None].expand(-1, -1, channels)))
            progress.update(len(sample))

    count = len(images)
    gaussian, coarse_gaussian = moments.gaussian(count), coarse_moments.gaussian(count)
    candidates = gather_rows(torch.cat(candidates), count, batch_size).flatten(0, 1)
    references = gaussian, fill_memory(candidates, size, generator), coarse_gaussian
    for reference in references:
        round_to_half(reference)
    return FeatureReferences(*references, fit_familiarity(gather_rows(torch.cat(statistics), count, batch_size)))


class Moments:
    """Sums of features, (channels, size, size), and of their products in each cell, over the images added."""

    def __init__(self, channels, size, cells):
        self.cells = cells
        self.total = torch.zeros(channels, size, size, dtype=torch.float64)
        self.products = torch.zeros(cells * cells, channels, channels, dtype=torch.float64)

    def add(self, features):
        """Features of a batch, (batch, channels, size, size)."""
        self.total += features.double().sum(dim=0)
        places = by_cell(features, self.cells).double()
        self.products += places @ places.transpose(1, 2)

    def gaussian(self, count):
        """The `FeatureGaussian` of what all processes have added, `count` images."""
        channels, size, _ = self.total.shape
        mean = sum_over_processes(self.total) / count
        mean_by_cell = by_cell(mean[None], self.cells)
        covariance = sum_over_processes(self.products) - count * mean_by_cell @ mean_by_cell.transpose(1, 2)
        covariance /= count * (size // self.cells) ** 2
        gaussian = FeatureGaussian(channels, size, self.cells)
        gaussian.mean.copy_(mean)
        gaussian.set_covariance(shrink(covariance, count))
        return gaussian


def shrink(covariance, num_images):
    """Shrink each cell's covariance, (cells, C, C), towards their mean, and regularise it."""
    weight = num_images / (num_images + PRIOR_IMAGES)
    shrunk = weight * covariance + (1 - weight) * covariance.mean(dim=0)
    return shrunk + REGULARIZATION * torch.eye(covariance.shape[-1], dtype=covariance.dtype)


def fill_memory(candidates, grid_size, generator):
    """A memory of the candidates, (n, C), that cover all of them best."""
    covariance = torch.cov(candidates.T, correction=0)
    variances, directions = torch.linalg.eigh(covariance.double())
    whitening = (directions / (variances + WHITENING_FLOOR).sqrt()).float()
    white = candidates @ whitening
    chosen = greedy_coreset(white, min(MEMORY_SIZE, len(white)), generator)
    memory = FeatureMemory(candidates.shape[1], grid_size, len(chosen))
    memory.whitening.copy_(whitening)
    memory.bank.copy_(white[chosen])
    return memory


def greedy_coreset(rows, size, generator):
    """Indices of `size` rows, (n, C): each next one is the farthest from all before it (k-centre greedy)."""
    projection = torch.randn(rows.shape[1], NUM_PROJECTED, generator=generator) / NUM_PROJECTED**0.5
    projected = rows @ projection
    squares = projected.square().sum(dim=1)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = torch.full_like(squares, torch.inf)
    for _ in tqdm(range(size - 1), desc="memory of good features", leave=False, disable=not is_main_process()):
        last = projected[chosen[-1]]
        nearest = torch.minimum(nearest, squares + last.square().sum() - 2 * projected @ last)
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)
