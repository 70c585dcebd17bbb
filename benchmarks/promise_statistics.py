"""What a measured false alarm rate says of a promise: p-values over splits, intervals, uniformity."""

import math
from typing import NamedTuple

import torch
from scipy.stats import norm
from tqdm.auto import tqdm

from pipelines.measurement import Measurement
from pipelines.score_calibration import ScoreCalibration
from training.fitting.calibration_fit import FITTED_SHARE, fit_image_ranks

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)

NEW_SHARE = 0.25
"""Share of the held-out images that is new in a split; of the rest, `FITTED_SHARE` fits the normalisation."""

NUM_SIMULATED = 2000
"""Splits of exchangeable images that a Kolmogorov-Smirnov distance is compared with."""


class SplitPValues(NamedTuple):
    """P-values of new good images over splits, float64, (splits, images), and the last split's calibration.

    `smoothed` ones are drawn uniformly from what ties and the finite number of ranks leave open, so that they are
    exactly uniform on [0, 1] if new and ranked images are exchangeable. `redrawn` says whether each split has new
    images of its own rather than the same ones.
    """

    p_values: torch.Tensor
    smoothed: torch.Tensor
    calibration: ScoreCalibration
    redrawn: bool


def split_p_values(calibration, good, new=None, splits=200, seed=0):
    """`SplitPValues` of new good images under calibrations fitted to random splits of others.

    Args:
        calibration (`ScoreCalibration`): gives timesteps and deciding components; it is left as it is.
        good (`Measurement`): of the images that are split.
        new (`Measurement`, *optional*): of new images; without it, each split takes `NEW_SHARE` of `good` for them.
    """
    generator = torch.Generator().manual_seed(seed)
    count, timesteps = len(good.kl), list(calibration.config.timesteps)
    num_new = round(NEW_SHARE * count) if new is None else 0
    num_fitted = round(FITTED_SHARE * (count - num_new))
    sizes = {"num_fitted": num_fitted, "num_ranked": count - num_new - num_fitted}
    fresh = ScoreCalibration.from_config(
        calibration.config,
        **sizes,
        num_groups=None,
        num_fitted_groups=None,
        ranks_bfloat16=False,
        cross_fitted=False,
    )
    smallest, p_values, smoothed = 1 / (sizes["num_ranked"] + 1), [], []
    for _ in tqdm(range(splits), desc="splitting", unit="split"):
        parts = torch.randperm(count, generator=generator).split([*sizes.values(), num_new])
        fitted, ranked, drawn = (Measurement(*(maps[part] for maps in good)) for part in parts)
        fit_image_ranks(fresh, fitted, ranked)
        standardized = fresh.standardize(drawn if new is None else new, timesteps)
        scores = fresh.image_score(standardized, timesteps)
        p_value = fresh.p_value(scores, timesteps)
        lowest = fresh.p_value(scores.nextafter(torch.tensor(math.inf)), timesteps) - smallest  # without ties
        p_values.append(p_value)
        smoothed.append(torch.lerp(lowest, p_value, torch.rand(p_value.shape, generator=generator).double()))
    return SplitPValues(torch.stack(p_values), torch.stack(smoothed), fresh, new is None)


def summarize(pool, seed=0):
    """What is reported of a pool.

    Returns:
        `dict`: fitted, ranked, new (images in a split); uniformity (see there); rates, one dict for each promise: the
        rate asked for, the promised (effective) one, the exact one of exchangeable images without ties, the measured
        one (mean over splits), its interval (95 % for all rates together) and whether the promise is kept, that is,
        not below the interval.
    """
    num_ranked, rates = pool.calibration.config.num_ranked, {}
    for asked in RATES:
        promised = pool.calibration.effective_rate(asked)
        exact = math.floor(promised * (num_ranked + 1) + 1e-9) / (num_ranked + 1)
        measured = (pool.p_values <= promised + 1e-12).double().mean().item()
        low, high = wilson_interval(measured, independent_images(pool), 0.05 / len(RATES))
        row = {"asked": asked, "promised": promised, "exact": exact, "measured": measured}
        row |= {"interval": (low, high), "kept": low <= promised}
        rates.setdefault(promised, row)  # rates too small to be promised all become the smallest that can
    sizes = {"fitted": pool.calibration.config.num_fitted, "ranked": num_ranked, "new": pool.p_values.shape[1]}
    return {**sizes, "uniformity": uniformity(pool, seed), "rates": list(rates.values())}


def independent_images(pool):
    """So many independent images would leave a false alarm rate as uncertain as the mean over a pool's splits is.

    In a split with n ranked and m new exchangeable images the threshold's true rate follows Beta(k, n + 1 - k), with
    mean p = k / (n + 1) (Vovk, "Conditional validity of inductive conformal predictors"), so that the measured one has
    variance p (1 - p) (1 / m + (1 - 1 / m) / (n + 2)): one split counts as 1 / (1 / m + …) independent images.

    Splits share images. Where new ones are redrawn, all this holds given the images already, and given them splits
    are independent: they add up. Where they are the same in each, all splits count as one, for the variance of a mean
    is at most that of one of its terms: the interval is rather too wide.
    """
    (splits, num_new), num_ranked = pool.p_values.shape, pool.calibration.config.num_ranked
    one_split = 1 / (1 / num_new + (1 - 1 / num_new) / (num_ranked + 2))
    return splits * one_split if pool.redrawn else one_split


def wilson_interval(rate, count, error=0.05):
    """Wilson's interval, (low, high), of a share measured on `count` independent images; 95 % by default."""
    spread = float(norm.isf(error / 2)) ** 2 / count
    centre, margin = rate + spread / 2, math.sqrt(spread * rate * (1 - rate) + spread**2 / 4)
    return (centre - margin) / (1 + spread), (centre + margin) / (1 + spread)


def uniformity(pool, seed=0):
    """Kolmogorov-Smirnov test of the smoothed p-values, split by split.

    Those of a split share its ranks, so their distance from the uniform distribution is not compared with the test's
    own table, which is for independent values, but with simulated splits of as many exchangeable images.

    Returns:
        `dict`: the test's p-value in the first_split; over all splits, their median and the share_below 0.05. Splits
        share images: the share is 0.05 on average if new images are redrawn; if not, splits tend to agree.
    """
    (_, num_new), num_ranked = pool.smoothed.shape, pool.calibration.config.num_ranked
    generator = torch.Generator().manual_seed(seed)
    ranked, new, within = (
        torch.rand(NUM_SIMULATED, count, generator=generator, dtype=torch.float64)
        for count in (num_ranked, num_new, num_new)
    )
    simulated = (torch.searchsorted(ranked.sort(dim=1).values, new) + within) / (num_ranked + 1)
    expected = distance_from_uniform(simulated).sort().values
    as_far = NUM_SIMULATED - torch.searchsorted(expected, distance_from_uniform(pool.smoothed))
    p_values = (1 + as_far.double()) / (1 + NUM_SIMULATED)
    first, median, share = p_values[0], p_values.quantile(0.5), (p_values < 0.05).double().mean()
    return {"first_split": first.item(), "median": median.item(), "share_below": share.item()}


def distance_from_uniform(values):
    """Kolmogorov-Smirnov distance from the uniform distribution on [0, 1], (rows, values) to (rows,)."""
    ordered, count = values.sort(dim=1).values, values.shape[1]
    steps = torch.arange(count + 1, dtype=values.dtype) / count
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(dim=1)
