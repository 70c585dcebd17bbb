"""The tab Train: images of good parts in, a model of one's own out; it can be watched, stopped and resumed."""

import functools
from typing import NamedTuple

import gradio as gr
import pandas as pd
import torch

from page.models.checkpoint_zip import pack_for_download
from page.server.user_errors import answer_in_one_sentence
from page.tabs.training_html import NO_TRAINING, describe_training, list_left_out
from page.work.trainings import MAX_STEPS
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.data.image_reading import IMAGE_SUFFIXES

LOOK_EVERY = 1.0
LOSSES_PLOTTED = {"features": "Error in features", "noise": "Error in pixels"}
PLOTTED = LOSSES_PLOTTED | {"features_pixel_auroc": "Synthetic defects found (1 is all)"}
PLOT = {"height": 220, "min_width": 260, "tooltip": "all"}

INTRODUCTION = """Give images of **good** parts only, taken as the inspected ones will be: same camera, same light.
About 100 are good, 20 are the least that makes sense, and more make the promised false alarm rate smaller. A quarter
is held out to measure how good parts score. Training takes {time}. Images are deleted when it has finished."""


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
    """Widgets that show a training, and what came of it."""

    words: gr.HTML
    left_out: gr.HTML
    plots: gr.Row
    curves: list
    trained: gr.Row
    use: gr.Button
    pack: gr.Button
    download: gr.File


def build_train_tab(page, demo):
    """Lay out the tab and wire it; `demo` is the page as a whole, which shows a running training when it is opened."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            order = _lay_out_order()
        with gr.Column(scale=1, min_width=300):
            view = _lay_out_view()
    _wire(page, demo, order, view)


def _lay_out_order():
    presets = {
        "balanced": "for any machine",
        "fine": "looks twice as closely, for small defects, and takes longer",
        "fast": "the same in a quarter of the time, which finds less in parts that differ much",
    }
    if torch.cuda.is_available():
        presets["paper"] = "the network of the paper, for a graphics card"
    gr.Markdown(INTRODUCTION.format(time=_expected_time()))
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


def _lay_out_view():
    words = gr.HTML(NO_TRAINING, label="Training", elem_id="training-words")
    left_out = gr.HTML("", label="Files that were left out", elem_id="left-out")
    with gr.Row(visible=False) as plots:
        curves = [
            gr.LinePlot(x="step", y=name, y_title="error" if name in LOSSES_PLOTTED else "AUROC", **PLOT, title=title)
            for name, title in PLOTTED.items()
        ]
    with gr.Row(visible=False) as trained:
        use = gr.Button("Inspect with it", variant="primary", elem_id="use-trained")
        pack = gr.Button("Prepare download", elem_id="pack-trained")
    download = gr.File(label="The model as a ZIP", visible=False, interactive=False, elem_id="trained-zip")
    return View(words, left_out, plots, curves, trained, use, pack, download)


def _wire(page, demo, order, view):
    files, name, preset, steps, start, stop, leftover, unfinished, resume, delete = order
    words, left_out, plots, curves, trained, use, pack, download = view
    timer = gr.Timer(LOOK_EVERY, active=False)
    shown = gr.State()
    outputs = [words, left_out, plots, *curves, start, stop, leftover, unfinished, trained, timer, page.model, shown]
    look = {
        "fn": functools.partial(_look, page),
        "inputs": shown,
        "outputs": outputs,
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
    timer.tick(**look)
    demo.load(**look)
    preset.change(lambda chosen: PRESETS[chosen]["max_train_steps"], preset, steps, **private)
    use.click(functools.partial(_use, page), None, [page.model, page.tabs], **private)
    pack.click(functools.partial(_pack, page), None, download, concurrency_limit=2, **private)


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
        unchanged = (gr.skip(),) * (4 + len(PLOTTED))
        return NO_TRAINING, *unchanged, leftover, choices, gr.skip(), gr.Timer(active=False), gr.skip(), None
    status = run.status()
    now = (run.name, len(run.left_out), status.state, status.step)
    ended = now if status.state == "finished" else None
    return (
        describe_training(run.name, status, run.is_stopping),
        gr.skip() if shown and now[:2] == tuple(shown)[:2] else list_left_out(run.left_out),  # it may be unfolded
        *((gr.skip(),) * (1 + len(PLOTTED)) if now == shown else _drawn(*run.curves())),
        gr.update(interactive=not running),
        gr.update(interactive=running),
        leftover,
        choices,
        gr.update(visible=ended is not None),
        gr.Timer(active=running),
        gr.update(choices=page.shelf.names) if ended else gr.skip(),
        now,
    )


def _drawn(losses, separation):
    """The row of plots, and one plot for each of `PLOTTED`."""
    losses, separation = pd.DataFrame(losses), pd.DataFrame(separation)
    tables = (losses if name in LOSSES_PLOTTED else separation for name in PLOTTED)
    return gr.update(visible=len(losses) > 1), *(
        table[["step", name]] for table, name in zip(tables, PLOTTED, strict=True)
    )


@answer_in_one_sentence
def _use(page):
    """Choose what was trained, and go to inspect with it."""
    return _name_of_trained(page), gr.Tabs(selected="inspect")


@answer_in_one_sentence
def _pack(page):
    name = _name_of_trained(page)
    return gr.update(value=pack_for_download(page.shelf.get(name).folder, name), visible=True)


def _name_of_trained(page):
    run = page.trainings.latest
    if run is None or run.status().state != "finished":
        raise ValueError("nothing was trained since the page was started.")
    return run.name


def _expected_time():
    if torch.cuda.is_available():
        return "some minutes on this machine's graphics card"
    return (
        "half an hour to three hours on an ordinary computer without a graphics card (a quarter of it by `fast`, twice "
        "as much by `fine`)"
    )
