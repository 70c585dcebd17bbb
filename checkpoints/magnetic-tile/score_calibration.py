"""What good pictures look like to the score: normalisation of Eq. 11 and conformal p-values, as a component.

Fitted by `training/calibration.py` on held-out good pictures alone, in two disjoint parts: the first gives mean and
deviation of the maps per timestep and position, the second only ranks scores. A new good picture's rank among those
is uniform, so p-values and thresholds hold for any number of pictures (Vovk et al., "Algorithmic Learning in a Random
World"): of good parts, at most `false_alarm_rate` are rejected.
"""

import math
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

NUM_ALPHAS = 21
"""Scores are kept for alpha = 0, 0.05, …, 1 and every subset of the calibrated timesteps."""


class ScoreCalibration(ModelMixin, ConfigMixin):
    """Noise fields, normalisation of the maps and the scores of good pictures; always float32.

    Args:
        timesteps (`list[int]`): the calibrated T of Eq. 11.
        resolution (`int`): height and width of the model's square.
        grid_size (`int`): height and width of the normalisation per position.
        num_ranked (`int`): good pictures whose scores are ranked.
        num_fitted (`int`): good pictures that the normalisation was fitted on.
        cross_fitted (`bool`): both parts are the same pictures, normalised in turn by the others. The rate is then an
            estimate, not a guarantee.
        bfloat16_deviation (`float`, *optional*): largest difference of a good picture's score between bfloat16 and
            float32, in deviations of the good scores; None if not measured.
    """

    _keep_in_fp32_modules: ClassVar = [
        "noise",
        "kl_mean",
        "kl_std",
        "feature_error_mean",
        "feature_error_std",
        "image_scores",
        "map_maxima",
    ]

    @register_to_config
    def __init__(
        self,
        timesteps: list[int] = (5, 50, 100),
        resolution: int = 256,
        grid_size: int = 64,
        num_ranked: int = 1,
        num_fitted: int = 1,
        cross_fitted: bool = False,
        bfloat16_deviation: float | None = None,
    ):
        super().__init__()
        count, subsets = len(timesteps), 2 ** len(timesteps) - 1
        self.register_buffer("noise", torch.zeros(count, 3, resolution, resolution))
        for name in ("kl", "feature_error"):
            self.register_buffer(f"{name}_mean", torch.zeros(count, grid_size, grid_size))
            self.register_buffer(f"{name}_std", torch.ones(count, grid_size, grid_size))
        self.register_buffer("image_scores", torch.zeros(subsets, NUM_ALPHAS, num_ranked))
        self.register_buffer("map_maxima", torch.zeros(subsets, NUM_ALPHAS, num_ranked))

    def _apply(self, fn, recurse=True):
        """Follow a move to another device, but stay in float32 whatever dtype the pipeline is cast to."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, buffer.to(device=moved.device, dtype=torch.float32))
        return self

    def noise_fields(self, timesteps):
        """The fixed standard normal noise of each timestep, float32, (len(timesteps), 3, resolution, resolution)."""
        return self.noise[self._indices(timesteps)]

    def standardize(self, kl, feature_error, timesteps):
        """Subtract the mean and divide by the deviation of good pictures, per timestep and position, as in Eq. 11.

        Args:
            kl (`torch.Tensor`): KL maps, smoothed, in nats, (batch, len(timesteps), resolution, resolution).
            feature_error (`torch.Tensor`): feature errors, smoothed, the same shape.
            timesteps (`list[int]`): a subset of the calibrated ones.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: both in deviations of good pictures.
        """
        indices = self._indices(timesteps)

        def standardized(maps, mean, std):
            size = maps.shape[-2:]
            mean, std = (F.interpolate(grid[None, indices], size=size, mode="bilinear") for grid in (mean, std))
            return (maps - mean) / std

        return (
            standardized(kl, self.kl_mean, self.kl_std),
            standardized(feature_error, self.feature_error_mean, self.feature_error_std),
        )

    def effective_rate(self, false_alarm_rate=None):
        """The promised false alarm rate: the one asked for, but no smaller than 1 / (n + 1).

        By default 1 %.
        """
        rate = 0.01 if false_alarm_rate is None else float(false_alarm_rate)
        return max(rate, 1 / (self.config.num_ranked + 1))

    def p_value(self, anomaly_score, alpha, timesteps):
        """Share of good pictures that score at least as high, the picture itself counted among them.

        Args:
            anomaly_score (`torch.Tensor`): (batch,).
            alpha (`float`): the alpha it was computed with.
            timesteps (`list[int]`): the timesteps it was computed with.

        Returns:
            `torch.Tensor`: float64, (batch,), from 1 / (n + 1) to 1. A good picture's is at most p with probability
            at most p.
        """
        ranked = self._column(self.image_scores, alpha, timesteps)
        anomaly_score = anomaly_score.to(device=ranked.device, dtype=ranked.dtype)
        at_least = (ranked[None] >= anomaly_score[:, None]).sum(dim=1)
        return (1 + at_least.double()) / (len(ranked) + 1)

    def image_threshold(self, false_alarm_rate, alpha, timesteps):
        """A picture whose score is above this has a p-value of at most the (effective) rate."""
        return self._conformal_quantile(self._column(self.image_scores, alpha, timesteps), false_alarm_rate)

    def pixel_threshold(self, false_alarm_rate, alpha, timesteps):
        """Conformal quantile of the largest value in each good picture's anomaly map."""
        return self._conformal_quantile(self._column(self.map_maxima, alpha, timesteps), false_alarm_rate)

    def _conformal_quantile(self, scores, false_alarm_rate):
        count = len(scores)
        # The small addend keeps 1 - 0.01 from falling short of 0.99 by a rounding error.
        rejected = math.floor(self.effective_rate(false_alarm_rate) * (count + 1) + 1e-9)
        if rejected > count:
            return -math.inf
        return scores.sort(descending=True).values[rejected - 1].item()

    def _column(self, table, alpha, timesteps):
        """Scores of the good pictures for one alpha and subset of timesteps, (n,).

        Between two alphas of the table they are interpolated. Maximum and mean of the largest values are convex in
        alpha, so that this can only overstate the good pictures' scores: the promise holds for every alpha.
        """
        rows = table[timestep_subsets(self.config.timesteps).index(tuple(sorted(timesteps)))]
        place = alpha * (NUM_ALPHAS - 1)
        lower = min(int(place), NUM_ALPHAS - 2)
        return torch.lerp(rows[lower], rows[lower + 1], place - lower)

    def _indices(self, timesteps):
        return [list(self.config.timesteps).index(timestep) for timestep in timesteps]


def timestep_subsets(timesteps):
    """Every non-empty subset of the timesteps, each sorted, in the order of the score tables."""
    ordered = sorted(timesteps)
    return [subset for size in range(1, len(ordered) + 1) for subset in combinations(ordered, size)]
