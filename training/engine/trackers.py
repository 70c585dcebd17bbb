"""Trackers of accelerate that a training reports to: which there are, where they write, and images for them."""

import os

import numpy as np
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from pipelines.checkpoint_reading import one_line

RUN = "training"
"""What a run is called in all of them."""

SHEET = "validation"

PACKAGES = {"comet_ml": "comet-ml"}
"""Packages that are not named as their tracker."""


def check_trackers(names):
    """Check that trackers are known and installed.

    Args:
        names (`list[str]`): of `--report_to`; "all" stands for those that are installed.

    Raises:
        ValueError: with the first that is not.
    """
    known = sorted(tracker.value for tracker in LoggerType)
    available = ["all", *map(str, get_available_trackers())]
    for name in names:
        if name not in known:
            raise ValueError(f"--report_to is {name}; {', '.join(known)} are accepted.")
        if name not in available:
            package = PACKAGES.get(name, name)
            raise ValueError(f"--report_to {name} needs a package that is not here; pip install {package} adds it.")


def start_trackers(accelerator, settings):
    """Start the trackers of an accelerator, on its main process.

    Files of tensorboard and Weights & Biases lie in the accelerator's `logging_dir`, those of trackio where
    `trackio show` looks for them.

    Args:
        accelerator (`Accelerator`): with its `logging_dir`.
        settings (`dict`): of the training, which they show.

    Raises:
        ValueError: if one does not start: it may ask for a login.
    """
    if accelerator.log_with:
        os.makedirs(accelerator.logging_dir, exist_ok=True)
    try:
        accelerator.init_trackers(
            RUN,
            config={name: str(value) for name, value in settings.items()},
            init_kwargs={"wandb": {"dir": accelerator.logging_dir}},
        )
    except Exception as error:  # each has kinds of its own
        names = " ".join(map(str, accelerator.log_with))
        raise ValueError(
            f"--report_to {names} cannot be started: {one_line(error)}; log in, or leave it out."
        ) from error


def log_sheets(accelerator, sheets, step):
    """Give the sheets of a validation to every tracker that takes images.

    Args:
        accelerator (`Accelerator`): whose trackers were started.
        sheets (`dict[str, PIL.Image.Image]`): of each category; a single one is called "validation".
        step (`int`): of the training.
    """
    names = [SHEET] if len(sheets) == 1 else [f"{SHEET}/{name}" for name in sheets]
    arrays = dict(zip(names, map(np.asarray, sheets.values()), strict=True))
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":  # accelerate gives it none
            import trackio

            tracker.log({name: trackio.Image(array) for name, array in arrays.items()}, step=step)
        elif hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: array[None] for name, array in arrays.items()}, step=step, **options)
