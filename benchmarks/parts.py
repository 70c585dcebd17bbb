"""False alarm rates on new parts, of data that shows each part several times: split by parts, and split by images.

`benchmarks/calibration.py --groups RULE` prints it. In every split a fifth of all parts is new. Of the others a quarter
is held out and ranked, and the coarse Gaussian of good features, the part of the score that decides on textures, is
fitted to the rest: once with whole parts held out and each ranked part weighing one, as the product does; once as if
nobody knew of parts, with images held out and each of them weighing one.
"""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pipelines.anomaly_maps import worst_mean
from pipelines.score_calibration import SLACK, ScoreCalibration
from training.data.good_images import GoodImages
from training.fitting.feature_references import GRID_SIZE, NUM_COARSE_STRIDES, Moments

RATES = (0.05, 0.1, 0.2)
NEW_SHARE, HELD_OUT_SHARE = 0.2, 0.25
WAYS = ("by part", "by image")
NORMAL_QUANTILE = 1.96


class PartRow(NamedTuple):
    """One rate and one way to split: what was promised and, over parts, what was measured with its 95 % interval."""

    way: str
    asked: float
    promised: float
    measured: float
    interval: tuple

    @property
    def kept(self):
        """Whether the promise lies in the interval or above it."""
        return self.interval[0] <= self.promised


@torch.inference_mode()
def coarse_features(extractor, images, resolution, white_level):
    """Features of the coarsest strides as the coarse Gaussian sees them, float16, (images, channels, grid, grid)."""
    channels = sum(extractor.backbone.feature_info.channels()[-NUM_COARSE_STRIDES:])
    size = max(1, min(GRID_SIZE, extractor.config.grid_size) // 2)
    found = []
    with tqdm(total=len(images), desc="features", unit="image") as progress:
        for samples in DataLoader(GoodImages(images, resolution, white_level=white_level), batch_size=8):
            features = extractor(samples.to(extractor.device))[:, -channels:].cpu()
            found.append(adaptive_avg_pool2d(features, size).half())
            progress.update(len(samples))
    return torch.cat(found)


def compare_splits(features, parts, splits=40, seed=0):
    """Measure both ways to split, `list[PartRow]`.

    Args:
        features (`torch.Tensor`): as `coarse_features` returns them.
        parts (`torch.Tensor`): number of each image's part from 0, (images,).
        splits (`int`): random splits.
        seed (`int`): draws them.
    """
    generator = torch.Generator().manual_seed(seed)
    count = int(parts.max()) + 1
    rejected = {(way, rate): torch.zeros(count, dtype=torch.float64) for way in WAYS for rate in RATES}
    times, promised = torch.zeros(count, dtype=torch.float64), {}
    for _ in tqdm(range(splits), desc="splitting by part and by image", unit="split"):
        order = torch.randperm(count, generator=generator)
        num_new = round(NEW_SHARE * count)
        new, known = order[:num_new], order[num_new:]
        is_new = torch.isin(parts, new)
        held_out_parts = known[: round(HELD_OUT_SHARE * len(known))]
        old = (~is_new).nonzero()[:, 0]
        shuffled = old[torch.randperm(len(old), generator=generator)]
        held_out = {
            "by part": torch.isin(parts, held_out_parts).nonzero()[:, 0],
            "by image": shuffled[: round(HELD_OUT_SHARE * len(old))],
        }
        for way, ranked in held_out.items():
            trained = old[~torch.isin(old, ranked)]
            scores = _scores(features, trained)
            groups = parts[ranked].unique(return_inverse=True)[1] if way == "by part" else None
            calibration = _calibration_of(scores[ranked], groups)
            p_values = calibration.p_value(scores[is_new], [5])
            for rate in RATES:
                promised[way, rate] = calibration.effective_rate(rate)
                alarms = (p_values <= promised[way, rate] + SLACK).double()
                sizes = torch.bincount(parts[is_new], minlength=count).clamp(min=1)
                rejected[way, rate] += torch.bincount(parts[is_new], alarms, minlength=count) / sizes
        times[new] += 1
    return [
        PartRow(way, rate, promised[way, rate], *_mean_with_interval(rejected[way, rate], times))
        for way in WAYS
        for rate in RATES
    ]


def format_part_table(rows, num_images, num_parts, splits):
    """Markdown: a row for each way to split and each rate."""
    lines = [
        f"False alarms on new parts: {num_images} good images of {num_parts} parts, {splits} splits, by the coarse "
        "Gaussian alone; each part counts once",
        "",
        "| held out | asked | promised | measured on new parts | 95 % interval | promise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row.interval
        numbers = f"{row.asked:.3f} | {row.promised:.3f} | {row.measured:.3f} | {low:.3f} to {high:.3f}"
        lines.append(f"| {row.way} | {numbers} | {'kept' if row.kept else 'broken'} |")
    return "\n".join([*lines, ""])


@torch.inference_mode()
def _scores(features, trained):
    """The worst places' distance of every image from a Gaussian fitted to some of them, (images,)."""
    moments = Moments(features.shape[1], features.shape[-1], features.shape[-1])
    for batch in trained.split(64):
        moments.add(features[batch].float())
    gaussian = moments.gaussian(len(trained))
    return torch.cat([worst_mean(gaussian(batch.float())) for batch in features.split(64)])


def _calibration_of(scores, groups):
    """A `ScoreCalibration` that ranks these scores, each image's part being its number in `groups`, if given."""
    count = len(scores)
    num_groups = None if groups is None or int(groups.max()) + 1 == count else int(groups.max()) + 1
    calibration = ScoreCalibration([5], 8, 2, num_ranked=count, num_groups=num_groups)
    calibration.part_scores.copy_(scores[:, None])
    if num_groups is not None:
        calibration.ranked_groups.copy_(groups)
    return calibration


def _mean_with_interval(rejected, times):
    """Mean over parts of each one's share of alarms in the splits where it was new, and its 95 % interval."""
    shares = (rejected / times.clamp(min=1))[times > 0]
    mean, error = shares.mean().item(), shares.std().item() / math.sqrt(len(shares))
    return mean, (max(mean - NORMAL_QUANTILE * error, 0.0), min(mean + NORMAL_QUANTILE * error, 1.0))
