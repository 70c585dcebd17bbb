"""The tab Batch: many images or a ZIP in; a table, a histogram with a test for drift, files and the remedy out."""

import functools
import html
import tempfile

import gradio as gr

from page.server.uploads import Folder
from page.server.user_errors import answer_in_one_sentence
from page.tabs.batch_html import DATATYPES, HEADERS, HINT, NUMBER_COLUMN, bar, progress_words, table_cells
from page.tabs.batch_results import RESULTS, draw_anew, judge_batch
from page.tabs.rate_cost import show_rate_cost
from page.work.batch import Batch
from page.work.recalibrating import Recalibration
from rendering.words import duration
from training.data.image_reading import IMAGE_SUFFIXES
from training.data.layouts import MIN_IMAGES

ELSEWHERE = (
    "Models are not recalibrated on this server. On your own computer, `python training/calibration.py --model … "
    "--data_dir FOLDER_OF_GOOD_IMAGES --output_dir …` does it."
)


def build_batch_tab(page):
    """Lay out the tab and wire it."""
    first = page.shelf.get(page.shelf.names[0])
    batch = gr.State(delete_callback=_stop)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            files = gr.Files(
                label=f"Images, or a ZIP of them: at most {page.settings.max_batch}, each file up to "
                f"{page.settings.max_upload_mb} MB",
                file_types=[*IMAGE_SUFFIXES, ".zip"],
                height=180,
                elem_id="batch-files",
            )
            percent = gr.Slider(
                first.smallest_percent,
                first.largest_percent,
                first.default_percent,
                step=0.01,
                label="Accepted false alarms, in % of good parts",
                elem_id="batch-percent",
            )
            with gr.Row():
                start = gr.Button("Inspect all", variant="primary", elem_id="batch-start")
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="batch-stop")
            show_rate_cost(page, percent, "batch-rate-cost")
        with gr.Column(scale=3, min_width=320):
            words = gr.HTML(HINT, elem_id="batch-words")
            drift = gr.HTML("", elem_id="drift")
            remedy = gr.Accordion("Recalibrate on these images", open=False, visible=False)
            with remedy:
                recalibration = _build_remedy(page)
    table, note, histogram, results, redraw = _lay_out_results()

    private = {"api_visibility": "private"}
    quiet = private | {"show_progress": "hidden"}
    judged = {
        "fn": functools.partial(judge_batch, page),
        "inputs": [batch, page.model, percent],
        "outputs": [table, words, drift, remedy, note, histogram, results, redraw],
        "preprocess": False,  # Gradio would refuse a rate out of range, and the old verdicts would stay
        "trigger_mode": "always_last",
        "concurrency_limit": 8,
    } | quiet
    page.model.change(functools.partial(_rate_of, page), page.model, percent, **quiet).then(**judged)
    percent.change(**judged)
    redraw.click(draw_anew, batch, note, show_progress_on=note, concurrency_limit=2, **private).then(**judged)
    start.click(
        functools.partial(_begin, page),
        [page.model, files, percent],
        [batch, start, stop, words, drift, remedy, note, histogram, results, redraw],
        preprocess=False,  # Gradio would copy every file
        concurrency_limit=4,
        show_progress_on=words,
        **private,
    ).success(_watch, batch, [table, words], concurrency_limit=8, **quiet).then(**judged).then(
        _buttons, None, [start, stop], **quiet
    )
    stop.click(_stop, batch, None, queue=False, **private)

    @answer_in_one_sentence
    def show_row(batch, model, event: gr.SelectData):
        return _show_row(batch, model, event.row_value)

    table.select(show_row, [batch, page.model], [page.image, page.percent, page.model, page.tabs], **quiet)
    if recalibration:
        _wire_remedy(page, batch, remedy, *recalibration)


def _lay_out_results():
    table = gr.Dataframe(
        headers=HEADERS,
        datatype=DATATYPES,
        label="Worst first; ⋮ in a head sorts, a click on a row shows it in Inspect",
        interactive=False,
        wrap=True,
        visible=False,
        max_height=560,
        buttons=["fullscreen"],
        elem_id="batch-table",
    )
    note = gr.HTML("", elem_id="batch-note")
    histogram = gr.HTML("", elem_id="histogram")
    results = gr.Files(label=RESULTS, interactive=False, visible=False, elem_id="batch-results")
    redraw = gr.Button("Draw overlays and masks anew", visible=False, elem_id="batch-redraw")
    return table, note, histogram, results, redraw


def _build_remedy(page):
    """The widgets of the remedy; none where users may not train."""
    if not page.settings.training:
        gr.Markdown(ELSEWHERE)
        return None
    gr.Markdown(
        "The model learns anew which scores good parts have, from the images above; it becomes a model of its own, "
        f"and the old one stays. Upload {MIN_IMAGES} or more images of good parts, better 40, and leave out defects: "
        "a defective part that is labelled good makes the model less sensitive. Images that are unfamiliar are left "
        "out: another part needs a model of its own."
    )
    declared = gr.Checkbox(
        False, label="All images of this batch show good parts, also those that were rejected", elem_id="all-good"
    )
    with gr.Row():
        start = gr.Button("Recalibrate", variant="primary", interactive=False, elem_id="recalibrate")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop-recalibration")
    return declared, start, stop, gr.HTML("", elem_id="recalibration-words")


