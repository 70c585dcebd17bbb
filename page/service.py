"""The page as a service: documented endpoints for gradio_client, plain HTTP and, if it is switched on, MCP.

Images come as `data:` URIs or as uploaded files. Both are typed `str`: over MCP, where arguments are held against
their types, a file object would make Gradio upload a file of this machine in the caller's name. Drawn answers are
files, which a gradio_client downloads, plain HTTP gets by their "url" and an MCP client receives as images.
"""

from typing import TypedDict

import gradio as gr
import numpy as np
from gradio.data_classes import FileData

from page.models.model_shelf import known_shares
from page.server.gradio_internals import EXAMPLE_FILE
from page.server.settings import IMAGES_AT_ONCE, PIXELS_AT_ONCE
from page.server.uploads import as_png, keep_answer, uploaded_image
from page.server.user_errors import answer_in_one_sentence
from page.work.inspection import Verdict
from page.work.rates import offered_percent
from page.work.repairing import Repair

IMAGE_ARGUMENTS = {"picture": EXAMPLE_FILE, "pictures": [EXAMPLE_FILE], "mask": EXAMPLE_FILE}
"""What takes an image, with an example of it, for `describe_endpoints`."""


class ImageMeta(TypedDict):
    """Marks a file as one of Gradio's."""

    _type: str


class ImageFile(TypedDict):
    """A PNG that was drawn for an answer; "url" says where it can be fetched within the next hour."""

    path: str
    url: str
    meta: ImageMeta


class BatchEntry(TypedDict):
    """One image of a batch: its verdict, or None with the reason why there is none."""

    verdict: Verdict | None
    error: str


class RepairAnswer(TypedDict):
    """What a repair has come to, accepted or not; scores are in standard deviations of good images."""

    file: str
    model: str
    is_changed: bool
    is_accepted: bool
    anomaly_score: float
    repaired_score: float
    p_value: float
    false_alarm_rate: float
    changed_pixels: int


class ModelInfo(TypedDict):
    """A model, the false alarm rates that it offers, in per cent, and what the default one costs.

    Another rate is refused. What it costs is the share of test images that are rejected: "all" known defects, each kind
    of them, and "good" ones; None where it was not measured.
    """

    name: str
    default_false_alarm_percent: float
    smallest_false_alarm_percent: float
    largest_false_alarm_percent: float
    good_pictures_compared: int
    good_parts_compared: int
    test_images_rejected: dict[str, float] | None


def build_service(page):
    """Add the endpoints; to be called inside the page's `gr.Blocks`."""
    service = Service(page)
    gr.api(service.inspect, api_name="inspect", concurrency_limit=8, concurrency_id="inspect")
    gr.api(service.inspect_batch, api_name="inspect_batch", concurrency_limit=2)
    gr.api(service.repair, api_name="repair", concurrency_limit=2)
    gr.api(service.models, api_name="models", concurrency_limit=None)


