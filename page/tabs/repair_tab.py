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
from page.tabs.mask_canvas import CANVAS, MASK_COLOR, at_size, laid_out, painted
from page.tabs.verdict import no_verdict, repair_progress, repair_verdict
from page.work.rates import RateRefused, offered_percent
from page.work.repairing import Repair, find_mask
from rendering.repair_views import save_animation, strip

THIS_IMAGE, AVERAGE = "this image", "average good part"
"""Curves of the plot."""

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
        label="Before and after (drag to compare)",
        format="png",
        slider_position=0,
        interactive=False,
        elem_id="repaired",
    )
    with gr.Accordion("How it got there", open=False):
        animation = gr.Image(label="Step by step", format="webp", interactive=False, type="filepath")
        steps = gr.Image(label="From the image to the repair", interactive=False, type="filepath")
        curve = gr.LinePlot(
            x="step",
            y="distance",
            color="of",
            color_map={THIS_IMAGE: "#d55e00", AVERAGE: "#0072b2"},
            color_title=" ",
            title="Distance of the features from those of good parts",
            height=240,
        )
    files = gr.Files(label="What was drawn, mask, animation", visible=False, elem_id="repair-files")
    return [words, comparison, animation, steps, curve, files]


def _wire(page, tab, editor, start, stop, result):
    running = gr.State(time_to_live=KEPT_SECONDS, delete_callback=_stop)
    marked = gr.State(time_to_live=KEPT_SECONDS)
    at_once = gr.State(False)
    words, *drawn = result
    drawn.append(page.repaired)
    question = [page.inspection, page.percent, page.image]
    shown = [editor, marked, words, start]
    private = {"api_visibility": "private"}
    quiet = private | {"show_progress": "hidden"}

    def follow(event):
        """Show a repair that an event has begun, to its end; what is of another part by then is taken away."""
        event.success(
            functools.partial(_watch, page), [page.inspection, running], [words, *drawn], concurrency_limit=4, **quiet
        ).then(_settled, running, [start, stop, *drawn], **quiet)

    prepared = tab.select(
        functools.partial(_prepare, page),
        [*question, marked, running, at_once],
        shown,
        preprocess=False,  # Gradio would refuse a rate out of range, and the old words would stay
        concurrency_limit=4,
        **private,
    )
    prepared.then(_keep_current, [*question[:2], marked], shown, preprocess=False, **quiet)
    gr.on(
        [page.inspection.change, page.percent.change],
        _clear,
        running,
        [*shown, running, stop, *drawn],
        **quiet,
    )
    clicked = page.to_repair.click(
        lambda: (gr.Tabs(selected="repair"), True), None, [page.tabs, at_once], queue=False, **private
    )
    found = clicked.success(
        functools.partial(_begin_at_once, page),
        [*question, running],
        [*shown, running, stop],
        preprocess=False,
        concurrency_limit=4,
        show_progress_on=words,
        **private,
    )
    follow(found)
    found.then(lambda: False, None, at_once, **quiet)
    follow(
        start.click(
            functools.partial(_begin, page),
            [page.inspection, page.image, editor, marked],
            [running, start, stop],
            concurrency_limit=4,
            show_progress_on=words,
            **private,
        )
    )
    stop.click(_stop, running, None, queue=False, **private)


def _key(inspection, percent):
    """Tells whether a mask is still that of the image and the rate."""
    return inspection.model, inspection.file, inspection.score, percent


def _nothing():
    """The outputs of `_prepare` before an image was inspected."""
    return None, None, HINT, gr.update(interactive=False)


def _no_result():
    """No images, no way there, no files, no repair to compare with."""
    return None, None, None, None, gr.update(value=None, visible=False), None


@answer_in_one_sentence
def _clear(repair):
    """Another part or another rate: nothing of the one before stays, and its repair ends."""
    if repair is not None:
        repair.abandon()
    return *_nothing(), None, gr.update(interactive=False), *_no_result()


@answer_in_one_sentence
def _keep_current(inspection, percent, marked):
    """Take a mask away that belongs to the image or the rate before."""
    is_current = marked is None or (inspection is not None and marked["key"] == _key(inspection, percent))
    return (gr.skip(),) * 4 if is_current else _nothing()


