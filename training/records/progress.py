"""What a training leaves for others to watch it by: `progress.jsonl`, one line of JSON for each look at it.

Every line is a whole JSON object and is written at once. A line says

    phase               "training", then "references", "calibration", "checking" (where a report is written),
                        "saving", "finished"; or "stopped"
    step, max_steps     optimizer steps done and asked for
    seconds             since this process began to train
    pid                 of the process: SIGTERM makes it write a checkpoint and end

and, while it trains, `images_per_second` and the losses `noise`, `bound` and `features`, from the third step on
`seconds_left` of the steps and `seconds_after`, an estimate of what follows them; after a validation (`validation.py`)
also each of `SEPARATION` and the `validation_seconds` that it took. After the steps, `seconds_left` is that of all that
follows, where it can be told.
A resumed run goes on in the same file; from the step it resumes at, its lines replace those before.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

PROGRESS = "progress.jsonl"
LOSSES = ("noise", "bound", "features")
SEPARATION = ("kl_image_auroc", "kl_pixel_auroc", "features_image_auroc", "features_pixel_auroc")
"""How well KL (Eq. 9) and feature error (Eq. 10) tell synthetic defects from what is good."""

WRITTEN_EVERY = 1.0
"""Seconds between two lines, at least; the first and the last step have one in any case."""

FIRST_STEPS = 3
"""After so many steps it is said how long the others take; the first, which takes longer, does not count."""


class ProgressLog:
    """Writes the lines of one process.

    Args:
        folder (`str` or `Path`): where the file lies; it must exist.
        step (`int`): optimizer steps done before this process.
        max_steps (`int`): steps asked for.
        enabled (`bool`): nothing is written without it: of several processes one writes.
        every (`float`): seconds between two lines of `log_step`, at least.
        images_after (`float`): images that are measured after the steps, each of which takes about as long as one that
            is trained on: the forward passes at several noise scales are as much work as a step forth and back.
    """

    def __init__(self, folder, step, max_steps, enabled=True, every=WRITTEN_EVERY, images_after=0):
        self.path = Path(folder) / PROGRESS
        self._step, self._max_steps, self._enabled, self._every = step, max_steps, enabled, every
        self._first, self._began, self._written = step, time.monotonic(), -np.inf
        self._phase, self._phase_began = None, self._began
        self._images_after, self._first_step_took, self._seconds_after = images_after, None, None
        self.phase_seconds = {}

    def log_phase(self, phase):
        """Say that a phase begins; `phase_seconds` says how long those before it took, `dict[str, float]`."""
        now = time.monotonic()
        if self._phase is not None:
            self.phase_seconds[self._phase] = self.phase_seconds.get(self._phase, 0.0) + now - self._phase_began
        self._phase, self._phase_began = phase, now
        left = {} if phase != "references" or self._seconds_after is None else {"seconds_left": self._seconds_after}
        self._write(phase, **left)

    def log_measured(self, done, left):
        """Say how long what follows the steps still takes, if the last line is old enough.

        Args:
            done (`int`): images that were measured since this phase began.
            left (`float`): images that are still to be measured, in later phases too.
        """
        now = time.monotonic()
        if now - self._began - self._written < self._every:
            return
        self._written = now - self._began
        self._write(self._phase, seconds_left=round((now - self._phase_began) / max(done, 1) * left, 1))

    def log_step(self, step, images, losses, validated=None):
        """Say that a step is done, if the last line is old enough or there is a validation to tell of.

        Args:
            step (`int`): optimizer steps done.
            images (`int`): images that this process has trained on.
            losses (`dict[str, float]`): of this step, one for each of `LOSSES`.
            validated (`dict[str, float]`, *optional*): what `Validation.measure` found after it.
        """
        self._step = step
        seconds = time.monotonic() - self._began
        if self._first_step_took is None:
            self._first_step_took = seconds
        if seconds - self._written < self._every and step < self._max_steps and not validated:
            return
        self._written = seconds
        speed = {"images_per_second": round(images / max(seconds, 1e-3), 2)}
        done = step - self._first
        if done >= FIRST_STEPS:
            per_step = (seconds - self._first_step_took) / (done - 1)
            self._seconds_after = round(per_step * done / images * self._images_after, 1)
            speed |= {"seconds_left": round(per_step * (self._max_steps - step), 1)}
            speed |= {"seconds_after": self._seconds_after}
        values = {name: losses[name] for name in LOSSES} | (validated or {})
        self._write("training", **speed, **{name: round(value, 6) for name, value in values.items()})

    def _write(self, phase, **values):
        if not self._enabled:
            return
        seconds = round(time.monotonic() - self._began, 1)
        common = {"phase": phase, "step": self._step, "max_steps": self._max_steps, "seconds": seconds}
        line = json.dumps(common | values | {"pid": os.getpid()}) + "\n"
        with open(self.path, "ab+") as stream:
            if _is_torn(stream):
                line = "\n" + line
            stream.write(line.encode())


def read_progress(folder):
    """The lines of a training's folder, `list[dict]`, in the order in which they were written.

    A line that is not whole, or not one of ours, is left out; without a file there are none.
    """
    path = Path(folder) / PROGRESS
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline is not whole yet
    return [entry for entry in map(_parse, lines) if entry is not None]


def loss_curve(entries, max_points=200):
    """The losses over the steps, `dict[str, list]` with `step` and each of `LOSSES`, averaged to at most `max_points`.

    Lines of a run that was interrupted are left out from where it was resumed.
    """
    names = ("step", *LOSSES)
    kept = _lines_with(LOSSES, entries)
    if not kept:
        return {name: [] for name in names}
    values = np.array([[entry[name] for name in names] for entry in kept], float)
    means = np.stack([share.mean(axis=0) for share in np.array_split(values, min(max_points, len(values)))])
    return dict(zip(names, means.T.tolist(), strict=True))


def separation_curve(entries):
    """The validations, `dict[str, list]` with `step`, each of `SEPARATION` and `validation_seconds`.

    Lines of a run that was interrupted are left out as in `loss_curve`.
    """
    names = ("step", *SEPARATION, "validation_seconds")
    kept = _lines_with(names, entries)
    return {name: [entry[name] for entry in kept] for name in names}


def _lines_with(names, entries):
    """Lines that hold all these names, without those that a resumed run has replaced."""
    kept = []
    for entry in entries:
        while kept and kept[-1]["step"] > entry["step"]:
            kept.pop()
        if all(name in entry for name in names):
            kept.append(entry)
    return kept


def _parse(line):
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(entry, dict) and {"phase", "step", "max_steps", "seconds", "pid"} <= entry.keys()
    return entry if is_ours else None


def _is_torn(stream):
    """Whether a file that is open for appending ends within a line: its writer was killed."""
    if stream.seek(0, os.SEEK_END) == 0:
        return False
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) != b"\n"
