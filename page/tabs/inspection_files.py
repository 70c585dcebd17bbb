"""The files of an inspection, at the image's own size, named after what they hold, and a ZIP of them all."""

import json
import tempfile
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np

from page.server.uploads import file_stem, save_png, uploaded_image
from page.work.inspection import numbered_places
from page.work.rates import offered_percent
from pipelines.image_preprocessing import as_uint8
from rendering.heat_map import outline, overlay
from rendering.numbering import draw_numbers


def write_files(page, inspection, percent, upload):
    """Write heat map, mask, maps and verdict of an image, scored anew at its own size.

    Args:
        page (`Page`): whose models score.
        inspection (`Inspection`): of the image.
        percent (`float`): the accepted false alarm rate.
        upload (`dict`): the uploaded image, as `uploaded_image` takes it.

    Returns:
        `list[str]`: paths, that of the ZIP of all others first.

    Raises:
        ValueError: if there is no inspection, the image has been deleted since, or the rate is not offered.
    """
    if inspection is None or upload is None:
        raise ValueError("inspect an image first.")
    image, _ = uploaded_image(upload, page.settings.max_upload_mb)
    model = page.shelf.get(inspection.model)
    percent = offered_percent(model, percent)
    settings = {"timesteps": list(inspection.timesteps), "alpha": inspection.alpha}
    with page.shelf.turns.take():
        output = model.score(image, false_alarm_rate=percent / 100, **settings)
    anomaly_map, mask = output.anomaly_map[0], output.pred_mask[0]
    saturation = inspection.saturation
    numbers, _ = page.inspector.judge(inspection, percent)
    heat = outline(overlay(as_uint8(image, model.scoring.config.white_level), anomaly_map, saturation), mask)
    map_16_bit = np.rint(np.clip(anomaly_map / saturation, 0, 1) * 65535).astype(np.uint16)

    folder, stem = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder())), file_stem(inspection.file)
    paths = [
        save_png(draw_numbers(heat, mask, numbered_places(numbers["regions"])), folder / f"{stem}-heat-map.png"),
        save_png(mask.astype(np.uint8) * 255, folder / f"{stem}-defect-mask.png"),
        save_png(map_16_bit, folder / f"{stem}-anomaly-map-16-bit.png"),
        str(folder / f"{stem}-anomaly-map.npy"),
        str(folder / f"{stem}-verdict.json"),
    ]
    np.save(paths[-2], anomaly_map.astype(np.float32))
    numbers |= {"defect_pixels": int(mask.sum()), "defect_share": float(mask.mean())}  # of the mask beside it
    numbers |= {"map_16_bit_maximum": saturation, **settings}
    Path(paths[-1]).write_text(json.dumps(numbers, indent=2) + "\n")
    return [_packed(paths, folder / f"{stem}-inspection.zip"), *paths]


def _packed(paths, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in paths:
            archive.write(path, Path(path).name)
    return str(target)
