"""A model that is calibrated anew on a user's good images: the remedy when camera, light or part have changed."""

import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

from pipelines.checkpoint_saving import is_half_precision
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.calibration import check_enough, replace_calibration
from training.data.groups import find_groups
from training.data.layouts import MIN_IMAGES
from training.fitting.calibration_fit import fit_calibration
from training.fitting.promise import describe_promise
from training.fitting.recalibration import describe_recalibration, warning_of
from training.records.image_record import copy_image_record, leave_out_trained_on

SUFFIX = ", recalibrated"
SHOWN_EVERY = 0.5


class Recalibration:
    """A calibration in a thread of its own, whose result is a new model on the shelf; the old one stays as it is.

    Args:
        model (`Model`): the one to start from.
        shelf (`ModelShelf`): what it is added to; its turns are passed on after every few images.
        folder (`Folder`): where the images are.
        indices (`list[int]`): which of them show good parts and can be read.
        trained_models (`str`): folder that the new checkpoint is saved in.

    Raises:
        ValueError: if there are fewer than `MIN_IMAGES` images, or if the server is busy.
    """

    def __init__(self, model, shelf, folder, indices, trained_models):
        if len(indices) < MIN_IMAGES:
            raise ValueError(f"there are {len(indices)} readable images; at least {MIN_IMAGES} are needed.")
        self.name = None
        self.promise = self.change = self.warning = ""
        self._model, self._shelf, self._trained_models = model, shelf, Path(trained_models)
        self._stopped, self._error, self._progress = threading.Event(), None, (0, None)
        self._began = time.monotonic()
        self._thread = shelf.turns.start(self._run, folder, indices)

    def stop(self):
        """Ask it to end after the images that are being measured; no model comes of it."""
        self._stopped.set()

    def watch(self):
        """Yield (images measured, their total or None, seconds) now and then until it has ended."""
        while self._thread.is_alive():
            yield *self._progress, time.monotonic() - self._began
            self._thread.join(SHOWN_EVERY)

    def result(self):
        """Wait for the end. Returns the new model's name, or None if it was stopped; raises what ended it."""
        self._thread.join()
        if self._error is not None and not self._stopped.is_set():
            raise self._error
        return self.name

    def _run(self, folder, indices):
        try:
            with self._model.held(), tempfile.TemporaryDirectory() as directory:
                files = [folder.file(index, directory) for index in indices]
                timesteps = list(self._model.timesteps)
                groups = find_groups(files, shows_progress=False, remedy="; give images of more parts")
                files = leave_out_trained_on(self._model.folder, files, groups)
                check_enough(files, groups)
                with self._shelf.turns.take():
                    calibration = fit_calibration(
                        self._model.scoring,
                        files,
                        timesteps,
                        on_progress=self._after_batch,
                        groups=groups,
                        replaced=self._model.calibration,
                    )
                self._add(calibration)
        except Exception as error:  # handed on to whoever asks for the result
            self._error = error

    def _after_batch(self, measured, total):
        if self._stopped.is_set():
            raise ValueError("the calibration was stopped.")
        self._progress = measured, total
        self._shelf.turns.pass_on()

    def _add(self, calibration):
        """Save the checkpoint with the new calibration and put it on the shelf."""
        pipe = AnomalyScoringPipeline.from_pretrained(self._model.folder)
        replace_calibration(pipe, self._model.category, calibration)
        name, folder = self._unused_name()
        try:
            pipe.save_pretrained(folder, half_precision=is_half_precision(self._model.folder))
            copy_image_record(self._model.folder, folder)
            names = self._shelf.add(folder, name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        ending = "" if self._model.category is None else f": {self._model.category}"
        self.name = next(added for added in names if added == name + ending)
        self.promise = describe_promise(calibration)
        self.change = describe_recalibration(self._model.calibration, calibration)
        self.warning = warning_of(calibration)

    def _unused_name(self):
        """A name that no model and no folder has yet, and its folder, which now exists."""
        base = self._model.name.removesuffix(f": {self._model.category}")
        base = re.sub(rf"{SUFFIX}( \d+)?$", "", base)
        number = 1
        while True:
            name = base + SUFFIX + (f" {number}" if number > 1 else "")
            folder = self._trained_models / re.sub(r"[^\w.]+", "-", name).strip("-.")
            number += 1
            if any(taken == name or taken.startswith(f"{name}: ") for taken in self._shelf.names):
                continue
            try:
                folder.mkdir(parents=True)
                return name, folder
            except FileExistsError:
                continue