class Service:
    """The functions behind the endpoints; their docstrings are what clients are told."""

    def __init__(self, page):
        self._page = page

    @answer_in_one_sentence
    def inspect(
        self, picture: str, model: str = "", false_alarm_percent: float | None = None
    ) -> tuple[Verdict, ImageFile, ImageFile]:
        """Find defects in an image of a manufactured part: whether there is one, where, and how sure that is.

        The model has seen good parts only. Of good parts, at most the chosen share is rejected.

        Args:
            picture: the image, handle_file("part.png") from Python; also "data:image/png;base64,…". No web address.
            model: what kind of part it is, a name that the endpoint models lists; "" takes the first.
            false_alarm_percent: good parts that may be rejected, in the range that models lists; its default without.

        Returns:
            verdict: numbers; is_anomalous, p_value (share of good parts scoring at least as high), regions in pixels
            overlay: PNG, the image under its heat map with the defect outlined, at most 1024 pixels long
            mask: PNG of the same size, 255 where the defect is
        """
        model, percent = self._chosen(model, false_alarm_percent)
        pixels, name = uploaded_image(picture, self._page.settings.max_upload_mb)
        inspector = self._page.inspector
        inspection = inspector.inspect(model.name, pixels, name)
        numbers, mask = inspector.judge(inspection, percent)
        return numbers, _as_file(inspector.outlined(inspection, mask), "overlay"), _as_file(_grey(mask), "mask")

    @answer_in_one_sentence
    def inspect_batch(
        self, pictures: list[str], model: str = "", false_alarm_percent: float | None = None
    ) -> list[BatchEntry]:
        """Find defects in many images of one kind of part. An image that cannot be read is an entry with its reason.

        Args:
            pictures: images, [handle_file("1.png"), handle_file("2.png")] from Python; also data: URIs as in inspect.
            model: what kind of part it is, a name that the endpoint models lists; "" takes the first.
            false_alarm_percent: good parts that may be rejected, in the range that models lists; its default without.

        Returns:
            entries: one for each image in the order given; its verdict as inspect gives it, or the error
        """
        model, percent = self._chosen(model, false_alarm_percent)
        limit = self._page.settings.max_batch
        if not isinstance(pictures, list) or not pictures:
            raise ValueError("pictures is no list of images; give at least one.")
        if len(pictures) > limit:
            raise ValueError(f"there are {len(pictures)} images; at most {limit} are taken at once.")
        entries = [None] * len(pictures)
        for batch in self._batches(pictures, entries):
            indices, pixels, names = zip(*batch, strict=True)
            inspections = self._page.inspector.inspect_together(model.name, pixels, names)
            for index, inspection in zip(indices, inspections, strict=True):
                verdict, _ = self._page.inspector.judge(inspection, percent)
                entries[index] = {"verdict": verdict, "error": ""}
        return entries

    @answer_in_one_sentence
    def repair(
        self, picture: str, model: str = "", false_alarm_percent: float | None = None, mask: str | None = None
    ) -> tuple[RepairAnswer, ImageFile, ImageFile]:
        """Show what a part might look like without its defect. A good part comes back as it is.

        Takes seconds; inspections of others go first. Accepted means that the model takes what was drawn for a good
        part at this rate, not that the defect is surely gone.

        Args:
            picture: the image, handle_file("part.png") from Python; also "data:image/png;base64,…". No web address.
            model: what kind of part it is, a name that the endpoint models lists; "" takes the first.
            false_alarm_percent: good parts that may be rejected, in the range that models lists; its default without.
            mask: the region to repaint, an image of the same size, not black there; without it, what inspect finds.

        Returns:
            answer: is_changed, whether anything was drawn; is_accepted, whether the model accepts what came out
            repaired: PNG at the image's own size, accepted or not; every pixel outside the mask is as it was
            mask: PNG of the same size, 0 where nothing was changed
        """
        model, percent = self._chosen(model, false_alarm_percent)
        max_mb = self._page.settings.max_upload_mb
        pixels, name = uploaded_image(picture, max_mb)
        marked = None if mask is None else uploaded_image(mask, max_mb)[0].max(axis=-1) > 0
        output = Repair(model, self._page.shelf.turns, pixels, marked, percent / 100).result()
        changed = np.asarray(output.masks[0])
        answer = {
            "file": name,
            "model": model.name,
            "is_changed": bool(changed.any()),
            "is_accepted": bool(output.is_accepted[0]),
            "anomaly_score": float(output.anomaly_score[0]),
            "repaired_score": float(output.repaired_score[0]),
            "p_value": float(output.p_value[0]),
            "false_alarm_rate": float(output.false_alarm_rate),
            "changed_pixels": int((changed > 0).sum()),
        }
        return answer, _as_file(np.asarray(output.images[0]), "repaired"), _as_file(changed, "mask")

    @answer_in_one_sentence
    def models(self) -> list[ModelInfo]:
        """List the models: what kinds of parts can be inspected here. The first is the default.

        Returns:
            models: names, the false alarm rates that each offers, and which share of the test images with known
                defects, and of good ones, its default rate rejects
        """
        return [
            {
                "name": name,
                "default_false_alarm_percent": model.default_percent,
                "smallest_false_alarm_percent": model.smallest_percent,
                "largest_false_alarm_percent": model.largest_percent,
                "good_pictures_compared": model.calibration.config.num_ranked,
                "good_parts_compared": model.calibration.num_ranked_groups,
                "test_images_rejected": known_shares(model, model.default_percent / 100),
            }
            for name, model in [(name, self._page.shelf.get(name)) for name in self._page.shelf.names]
        ]

    def _chosen(self, name, percent):
        shelf = self._page.shelf
        model = shelf.get(shelf.names[0] if name in ("", None) else name)
        return model, offered_percent(model, model.default_percent if percent is None else percent)

    def _batches(self, pictures, entries):
        """Yield lists of (index, pixels, name); note in `entries` what cannot be read."""
        batch, size = [], 0
        for index, picture in enumerate(pictures):
            try:
                pixels, name = uploaded_image(picture, self._page.settings.max_upload_mb)
            except ValueError as error:
                entries[index] = {"verdict": None, "error": str(error)}
                continue
            if batch and (len(batch) == IMAGES_AT_ONCE or size + pixels.shape[0] * pixels.shape[1] > PIXELS_AT_ONCE):
                yield batch
                batch, size = [], 0
            batch.append((index, pixels, name))
            size += pixels.shape[0] * pixels.shape[1]
        if batch:
            yield batch


def _grey(mask):
    return mask.astype(np.uint8) * 255


def _as_file(pixels, name):
    return FileData(path=keep_answer(as_png(pixels), f"{name}.png")).model_dump()
