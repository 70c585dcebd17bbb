"""What a model card shows of a checkpoint: some test images with heat map, labelled defect and repair."""

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from rendering.heat_map import overlay, saturation_of
from rendering.sheet import outline_legend, outlined, view_sheet
from training.data.image_reading import read_as_8_bits

CELL = 240
"""Height and width that an image is fitted into, in pixels."""

MAX_ROWS = 8
MAX_BYTES = 900_000
QUALITIES = (90, 75, 60, 40, 20)
"""Of WebP, tried in turn until the file is small enough."""

COLUMNS = ("image", "heat map, and what is found", "labelled defect", "repaired")


def example_sheet(pipe, labelled, scores, false_alarm_rate):
    """Draw a sheet of good images and of every kind of defect, those in the middle when sorted by score.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline of one category.
        labelled (`list[LabelledImage]`): test images.
        scores (`np.ndarray`): of each, (n,).
        false_alarm_rate (`float`): promised to good parts; it decides what is rejected, marked and repaired.

    Returns:
        `PIL.Image.Image`: RGB, at most `MAX_ROWS` rows.
    """
    repair = GradientDenoisePipeline.from_pipe(pipe)
    repair.set_progress_bar_config(disable=True)
    rows = []
    for item in tqdm([labelled[i] for i in choose_examples(labelled, scores)], desc="examples", unit="image"):
        image = np.asarray(read_as_8_bits(item.path, pipe.config.white_level))
        found = pipe(image, false_alarm_rate=false_alarm_rate)
        anomaly_map, marked, truth = found.anomaly_map[0], found.pred_mask[0], item.read_mask(image.shape[:2])
        heat_map = outlined(_fitted(overlay(image, anomaly_map, saturation_of(pipe))), found=marked)
        views = [Image.fromarray(image), heat_map, outlined(_fitted(image), labelled=truth)]
        verdict, answer = "accepted", ""
        if found.is_anomalous[0]:
            repaired = repair(image, false_alarm_rate=false_alarm_rate)
            views += repaired.images
            verdict = "rejected"
            answer = f"; the repair is {'accepted' if repaired.is_accepted[0] else 'rejected too'}"
        figures = f"score {found.anomaly_score[0]:.1f}, p {found.p_value[0]:.3f}"
        rows.append((f"{item.defect}: {verdict} ({figures}){answer}", views))
    return view_sheet(rows, COLUMNS, CELL, outline_legend())


def _fitted(pixels):
    """An image as large as it is shown."""
    return ImageOps.contain(Image.fromarray(pixels), (CELL, CELL))


def choose_examples(labelled, scores):
    """Places of the images that are shown, `list[int]`: good ones first, of each kind those in the middle by score.

    Every kind has as many as there is room for, but one at least; beyond `MAX_ROWS` kinds the last ones are left out.
    """
    defects = np.array([item.defect for item in labelled])
    kinds = sorted(set(defects), key=lambda kind: (kind != "good", kind))[:MAX_ROWS]
    count = max(1, MAX_ROWS // len(kinds))
    chosen = []
    for kind in kinds:
        index = np.flatnonzero(defects == kind)
        index = index[np.argsort(scores[index], kind="stable")]
        shares = (np.arange(count) + 0.5) / count
        chosen += sorted({index[int(share * len(index))] for share in shares}, key=list(index).index)
    return [int(place) for place in chosen]


def save_sheet(sheet, path):
    """Save a sheet as WebP of at most `MAX_BYTES`, as fine as that allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        sheet.save(path, quality=quality)
        if path.stat().st_size <= MAX_BYTES:
            return
