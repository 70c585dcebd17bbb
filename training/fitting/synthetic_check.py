"""How many synthetic defects a calibrated model rejects: what can be said of its quality without a real defect.

Good images that the model was not trained on get a synthetic defect each, and are scored as users' images are. Weights
and deciding components were chosen on synthetic defects too, so that the images should be others: of what a
calibration held out, those that it ranks (`split_held_out`). Where images are so few that it was cross-fitted there are
no others; the defects are new ones all the same, but normalisation and choice have seen the good images around them,
which makes the share a little too good.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipelines.anomaly_maps import blend, render
from pipelines.measurement import Measurement
from pipelines.verdicts import decide
from training.data.good_images import GoodImages
from training.data.synthetic_defects import KINDS, SyntheticDefects
from training.fitting.calibration_fit import measure_all

NUM_CHECKED = 90
"""Fifteen of each kind: one standard error of the share that is rejected is five hundredths."""

ENOUGH_FOUND = 1 / 3
"""A model that rejects a smaller share of them at its default rate is warned of.

Magnetic tiles are hard: their texture hides faint defects. In tiles that were not trained on, the embedded checkpoint
rejects 38 of 90 (42 %), and 51 % of the real defects; with a network of four steps, so that the references alone work,
it is 14 of 60 (23 %), and 3 of 35 real ones. The bar stands between the two, nearly two standard errors from either. On
bottles, where the references alone are enough, 30 images and 25 steps found 73 of 90, and 22 of 22 real defects."""

OTHER_DEFECTS = 7919
"""Added to the seed, so that no defect is one that a calibration of the same seed was chosen on."""


class CheckedDefect(NamedTuple):
    """One image with a synthetic defect, and what the model makes of it.

    Args:
        kind (`str`): one of `synthetic_defects.KINDS`.
        is_rejected (`bool`): whether it is found.
        score (`float`): the anomaly score.
        sample (`torch.Tensor`): float32 in [-1, 1], (3, resolution, resolution).
        mask (`torch.Tensor`): the defect's pixels, bool, (resolution, resolution).
        anomaly_map (`torch.Tensor`): in standard deviations of good images, float32, (resolution, resolution).
        pred_mask (`torch.Tensor`): what the model marks, bool, (resolution, resolution); nothing where it accepts.
    """

    kind: str
    is_rejected: bool
    score: float
    sample: torch.Tensor
    mask: torch.Tensor
    anomaly_map: torch.Tensor
    pred_mask: torch.Tensor


@dataclass(frozen=True, eq=False)
class SyntheticCheck:
    """What a model makes of synthetic defects.

    Args:
        kinds (`list[str]`): of each defect.
        scores (`torch.Tensor`): anomaly scores, float32, (images,), on the CPU.
        is_rejected (`np.ndarray`): bool, (images,).
        false_alarm_rate (`float`): share of good parts that may be rejected at the same threshold.
        image_threshold (`float`): images that score above it are rejected.
        shown (`list[CheckedDefect]`): some of them, those that are found first.
    """

    kinds: list
    scores: torch.Tensor
    is_rejected: np.ndarray
    false_alarm_rate: float
    image_threshold: float
    shown: list

    @property
    def num_rejected(self):
        """How many are found."""
        return int(self.is_rejected.sum())

    @property
    def share_rejected(self):
        """Share that is found, in [0, 1]."""
        return self.num_rejected / len(self.is_rejected)

    def by_kind(self):
        """How many of each kind are found, and how many there are, `dict[str, tuple[int, int]]`."""
        kinds = np.array(self.kinds)
        return {kind: (int(self.is_rejected[kinds == kind].sum()), int((kinds == kind).sum())) for kind in KINDS}


def check_synthetic_defects(
    pipe, files, seed=0, count=NUM_CHECKED, num_shown=0, false_alarm_rate=None, batch_size=8, on_progress=None
):
    """Put synthetic defects into good images and see how many of them a calibrated pipeline rejects.

    The defects depend on files, seed and count alone: two calibrations, or two models, can be compared on the same
    ones. Several processes share the images out; each of them has to call this, and each gets the same.

    Args:
        pipe (`AnomalyScoringPipeline`): calibrated, of one category; it scores as it does for users.
        files (`list[Path]` or `list[HubImage]`): good images that it was not trained on.
        seed (`int`): draws the defects.
        count (`int`): how many there are; images come again, each time with another defect.
        num_shown (`int`): how many are returned as images: found ones and others, half of each if there are so many.
        false_alarm_rate (`float`, *optional*): by default 1 %, or the smallest that can be promised.
        batch_size (`int`): images per UNet call.
        on_progress (*optional*): called after each batch with the images this process has measured so far and their
            total; what it raises ends the check.

    Returns:
        `SyntheticCheck`

    Raises:
        ValueError: if an image cannot be read, or the pipeline was not calibrated for how it computes.
    """
    pipe.check_precision()
    timesteps, calibration = list(pipe.config.timesteps), pipe.calibration
    good = GoodImages(files, pipe.resolution, white_level=pipe.config.white_level)
    images = SyntheticDefects(good, count, seed + OTHER_DEFECTS)
    done = 0

    def on_batch(measured):
        nonlocal done
        done += measured
        if on_progress is not None:
            on_progress(done, count)

    noise = calibration.noise_fields(timesteps)
    measured, _ = measure_all(pipe, images, timesteps, noise, batch_size, None, on_batch)
    measured = Measurement(*(maps.to(noise.device) for maps in measured))
    components = calibration.standardize(measured, timesteps)
    scores = calibration.image_score(components, timesteps)
    settings = (pipe.alpha, timesteps, false_alarm_rate, pipe.uses_bfloat16())
    verdicts = decide(calibration, components[:, 0], scores, *settings)  # any maps will do: the scores decide
    kinds = [list(KINDS)[index % len(KINDS)] for index in range(count)]
    is_rejected = verdicts["is_anomalous"]
    places = _choose_shown(is_rejected, num_shown)
    maps = _anomaly_maps(pipe, components[places]) if places else []
    masks = decide(calibration, maps, scores[places], *settings)["pred_mask"] if places else []
    shown = [
        CheckedDefect(kinds[place], bool(is_rejected[place]), float(scores[place]), *images[place], each.cpu(), mask)
        for place, each, mask in zip(places, maps, (mask.cpu() for mask in masks), strict=True)
    ]
    rate, threshold = verdicts["false_alarm_rate"], verdicts["image_threshold"]
    return SyntheticCheck(kinds, scores.cpu(), is_rejected, rate, threshold, shown)


def _anomaly_maps(pipe, components):
    """Maps of some images at the model's size, `list[torch.Tensor]`."""
    both = render(pipe.calibration.two_components(components), pipe.resolution, pipe.config.smoothing_sigma)
    return list(blend(both[:, 0], both[:, 1], pipe.alpha))


def _choose_shown(is_rejected, count):
    """Places of some defects, found ones first, among their like as many kinds as there are."""
    found, missed = map(_kinds_in_turn, (np.flatnonzero(is_rejected), np.flatnonzero(~is_rejected)))
    num_found = max(count // 2, count - len(missed))
    found = found[:num_found]
    return found + missed[: count - len(found)]


def _kinds_in_turn(places):
    """The first place of each kind, then the second of each, `list[int]`."""
    seen = Counter()
    ranked = []
    for place in places.tolist():
        kind = place % len(KINDS)
        ranked.append((seen[kind], place))
        seen[kind] += 1
    return [place for _, place in sorted(ranked)]