@answer_in_one_sentence
def _prepare(page, inspection, percent, upload, marked, repair=None, at_once=False):
    """The image with what would be changed by itself, once for each image and rate."""
    if at_once:  # `_begin_at_once` does it
        return (gr.skip(),) * 4
    if inspection is None or upload is None:
        return _nothing()
    model = page.shelf.get(inspection.model)
    try:
        percent = offered_percent(model, percent)
    except RateRefused as refusal:
        return None, None, no_verdict(refusal), gr.update(interactive=False)
    if marked is not None and marked["key"] == _key(inspection, percent):
        is_idle = repair is None or not repair.is_running
        return gr.skip(), gr.skip(), gr.skip(), gr.update(interactive=is_idle)
    image, _ = uploaded_image(upload, page.settings.max_upload_mb)
    soft_mask = find_mask(model, page.shelf.turns, image, percent / 100)
    editing, drawn_mask = laid_out(inspection.image, soft_mask)
    text = (
        "<p>The coloured area is what inspecting finds. Change it with brush and eraser if you like, then repair. "
        "If you leave it as it is and the repair is not accepted, what is found in it is drawn anew as well.</p>"
    )
    if not drawn_mask.any():
        text = "<p>The model accepts this part: nothing is marked. Paint over a region to repaint it.</p>"
    return (
        editing,
        {"key": _key(inspection, percent), "mask": drawn_mask},
        text,
        gr.update(interactive=True),
    )


@answer_in_one_sentence
def _begin_at_once(page, inspection, percent, upload, repair):
    """Mark what inspecting finds and repair it; a repair of this image that is there already is only shown."""
    if repair is not None:
        return (gr.skip(),) * 6
    editing, marked, text, start = _prepare(page, inspection, percent, upload, None)
    if marked is None or not marked["mask"].any():
        return editing, marked, text, start, None, gr.update(interactive=False)
    repair, start, stop = _started(page, inspection, upload, None, marked)
    return editing, marked, text, start, repair, stop


@answer_in_one_sentence
def _begin(page, inspection, path, editing, marked):
    """Start the repair of what is painted."""
    if inspection is None or path is None or marked is None:
        raise ValueError("inspect an image first.")
    return _started(page, inspection, {"path": path}, editing, marked)


def _started(page, inspection, upload, editing, marked):
    """A repair of what is painted, or of what was found where there is no `editing`; the buttons start and stop.

    Its rate is that of the mask: with another one the mask would be gone.
    """
    model, percent = page.shelf.get(inspection.model), marked["key"][-1]
    image, _ = uploaded_image(upload, page.settings.max_upload_mb)
    mask = None if editing is None else painted(editing, marked["mask"], image.shape[:2])
    repair = Repair(model, page.shelf.turns, image, mask, percent / 100)
    return repair, gr.update(interactive=False), gr.update(interactive=True)


@answer_in_one_sentence
def _watch(page, inspection, repair):
    """Yield progress, then the result; nothing once the repair is abandoned, or if it is watched already."""
    unchanged = (gr.skip(),) * 7
    if repair is None or repair.is_watched or inspection is None:
        yield unchanged
        return
    yield repair_progress(None), *_no_result()
    try:
        for progress in repair.watch():
            square = at_size(progress.square, inspection.image)
            if not repair.is_abandoned:
                yield repair_progress(progress), (inspection.image, square), *unchanged[2:]
    except GeneratorExit:  # the user has left
        repair.stop()
        raise
    output = repair.result()
    if repair.is_abandoned:
        yield unchanged
    else:
        yield _shown(inspection, output, repair.was_stopped)


def _shown(inspection, output, was_stopped):
    """What a repair has come to: words, both images, the way there, files, `Page.repaired`."""
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
    words = repair_verdict(output, changed, was_stopped)
    files = gr.update(value=names, visible=True)
    return words, (inspection.image, drawn), animation, film, _curves(output), files, (inspection, drawn)


def _curves(output):
    """The distance after every step beside that of an average good part, as a table of `LinePlot`."""
    distance = output.distance[0].astype(float)
    steps = list(range(len(distance)))
    return pd.DataFrame(
        {
            "step": steps + steps,
            "distance": [*distance, *[output.good_distance] * len(steps)],
            "of": [THIS_IMAGE] * len(steps) + [AVERAGE] * len(steps),
        }
    )


def _settled(repair):
    """The buttons start and stop when a repair has ended; of one that was abandoned nothing is left."""
    if repair is None:
        return gr.skip(), gr.update(interactive=False), *_no_result()
    running = repair.is_running
    return gr.update(interactive=not running), gr.update(interactive=running), *(gr.skip(),) * 6


def _stop(repair):
    if repair is not None:
        repair.stop()
