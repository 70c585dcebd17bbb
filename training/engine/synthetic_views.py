"""Synthetic defects as images, beside what the model makes of them, and the record of them that a checkpoint keeps."""

import io
import logging

from PIL import Image

from rendering.heat_map import outline, overlay, saturation_of
from training.engine.validation import image_of
from training.records.synthetic_record import write_check

TRUTH_COLOR = (124, 252, 0)
"""Green, around the synthetic defect: cyan is what the model marks."""

SIDE, QUALITY = 256, 85
"""Of a view in the record, WebP."""

logger = logging.getLogger(__name__)


def views_of(checked, saturation):
    """Two views of a synthetic defect, `tuple[PIL.Image.Image, PIL.Image.Image]` in RGB.

    The image with the defect outlined in green; the same under its heat map, with what the model marks in cyan.

    Args:
        checked (`CheckedDefect`): of `fitting.synthetic_check`.
        saturation (`float`): value of the map at which the colours end.
    """
    image = image_of(checked.sample)
    truth = outline(image, checked.mask.numpy(), TRUTH_COLOR)
    heat_map = outline(overlay(image, checked.anomaly_map.numpy(), saturation), checked.pred_mask.numpy())
    return Image.fromarray(truth), Image.fromarray(heat_map)


def leave_check(pipe, checks, folder):
    """Write what a finished model makes of synthetic defects into its checkpoint; where that fails, a warning says why.

    Args:
        pipe (`AnomalyScoringPipeline`): the checkpoint's.
        checks (`dict[str, SyntheticCheck]`): of each category.
        folder (`str` or `Path`): the checkpoint.
    """
    several = len(checks) > 1
    try:
        write_check(
            folder,
            [
                _record_of(pipe.for_category(name if several else None), check, name if several else None)
                for name, check in checks.items()
            ],
        )
    except OSError as error:
        logger.warning("what the model makes of synthetic defects could not be written: %s", error)


def _record_of(pipe, check, category):
    saturation = saturation_of(pipe)
    shown = []
    for checked in check.shown:
        image, heat_map = (_as_webp(view) for view in views_of(checked, saturation))
        known = {"kind": checked.kind, "is_rejected": checked.is_rejected, "score": checked.score}
        shown.append(known | {"image": image, "heat_map": heat_map})
    return {
        "category": category,
        "count": len(check.is_rejected),
        "rejected": check.num_rejected,
        "false_alarm_rate": float(check.false_alarm_rate),
        "is_estimate": pipe.calibration.config.cross_fitted,
        "by_kind": {kind: list(counts) for kind, counts in check.by_kind().items()},
        "shown": shown,
    }


def _as_webp(view):
    view = view.copy()
    view.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    view.save(stream, "WEBP", quality=QUALITY)
    return stream.getvalue()
