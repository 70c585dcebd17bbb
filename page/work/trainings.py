"""The trainings of this server: one at a time, whoever asks; each ends as a model on the shelf or can be resumed."""

import atexit
import json
import logging
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

from page.server.uploads import Folder
from page.work.own_models import clear_deleted
from page.work.training_images import unpack_images
from page.work.training_run import TrainingRequest, TrainingRun
from pipelines.checkpoint_names import MODEL_INDEX
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.records.progress import read_progress

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}")
MAX_STEPS = 100_000
IMAGES = ".pictures"
"""Ends the name of a model's folder of images: no model's name can hold a dot."""

REQUEST = "request.json"
CLOSING_SECONDS = 20

logger = logging.getLogger(__name__)


class Trainings:
    """Starts, resumes and ends trainings.

    Args:
        settings (`Settings`): the folder of trained models, and the limits.
        shelf (`ModelShelf`): where finished models go.
        options: further arguments of `training/train.py`.
    """

    def __init__(self, settings, shelf, options=()):
        self._settings, self._shelf, self._options = settings, shelf, tuple(options)
        self._folder = Path(settings.trained_models).absolute()
        self._beginning = threading.Lock()
        self.latest = None
        atexit.register(self.close)

    @property
    def unfinished(self):
        """Names of trainings that were stopped and can be resumed, sorted."""
        running = self.latest.name if self.latest is not None and self.latest.is_running else None
        names = (path.parent.name.removesuffix(IMAGES) for path in self._folder.glob(f"*{IMAGES}/{REQUEST}"))
        return sorted(name for name in names if name != running)

    def start(self, name, uploads, preset=DEFAULT_PRESET, steps=None, report=None):
        """Unpack the images and start a training. Returns the `TrainingRun`, also found as `latest`.

        Args:
            name (`str`): what the model will be called.
            uploads (`list[dict]`): files as in `page.server.uploads.Folder`.
            preset (`str`): of `training.cli.presets`.
            steps (`int`, *optional*): the preset's by default.
            report (`Callable[[int, int], None]`, *optional*): hears how many images were looked at.

        Raises:
            ValueError: if it cannot be started, or another one runs.
        """
        with _one_at_a_time(self._beginning):
            self._refuse_second()
            request = _checked_request(preset, steps)
            images, _ = self._places(self._checked_new(name))
            folder = Folder(uploads, self._settings.max_training_pictures, self._settings.max_upload_mb)
            left_out = unpack_images(folder, images, report)
            (images / REQUEST).write_text(json.dumps({"preset": request.preset, "steps": request.steps}))
            return self._run(name, request, left_out)

    def resume(self, name):
        """Go on with a training that was stopped. Returns the `TrainingRun`.

        Raises:
            ValueError: if there is none of that name, or another one runs.
        """
        with _one_at_a_time(self._beginning):
            self._refuse_second()
            images, output = self._places(self._checked_unfinished(name))
            _refuse_if_alive(output)
            return self._run(name, _checked_request(**json.loads((images / REQUEST).read_text())))

    def discard(self, name):
        """Delete a training that was stopped, images and all.

        Raises:
            ValueError: if there is none of that name.
        """
        with _one_at_a_time(self._beginning):
            images, output = self._places(self._checked_unfinished(name))
            _refuse_if_alive(output)
            for folder in (output, images):
                shutil.rmtree(folder, ignore_errors=True)
            if self.latest is not None and self.latest.name == name:
                self.latest = None

    def undisturbed(self):
        """A context in which no training begins.

        Raises:
            ValueError: if one is just beginning.
        """
        return _one_at_a_time(self._beginning)

    def check_new_name(self, name):
        """A name for a model, `str`.

        Raises:
            ValueError: if it is none, or taken.
        """
        return self._checked_new(name)

    def renamed(self, folder, target):
        """Learn that a model's folder (`Path`) has another name (`Path`)."""
        if self._is_latest(folder):
            self.latest.moved(target)

    def deleted(self, folder):
        """Learn that a model's folder (`Path`) is no more."""
        if self._is_latest(folder):
            self.latest = None

    def _is_latest(self, folder):
        return self.latest is not None and not self.latest.is_running and self.latest.output == folder

    def close(self):
        """End the training that runs, if any, so that it can be resumed when the server is back."""
        atexit.unregister(self.close)
        if self.latest is not None and self.latest.is_running:
            self.latest.stop()
            self.latest.wait(CLOSING_SECONDS)

    def _run(self, name, request, left_out=()):
        options = (*self._options, "--all_good")  # folders and names were looked at when they were unpacked
        request = TrainingRequest(request.preset, request.steps, options)
        limit = self._settings.max_training_minutes
        self.latest = TrainingRun(name, *self._places(name), request, limit, self._when_ended, left_out)
        return self.latest

    def _when_ended(self, run, state):
        """Put a finished model on the shelf; forget images that are not needed any more."""
        images, output = self._places(run.name)
        checkpoints = list(output.glob("checkpoint-*"))
        if state == "finished":
            self._shelf.add(output, run.name)
            for checkpoint in checkpoints:
                shutil.rmtree(checkpoint)
        if state == "finished" or (state == "failed" and not checkpoints):
            shutil.rmtree(images, ignore_errors=True)
        if state == "failed" and not checkpoints:
            shutil.rmtree(output, ignore_errors=True)

    def _places(self, name):
        return self._folder / f"{name}{IMAGES}", self._folder / name

    def _refuse_second(self):
        if self.latest is not None and self.latest.is_running:
            raise ValueError(
                f"the training of {self.latest.name} is running, and one runs at a time; wait for its end."
            )

    def _checked_new(self, name):
        name = _checked_name(name)
        images, output = self._places(name)
        if images.exists():
            raise ValueError(f"the training of {name} is unfinished; resume or delete it, or choose another name.")
        if output.exists() or any(taken == name or taken.startswith(f"{name}: ") for taken in self._shelf.names):
            raise ValueError(f"there is a model {name} already; choose another name.")
        return name

    def _checked_unfinished(self, name):
        if name not in self.unfinished:
            raise ValueError(f"there is no unfinished training {str(name)[:40]!r}.")
        return name


