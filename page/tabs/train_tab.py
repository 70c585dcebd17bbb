"""The tab Train: images of good parts in, a model of one's own out; it can be watched, stopped and resumed."""

import functools
from typing import NamedTuple

import gradio as gr
import torch

from page.server.user_errors import answer_in_one_sentence
from page.tabs.quality_html import synthetic_words
from page.tabs.trained_model import lay_out_result, wire_result
from page.tabs.training_html import NO_TRAINING, describe_training, draw_curves, expectation, list_left_out
from page.work.trainings import MAX_STEPS
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.data.image_reading import IMAGE_SUFFIXES
from training.records.synthetic_record import read_check

LOOK_EVERY = 1.0

INTRODUCTION = """Give images of **good** parts only, taken as the inspected ones will be: same camera, same light.
About 100 are good, 20 are the least that makes sense, and more make the promised false alarm rate smaller. A quarter
is held out to measure how good parts score.

{expectation}

Images are deleted when it has finished; a few of them stay with the model, in its report, for you to see what it makes
of them."""


class Order(NamedTuple):
    """Widgets by which a training is asked for, stopped, resumed and deleted."""

    files: gr.File
    name: gr.Textbox
    preset: gr.Radio
    steps: gr.Number
    start: gr.Button
    stop: gr.Button
    leftover: gr.Group
    unfinished: gr.Dropdown
    resume: gr.Button
    delete: gr.Button


class View(NamedTuple):
    """Widgets that show a training."""

    words: gr.HTML
    left_out: gr.HTML
    plots: gr.HTML


def build_train_tab(page, demo, tab):
    """Lay out the tab and wire it; `demo` is the page as a whole, `tab` the tab: it shows the latest training."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            order = _lay_out_order(page)
        with gr.Column(scale=1, min_width=300):
            words = gr.HTML(NO_TRAINING, label="Training", elem_id="training-words")
            left_out = gr.HTML("", label="Files that were left out", elem_id="left-out")
            result = lay_out_result()
            plots = gr.HTML("", label="How it goes", elem_id="training-curves")
    _wire(page, (demo.load, tab.select), order, View(words, left_out, plots), result)
    wire_result(page, result)


def _lay_out_order(page):
    presets = {
        "balanced": "for any machine",
        "fine": "looks twice as closely, for small defects, and takes longer",
        "fast": "the same in a quarter of the time, which finds less in parts that differ much",
    }
    if torch.cuda.is_available():
        presets["paper"] = "the network of the paper, for a graphics card"
    gr.Markdown(INTRODUCTION.format(expectation=expectation(page.settings.max_training_minutes)))
    files = gr.File(
        label="Images of good parts: files, or a ZIP",
        file_count="multiple",
        file_types=[*IMAGE_SUFFIXES, ".zip"],
        height=180,
        elem_id="training-files",
    )
    name = gr.Textbox(
        label="Name of the model",
        info="Letters, digits and dashes.",
        placeholder="steel-plate-2",
        max_length=40,
        elem_id="training-name",
    )
    with gr.Accordion("Advanced", open=False):
        preset = gr.Radio(
            list(presets),
            value=DEFAULT_PRESET,
            label="Preset",
            info=" ".join(f"{name}: {what}." for name, what in presets.items()),
        )
        steps = gr.Number(
            PRESETS[DEFAULT_PRESET]["max_train_steps"],
            label="Steps",
            info="Fewer are quicker and find less.",
            precision=0,
            minimum=1,
            maximum=MAX_STEPS,
            elem_id="training-steps",
        )
    with gr.Row():
        start = gr.Button("Train", variant="primary", elem_id="train")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop-training")
    with gr.Group(visible=False) as leftover:
        unfinished = gr.Dropdown(label="Unfinished trainings", filterable=False, elem_id="unfinished")
        with gr.Row():
            resume = gr.Button("Resume", elem_id="resume-training")
            delete = gr.Button("Delete it and its images", elem_id="delete-training")
    return Order(files, name, preset, steps, start, stop, leftover, unfinished, resume, delete)


def _wire(page, openings, order, view, result):
    files, name, preset, steps, start, stop, leftover, unfinished, resume, delete = order
    words, left_out, plots = view
    download, trained = result.download, result.column
    timer = gr.Timer(LOOK_EVERY, active=False)
    shown = gr.State()
    outputs = [words, left_out, plots, start, stop, leftover, unfinished, trained, result.quality, timer, page.model]
    look = {
        "fn": functools.partial(_look, page),
        "inputs": shown,
        "outputs": [*outputs, result.known_words, shown],
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_limit": 8,
    }
    private = {"api_visibility": "private"}
    begun = start.click(
        functools.partial(_start, page),
        [files, name, preset, steps],
        [files, name, download],
        preprocess=False,
        show_progress_on=words,
        concurrency_limit=2,
        **private,
    )
    resumed = resume.click(functools.partial(_resume, page), unfinished, download, **private)
    deleted = delete.click(functools.partial(_discard, page), unfinished, None, **private)
    stopping = stop.click(functools.partial(_stop, page), None, None, queue=False, **private)
    for event in (begun, resumed, deleted, stopping):
        event.then(**look)
    for event in (timer.tick, *openings):
        event(**look)
    preset.change(lambda chosen: PRESETS[chosen]["max_train_steps"], preset, steps, **private)


@answer_in_one_sentence
def _start(page, files, name, preset, steps, progress=gr.Progress()):  # noqa: B008
    def report(done, total):
        progress((done, total), desc="looking at the images", unit="images")

    page.trainings.start(name, files, preset, steps, report)
    return None, "", gr.update(value=None, visible=False)


@answer_in_one_sentence
def _resume(page, name):
    page.trainings.resume(name)
    return gr.update(value=None, visible=False)


@answer_in_one_sentence
def _discard(page, name):
    page.trainings.discard(name)


@answer_in_one_sentence
def _stop(page):
    if page.trainings.latest is not None:
        page.trainings.latest.stop()


@answer_in_one_sentence
def _look(page, shown):
    """Everything that changes with the training; the plot only when there is more to draw."""
    run, unfinished = page.trainings.latest, page.trainings.unfinished
    running = run is not None and run.is_running
    leftover = gr.update(visible=bool(unfinished) and not running)
    choices = gr.update(choices=unfinished, value=unfinished[-1] if unfinished else None)
    if run is None:
        hidden, idle = gr.update(visible=False), gr.Timer(active=False)
        buttons = gr.update(interactive=True), gr.update(interactive=False)
        return NO_TRAINING, "", "", *buttons, leftover, choices, hidden, gr.skip(), idle, gr.skip(), "", None
    status = run.status()
    now = (run.name, len(run.left_out), status.state, status.step)
    is_news, is_finished = shown is None or now != tuple(shown), status.state == "finished"
    return (
        describe_training(run.name, status, run.is_stopping),
        gr.skip() if shown and now[:2] == tuple(shown)[:2] else list_left_out(run.left_out),  # it may be unfolded
        draw_curves(*run.curves()) if is_news else gr.skip(),
        gr.update(interactive=not running),
        gr.update(interactive=running),
        leftover,
        choices,
        gr.update(visible=is_finished),
        synthetic_words(read_check(run.output)) if is_news and is_finished else gr.skip(),
        gr.Timer(active=running),
        gr.update(choices=page.shelf.names) if is_finished else gr.skip(),
        "" if is_news else gr.skip(),  # another model's
        now,
    )
