"""Find images that show one and the same part: copies, the same part under another exposure or shifted by a little.

Two images of different parts look alike as well where parts do, so likeness alone says nothing. What is compared are
the coarsest features of a pretrained network, place by place, after what varies between the images anyway has been
divided out; and a pair counts only if it is much more alike than either of the two is to its neighbours.
"""

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from pipelines.image_preprocessing import WHITE_LEVELS, preprocess, to_rgb, white_level_of
from training.data.image_reading import open_image
from training.networks.pretrained_extractor import load_pretrained_extractor

BACKBONE, STRIDE = "tf_efficientnet_lite0", 16
"""Its weights come with the project, whatever is trained on."""

SIDE = 160
"""Images are squashed to a square of so many pixels."""

GRID = 8
NUM_PROJECTED = 1024
"""Features of so many places are projected at random to so many dimensions, in which whole folders fit into memory."""

BATCH_SIZE = 32
ROWS_AT_ONCE = 2048
MAX_FITTED = 1024
"""What varies between images is fitted to at most so many of them."""

RIDGE = 3.0
"""Added to the variance in each direction, in multiples of the mean one."""

CLEARLY_CLOSER = {10: 0.5, 20: 0.65, 40: 0.75, 80: 0.8, 160: 0.85}
"""By the rank of a neighbour: how far a pair must have come from its likeness towards 1, to be closer than neighbours
are. One of these is enough, for a part may have few images or many. Chosen on six categories of parts: tiles, of which
it is known which are the same, and screws that lie alike, of which none are."""

FEWEST = dict(list(CLEARLY_CLOSER.items())[:1])

SAME_ANYWAY = 0.95
"""Correlation of features that different parts were never seen to have."""

MAX_ROUNDS = 4

FEW = 200
"""Among fewer images nobody can tell what varies anyway: then a pair also has to agree in its finest detail."""

DETAIL_SIDE, DETAIL_SIGMA, DETAIL_SHIFT = 128, 2.0, 8
"""Pixels: side of the square in which detail is compared, how coarse it is at most, how far it may be shifted."""

CONTRAST_FLOOR = 0.008
"""One grey level of 256 in [-1, 1], below which there is no detail."""

SAME_DETAIL = 0.65
"""Correlation of the finest detail that images of different parts hardly ever have."""


def find_near_identical(images, shows_progress=True):
    """Label images by the part that they show.

    Args:
        images (`list[Path]` or `list[HubImage]`): readable ones.
        shows_progress (`bool`): whether to show a progress bar.

    Returns:
        `np.ndarray`: int, (images,), from 0; the same for nearly identical images.
    """
    return group_descriptors(describe_images(images, shows_progress))


class Descriptors(NamedTuple):
    """What is compared of images.

    Args:
        features (`torch.Tensor`): coarse ones, float16, (images, `NUM_PROJECTED`); NaN where an image cannot be read.
        digests (`list[str]`): of the pixels, the same for copies.
        details (`torch.Tensor`, *optional*): of fewer than `FEW` images their finest detail, float32,
            (images, side, side).
    """

    features: torch.Tensor
    digests: list
    details: torch.Tensor | None = None


@torch.inference_mode()
def describe_images(images, shows_progress=True):
    """The `Descriptors` of images."""
    describe = _Describer()
    described = torch.empty(len(images), NUM_PROJECTED, dtype=torch.float16)
    details, digests = [], []
    batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
    with (
        ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool,
        tqdm(total=len(images), desc="comparing images", unit="image", disable=not shows_progress) as progress,
    ):
        waiting = pool.map(_square, batches[0]) if batches else ()
        for number, batch in enumerate(batches):
            squares, fine, copies = zip(*waiting, strict=True)
            digests += copies
            if len(images) < FEW:
                details += fine
            squares = torch.stack(squares)
            waiting = pool.map(_square, batches[number + 1]) if number + 1 < len(batches) else ()
            first = number * BATCH_SIZE
            described[first : first + len(batch)] = describe(squares).half()
            progress.update(len(batch))
    return Descriptors(described, digests, torch.stack(details) if details else None)


