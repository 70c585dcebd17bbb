"""Drift: do the good-looking images of a batch still score like those that the model was calibrated on?

Both samples are cut at the threshold that accepts, so that defects in the batch do not count as drift. What is left is
compared by the two-sample Kolmogorov-Smirnov test.
"""

import numpy as np
from scipy.stats import ks_2samp

MIN_SCORES = 8
"""With fewer scores on either side there is nothing to compare."""


def drift_test(scores, ranked, image_threshold):
    """Compare the accepted scores of a batch with those of good images that the same threshold accepts.

    Args:
        scores (`np.ndarray`): anomaly scores of the batch, (n,), in standard deviations of good images.
        ranked (`np.ndarray`): those of the calibration, one of each part, `ScoreCalibration.independent_scores`, (m,).
        image_threshold (`float`): images that score above it are rejected.

    Returns:
        `float` or None: the p-value, uniform while good images score as they did when the model was calibrated; None
        if fewer than `MIN_SCORES` of either are accepted.
    """
    accepted, expected = (values[values <= image_threshold] for values in map(np.asarray, (scores, ranked)))
    if min(len(accepted), len(expected)) < MIN_SCORES:
        return None
    return float(ks_2samp(accepted, expected).pvalue)
