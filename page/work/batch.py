"""Many images, inspected beside the page: rows as they are done, files of results, one broken image is one row."""

import base64
import io
import logging
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from page.server.gradio_internals import get_upload_folder
from page.server.settings import IMAGES_AT_ONCE, PIXELS_AT_ONCE
from page.server.uploads import as_png
from page.work.outlines import PixelLevels, draw_outline_anew, keep_outline
from page.work.rates import offered_percent
from pipelines.image_preprocessing import as_uint8, misfit_of
from pipelines.score_calibration import SLACK
from rendering.heat_map import outline, overlay, saturation_of
from training.inference.drift import drift_test
from training.inference.score_table import ScoreRow, scored_row, table_writer, unreadable_row

THUMBNAIL_SIDE = 64
ARCHIVE = "overlays-and-masks"
SHOWN_EVERY = 0.5
SHOWN_ROWS_PER_SECOND = 100
"""The whole table is sent anew each time: the longer it is, the rarer, in seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRow:
    """One image of a batch: its place in the upload from 0, its result, and a small JPEG of its heat map, or ""."""

    index: int
    result: ScoreRow
    thumbnail: str


@dataclass(frozen=True)
class _Measured:
    """A row at the first rate and, of an image that could be read, what another rate needs.

    Args:
        row (`BatchRow`): of the image.
        areas (`np.ndarray`, *optional*): pixels of its map from each level on, as `PixelLevels.areas` counts them.
        member (`str`, *optional*): what its files are called in the ZIP.
    """

    row: BatchRow
    areas: np.ndarray | None = None
    member: str | None = None


class Batch:
    """The inspection of an upload in a thread of its own.

    Maps are not kept: overlays and masks go into a ZIP as they are made. What is kept besides lets another rate judge
    all images at once, and draw them in seconds; no network runs for it. Files are deleted with the batch.

    Args:
        model (`Model`): what inspects.
        turns (`Turns`): held while a few images are scored, so that other users go first in between.
        folder (`Folder`): the images.
        percent (`float`): the accepted false alarm rate, in per cent.

    Raises:
        ValueError: for a rate that the model does not offer, or if the server is busy.
    """

    def __init__(self, model, turns, folder, percent):
        scoring = model.scoring
        self.model, self.folder = model, folder
        self._ranked = {"timesteps": list(scoring.config.timesteps), "bfloat16": scoring.uses_bfloat16()}
        self._alpha = scoring.alpha
        self.judge_at(percent)
        self.first_rate = self.false_alarm_rate
        self.ranked_scores = model.calibration.ranked_scores(**self._ranked).cpu().numpy()
        self.independent_scores = model.calibration.independent_scores(**self._ranked).cpu().numpy()
        thresholds = model.calibration.pixel_thresholds(self._alpha, **self._ranked)
        self._levels, self._measured = PixelLevels(thresholds.cpu().numpy()), []
        self._turns, self._stopped, self._error = turns, threading.Event(), None
        self._results = tempfile.TemporaryDirectory(dir=_made(get_upload_folder()), ignore_cleanup_errors=True)
        self._began, self.seconds = time.monotonic(), 0.0
        self._thread = turns.start(self._run)

    @property
    def is_running(self):
        """Whether images are still being inspected."""
        return self._thread.is_alive()

    def judge_at(self, percent):
        """Judge all images at another rate, in per cent; rows, counts, threshold, table and drift follow.

        Raises:
            RateRefused: for a rate that the model does not offer; nothing has changed then.
        """
        rate = self.model.calibration.effective_rate(offered_percent(self.model, percent) / 100)
        self.image_threshold = self.model.calibration.image_threshold(rate, **self._ranked)
        self.false_alarm_rate = rate

    @property
    def rows(self):
        """The rows of all images that are done, `list[BatchRow]`, judged at the current rate."""
        place = self._place(self.false_alarm_rate)
        return [self._judged(measured, place) for measured in self._measured]

    @property
    def table(self):
        """The CSV of the rows at the current rate, written when it is asked for."""
        path = self._named("scores", self.false_alarm_rate, ".csv")
        with open(path, "w", newline="", encoding="utf-8-sig") as stream:
            writer = table_writer(stream)
            writer.writerows(row.result.cells() for row in self.rows)
        return path

    @property
    def archive(self):
        """The ZIP of overlays and masks at the current rate, or None where they have not been drawn at that."""
        path = self._named(ARCHIVE, self.false_alarm_rate, ".zip")
        return path if path.exists() else None

    def draw_anew(self):
        """Draw overlays and masks at the current rate. Yields the images that are done, and at last makes `archive`."""
        rate = self.false_alarm_rate
        target = self._named(ARCHIVE, rate, ".zip")
        drawn = [measured for measured in self._measured if measured.member is not None]
        with tempfile.TemporaryDirectory(dir=self._results.name) as scratch:
            partial = Path(scratch) / target.name
            with zipfile.ZipFile(self._first_archive) as first, zipfile.ZipFile(partial, "w") as archive:
                for count, measured in enumerate(drawn):
                    yield count
                    with first.open(f"overlays/{measured.member}.png") as stream:
                        overlaid = np.asarray(Image.open(stream))
                    place = self._place(rate) if self._is_rejected(measured, rate) else None
                    _put(archive, measured.member, *draw_outline_anew(self._kept(measured.row.index), overlaid, place))
            partial.replace(target)

    @property
    def scores(self):
        """Anomaly scores of the images that have a verdict, (n,): neither unreadable nor unfamiliar."""
        return np.array([row.result.anomaly_score for row in self.rows if row.result.verdict in ("good", "defect")])

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
            count, now = len(self._measured), time.monotonic()
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
            with self.model.held(), zipfile.ZipFile(self._first_archive, "w") as archive:
                names = _MemberNames()
                for images in self._read():
                    self._measured.extend(self._inspect(images, archive, names))
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
        """Yield what is measured of a few images; their overlays and masks go into the archive."""
        readable = {index: image for index, image in images.items() if not isinstance(image, ValueError)}
        output = None
        if readable:
            settings = {"false_alarm_rate": self.first_rate, "batch_size": IMAGES_AT_ONCE}
            with self._turns.take():
                output = self.model.score(list(readable.values()), **settings)
        places = {index: place for place, index in enumerate(readable)}
        for index, image in images.items():
            name = self.folder.names[index]
            if index not in places:
                yield _Measured(BatchRow(index, unreadable_row(name, image), ""))
                continue
            mask = output.pred_mask[places[index]]
            scoring = self.model.scoring
            shown = as_uint8(image, scoring.config.white_level)
            heat = overlay(shown, output.anomaly_map[places[index]], saturation_of(scoring))
            drawn = outline(heat, mask)
            member = names.claim(name)
            _put(archive, member, drawn, mask)
            levels = self._levels.of(output.anomaly_map[places[index]])
            keep_outline(self._kept(index), levels, heat, drawn)
            misfit = misfit_of(image, scoring.config.white_level)
            row = BatchRow(index, scored_row(name, output, places[index], misfit), _thumbnail(heat))
            yield _Measured(row, self._levels.areas(levels), member)

    def _place(self, rate):
        threshold = self.model.calibration.pixel_threshold(rate, self._alpha, **self._ranked)
        return self._levels.place(threshold)

    def _judged(self, measured, place):
        """The row at the current rate."""
        if measured.areas is None or measured.row.result.verdict == "unfamiliar":
            return measured.row
        rejected = self._is_rejected(measured, self.false_alarm_rate)
        area = int(measured.areas[place]) if rejected else 0
        verdict = "defect" if rejected else "good"
        share = area / int(measured.areas[0])
        result = replace(measured.row.result, verdict=verdict, defect_pixels=area, defect_share=share)
        return replace(measured.row, result=result)

    def _is_rejected(self, measured, rate):
        result = measured.row.result
        return result.verdict != "unfamiliar" and result.p_value <= rate + SLACK

    @property
    def _first_archive(self):
        return self._named(ARCHIVE, self.first_rate, ".zip")

    def _named(self, what, rate, suffix):
        return Path(self._results.name) / f"{what}-at-{100 * rate:.4g}-percent{suffix}"

    def _kept(self, index):
        return Path(self._results.name) / f"{index}.npz"


def _put(archive, member, overlaid, mask):
    archive.writestr(f"overlays/{member}.png", as_png(overlaid))
    archive.writestr(f"masks/{member}.png", as_png(mask.astype(np.uint8) * 255))


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
