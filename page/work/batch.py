"""Many images, inspected beside the page: rows as they are done, files of results, one broken image is one row."""

import base64
import io
import logging
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from page.server.gradio_internals import get_upload_folder
from page.server.settings import IMAGES_AT_ONCE, PIXELS_AT_ONCE
from page.server.uploads import as_png
from page.work.inspection import check_percent
from pipelines.image_preprocessing import as_uint8, misfit_of
from rendering.heat_map import outline, overlay, saturation_of
from training.inference.drift import drift_test
from training.inference.score_table import ScoreRow, scored_row, table_writer, unreadable_row

THUMBNAIL_SIDE = 64
SHOWN_EVERY = 0.5
SHOWN_ROWS_PER_SECOND = 100
"""The whole table is sent anew each time: the longer it is, the rarer, in seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRow:
    """One image of a batch: its place in the upload from 0, its result, and a small JPEG with the heat map, or ""."""

    index: int
    result: ScoreRow
    thumbnail: str


class Batch:
    """The inspection of an upload in a thread of its own.

    Maps are not kept: overlays and masks go into a ZIP, rows into a CSV, as they are made. Both are deleted with it.

    Args:
        model (`Model`): what inspects.
        turns (`Turns`): held while a few images are scored, so that other users go first in between.
        folder (`Folder`): the images.
        percent (`float`): the accepted false alarm rate, in per cent.

    Raises:
        ValueError: for a rate that is no number above 0 and up to 100, or if the server is busy.
    """

    def __init__(self, model, turns, folder, percent):
        percent = check_percent(percent)
        scoring = model.scoring
        self.model, self.folder = model, folder
        self.false_alarm_rate = scoring.calibration.effective_rate(percent / 100)
        calibration = scoring.calibration
        ranked = {"timesteps": list(scoring.config.timesteps), "bfloat16": scoring.uses_bfloat16()}
        self.image_threshold = calibration.image_threshold(self.false_alarm_rate, **ranked)
        self.ranked_scores = calibration.ranked_scores(**ranked).cpu().numpy()
        self.independent_scores = calibration.independent_scores(**ranked).cpu().numpy()
        self.rows = []
        self._turns, self._stopped, self._error = turns, threading.Event(), None
        self._results = tempfile.TemporaryDirectory(dir=_made(get_upload_folder()), ignore_cleanup_errors=True)
        self.table = Path(self._results.name) / "scores.csv"
        self.archive = Path(self._results.name) / "overlays-and-masks.zip"
        self._began, self.seconds = time.monotonic(), 0.0
        self._thread = turns.start(self._run)

    @property
    def is_running(self):
        """Whether images are still being inspected."""
        return self._thread.is_alive()

    @property
    def scores(self):
        """Anomaly scores of the images that could be read, (n,)."""
        return np.array([row.result.anomaly_score for row in self.rows if row.result.verdict != "unreadable"])

    def count(self, verdict):
        """How many rows have a verdict."""
        return sum(row.result.verdict == verdict for row in self.rows)

    def stop(self):
        """Ask it to end after the images that are being scored; what is done is kept."""
        self._stopped.set()

    def watch(self):
        """Yield the number of rows whenever there are more, until the batch has ended."""
        shown, shown_at = -1, 0.0
        while self._thread.is_alive():
            count, now = len(self.rows), time.monotonic()
            if count > shown and now - shown_at >= count / SHOWN_ROWS_PER_SECOND:
                shown, shown_at = count, now
                yield count
            self._thread.join(SHOWN_EVERY)

    def wait(self):
        """Wait for the end; raises what ended the batch early, if it was no user."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def drift(self):
        """p-value of `drift_test`, or None."""
        return drift_test(self.scores, self.independent_scores, self.image_threshold)

    def _run(self):
        try:
            with (
                self.model.held(),
                zipfile.ZipFile(self.archive, "w") as archive,
                open(self.table, "w", newline="", encoding="utf-8-sig") as stream,
            ):
                writer, names = table_writer(stream), _MemberNames()
                for images in self._read():
                    for row in self._inspect(images, archive, names):
                        writer.writerow(row.result.cells())
                        self.rows.append(row)
                    self.seconds = time.monotonic() - self._began
        except Exception as error:  # handed on to whoever waits for the end
            self._error = error

    def _read(self):
        """Yield a few images at a time, `dict` of index to image, or to the error of one that cannot be read."""
        images, pixels = {}, 0
        for index, name in enumerate(self.folder.names):
            if self._stopped.is_set():
                return
            try:
                images[index] = self.folder.read(index)
                pixels += images[index].shape[0] * images[index].shape[1]
            except ValueError as error:
                images[index] = error
            except Exception as error:  # decoders of damaged files raise anything; the other images are to be seen
                logger.warning("an image of a batch could not be read", exc_info=error)
                images[index] = ValueError(f"{Path(name).name} is damaged and cannot be read.")
            if len(images) == IMAGES_AT_ONCE or pixels >= PIXELS_AT_ONCE:
                yield images
                images, pixels = {}, 0
        if images:
            yield images

    def _inspect(self, images, archive, names):
        """Yield the rows of a few images; their overlays and masks go into the archive."""
        readable = {index: image for index, image in images.items() if not isinstance(image, ValueError)}
        output = None
        if readable:
            settings = {"false_alarm_rate": self.false_alarm_rate, "batch_size": IMAGES_AT_ONCE}
            with self._turns.take():
                output = self.model.score(list(readable.values()), **settings)
        places = {index: place for place, index in enumerate(readable)}
        for index, image in images.items():
            name = self.folder.names[index]
            if index not in places:
                yield BatchRow(index, unreadable_row(name, image), "")
                continue
            mask = output.pred_mask[places[index]]
            scoring = self.model.scoring
            shown = as_uint8(image, scoring.config.white_level)
            heat = overlay(shown, output.anomaly_map[places[index]], saturation_of(scoring))
            drawn = outline(heat, mask)
            member = names.claim(name)
            archive.writestr(f"overlays/{member}.png", as_png(drawn))
            archive.writestr(f"masks/{member}.png", as_png(mask.astype(np.uint8) * 255))
            misfit = misfit_of(image, scoring.config.white_level)
            yield BatchRow(index, scored_row(name, output, places[index], misfit), _thumbnail(drawn))


class _MemberNames:
    """Names for a ZIP that cannot lead out of the folder it is unpacked in, each given once."""

    def __init__(self):
        self._taken = set()

    def claim(self, name):
        parts = PurePosixPath(name.replace("\\", "/").replace(":", "_")).parts
        inside = "/".join(part for part in parts if part.strip("./ ")) or "image"
        unique, number = inside, 1
        while unique.lower() in self._taken:
            number += 1
            unique = f"{inside}-{number}"
        self._taken.add(unique.lower())
        return unique


def _thumbnail(pixels):
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()


def _made(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
