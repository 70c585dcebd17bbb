"""The answer of `GradientDenoisePipeline`: its fields, their shapes and ranges."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput


@dataclass
class GradientDenoiseOutput(BaseOutput):
    """Answer of `GradientDenoisePipeline`: lists and arrays with one entry for each image.

    Args:
        images (`list`): the repaired images at their own sizes, RGB. `output_type="pil"`: 8-bit images; "np":
            (height, width, 3), uint8, or float32 in [0, 1] for images that came with more than 8 bits; "pt":
            (3, height, width) of the same types. Bit-identical to what was given wherever the mask is 0.
        masks (`list`): what was changed, and how much of the repair shows there: float32 in [0, 1], (height, width),
            an array, a tensor, or an 8-bit image. All zeros for an image that was left alone.
        steps (`list[list[PIL.Image.Image]]`, *optional*): the model's square, as it was given, after every step, and as
            it was chosen in the end.
        distance (`list[np.ndarray]`): Eq. 12 of the same squares, divided by channels and places: float32, to be
            compared with `good_distance`.
        num_resampled (`np.ndarray`): int64, (n,), how many values of `distance` belong to the diffusion model, the
            given image's not counted; those after them belong to Eq. 13, the last one to the result.
        anomaly_score (`np.ndarray`): float32, (n,), of the given images, as the scoring pipeline has it.
        repaired_score (`np.ndarray`): float32, (n,), of the images that are returned.
        p_value (`np.ndarray`): float64, (n,), share of good images that score at least as high as the repaired one.
        is_accepted (`np.ndarray`): bool, (n,), whether the repaired image passes as a good one at `false_alarm_rate`.
            That is the model's opinion: it does not prove that the defect is gone.
        false_alarm_rate (`float`): the rate that decided what is repaired and when it is done.
        good_distance (`float`): mean `distance` of the good images that the normalisation was fitted on; single ones
            lie on both sides of it.
    """

    images: list
    masks: list
    steps: list | None
    distance: list
    num_resampled: np.ndarray
    anomaly_score: np.ndarray
    repaired_score: np.ndarray
    p_value: np.ndarray
    is_accepted: np.ndarray
    false_alarm_rate: float
    good_distance: float