def group_descriptors(descriptors):
    """Labels of nearly identical images, as `find_near_identical` returns them, from their `Descriptors`."""
    described, details = descriptors.features, descriptors.details
    labels = np.unique(np.array(descriptors.digests), return_inverse=True)[1]
    for number in range(MAX_ROUNDS):  # the images of a part are each other's neighbours, until they are one
        _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
        first = torch.from_numpy(first)
        merged = _merge(described[first].float(), None if details is None else details[first], number == 0)
        if merged.max(initial=-1) + 1 == len(first):
            break
        labels = merged[labels]
    return labels


def _merge(rows, details, has_large_parts):
    """One round: label each row, (rows, dimensions), with those that are nearly the same.

    `has_large_parts` says whether there may be parts of more rows than the first rank of `CLEARLY_CLOSER`.
    """
    count = len(rows)
    if count < 2:
        return np.arange(count)
    compared = Comparison(rows, CLEARLY_CLOSER if has_large_parts else FEWEST)
    pairs = []
    for place in range(compared.ranks[-1]):
        other = compared.neighbours[:, place]
        is_same = compared.is_same(
            compared.likeness[:, place],
            torch.maximum(compared.bases, compared.bases[other]),
            (compared.plain * compared.plain[other]).sum(dim=1),
        )
        is_same &= compared.usable & compared.usable[other]
        pairs.append(torch.stack([is_same.nonzero()[:, 0], other[is_same]]))
    first, second = torch.cat(pairs, dim=1)
    if details is not None and len(first):
        agree = _detail_correlation(details[first], details[second]) >= SAME_DETAIL
        first, second = first[agree], second[agree]
    graph = coo_array((np.ones(len(first)), (first.numpy(), second.numpy())), shape=(count, count))
    return connected_components(graph, directed=False)[1]


class Comparison:
    """Descriptors made comparable: what varies between them anyway is divided out.

    Args:
        rows (`torch.Tensor`): float32, (rows, dimensions), at least two; a row of NaN is like no other.
        clearly_closer (`dict`, *optional*): instead of `CLEARLY_CLOSER`.
    """

    def __init__(self, rows, clearly_closer=None):
        self.usable = rows.isfinite().all(dim=1)
        usable = rows[self.usable] if self.usable.any() else torch.zeros_like(rows)
        self.mean = usable.mean(dim=0)
        self.deviation = (usable - self.mean).square().mean(dim=0).sqrt().clamp(min=1e-6)
        self.plain = self._plain(torch.where(self.usable[:, None], rows, self.mean))
        self.whitening = _whitening(self.plain)
        self.whitened = F.normalize(self.plain @ self.whitening, dim=1)
        few = max(1, len(rows) // 4)
        clear = {rank: share for rank, share in (clearly_closer or CLEARLY_CLOSER).items() if rank <= few}
        clear = clear or {few: next(iter(CLEARLY_CLOSER.values()))}
        self.ranks, self.clear = list(clear), torch.tensor(list(clear.values()))
        self.likeness, self.neighbours = _nearest(self.whitened, self.ranks[-1])
        self.bases = self.likeness[:, [rank - 1 for rank in self.ranks]]

    def find_same(self, row):
        """Which rows show what another descriptor, float32, (dimensions,), shows too: bool, (rows,)."""
        plain = self._plain(row[None])
        likeness = (F.normalize(plain @ self.whitening, dim=1) @ self.whitened.T)[0]
        own = likeness.topk(self.ranks[-1]).values[[rank - 1 for rank in self.ranks]]
        is_same = self.is_same(likeness, torch.maximum(self.bases, own), self.plain @ plain[0])
        return is_same & self.usable & bool(row.isfinite().all())

    def is_same(self, likeness, bases, correlation):
        """Whether pairs are much more alike than their neighbours are, or alike enough anyway: bool, (pairs,).

        Args:
            likeness, correlation (`torch.Tensor`): of each pair, (pairs,).
            bases (`torch.Tensor`): the larger likeness of the two's neighbours of each rank, (pairs, ranks).
        """
        is_clear = (likeness[:, None] - bases >= self.clear * (1 - bases)).any(dim=1) & (likeness > 0)
        return is_clear | (correlation >= SAME_ANYWAY)

    def _plain(self, rows):
        return F.normalize((rows - self.mean) / self.deviation, dim=1)


class LookAlikes:
    """Finds images that show the same part as one of some others, one at a time.

    Args:
        sample (`list`): images that are compared with each other, to know what varies anyway.
        wanted (`list`): those of them that are looked for.
    """

    def __init__(self, sample, wanted):
        self.compared = Comparison(describe_images(sample).features.float())
        chosen = set(wanted)
        self.is_wanted = torch.tensor([image in chosen for image in sample])
        self._describe = None

    def contains(self, rgb):
        """Whether an image, as `to_rgb` returns it, shows the same part as one of those that are looked for."""
        if self._describe is None:  # in the process that reads
            self._describe = _Describer()
        row = self._describe(_sample(rgb, SIDE)[None])[0].half().float()
        return bool((self.compared.find_same(row) & self.is_wanted).any())


class _Describer:
    """Computes coarse features of samples, (batch, 3, SIDE, SIDE), float32, (batch, `NUM_PROJECTED`)."""

    def __init__(self):
        self.extractor = load_pretrained_extractor(BACKBONE, GRID, [STRIDE])
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.randn(self.extractor.num_features * GRID**2, NUM_PROJECTED, generator=generator)

    @torch.inference_mode()
    def __call__(self, samples):
        features = F.adaptive_avg_pool2d(self.extractor.raw_features(samples), GRID)
        return features.flatten(1) @ self.projection / NUM_PROJECTED**0.5


def _whitening(rows):
    """What divides out how rows, (rows, dimensions), vary: (C + ridge)^-1/2, C their covariance about 0."""
    places = torch.linspace(0, len(rows) - 1, min(len(rows), MAX_FITTED)).long()
    covariance = (rows[places].T @ rows[places] / len(places)).double()
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > 1e-6 * variances.max()
    ridge = RIDGE * variances[kept].mean() if kept.any() else 1.0
    return (directions / (variances.clamp(min=0) + ridge).sqrt()).float()


def _nearest(rows, rank):
    """Likeness, (rows, rank), and numbers, (rows, rank), of each row's nearest others, the nearest first."""
    likeness, neighbours = [], []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE] @ rows.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        values, places = block.topk(rank, dim=1)
        likeness.append(values)
        neighbours.append(places)
    return torch.cat(likeness), torch.cat(neighbours)