def shelve_trained_models(folder, shelf):
    """Put the finished models of a folder on the shelf; what cannot be loaded is logged and left out."""
    clear_deleted(folder)
    for path in sorted(Path(folder).glob(f"*/{MODEL_INDEX}")):
        if path.parent.name in shelf.names or (path.parent.parent / f"{path.parent.name}{IMAGES}").exists():
            continue
        try:
            shelf.add(path.parent)
        except (ValueError, OSError) as error:
            logger.warning("left out: %s", error)


@contextmanager
def _one_at_a_time(lock):
    """Hold a lock that nobody waits for."""
    if not lock.acquire(blocking=False):
        raise ValueError("another training is just being started, and one runs at a time; wait for its end.")
    try:
        yield
    finally:
        lock.release()


def _refuse_if_alive(output):
    """A training outlives the server that started it if that was killed."""
    last = next(reversed(read_progress(output)), None)
    command = Path(f"/proc/{last['pid']}/cmdline") if last is not None else None
    if command is not None and command.is_file() and str(output).encode() in command.read_bytes():
        raise ValueError(f"process {last['pid']} of an earlier server still trains it; wait for its end, then resume.")


def _checked_name(name):
    name = str(name or "").strip()
    if not NAME.fullmatch(name):
        raise ValueError("a model's name has 1 to 40 letters, digits and dashes, such as steel-plate-2.")
    return name


def _checked_request(preset, steps):
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {str(preset)[:40]!r}; choose one of {', '.join(PRESETS)}.")
    steps = PRESETS[preset]["max_train_steps"] if steps is None else steps
    if not isinstance(steps, int | float) or steps % 1 or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {steps}; a whole number from 1 to {MAX_STEPS:,} is accepted.")
    return TrainingRequest(preset, int(steps))
