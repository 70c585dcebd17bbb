"""What keeps a recalibration from making a model blind: it is for another camera or light, not for another part.

Whatever scores the new images have become what is normal. If they show another part, or defects, everything would be
accepted from then on. So images that are unlike those the model was trained on are refused, and so is a calibration by
which the model finds far fewer synthetic defects than it did.
"""

from pipelines.score_calibration import SLACK
from rendering.words import count_of, percent

MAX_UNFAMILIAR = 0.5
"""Of the new images, a larger share that is unlike the trained kind is refused."""

MIN_KEPT = 0.5
"""Of the synthetic defects that were found before, so many must be found still, as a share."""

MIN_LIFT = 2
"""Where it is not known how many were found before: synthetic defects must be rejected so many times as often as good
parts may be. One that rejects both alike is blind."""


def share_unfamiliar(replaced, distance):
    """Share of new images that lie beyond the limit that the model was trained with; None where that is not known.

    Args:
        replaced (`ScoreCalibration`): what is to be replaced.
        distance (`torch.Tensor`): of the new images' `Measurement`, (images,).
    """
    limit = replaced.config.first_unfamiliar_distance
    return None if limit is None else (distance > limit).double().mean().item()


def check_familiar(replaced, distance):
    """Check that new images are of the kind that the model was trained on.

    Args:
        replaced (`ScoreCalibration`), distance (`torch.Tensor`): as for `share_unfamiliar`.

    Raises:
        ValueError: if more than `MAX_UNFAMILIAR` of them are not.
    """
    share = share_unfamiliar(replaced, distance)
    if share is not None and share > MAX_UNFAMILIAR:
        raise ValueError(
            f"{round(share * len(distance))} of {count_of(len(distance), 'image')} are unlike anything that this model "
            "was trained on: another part, or a camera or light that has changed too much. Recalibrated on them, it "
            "would find no defects; train a model on these images instead."
        )


def share_rejected(calibration, components, timesteps):
    """Share of images that are rejected at the default rate, `float`.

    Args:
        calibration (`ScoreCalibration`): whole.
        components (`torch.Tensor`): what it standardised of the images, (images, components, grid, grid).
        timesteps (`list[int]`): what they were measured at.
    """
    p_value = calibration.p_value(calibration.image_score(components, timesteps), timesteps)
    return (p_value <= calibration.effective_rate() + SLACK).double().mean().item()


def check_sensitivity(replaced, calibration):
    """Check that a new calibration leaves the model able to find synthetic defects.

    Raises:
        ValueError: if it finds less than `MIN_KEPT` of what the one that it replaces found, or, where that is not
            known, hardly more than it rejects of good parts. A model that was blind before has nothing to lose.
    """
    before, after = replaced.config.synthetic_rejected, calibration.config.synthetic_rejected
    blind, was_blind = MIN_LIFT * calibration.effective_rate(), MIN_LIFT * replaced.effective_rate()
    if after >= (blind if before is None else MIN_KEPT * before if before >= was_blind else 0):
        return
    formerly = "" if before is None else f" (of {percent(before)} before)"
    raise ValueError(
        f"recalibrated on these images, the model would find only {percent(after)} of synthetic defects{formerly}: "
        "either some of the images show defects, or they differ too much from each other or from those that it was "
        "trained on. Leave out what is not good, or train a model on these images instead."
    )


def describe_recalibration(replaced, calibration):
    """What a recalibration has changed, a sentence or two; with a warning where images were unlike the trained kind."""
    before, after = replaced.config.synthetic_rejected, calibration.config.synthetic_rejected
    found = f"It finds {percent(after)} of synthetic defects put into these images"
    found += "." if before is None else f"; before, with its own good images, it found {percent(before)}."
    return f"{found} {warning_of(calibration)}".strip()


def warning_of(calibration):
    """What whoever uses a recalibrated model must know, a sentence; "" if there is nothing."""
    share = calibration.config.unfamiliar_share
    if not share:
        return ""
    return (
        f"Recalibrated on images of which {percent(share)} are unlike those that the model was trained on: it "
        "may miss defects."
    )
