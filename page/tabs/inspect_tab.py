"""The tab Inspect: an image in; verdict, heat map, outlines, numbers and files out."""

import functools
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np

from page.server.settings import EMBEDDED_MODELS, KEPT_SECONDS, ROOT
from page.server.uploads import file_stem, save_png, shown_name, uploaded_image
from page.server.user_errors import answer_in_one_sentence
from page.tabs.verdict import HINT, colour_scale, list_regions, verdict
from pipelines.image_preprocessing import as_uint8, to_rgb
from rendering.heat_map import outline, overlay
from training.data.image_reading import read_image

EXAMPLES = ROOT / "examples"
EXAMPLES_OF = EMBEDDED_MODELS / "magnetic-tile"

SCROLL_ON_PHONES = """() => {
  if (window.innerWidth < 768) document.querySelector("#verdict").scrollIntoView({ behavior: "smooth" })
}"""
"""There the verdict lies below image and examples."""


class Answer(NamedTuple):
    """Widgets that show an inspection, and those that change it."""

    words: gr.HTML
    comparison: gr.ImageSlider
    colours: gr.HTML
    to_repair: gr.Button
    prepare: gr.Button
    files: gr.Files
    timesteps: gr.CheckboxGroup
    alpha: gr.Slider
    kl: gr.Image
    features: gr.Image
    numbers: gr.JSON


def build_inspect_tab(page):
    """Lay out the tab and wire it; sets `page.image`, `page.inspection` and `page.percent`."""
    first = page.shelf.get(page.shelf.names[0])
    page.inspection = gr.State(time_to_live=KEPT_SECONDS)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            _lay_out_question(page, first)
        with gr.Column(scale=3, min_width=320):
            answer = _lay_out_answer(first)
    _wire(page, answer)


def _lay_out_question(page, first):
    page.image = gr.Image(
        label="Image of a part",
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard", "webcam"],
        buttons=["fullscreen"],
        height=320,
    )
    _offer_examples(page)
    page.percent = gr.Slider(
        first.smallest_percent,
        first.largest_percent,
        first.default_percent,
        step=0.01,
        label="Accepted false alarms: share of good parts that may be rejected, in %",
        info="Less: fewer good parts are rejected, and more defects are missed.",
        elem_id="percent",
    )


def _lay_out_answer(first):
    words = gr.HTML(HINT, label="Verdict", elem_id="verdict")
    comparison = gr.ImageSlider(
        label="Where it differs (drag to compare)", format="png", slider_position=0, interactive=False
    )
    colours = gr.HTML("", label="Colour scale")
    with gr.Row():
        to_repair = gr.Button("Show it without the defect", interactive=False, elem_id="to-repair")
        prepare = gr.Button("Prepare downloads", interactive=False, elem_id="prepare")
    files = gr.Files(label="Overlay, mask, map (16-bit PNG and NPY), numbers", visible=False, elem_id="files")
    with gr.Accordion("Advanced: noise scales, the two components of the map", open=False):
        gr.Markdown(
            "Noise of each scale is added to the image, and the network says what a good part would look "
            "like. It can be wrong about pixels (KL divergence) and about features; α weighs both in the map."
        )
        scales = _timestep_choices(first)
        timesteps = gr.CheckboxGroup(
            scales, value=scales, label="Noise scales (timesteps, of 1000)", elem_id="timesteps"
        )
        alpha = gr.Slider(0, 1, first.alpha, step=0.05, label="α: weight of the pixel component")
        with gr.Row():
            kl = gr.Image(label="Pixel component (KL)", format="png", interactive=False, buttons=["fullscreen"])
            features = gr.Image(label="Feature component", format="png", interactive=False, buttons=["fullscreen"])
    with gr.Accordion("All numbers", open=False):
        numbers = gr.JSON(label="Numbers", show_label=False)
    return Answer(words, comparison, colours, to_repair, prepare, files, timesteps, alpha, kl, features, numbers)


def _wire(page, answer):
    words, comparison, colours, to_repair, prepare, files, timesteps, alpha, kl, features, numbers = answer
    shown = [words, comparison, colours, numbers, to_repair, prepare, files]
    outputs = [page.inspection, *shown, kl, features]
    inputs = [page.model, page.image, page.percent, timesteps, alpha]
    look = {
        "fn": functools.partial(_inspect, page),
        "inputs": inputs,
        "outputs": outputs,
        "api_visibility": "private",
        "preprocess": False,  # Gradio would open and re-encode the image
        "trigger_mode": "always_last",
        "concurrency_limit": 8,
        "concurrency_id": "inspect",
        "show_progress_on": [words, comparison],
    }
    nothing = {"fn": lambda: (None, *_blank(), None, None), "outputs": outputs, "api_visibility": "private"}
    looked = page.image.change(**look)
    looked.failure(**nothing)
    looked.success(fn=None, js=SCROLL_ON_PHONES, api_visibility="private")
    gr.on([timesteps.input, alpha.release], **look).failure(**nothing)
    page.model.change(
        functools.partial(_settings_of, page),
        page.model,
        [page.percent, timesteps, alpha],
        api_visibility="private",
        show_progress="hidden",
    ).then(**look).failure(**nothing)
    page.percent.change(
        functools.partial(_judge_again, page),
        [page.inspection, page.percent],
        shown,
        api_visibility="private",
        trigger_mode="always_last",
        concurrency_limit=8,
        show_progress="hidden",
    )
    prepare.click(
        functools.partial(_write_files, page),
        [page.inspection, page.percent, page.image],
        files,
        api_visibility="private",
        concurrency_limit=2,
    )
    to_repair.click(lambda: gr.Tabs(selected="repair"), None, page.tabs, api_visibility="private", queue=False)