def _square(image):
    """A sample, (3, SIDE, SIDE) in [-1, 1], detail and digest of the pixels of an image; NaN if it cannot be read."""
    try:
        rgb = to_rgb(open_image(image), image.name)
    except ValueError:
        nothing = torch.full((3, SIDE, SIDE), torch.nan), torch.full((DETAIL_SIDE, DETAIL_SIDE), torch.nan)
        return *nothing, secrets.token_hex()
    return _sample(rgb, SIDE), _detail(rgb), hashlib.sha256(rgb.tobytes()).hexdigest()


def _sample(rgb, side):
    """An image as `to_rgb` returns it, as a sample in [-1, 1], float32, (3, side, side)."""
    white_level = white_level_of(rgb.max()) if rgb.dtype == np.uint16 else WHITE_LEVELS[-1]
    return preprocess(rgb, side, white_level)[0][0]


def _detail(rgb):
    """The finest detail of an image, its contrast evened out, of norm 1: float32, (side, side)."""
    grey = _sample(rgb, DETAIL_SIDE).mean(dim=0).numpy()
    fine = grey - gaussian_filter(grey, DETAIL_SIGMA)
    fine /= np.sqrt(gaussian_filter(fine * fine, 2 * DETAIL_SIGMA)) + CONTRAST_FLOOR
    window = np.hanning(DETAIL_SIDE)
    fine = (fine - fine.mean()) * np.sqrt(np.outer(window, window))
    return torch.from_numpy((fine / max(np.linalg.norm(fine), 1e-6)).astype(np.float32))


def _detail_correlation(first, second):
    """Largest correlation of details, (pairs, side, side), over shifts of at most `DETAIL_SHIFT` pixels, (pairs,)."""
    product = torch.fft.rfft2(first) * torch.fft.rfft2(second).conj()
    correlation = torch.fft.irfft2(product, s=first.shape[-2:])
    near = torch.arange(-DETAIL_SHIFT, DETAIL_SHIFT + 1)
    return correlation[:, near][:, :, near].flatten(1).amax(dim=1)
