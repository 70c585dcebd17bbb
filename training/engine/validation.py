"""How well a network tells synthetic defects from good images while it is trained, by its components (Eq. 9 and 10).

A few held-out good images, and the same with synthetic defects, are measured with the averaged weights, which are what
a training ends with. Nothing is chosen by it, and nothing of the training is changed: noise and defects follow from the
seed, and the weights are put back bit for bit.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pipelines.anomaly_maps import render, worst_mean
from pipelines.image_preprocessing import WHITE_LEVELS, as_uint8
from pipelines.measurement import Measurement
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from rendering.heat_map import SATURATION_FACTOR
from rendering.sheet import map_sheet
from training.data.good_images import GoodImages
from training.data.synthetic_defects import KINDS, SyntheticDefects
from training.fitting.blend_weights import REDUCTION
from training.fitting.calibration_fit import draw_noise_fields, measure_all, split_held_out
from training.fitting.normalisation import fit_normalisation
from training.records.progress import SEPARATION

NUM_IMAGES = 12
"""Good ones, shared out among the categories; as many have a synthetic defect, of every kind two."""

MIN_IMAGES = 4
"""Of each category, however many there are."""

BATCH_SIZE = 8
SHOWN_GOOD, CELL = 2, 160
COLUMNS = ("image", "synthetic defect", "KL (Eq. 9)", "feature error (Eq. 10)", "mean of both")


@dataclass
class ValidatedCategory:
    """What a category is validated on, and what was measured last.

    Args:
        pipe (`AnomalyScoringPipeline`): without references, which are fitted at the end.
        images (`list[tuple]`): samples, (3, resolution, resolution) in [-1, 1], with masks, bool: first the good
            ones, then as many synthetic ones.
        maps (`torch.Tensor`, *optional*): both components of each, KL first, in standard deviations of the good
            ones, float32, (images, 2, grid, grid).
    """

    pipe: AnomalyScoringPipeline
    images: list
    maps: torch.Tensor | None = None

    @property
    def num_good(self):
        """How many of the images are good; the others are synthetic."""
        return len(self.images) // 2


class Validation:
    """Measures a network while it is trained; every process has to call it, and each gets the same.

    The images are read once, before the training. They are among the held-out ones that fit the calibration, never
    those whose scores it ranks (`split_held_out`).

    Args:
        networks (`Networks`): what is trained, without what accelerate wraps around it, and what with.
        splits (`dict[str, tuple]`): names of the categories, with their training and held-out images.
        groups (`dict[str, dict | None]`): the part that each held-out image of a category shows.
        timesteps (`list[int]`): T of Eq. 11.
        seed (`int`): of the training.
        mixed_precision (`str`): that of the training.

    Raises:
        ValueError: if an image cannot be read any more.
    """

    def __init__(self, networks, splits, groups, timesteps, seed, mixed_precision):
        self._unet = networks.unet
        self._mixed_precision = "bf16" if mixed_precision == "bf16" else "no"
        self._timesteps = sorted(timesteps)
        self._noise = draw_noise_fields(seed, self._timesteps, networks.resolution)
        self.categories = {}
        for label, (name, (_, held_out)) in enumerate(splits.items()):
            pipe = AnomalyScoringPipeline(
                **networks.shared(), **networks.of_category(label, len(splits)), timesteps=self._timesteps
            )
            count = max(NUM_IMAGES // len(splits), MIN_IMAGES)
            white_level = networks.statistics.white_level
            images = choose_images(held_out, count, networks.resolution, seed, groups.get(name), white_level)
            self.categories[name] = ValidatedCategory(pipe, images)

    @property
    def has_measured(self):
        """Whether there is something to draw."""
        return all(category.maps is not None for category in self.categories.values())

    def measure(self, ema):
        """Measure all images with the averaged weights.

        Args:
            ema (`EMAModel`): of the UNet's parameters.

        Returns:
            `dict[str, float]`: each of `SEPARATION`, means over the categories, and `validation_seconds`.
        """
        began = time.perf_counter()
        found = []
        with averaged_weights(self._unet, ema):
            for category in self.categories.values():
                measured, masks = measure_all(
                    category.pipe, category.images, self._timesteps, self._noise, BATCH_SIZE, self._mixed_precision
                )
                category.maps = standardized(category.pipe, measured, category.num_good)
                found.append(separation_of(category.pipe, category.maps, masks))
        means = {name: float(np.mean([each[name] for each in found])) for name in SEPARATION}
        return means | {"validation_seconds": time.perf_counter() - began}

    def draw_sheets(self):
        """A sheet of each category, `dict[str, PIL.Image.Image]`, of what was measured last.

        One synthetic defect of each kind, then good images. The colours end above the largest value that is usual
        in a good image, the median of theirs.
        """
        return {name: _draw_sheet(category) for name, category in self.categories.items()}


def choose_images(held_out, count, resolution, seed, groups=None, white_level=WHITE_LEVELS[-1]):
    """Good images and the same with synthetic defects, as `ValidatedCategory` holds them.

    Args:
        held_out (`list[Path]` or `list[HubImage]`): of a category.
        count (`int`): good images, at most; taken at even distances.
        resolution, seed (`int`): of the training.
        groups (`dict`, *optional*): the part that each shows.
        white_level (`int`): the value of white in 16-bit images.
    """
    fitted = split_held_out(held_out, seed, groups)[1]
    places = np.linspace(0, len(fitted) - 1, min(count, len(fitted))).round().astype(int)
    images = GoodImages([fitted[place] for place in places], resolution, white_level=white_level)
    blank = torch.zeros(resolution, resolution, dtype=torch.bool)
    synthetic = SyntheticDefects(images, len(images), seed)
    return [(images[i], blank) for i in range(len(images))] + [synthetic[i] for i in range(len(synthetic))]


@contextmanager
def averaged_weights(unet, ema):
    """Within the block the network has its averaged weights and is in evaluation mode; then it is as it was before."""
    parameters, was_training = list(unet.parameters()), unet.training
    ema.store(parameters)
    ema.copy_to(parameters)
    unet.eval()
    try:
        yield
    finally:
        ema.restore(parameters)
        unet.train(was_training)


def standardized(pipe, measured, num_good):
    """KL and feature error in standard deviations of the good images, float32, (images, 2, grid, grid).

    Args:
        pipe (`AnomalyScoringPipeline`): that measured.
        measured (`Measurement`): the good images first.
        num_good (`int`): how many they are.
    """
    timesteps = list(pipe.config.timesteps)
    calibration = ScoreCalibration(
        timesteps, pipe.resolution, pipe.config.score_grid, num_ranked=num_good, num_fitted=num_good
    )
    fit_normalisation(calibration, Measurement(*(maps[:num_good] for maps in measured)))
    return calibration.standardize(measured, timesteps)


def separation_of(pipe, maps, masks):
    """How well each component tells synthetic defects from what is good.

    Args:
        pipe (`AnomalyScoringPipeline`): whose maps they are.
        maps (`torch.Tensor`): (images, 2, grid, grid), KL and feature error, larger where something is wrong.
        masks (`torch.Tensor`): the defects' pixels, bool, (images, resolution, resolution); none in good images.

    Returns:
        `dict[str, float]`: each of `SEPARATION`. Image AUROC ranks images by the mean of the worst 1 % of places;
        pixel AUROC ranks the pixels of the synthetic images.
    """
    is_synthetic = masks.flatten(1).any(dim=1)
    scores = worst_mean(maps)
    reduced = masks[is_synthetic][:, ::REDUCTION, ::REDUCTION].flatten()
    rendered = render(maps[is_synthetic], pipe.resolution // REDUCTION, pipe.config.smoothing_sigma / REDUCTION)
    found = {}
    for place, component in enumerate(("kl", "features")):
        found[f"{component}_image_auroc"] = float(roc_auc_score(is_synthetic, scores[:, place]))
        found[f"{component}_pixel_auroc"] = float(roc_auc_score(reduced, rendered[:, place].flatten()))
    return found


def _draw_sheet(category):
    pipe, count = category.pipe, category.num_good
    maps = render(category.maps, pipe.resolution, pipe.config.smoothing_sigma)
    usual = maps[:count].amax(dim=(2, 3)).median(dim=0).values.clamp(min=1e-6)
    maps = maps / usual.view(-1, 1, 1)
    maps = torch.cat([maps, maps.mean(dim=1, keepdim=True)], dim=1)
    kinds = list(KINDS)[:count]
    rows = [(kind, count + place) for place, kind in enumerate(kinds)]
    rows += [("good", place) for place in range(SHOWN_GOOD)]
    return map_sheet(
        [
            (caption, image_of(category.images[i][0]), category.images[i][1].numpy(), None, [*maps[i].numpy()])
            for caption, i in rows
        ],
        COLUMNS,
        SATURATION_FACTOR,
        CELL,
        "synthetic defect",
    )


def image_of(sample):
    """A sample in [-1, 1], (3, height, width), as an image, uint8, (height, width, 3)."""
    return as_uint8(((sample.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu().numpy())
