"""What a calibration promises, in a sentence."""

from rendering.words import count_of, percent
from training.fitting.calibration_fit import MIN_DISJOINT, MIN_DISJOINT_PARTS


def describe_promise(calibration):
    """One sentence on what the calibration promises."""
    config = calibration.config
    parts = calibration.num_ranked_groups
    rates = f"false alarm rates from {percent(1 / (parts + 1))} up are"
    if config.cross_fitted:
        images = count_of(config.num_ranked, "good image") + _of_parts(config.num_groups)
        needed = (
            f"{MIN_DISJOINT} or more images" if config.num_groups is None else f"{MIN_DISJOINT_PARTS} or more parts"
        )
        return f"calibrated on {images} by cross-fitting: {rates} estimates; {needed} would make them a guarantee."
    images = f"{config.num_fitted} + {config.num_ranked} good images"
    if config.num_groups is None:
        return f"calibrated on {images}: {rates} guaranteed for new good parts."
    fitted = config.num_fitted_groups or config.num_fitted
    return (
        f"calibrated on {images} of {fitted} + {parts} parts: {rates} guaranteed for new good parts, however many "
        f"images each has; the rate follows from the {parts} parts, not from the images."
    )


def _of_parts(count):
    return "" if count is None else f" of {count_of(count, 'part')}"