def _wire_remedy(page, batch, remedy, declared, start, stop, words):
    running = gr.State(delete_callback=_stop)
    private = {"api_visibility": "private"}
    quiet = private | {"show_progress": "hidden"}
    declared.change(lambda good: gr.update(interactive=good), declared, start, queue=False, **quiet)
    batch.change(lambda: (False, ""), None, [declared, words], **quiet)
    start.click(
        functools.partial(_begin_recalibration, page),
        [batch, declared],
        [running, start, stop],
        concurrency_limit=2,
        show_progress_on=words,
        **private,
    ).success(
        functools.partial(_watch_recalibration, page), running, [words, page.model], concurrency_limit=4, **quiet
    ).then(lambda good: (gr.update(interactive=good), gr.update(interactive=False)), declared, [start, stop], **quiet)
    stop.click(_stop, running, None, queue=False, **private)


@answer_in_one_sentence
def _rate_of(page, name):
    model = page.shelf.get(name)
    return gr.update(minimum=model.smallest_percent, maximum=model.largest_percent, value=model.default_percent)


@answer_in_one_sentence
def _begin(page, model, uploads, percent):
    folder = Folder(uploads, page.settings.max_batch, page.settings.max_upload_mb, with_masks=False)
    batch = Batch(page.shelf.get(model), page.shelf.turns, folder, percent)
    nothing = gr.update(value=None, visible=False)
    words = progress_words(0, len(folder), 0)
    buttons = gr.update(interactive=False), gr.update(interactive=True)
    hidden = gr.update(visible=False)
    return batch, *buttons, words, "", gr.update(visible=False, open=False), "", "", nothing, hidden


@answer_in_one_sentence
def _watch(batch):
    """Yield the table as it fills."""
    try:
        for count in batch.watch():
            cells = table_cells(batch.rows[:count])
            words = progress_words(count, len(batch.folder), batch.seconds)
            yield gr.update(value=cells, visible=count > 0), words
    except GeneratorExit:  # the user has left
        batch.stop()
        raise
    batch.wait()


@answer_in_one_sentence
def _show_row(batch, model, cells):
    """The image of a row, the rate and the model that its verdict belongs to, and the tab that shows it."""
    index = int(cells[NUMBER_COLUMN]) - 1
    row = next((row for row in batch.rows if row.index == index), None) if batch is not None else None
    if row is None:
        raise ValueError("these results are gone; inspect the images again.")
    if row.result.verdict == "unreadable":
        raise ValueError(row.result.error)
    path = batch.folder.file(index, tempfile.mkdtemp(dir=gr.utils.get_upload_folder()))
    same = model == batch.model.name
    rate = 100 * batch.false_alarm_rate if same else gr.skip()
    return str(path), rate, gr.skip() if same else batch.model.name, gr.Tabs(selected="inspect")


@answer_in_one_sentence
def _begin_recalibration(page, batch, declared):
    if batch is None or batch.is_running:
        raise ValueError("inspect a batch of good images to its end first.")
    if not declared:
        raise ValueError("say first that all images of this batch show good parts.")
    readable = sorted(row.index for row in batch.rows if row.result.verdict in ("good", "defect"))
    recalibration = Recalibration(batch.model, page.shelf, batch.folder, readable, page.settings.trained_models)
    return recalibration, gr.update(interactive=False), gr.update(interactive=True)


@answer_in_one_sentence
def _watch_recalibration(page, recalibration):
    """Yield progress, then the new model as the chosen one."""
    try:
        for measured, total, seconds in recalibration.watch():
            yield _recalibration_progress(measured, total, seconds), gr.skip()
    except GeneratorExit:  # the user has left
        recalibration.stop()
        raise
    name = recalibration.result()
    if name is None:
        yield "<p>Stopped; no model has changed.</p>", gr.skip()
        return
    css = "rejected" if recalibration.warning else "accepted"
    words = (
        f'<div class="verdict {css}"><h3>{html.escape(name)}</h3><p>This new model is chosen above. It is '
        f"{html.escape(recalibration.promise)}</p><p>{html.escape(recalibration.change)}</p>"
        "<p>Inspect the next batch with it.</p></div>"
    )
    yield words, gr.update(choices=page.shelf.names, value=name)


def _recalibration_progress(measured, total, seconds):
    if total is None:
        return "<p>Waiting for its turn …</p><progress></progress>"
    if measured == total:
        return "<p>Choosing weights and saving …</p><progress></progress>"
    left = duration(seconds / measured * (total - measured))
    return f"<p>{measured} of {total} measurements, about {left} left.</p>{bar(measured, total)}"


def _buttons():
    return gr.update(interactive=True), gr.update(interactive=False)


def _stop(work):
    if work is not None:
        work.stop()
