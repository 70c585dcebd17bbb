"""Standard errors of AUROC, AP and PRO by bootstrap over test images, from one histogram an image."""

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from training.evaluation.metrics import EIGHT_CONNECTED, MAX_FALSE_POSITIVE_RATE

NUM_BINS = 2000
NUM_RESAMPLES = 200


def standard_errors(is_defective, scores, masks, maps, seed=0):
    """Bootstrap standard errors, good and defective images resampled apart.

    Args:
        is_defective (`np.ndarray`): bool, (n,).
        scores (`np.ndarray`): anomaly scores, (n,).
        masks, maps (`list[np.ndarray]`): truth and anomaly maps, (height, width).

    Returns:
        `dict[str, float]`: of image_auroc, pixel_auroc, pixel_ap and pro.
    """
    counts = _histograms(masks, maps)
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(is_defective), np.flatnonzero(~is_defective)]
    samples = []
    for _ in range(NUM_RESAMPLES):
        drawn = np.concatenate([generator.choice(group, len(group)) for group in groups])
        pixels = pixel_metrics_of_histograms(*(table[drawn].sum(axis=0) for table in counts))
        samples.append({"image_auroc": roc_auc_score(is_defective[drawn], scores[drawn])} | pixels)
    return {name: float(np.std([sample[name] for sample in samples], ddof=1)) for name in samples[0]}


def pixel_metrics_of_histograms(good, defective, overlap, regions):
    """Pixel AUROC, AP and PRO of counts per bin, highest bin first; `overlap` is summed over `regions` regions."""
    false_positives = np.append(0, np.cumsum(good)) / good.sum()
    true_positives = np.append(0, np.cumsum(defective)) / defective.sum()
    mean_overlap = np.append(0, np.cumsum(overlap)) / regions
    flagged = np.cumsum(good) + np.cumsum(defective)
    precision = np.cumsum(defective) / np.maximum(flagged, 1)
    grid = np.append(false_positives[false_positives < MAX_FALSE_POSITIVE_RATE], MAX_FALSE_POSITIVE_RATE)
    return {
        "pixel_auroc": float(np.trapezoid(true_positives, false_positives)),
        "pixel_ap": float((precision * np.diff(true_positives)).sum()),
        "pro": float(np.trapezoid(np.interp(grid, false_positives, mean_overlap), grid) / MAX_FALSE_POSITIVE_RATE),
    }


def _histograms(masks, maps):
    """Per image and bin, highest values first: good pixels, defective ones, overlap; and regions per image."""
    sample = np.sort(np.concatenate([anomaly_map.ravel()[::37] for anomaly_map in maps]))
    upper = sample[-len(sample) // 50 :]  # the ends of the curves lie among the highest values
    edges = np.unique(
        np.concatenate([np.quantile(sample, np.linspace(0, 1, NUM_BINS)), upper[:: len(upper) // NUM_BINS + 1]])
    )
    good, defective, overlap, regions = [], [], [], []
    for mask, anomaly_map in zip(masks, maps, strict=True):
        bins = len(edges) - np.searchsorted(edges, anomaly_map.ravel())
        components, count = label(mask, structure=EIGHT_CONNECTED)
        components = components.ravel()
        areas = np.bincount(components, minlength=count + 1).astype(float)
        areas[0] = np.inf
        size = len(edges) + 1
        good.append(np.bincount(bins[components == 0], minlength=size))
        defective.append(np.bincount(bins[components > 0], minlength=size))
        overlap.append(np.bincount(bins, weights=(1 / areas)[components], minlength=size))
        regions.append(count)
    return np.array(good), np.array(defective), np.array(overlap), np.array(regions)