@answer_in_one_sentence
def _inspect(page, model, upload, percent, timesteps, alpha):
    if upload is None:
        return None, *_blank(), None, None
    image, name = uploaded_image(upload, page.settings.max_upload_mb)
    inspection = page.inspector.inspect(model, image, shown_name(upload, name), timesteps, alpha)
    components = [page.inspector.component(inspection, name) for name in ("kl_map", "feature_map")]
    return inspection, *_judged(page, inspection, percent), *components


@answer_in_one_sentence
def _judge_again(page, inspection, percent):
    return _blank() if inspection is None else _judged(page, inspection, percent)


def _judged(page, inspection, percent):
    """Verdict, pair of images, scale, numbers, both buttons, no files yet."""
    numbers, mask = page.inspector.judge(inspection, percent)
    images = (inspection.image, page.inspector.outlined(inspection, mask))
    colours = colour_scale(inspection.saturation, numbers["pixel_threshold"]) + list_regions(numbers)
    words = verdict(numbers, page.shelf.get(inspection.model).calibration.config)
    return words, images, colours, numbers, *(gr.update(interactive=True),) * 2, gr.update(value=None, visible=False)


def _blank():
    """The outputs of `_judged` before an image was inspected."""
    return HINT, None, "", None, *(gr.update(interactive=False),) * 2, gr.update(value=None, visible=False)


@answer_in_one_sentence
def _settings_of(page, name):
    """Rate, noise scales and alpha of a newly chosen model."""
    model = page.shelf.get(name)
    choices = _timestep_choices(model)
    return (
        gr.update(minimum=model.smallest_percent, maximum=model.largest_percent, value=model.default_percent),
        gr.update(choices=choices, value=choices),
        model.alpha,
    )


@answer_in_one_sentence
def _write_files(page, inspection, percent, path):
    """Overlay, mask and maps at the image's own size, and the numbers."""
    if inspection is None or path is None:
        raise ValueError("inspect an image first.")
    image, _ = uploaded_image({"path": path}, page.settings.max_upload_mb)
    model = page.shelf.get(inspection.model)
    settings = {"timesteps": list(inspection.timesteps), "alpha": inspection.alpha}
    with page.shelf.turns.take():
        output = model.score(image, false_alarm_rate=percent / 100, **settings)
    anomaly_map, mask = output.anomaly_map[0], output.pred_mask[0]
    saturation = inspection.saturation
    folder = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder()))
    stem = file_stem(inspection.file)
    shown = as_uint8(image, model.scoring.config.white_level)
    drawn = outline(overlay(shown, anomaly_map, saturation), mask)
    map_16_bit = np.rint(np.clip(anomaly_map / saturation, 0, 1) * 65535).astype(np.uint16)
    np.save(folder / f"{stem}-map.npy", anomaly_map.astype(np.float32))
    numbers, _ = page.inspector.judge(inspection, percent)
    numbers |= {"defect_pixels": int(mask.sum()), "defect_share": float(mask.mean())}  # of the mask beside it
    numbers |= {"map_16_bit_maximum": saturation, **settings}
    (folder / f"{stem}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return gr.update(
        value=[
            save_png(drawn, folder / f"{stem}-overlay.png"),
            save_png(mask.astype(np.uint8) * 255, folder / f"{stem}-mask.png"),
            save_png(map_16_bit, folder / f"{stem}-map-16bit.png"),
            str(folder / f"{stem}-map.npy"),
            str(folder / f"{stem}.json"),
        ],
        visible=True,
    )


def _timestep_choices(model):
    return [str(timestep) for timestep in model.timesteps]


def inspect_examples(page):
    """Inspect every example that is offered, so that the answer is there when it is chosen."""
    for path in _examples(page):
        image = to_rgb(read_image(path), path.name)
        page.inspector.inspect(page.shelf.names[0], image, path.name)


def _examples(page):
    """Example images, if the first model is the one that they belong to."""
    belongs = page.shelf.get(page.shelf.names[0]).folder == EXAMPLES_OF
    return sorted(EXAMPLES.glob("*.jpg")) if belongs else []


def _offer_examples(page):
    files = [str(path) for path in _examples(page)]
    if not files:
        return
    gallery = gr.Gallery(
        [(path, Path(path).stem.replace("-", " ").capitalize()) for path in files],
        label="Or try one of these magnetic tiles",
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )

    def choose(event: gr.SelectData):
        return files[event.index]

    gallery.select(choose, None, page.image, api_visibility="private", show_progress="hidden")
