"""Of the tab Train: the model that came of a training, how good it is, and what it makes of parts that a user knows."""

import functools
from typing import NamedTuple

import gradio as gr

from page.models.checkpoint_zip import pack_for_download, report_for_download
from page.server.uploads import Folder
from page.server.user_errors import answer_in_one_sentence
from page.tabs.quality_html import known_words
from page.work.known_parts import MAX_KNOWN, try_known_parts
from training.data.image_reading import IMAGE_SUFFIXES

DEFECTIVE, GOOD = "defective parts", "good parts"

TRY_KNOWN = """### Try it on parts that you know
Images of parts whose defects you know (or of good ones that were not trained on) say more than synthetic defects.
No marking is needed. They are not kept."""


class Result(NamedTuple):
    """Widgets that show what came of it, and those it is tried with on parts that a user knows."""

    column: gr.Column
    quality: gr.HTML
    use: gr.Button
    pack: gr.Button
    download: gr.Files
    known: gr.Files
    kind: gr.Radio
    try_known: gr.Button
    known_words: gr.HTML


def lay_out_result():
    """Lay the widgets out, hidden. Returns the `Result`."""
    with gr.Column(visible=False, elem_id="trained") as column:
        quality = gr.HTML("", label="How well it finds defects", elem_id="quality")
        with gr.Row():
            use = gr.Button("Inspect with it", variant="primary", elem_id="use-trained")
            pack = gr.Button("Prepare downloads", elem_id="pack-trained")
        download = gr.Files(
            label="The model as a ZIP, and the report of its training",
            visible=False,
            interactive=False,
            elem_id="trained-zip",
        )
        gr.Markdown(TRY_KNOWN)
        known = gr.Files(
            label=f"Images, or a ZIP of them: at most {MAX_KNOWN}",
            file_types=[*IMAGE_SUFFIXES, ".zip"],
            height=140,
            elem_id="known-files",
        )
        kind = gr.Radio([DEFECTIVE, GOOD], value=DEFECTIVE, label="They show", elem_id="known-kind")
        try_known = gr.Button("Try it on these", elem_id="try-known")
        known_words = gr.HTML("", label="What it makes of them", elem_id="known-words")
    return Result(column, quality, use, pack, download, known, kind, try_known, known_words)


def wire_result(page, result):
    """Wire them; who shows them is the tab."""
    private = {"api_visibility": "private"}
    result.use.click(functools.partial(_use, page), None, [page.model, page.tabs], **private)
    result.pack.click(functools.partial(_pack, page), None, result.download, concurrency_limit=2, **private)
    result.try_known.click(
        functools.partial(_try_known, page),
        [result.known, result.kind],
        result.known_words,
        preprocess=False,  # Gradio would copy every file
        concurrency_limit=2,
        **private,
    )


@answer_in_one_sentence
def _use(page):
    """Choose what was trained, and go to inspect with it."""
    return _name_of_trained(page), gr.Tabs(selected="inspect")


@answer_in_one_sentence
def _pack(page):
    name = _name_of_trained(page)
    folder = page.shelf.get(name).folder
    files = [pack_for_download(folder, name), report_for_download(folder, name)]
    return gr.update(value=[file for file in files if file is not None], visible=True)


@answer_in_one_sentence
def _try_known(page, files, kind, progress=gr.Progress()):  # noqa: B008
    def report(done, total):
        progress((done, total), desc="trying the model on them", unit="images")

    model = page.shelf.get(_name_of_trained(page))
    folder = Folder(files, MAX_KNOWN, page.settings.max_upload_mb, with_masks=False)
    judged = try_known_parts(page.inspector, model, folder, report)
    return known_words(judged, kind != GOOD, model.calibration.config.cross_fitted)


def _name_of_trained(page):
    run = page.trainings.latest
    if run is None or run.status().state != "finished":
        raise ValueError("no model is left that was trained since the page was started.")
    return run.name
