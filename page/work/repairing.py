"""A repair that runs beside the page: it can be watched, stopped, and lets other users' images go first."""

import queue
import threading
import time
from dataclasses import dataclass

import numpy as np

from page.models.inference_queue import lends_gpu
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline

MAX_REPAIR_PIXELS = 16_000_000
SHOWN_EVERY = 0.3
"""Seconds between two looks at a repair that runs."""


@dataclass(frozen=True)
class Progress:
    """Where a repair stands.

    Args:
        step, most_steps (`int`): done, and how many there are if none of them ends it.
        timestep (`int`): 0 for gradient steps.
        seconds (`float`): since it was started.
        square (`np.ndarray`): the model's square, uint8 RGB.
    """

    step: int
    most_steps: int
    timestep: int
    seconds: float
    square: np.ndarray


class Repair:
    """One repair in a thread of its own.

    Args:
        model (`Model`): whose pipeline repairs.
        turns (`Turns`): held while a step computes, passed on between steps.
        image (`np.ndarray`): as `to_rgb` makes it.
        mask (`np.ndarray`, *optional*): bool, (height, width); by default what scoring finds.
        false_alarm_rate (`float`): in (0, 1].

    Attributes:
        was_stopped (`bool`): whether it ended before its end because it was asked to.
        is_watched (`bool`): whether somebody has begun to watch it.
        is_abandoned (`bool`): whether nobody wants its result any more.

    Raises:
        ValueError: for an image that is too large to be repaired here, or if the server is busy.
    """

    def __init__(self, model, turns, image, mask, false_alarm_rate):
        check_repairable(image)
        # A pipeline of its own, sharing all weights: what stops one repair must not stop another.
        self._pipe = GradientDenoisePipeline.from_pipe(model.scoring)
        self._pipe.set_progress_bar_config(disable=True)
        self._model, self._turns, self._stopped = model, turns, threading.Event()
        self._progress, self._began = queue.SimpleQueue(), time.monotonic()
        self._answer = None
        self.was_stopped = self.is_watched = self.is_abandoned = False
        arguments = {"mask": mask, "false_alarm_rate": false_alarm_rate, "return_steps": True}
        self._thread = turns.start(self._run, image, arguments)

    def stop(self):
        """Ask it to end after the step that computes; what has been reached by then is its result."""
        self._stopped.set()

    def abandon(self):
        """Stop it, and let whoever watches know that its result is of no use."""
        self.is_abandoned = True
        self.stop()

    @property
    def is_running(self):
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def watch(self):
        """Yield the latest `Progress` now and then until the repair has ended."""
        self.is_watched = True
        while self._thread.is_alive():
            self._thread.join(SHOWN_EVERY)
            latest = None
            while not self._progress.empty():
                latest = self._progress.get()
            if latest is not None:
                yield latest

    def result(self):
        """Wait for the end. Returns the `GradientDenoiseOutput`; raises what the repair raised."""
        self._thread.join()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def _run(self, image, arguments):
        try:
            with self._turns.take():
                if lends_gpu():  # it computes in another process, where it can be neither watched nor stopped
                    self._answer = self._model.repair(image, **arguments)
                else:
                    self._answer = self._pipe(image, callback_on_step_end=self._after_step, **arguments)
        except Exception as error:  # handed on to whoever asks for the result
            self._answer = error

    def _after_step(self, pipe, step, timestep, tensors):
        if self._stopped.is_set():
            pipe.interrupt = self.was_stopped = True
            return
        square = ((tensors["sample"][0].permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().clip(0, 255)
        seconds = time.monotonic() - self._began
        self._progress.put(Progress(step + 1, pipe.num_timesteps, timestep, seconds, square.astype(np.uint8)))
        self._turns.pass_on()


def check_repairable(image):
    """Refuse an image that is too large to be repaired here.

    Raises:
        ValueError: if it has more than `MAX_REPAIR_PIXELS`.
    """
    height, width = image.shape[:2]
    if height * width > MAX_REPAIR_PIXELS:
        raise ValueError(
            f"the image has {width}×{height} pixels; at most {MAX_REPAIR_PIXELS // 1_000_000} million are "
            "repaired here: crop it or scale it down first."
        )


def find_mask(model, turns, image, false_alarm_rate):
    """What a repair would change by itself, float32 in [0, 1], (height, width): nothing is repaired.

    Raises:
        ValueError: as `check_repairable`.
    """
    check_repairable(image)
    with turns.take():
        output = model.repair(
            image, strengths=(), num_gradient_steps=0, false_alarm_rate=false_alarm_rate, output_type="np"
        )
    return output.masks[0]
