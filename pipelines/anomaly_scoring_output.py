"""The answer of `AnomalyScoringPipeline`: its fields, their shapes and ranges, and the types they come in."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class AnomalyScoringOutput(BaseOutput):
    """Answer of `AnomalyScoringPipeline`: lists and arrays with one entry for each image.

    Args:
        anomaly_map (`list`): Eq. 11 at the image's own size, (height, width) float32, in standard deviations of good
            images: 0 is an average good one. An array or a tensor; with `output_type="pil"` a float image.
        anomaly_score (`np.ndarray`): float32, (n,): the worst 1 % of each component's map on the score grid, in
            standard deviations of good images; of the components that may decide, the largest or the mean.
        p_value (`np.ndarray`): float64, (n,): share of good images that score at least as high.
        is_anomalous (`np.ndarray`): bool, (n,): whether `p_value` is at most `false_alarm_rate`.
        pred_mask (`list`): the defect's pixels at the image's own size, (height, width) bool; with
            `output_type="pil"` an image of 0 and 255. Empty for an image that is accepted as good, or unfamiliar.
        kl_map, feature_map (`list`): the two components, like `anomaly_map`, which is
            alpha * kl_map + (1 - alpha) * feature_map. The feature component holds the feature error of Eq. 10 and the
            distances from good features.
        false_alarm_rate (`float`): the rate that is promised: of good parts, at most this share is rejected.
        image_threshold, pixel_threshold (`float`): the thresholds that this rate implies.
        unfamiliarity (`np.ndarray`): float32, (n,): how unlike all good images the image is as a whole, from 0; NaN
            where the checkpoint cannot tell.
        is_unfamiliar (`np.ndarray`): bool, (n,): whether `unfamiliarity` is above 1. The image then shows another part,
            or camera or light have changed, and no verdict on it means anything.
    """

    anomaly_map: list
    anomaly_score: np.ndarray
    p_value: np.ndarray
    is_anomalous: np.ndarray
    pred_mask: list
    kl_map: list
    feature_map: list
    false_alarm_rate: float
    image_threshold: float
    pixel_threshold: float
    unfamiliarity: np.ndarray
    is_unfamiliar: np.ndarray


def postprocess(values, output_type):
    """A map or mask, a tensor on the CPU, as tensor ("pt"), array ("np") or image ("pil")."""
    if output_type == "pt":
        return values
    array = values.numpy()
    if output_type == "np":
        return array
    return Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)
