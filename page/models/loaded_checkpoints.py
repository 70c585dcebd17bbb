"""Checkpoints in memory: those used last. Users open and make any number; the others are read again when needed."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch

from page.models.inference_queue import on_gpu
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from training.runtime.process import give_back_free_memory

MAX_LOADED = 8
"""So many checkpoints are in memory at once; the embedded one takes 130 MB and is read in half a second."""


class Pipelines(NamedTuple):
    """What one category of a checkpoint computes with: the two share everything.

    `score` and `repair` call them, where a GPU is lent for a call also on that.
    """

    scoring: AnomalyScoringPipeline
    repairing: GradientDenoisePipeline
    score: Callable
    repair: Callable


class LoadedCheckpoints:
    """Reads checkpoints and keeps the ones used last.

    Args:
        limit (`int`): so many at most.
    """

    def __init__(self, limit):
        self._limit, self._kept = limit, OrderedDict()
        self._reading, self._looking = threading.Lock(), threading.Lock()
        self._holders, self._withdrawn = Counter(), set()

    def pipelines(self, folder, category):
        """`Pipelines` of a checkpoint (`Path`) and its category, None if it has none; read again if they are not here.

        Raises:
            ValueError: if they have to be read and cannot be.
        """
        found = self._find(folder)
        if found is None:
            with self._reading:
                found = self._find(folder) or self._read(folder, folder.name)
        return found[category]

    def find(self, folder, category):
        """`Pipelines` as `pipelines` returns them, or None if they would have to be read."""
        with self._looking:
            found = self._kept.get(folder)
        return None if found is None else found.get(category)

    def read(self, folder, name):
        """Read a checkpoint (`Path`) that people know as `name` (`str`), also if it is here already.

        Returns:
            `dict[str | None, Pipelines]`: by category.

        Raises:
            ValueError: if it cannot be read, or is not calibrated.
        """
        with self._reading:
            return self._read(folder, name)

    def forget(self, folder):
        """Let a checkpoint (`Path`) go that nobody will ask for again."""
        with self._looking:
            gone = self._kept.pop(folder, None)
        if gone is not None:
            del gone
            give_back_free_memory()

    @contextmanager
    def held(self, folder):
        """Within the block a checkpoint (`Path`) stays where it is.

        Raises:
            ValueError: if it is being renamed or deleted.
        """
        with self._looking:
            if folder in self._withdrawn:
                raise ValueError("the model is just being renamed or deleted; choose one at the top of the page.")
            self._holders[folder] += 1
        try:
            yield
        finally:
            with self._looking:
                self._holders[folder] -= 1

    @contextmanager
    def withdrawn(self, folder):
        """Within the block nobody holds a checkpoint (`Path`), and nobody can.

        Raises:
            ValueError: if somebody does.
        """
        with self._looking:
            if self._holders[folder] or folder in self._withdrawn:
                raise ValueError("the model is being used for a batch or a recalibration; wait for its end.")
            self._withdrawn.add(folder)
        try:
            yield
        finally:
            with self._looking:
                self._withdrawn.discard(folder)

    def _find(self, folder):
        with self._looking:
            if folder in self._kept:
                self._kept.move_to_end(folder)
            return self._kept.get(folder)

    def _read(self, folder, name):
        self._make_room_for(folder)
        pipe = AnomalyScoringPipeline.from_pretrained(folder)
        if any(pipe.for_category(category).calibration is None for category in _categories(pipe)):
            raise ValueError(f"{name} is not calibrated; run training/calibration.py on good images first.")
        if torch.cuda.is_available():
            pipe.to("cuda")
        read = {category: _pipelines(pipe.for_category(category)) for category in _categories(pipe)}
        with self._looking:
            self._kept[folder] = read
        return read

    def _make_room_for(self, folder):
        """Let the ones go that were not used for longest, and their memory: it would stay in pieces otherwise."""
        with self._looking:
            before = len(self._kept)
            self._kept.pop(folder, None)
            while len(self._kept) >= self._limit:
                self._kept.popitem(last=False)
        if len(self._kept) < before:
            give_back_free_memory()


def _categories(pipe):
    return [None] if pipe.categories is None else pipe.categories.config.names


def _pipelines(scoring):
    scoring.set_progress_bar_config(disable=True)
    repairing = GradientDenoisePipeline.from_pipe(scoring)
    repairing.set_progress_bar_config(disable=True)
    return Pipelines(scoring, repairing, on_gpu(scoring.__call__), on_gpu(repairing.__call__))
