"""What the page knows of one inspected image, and the verdict on it at any false alarm rate. No widgets."""

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from page.server.settings import MAX_SIDE
from page.work.rates import check_percent
from pipelines.image_preprocessing import as_uint8, misfit_of
from pipelines.verdicts import decide
from rendering.heat_map import outline, overlay, saturation_of, shrink
from rendering.numbering import draw_numbers
from rendering.regions import find_regions
from training.fitting.recalibration import warning_of
from training.inference.score_table import known_number

KEPT_INSPECTIONS = 48
KEPT_PIXELS = 12_000_000
"""So many inspections, or drawn pixels (18 bytes each), are remembered."""

MAX_REGIONS = 20
MAX_NUMBERED = 5
"""So many of them, the largest, have a number in the image and a row in the table."""

READABLE_SIDE = 256
"""A smaller image is shown enlarged, or the numbers on it could not be read."""

HEAT_MAP = "heat_map"
COMPONENTS = ("kl_map", "feature_map")


class Region(TypedDict):
    """A separate place of a defect: left, top, width, height and area in pixels, and the map's largest value."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float


class Verdict(TypedDict):
    """The answer of an inspection in numbers; thresholds and scores are in standard deviations of good images.

    `warning` says what makes the answer doubtful, such as a depth that the model does not know; "" if nothing does. At
    most `MAX_REGIONS` regions are listed, the largest. Where every part is rejected, at 100 %, thresholds are None.
    `is_unfamiliar` says that the image is unlike anything the model was calibrated on, so that nothing else means
    anything; then `fitting_models` are others that know such images. `unfamiliarity` is above 1 for these, and None
    where the model cannot tell.
    """

    file: str
    model: str
    is_anomalous: bool
    anomaly_score: float
    p_value: float
    false_alarm_rate: float
    image_threshold: float | None
    pixel_threshold: float | None
    defect_pixels: int
    defect_share: float
    width: int
    height: int
    regions: list[Region]
    warning: str
    is_unfamiliar: bool
    unfamiliarity: float | None
    fitting_models: list[str]


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that another false alarm rate needs, at drawn size.

    Args:
        model, file (`str`): names.
        size (`tuple[int, int]`): height and width of the image itself.
        alpha (`float`), timesteps (`tuple[int]`), bfloat16 (`bool`): what it was scored with.
        image, heat (`np.ndarray`): the upright image without and with its heat map, uint8 RGB.
        saturation (`float`): value of the map at which the colours end.
        anomaly_map, kl_map, feature_map (`np.ndarray`): float32, (height, width).
        score (`float`): the anomaly score.
        warning (`str`): what makes it doubtful; "" if nothing does.
        unfamiliarity (`float`, *optional*): as in `AnomalyScoringOutput`; None where the model cannot tell.
        fitting_models (`tuple[str]`): of an unfamiliar image, other models that know such images.
    """

    model: str
    file: str
    size: tuple
    alpha: float
    timesteps: tuple
    bfloat16: bool
    image: np.ndarray
    heat: np.ndarray
    saturation: float
    anomaly_map: np.ndarray
    kl_map: np.ndarray
    feature_map: np.ndarray
    score: float
    warning: str
    unfamiliarity: float | None
    fitting_models: tuple

    @property
    def is_unfamiliar(self):
        """Whether the image is unlike anything that the model was calibrated on."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1

    def __deepcopy__(self, memo):
        """Itself: Gradio copies what a session begins with, and nothing changes an inspection."""
        return self

    @property
    def scale(self):
        """Pixels of the image for one that is drawn, along an edge."""
        return max(self.size) / max(self.anomaly_map.shape)


class Inspector:
    """Inspects images with any model of the shelf, and remembers the latest: a second look costs nothing."""

    def __init__(self, shelf):
        self.shelf = shelf
        self._kept = OrderedDict()
        self._lock = threading.Lock()

    def inspect(self, model_name, image, file, timesteps=None, alpha=None):
        """An `Inspection`.

        Args:
            model_name (`str`): of the shelf.
            image (`np.ndarray`): as `to_rgb` makes it.
            file (`str`): its name.
            timesteps (`list[int]`, *optional*), alpha (`float`, *optional*): as for the pipeline.

        Raises:
            ValueError: for a model or setting that there is not.
        """
        model = self.shelf.get(model_name)
        if timesteps is not None and not timesteps:
            raise ValueError("no noise scale is chosen; choose at least one.")
        timesteps = tuple(sorted(_whole(t) for t in (timesteps or model.timesteps)))
        alpha = model.alpha if alpha is None else _number(alpha, "alpha")
        content = hashlib.blake2b(np.ascontiguousarray(image).data).digest()
        key = (model, content, image.shape, file, timesteps, alpha)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self.shelf.turns.take():
            output = model.score(image, timesteps=list(timesteps), alpha=alpha)
            fitting = self.shelf.models_that_know(image, model) if output.is_unfamiliar[0] else ()
        inspection = _drawn(model, image, file, output, timesteps, alpha, fitting=fitting)
        with self._lock:
            self._kept[key] = inspection
            while len(self._kept) > KEPT_INSPECTIONS or self._kept_pixels() > KEPT_PIXELS:
                self._kept.popitem(last=False)
        return inspection

    def _kept_pixels(self):
        return sum(inspection.anomaly_map.size for inspection in self._kept.values())

    def inspect_together(self, model_name, images, files):
        """An `Inspection` of each of several images, scored in one batch and not remembered.

        Args:
            model_name (`str`): of the shelf.
            images (`list[np.ndarray]`): as `to_rgb` makes them.
            files (`list[str]`): their names.

        Raises:
            ValueError: for a model that there is not.
        """
        model = self.shelf.get(model_name)
        with self.shelf.turns.take():
            output = model.score(list(images), batch_size=len(images))
            fitting = [
                self.shelf.models_that_know(image, model) if unfamiliar else ()
                for image, unfamiliar in zip(images, output.is_unfamiliar, strict=True)
            ]
        settings = (tuple(sorted(model.timesteps)), model.alpha)
        return [
            _drawn(model, image, file, output, *settings, index, fitting[index])
            for index, (image, file) in enumerate(zip(images, files, strict=True))
        ]

    def judge(self, inspection, percent):
        """The verdict at a false alarm rate in per cent; no network runs, and no checkpoint is read for it.

        Returns:
            `tuple[Verdict, np.ndarray]`: the numbers, and the mask, bool, at drawn size.

        Raises:
            ValueError: for a rate that is no number above 0 and up to 100.
        """
        percent = check_percent(percent)
        answer = decide(
            self.shelf.get(inspection.model).calibration,
            [torch.from_numpy(inspection.anomaly_map)],
            torch.tensor([inspection.score]),
            inspection.alpha,
            list(inspection.timesteps),
            percent / 100,
            inspection.bfloat16,
        )
        mask = answer["pred_mask"][0].numpy()
        if inspection.is_unfamiliar:  # nothing in it is a defect, however much of it differs
            mask = np.zeros_like(mask)
        regions = find_regions(mask, inspection.anomaly_map, inspection.scale)
        numbers = {
            "file": inspection.file,
            "model": inspection.model,
            "is_anomalous": bool(answer["is_anomalous"][0]),
            "anomaly_score": inspection.score,
            "p_value": float(answer["p_value"][0]),
            "false_alarm_rate": answer["false_alarm_rate"],
            "image_threshold": _finite(answer["image_threshold"]),
            "pixel_threshold": _finite(answer["pixel_threshold"]),
            "defect_pixels": round(float(mask.mean()) * math.prod(inspection.size)),
            "defect_share": float(mask.mean()),
            "width": inspection.size[1],
            "height": inspection.size[0],
            "regions": regions[:MAX_REGIONS],
            "warning": inspection.warning,
            "is_unfamiliar": inspection.is_unfamiliar,
            "unfamiliarity": inspection.unfamiliarity,
            "fitting_models": list(inspection.fitting_models),
        }
        return numbers, mask

    def outlined(self, inspection, mask):
        """The heat map with the mask's outline, uint8 RGB."""
        return outline(inspection.heat, mask)

    def compared(self, inspection, view, mask, regions):
        """The image, and what it is compared with: the map or one component of it, outlined, its places numbered.

        Args:
            inspection (`Inspection`): what was found.
            view (`str`): `HEAT_MAP`, or one of `COMPONENTS`, drawn in the same colours.
            mask, regions: of `judge`.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: uint8 RGB, of one size: small images are enlarged by a whole factor.
        """
        heat = inspection.heat
        if view in COMPONENTS:
            heat = overlay(inspection.image, getattr(inspection, view), inspection.saturation)
        factor = math.ceil(READABLE_SIDE / max(mask.shape))
        image, heat, mask = (each.repeat(factor, 0).repeat(factor, 1) for each in (inspection.image, heat, mask))
        return image, draw_numbers(outline(heat, mask), mask, numbered_places(regions, inspection.scale / factor))


