"""The tab Inspect: an image in; verdict, heat map, numbered outlines, numbers and files out."""

import functools
from typing import NamedTuple

import gradio as gr

from page.server.settings import KEPT_SECONDS
from page.server.uploads import file_stem, keep_drawing, shown_name, uploaded_image
from page.server.user_errors import answer_in_one_sentence
from page.tabs.examples import examples_of, first_inspection, is_example, offer_examples
from page.tabs.inspection_files import write_files
from page.tabs.rate_cost import show_rate_cost
from page.tabs.verdict import colour_scale, invitation, list_regions, no_verdict, verdict
from page.work.inspection import HEAT_MAP
from page.work.rates import RateRefused, offered_percent

VIEWS = [("Heat map", HEAT_MAP), ("Pixel component (KL)", "kl_map"), ("Feature component", "feature_map")]
"""What an image is compared with, in words and by its name in `Inspector.compared`."""

REPAIR = "repair"

FILE_ENDINGS = {
    HEAT_MAP: "heat-map",
    "kl_map": "pixel-component",
    "feature_map": "feature-component",
    REPAIR: "repaired",
}

SCROLL_ON_PHONES = """() => {
  if (window.innerWidth < 768) document.querySelector("#verdict").scrollIntoView({ behavior: "smooth" })
}"""
"""There the verdict lies below image and examples."""


class Answer(NamedTuple):
    """Widgets that show an inspection, and those that change it."""

    words: gr.HTML
    box: gr.Column
    comparison: gr.ImageSlider
    colours: gr.HTML
    numbers: gr.JSON
    files: gr.Files
    view: gr.Radio
    to_repair: gr.Button
    prepare: gr.Button
    timesteps: gr.CheckboxGroup
    alpha: gr.Slider

    @property
    def shown(self):
        """What another rate changes."""
        return list(self[:6])


def build_inspect_tab(page, demo):
    """Lay out the tab and wire it.

    It sets `page.image`, `page.inspection`, `page.repaired`, `page.percent` and `page.to_repair`.

    It opens with an example that has been inspected already, or with an invitation where there is none.
    """
    first = page.shelf.get(page.shelf.names[0])
    inspection = first_inspection(page)
    page.inspection = gr.State(inspection, time_to_live=KEPT_SECONDS)
    page.repaired = gr.State(time_to_live=KEPT_SECONDS)
    with gr.Row(elem_id="inspect"):
        with gr.Column(scale=2, min_width=280, elem_id="question"):
            examples = _lay_out_question(page, first, inspection)
        with gr.Column(scale=3, min_width=320, elem_id="answer"):
            answer = _lay_out_answer(page, first, inspection)
    page.to_repair = answer.to_repair
    _wire(page, answer, examples)
    if inspection is None and examples_of(first):
        demo.load(lambda: str(examples_of(first)[0]), None, page.image, api_visibility="private")


def _lay_out_question(page, first, inspection):
    page.image = gr.Image(
        None if inspection is None else str(examples_of(first)[0]),
        label="Image of a part",
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard", "webcam"],
        buttons=["fullscreen"],
        height=200,
        elem_id="part",
        elem_classes="clear",
    )
    with gr.Column(elem_id="rate"):
        page.percent = gr.Slider(
            first.smallest_percent,
            first.largest_percent,
            first.default_percent,
            step=0.01,
            label="Accepted false alarms: share of good parts that may be rejected, in %",
            info="Less: fewer good parts are rejected, and more defects are missed.",
            elem_id="percent",
        )
        show_rate_cost(page, page.percent, "rate-cost")
    return offer_examples(page, selected=inspection is not None)


