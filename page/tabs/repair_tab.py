"""The tab Repair: what the part would look like without the defect, where the user has marked it."""

import functools
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
from PIL import Image

from page.server.settings import KEPT_SECONDS
from page.server.uploads import file_stem, save_png, uploaded_image
from page.server.user_errors import answer_in_one_sentence
from page.tabs.verdict import repair_verdict
from page.work.repairing import Repair, find_mask
from pipelines.image_preprocessing import as_uint8
from rendering.repair_views import save_animation, strip

MASK_COLOR = (213, 94, 0, 150)
"""Vermilion that the image shows through: seen by the colour-blind too."""

CANVAS = 768
"""Edge of the square that masks are painted on, in pixels. Only an image of that very size has its layer over it."""

HINT = "<p>Inspect an image first, then come here: what is outlined can be taken away.</p>"


def build_repair_tab(page, tab):
    """Lay out the tab and wire it."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            editor, start, stop = _lay_out_mask()
        with gr.Column(scale=1, min_width=300):
            result = _lay_out_result()
    _wire(page, tab, editor, start, stop, result)


def _lay_out_mask():
    editor = gr.ImageEditor(
        label="The region to repaint",
        type="numpy",
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(colors=[f"rgba{(*MASK_COLOR[:3], MASK_COLOR[3] / 255)}"], color_mode="fixed"),
        eraser=gr.Eraser(),
        canvas_size=(CANVAS, CANVAS),
        fixed_canvas=True,
        interactive=True,
        buttons=["fullscreen"],
        elem_id="mask",
    )
    with gr.Row():
        start = gr.Button("Repair", variant="primary", interactive=False, elem_id="repair")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop-repair")
    return editor, start, stop


def _lay_out_result():
    words = gr.HTML(HINT, label="Repair", elem_id="repair-words")
    comparison = gr.ImageSlider(
        label="Before and after (drag to compare)", format="png", slider_position=0, interactive=False
    )
    with gr.Accordion("How it got there", open=False):
        animation = gr.Image(label="Step by step", format="webp", interactive=False, type="filepath")
        steps = gr.Image(label="From the image to the repair", interactive=False, type="filepath")
        curve = gr.LinePlot(
            x="step",
            y="distance",
            title="Distance of the features from those of good parts (about 1 for a good part)",
            height=220,
        )
    files = gr.Files(label="Repaired image, mask, animation", visible=False)
    return [words, comparison, animation, steps, curve, files]


def _wire(page, tab, editor, start, stop, result):
    running = gr.State(time_to_live=KEPT_SECONDS, delete_callback=_stop)
    marked = gr.State(time_to_live=KEPT_SECONDS)
    words = result[0]
    prepared = {
        "fn": functools.partial(_prepare, page),
        "inputs": [page.inspection, page.percent, page.image, marked],
        "outputs": [editor, marked, words, start],
        "api_visibility": "private",
        "concurrency_limit": 4,
    }
    tab.select(**prepared)
    page.inspection.change(
        lambda: (None, None, HINT, gr.update(interactive=False)),
        None,
        prepared["outputs"],
        api_visibility="private",
        show_progress="hidden",
    )
    began = start.click(
        functools.partial(_begin, page),
        [page.inspection, page.percent, page.image, editor, marked],
        [running, start, stop],
        api_visibility="private",
        concurrency_limit=4,
        show_progress_on=words,
    )
    began.success(
        functools.partial(_watch, page),
        [page.inspection, page.image, running],
        result,
        api_visibility="private",
        concurrency_limit=4,
        show_progress="hidden",
    ).then(
        lambda: (gr.update(interactive=True), gr.update(interactive=False)),
        None,
        [start, stop],
        api_visibility="private",
        show_progress="hidden",
    )
    stop.click(_stop, running, None, api_visibility="private", queue=False)


@answer_in_one_sentence
def _prepare(page, inspection, percent, path, marked):
    """The image with what would be changed by itself, once for each image and rate."""
    if inspection is None or path is None:
        return None, None, HINT, gr.update(interactive=False)
    key = (inspection.model, inspection.file, inspection.score, percent)
    if marked is not None and marked["key"] == key:
        return gr.skip(), gr.skip(), gr.skip(), gr.update(interactive=True)
    image, _ = uploaded_image({"path": path}, page.settings.max_upload_mb)
    model = page.shelf.get(inspection.model)
    soft_mask = find_mask(model, page.shelf.turns, image, percent / 100)
    on_canvas = _fit(inspection.image.shape[:2])
    background = np.full((CANVAS, CANVAS, 3), 255, np.uint8)
    background[on_canvas] = _resized(inspection.image, on_canvas)
    drawn_mask = np.zeros((CANVAS, CANVAS), bool)
    drawn_mask[on_canvas] = _resized(soft_mask, on_canvas, Image.Resampling.NEAREST) > 0
    layer = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    layer[drawn_mask] = MASK_COLOR
    text = (
        "<p>The coloured area is what inspecting finds. Change it with brush and eraser if you like, then repair. "
        "If you leave it as it is and the repair does not look good yet, what is found in it is drawn anew as well.</p>"
    )
    if not drawn_mask.any():
        text = "<p>This looks like a good part: nothing is marked. Paint over a region to repaint it.</p>"
    editing = {"background": background, "layers": [layer], "composite": None}
    return editing, {"key": key, "mask": drawn_mask}, text, gr.update(interactive=True)


@answer_in_one_sentence
def _begin(page, inspection, percent, path, editing, marked):
    if inspection is None or path is None or marked is None:
        raise ValueError("inspect an image first.")
    image, _ = uploaded_image({"path": path}, page.settings.max_upload_mb)
    mask = _painted(editing, marked["mask"], image.shape[:2])
    repair = Repair(page.shelf.get(inspection.model), page.shelf.turns, image, mask, percent / 100)
    return repair, gr.update(interactive=False), gr.update(interactive=True)


@answer_in_one_sentence
def _watch(page, inspection, path, repair):
    """Yield progress, then the result."""
    unchanged = (gr.skip(),) * 4
    try:
        for progress in repair.watch():
            doing = f"drawing anew, noise {progress.timestep}" if progress.timestep else "last touches"
            words = f"<p>Step {progress.step}: {doing} … {progress.seconds:.0f} s</p>"
            yield words, (inspection.image, _at_size(progress.square, inspection.image)), *unchanged
    except GeneratorExit:  # the user has left
        repair.stop()
        raise
    output = repair.result()
    repaired = output.images[0]
    drawn = np.asarray(repaired.resize(inspection.image.shape[1::-1], Image.Resampling.BOX))
    folder = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder()))
    stem = file_stem(inspection.file)
    changed = np.asarray(output.masks[0]) > 0
    names = [save_png(np.asarray(repaired), folder / f"{stem}-repaired.png")]
    animation = film = None
    if changed.any():
        save_animation(output.steps[0], folder / f"{stem}-steps.webp")
        animation, film = str(folder / f"{stem}-steps.webp"), str(folder / f"{stem}-strip.png")
        strip(output.steps[0], 6).save(film)
        names += [save_png(np.asarray(output.masks[0]), folder / f"{stem}-mask.png"), animation]
    distance = pd.DataFrame({"step": range(len(output.distance[0])), "distance": output.distance[0]})
    words = repair_verdict(output, changed)
    yield words, (inspection.image, drawn), animation, film, distance, gr.update(value=names, visible=True)


def _stop(repair):
    if repair is not None:
        repair.stop()


def _painted(editing, found, size):
    """The mask at the image's own size; None if it is still the one that was found."""
    painted = np.zeros(found.shape, bool)
    for layer in (editing or {}).get("layers") or []:
        painted |= np.asarray(Image.fromarray(layer).getchannel("A").resize(found.shape[::-1])) > 0
    if (painted == found).all():
        return None
    area = Image.fromarray(painted[_fit(size)])
    return np.asarray(area.resize(size[::-1], Image.Resampling.NEAREST))


def _fit(size):
    """Where an image of a height and width lies on the canvas, as rows and columns."""
    factor = CANVAS / max(size)
    height, width = (max(1, round(length * factor)) for length in size)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _resized(array, on_canvas, resampling=Image.Resampling.BICUBIC):
    rows, columns = on_canvas
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def _at_size(square, image):
    return np.asarray(Image.fromarray(as_uint8(square)).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