def numbered_places(regions, scale=1.0):
    """Regions that have a number, as `draw_numbers` takes them; a drawn pixel is `scale` pixels of the image."""
    return [tuple(region[key] / scale for key in ("x", "y", "width", "height")) for region in regions[:MAX_NUMBERED]]


def _drawn(model, image, file, output, timesteps, alpha, index=0, fitting=()):
    scoring = model.scoring
    maps = [output.anomaly_map[index], output.kl_map[index], output.feature_map[index]]
    size = maps[0].shape
    shown = [shrink(as_uint8(image, scoring.config.white_level), each, MAX_SIDE) for each in maps]
    drawn = np.ascontiguousarray(shown[0][0])
    anomaly_map, kl_map, feature_map = (np.array(values) for _, values in shown)
    saturation = saturation_of(scoring)
    heat = overlay(drawn, anomaly_map, saturation)
    misfit = misfit_of(image, scoring.config.white_level)
    maps = (anomaly_map, kl_map, feature_map)
    score = float(output.anomaly_score[index])
    doubts = [f"{file} {misfit}" if misfit else "", warning_of(model.calibration)]
    warning = " ".join(doubt for doubt in doubts if doubt)
    computed = (alpha, timesteps, scoring.uses_bfloat16())
    unfamiliarity = known_number(output.unfamiliarity[index])
    found = (score, warning, unfamiliarity, tuple(fitting))
    return Inspection(model.name, file, size, *computed, drawn, heat, saturation, *maps, *found)


def _finite(threshold):
    """JSON has no infinity."""
    return threshold if math.isfinite(threshold) else None


def _number(value, name):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {str(value)[:50]!r}; a number is accepted.")
    return float(value)


def _whole(value):
    if not isinstance(value, int) and not (isinstance(value, str) and value.isdigit()):
        raise ValueError(f"noise scales are whole numbers, not {str(value)[:50]!r}.")
    return int(value)