def _lay_out_answer(page, first, inspection):
    words, box, comparison, colours, numbers, _ = _nothing(first)
    if inspection is not None:
        words, box, comparison, colours, numbers, _ = _judged(page, inspection, first.default_percent, HEAT_MAP)
    words = gr.HTML(words, label="Verdict", elem_id="verdict")
    with gr.Column(visible=box["visible"], elem_id="found") as box:
        view = gr.Radio(VIEWS, value=HEAT_MAP, label="Compare the image with", elem_id="view")
        comparison = gr.ImageSlider(
            comparison["value"],
            label="Where it differs (drag to compare)",
            format="png",
            slider_position=0,
            max_height=400,
            interactive=False,
            elem_id="comparison",
            elem_classes="clear",
        )
        colours = gr.HTML(colours, label="Colour scale")
        with gr.Row():
            to_repair = gr.Button("Show it without the defect", elem_id="to-repair")
            prepare = gr.Button("Prepare downloads", elem_id="prepare")
        files = gr.Files(
            label="All in one ZIP; heat map, mask, anomaly map (16-bit PNG and NPY), verdict in numbers",
            interactive=False,
            visible=False,
            elem_id="files",
        )
    with gr.Column(elem_id="more"):
        with gr.Accordion("Advanced: noise scales, weight of the two components", open=False):
            gr.Markdown(
                "Noise of each scale is added to the image, and the network says what a good part would look "
                "like. It can be wrong about pixels (KL divergence) and about features; α weighs both in the map."
            )
            scales = _timestep_choices(first)
            timesteps = gr.CheckboxGroup(
                scales, value=scales, label="Noise scales (timesteps, of 1000)", elem_id="timesteps"
            )
            alpha = gr.Slider(0, 1, first.alpha, step=0.05, label="α: weight of the pixel component")
        with gr.Accordion("All numbers", open=False):
            numbers = gr.JSON(numbers, label="Numbers", show_label=False)
    return Answer(words, box, comparison, colours, numbers, files, view, to_repair, prepare, timesteps, alpha)


def _wire(page, answer, examples):
    private = {"api_visibility": "private"}
    quiet = private | {"show_progress": "hidden"}
    outputs = [page.inspection, *answer.shown]
    look = private | {
        "fn": functools.partial(_inspect, page),
        "inputs": [page.model, page.image, page.percent, answer.timesteps, answer.alpha, answer.view, page.repaired],
        "outputs": outputs,
        "preprocess": False,  # Gradio would open and re-encode the image
        "trigger_mode": "always_last",
        "concurrency_limit": 8,
        "concurrency_id": "inspect",
        "show_progress_on": [answer.words, answer.comparison],
    }
    nothing = private | {"fn": functools.partial(_forget, page), "inputs": page.model, "outputs": outputs}
    looked = page.image.change(**look)
    looked.failure(**nothing)
    looked.success(fn=None, js=SCROLL_ON_PHONES, **private)
    gr.on([answer.timesteps.input, answer.alpha.release], **look).failure(**nothing)
    settings = [page.percent, answer.timesteps, answer.alpha, page.image]
    page.model.change(
        functools.partial(_settings_of, page, examples is not None),
        [page.model, page.image],
        settings if examples is None else [*settings, examples],
        preprocess=False,
        **quiet,
    ).then(**look).failure(**nothing)
    again = {
        "inputs": [page.inspection, page.percent, answer.view, page.repaired],
        "preprocess": False,  # Gradio would refuse a rate out of range, and the old verdict would stay
        "trigger_mode": "always_last",
        "concurrency_limit": 8,
    }
    failed = {"fn": functools.partial(_blank, page), "inputs": page.model, "outputs": answer.shown}
    page.percent.change(functools.partial(_judge_again, page), outputs=answer.shown, **again, **quiet).failure(
        **failed, **private
    )
    answer.view.input(functools.partial(_compare, page), outputs=answer.comparison, **again, **quiet)
    gr.on(
        [page.inspection.change, page.repaired.change],
        _views,
        [page.inspection, answer.view, page.repaired],
        answer.view,
        **quiet,
    )
    answer.prepare.click(
        functools.partial(_write_files, page),
        [page.inspection, page.percent, page.image],
        answer.files,
        preprocess=False,
        concurrency_limit=2,
        **private,
    )


@answer_in_one_sentence
def _inspect(page, model, upload, percent, timesteps, alpha, view, repaired):
    if upload is None:
        return _forget(page, model)
    image, name = uploaded_image(upload, page.settings.max_upload_mb)
    inspection = page.inspector.inspect(model, image, shown_name(upload, name), timesteps, alpha)
    words, box, comparison, *others = _judged(page, inspection, percent, view, repaired)
    return inspection, words, box, comparison | _uncovered(), *others


@answer_in_one_sentence
def _judge_again(page, inspection, percent, view, repaired):
    return (gr.skip(),) * 6 if inspection is None else _judged(page, inspection, percent, view, repaired)


@answer_in_one_sentence
def _compare(page, inspection, percent, view, repaired):
    if inspection is None:
        return gr.skip()
    percent = offered_percent(page.shelf.get(inspection.model), percent)
    return _compared(page, inspection, view, repaired, *page.inspector.judge(inspection, percent)) | _uncovered()


def _views(inspection, view, repaired):
    """What there is to compare with: the repair too, once there is one of this very inspection."""
    has_repair = _is_repair_of(inspection, repaired)
    choices = [*VIEWS, ("Repair", REPAIR)] if has_repair else VIEWS
    return gr.update(choices=choices, value=HEAT_MAP if view == REPAIR and not has_repair else view)


def _is_repair_of(inspection, repaired):
    return inspection is not None and repaired is not None and repaired[0] is inspection


def _judged(page, inspection, percent, view, repaired=None):
    """`Answer.shown` of an inspection; no verdict at a rate that is not offered."""
    model = page.shelf.get(inspection.model)
    try:
        numbers, mask = page.inspector.judge(inspection, offered_percent(model, percent))
    except RateRefused as refusal:
        return no_verdict(refusal), *_nothing(model)[1:]
    comparison = _compared(page, inspection, view, repaired, numbers, mask)
    colours = colour_scale(inspection.saturation, numbers["pixel_threshold"]) + list_regions(numbers)
    words = verdict(numbers, model.calibration.config)
    return words, gr.update(visible=True), comparison, colours, numbers, _no_files()


def _compared(page, inspection, view, repaired, numbers, mask):
    if view == REPAIR and not _is_repair_of(inspection, repaired):
        view = HEAT_MAP
    if view == REPAIR:
        pair = (inspection.image, repaired[1])
    else:
        pair = page.inspector.compared(inspection, view, mask, numbers["regions"])
    stem = file_stem(inspection.file)
    names = (f"{stem}.png", f"{stem}-{FILE_ENDINGS[view]}.png")
    return gr.update(value=tuple(keep_drawing(pixels, name) for pixels, name in zip(pair, names, strict=True)))


def _uncovered():
    """The slider where nothing of what is new is hidden, wherever the user has dragged it before."""
    return gr.update(slider_position=0)


def _nothing(model):
    """`Answer.shown` while there is no image."""
    words = invitation(model.name, bool(examples_of(model)))
    return words, gr.update(visible=False), gr.update(value=None), "", None, _no_files()


def _no_files():
    return gr.update(value=None, visible=False)


@answer_in_one_sentence
def _blank(page, model):
    return _nothing(page.shelf.get(model))


@answer_in_one_sentence
def _forget(page, model):
    return None, *_nothing(page.shelf.get(model))


@answer_in_one_sentence
def _settings_of(page, with_examples, name, upload):
    """Rate, noise scales, alpha and examples of a newly chosen model; an example of another model is taken away."""
    model = page.shelf.get(name)
    choices, examples = _timestep_choices(model), examples_of(model)
    image = gr.skip()
    if examples and upload is None:
        image = str(examples[0])
    elif not examples and upload is not None and is_example(upload):
        image = None
    settings = (
        gr.update(minimum=model.smallest_percent, maximum=model.largest_percent, value=model.default_percent),
        gr.update(choices=choices, value=choices),
        model.alpha,
        image,
    )
    return (*settings, gr.update(visible=bool(examples))) if with_examples else settings


@answer_in_one_sentence
def _write_files(page, inspection, percent, upload):
    return gr.update(value=write_files(page, inspection, percent, upload), visible=True)


def _timestep_choices(model):
    return [str(timestep) for timestep in model.timesteps]
