"""Of the tab Models: another name for a model that was made on this page, or its end."""

import functools
import html
from typing import NamedTuple

import gradio as gr

from page.server.user_errors import answer_in_one_sentence


class OwnModel(NamedTuple):
    """Widgets, in a column that is shown for models that were made here alone."""

    column: gr.Column
    new_name: gr.Textbox
    rename: gr.Button
    delete: gr.Button
    question: gr.Column
    asked: gr.HTML
    confirm: gr.Button
    keep: gr.Button
    done: gr.HTML


def build_own_model(page):
    """Lay the widgets out. Returns the `OwnModel`."""
    with gr.Column(visible=False, elem_id="own-model") as column:
        new_name = gr.Textbox(
            label="Another name for this model",
            info="Letters, digits and dashes.",
            placeholder="steel-plate-2",
            max_lines=1,
            max_length=40,
            elem_id="new-name",
        )
        with gr.Row():
            rename = gr.Button("Rename", elem_id="rename-model")
            delete = gr.Button("Delete …", variant="stop", elem_id="delete-model")
        with gr.Column(visible=False, elem_id="confirm-deletion") as question:
            asked = gr.HTML("")
            with gr.Row():
                confirm = gr.Button("Delete it for good", variant="stop", elem_id="confirm-delete")
                keep = gr.Button("Keep it", elem_id="keep-model")
    done = gr.HTML("", elem_id="own-model-done")
    return OwnModel(column, new_name, rename, delete, question, asked, confirm, keep, done)


def wire_own_model(page, own, tab):
    """Wire them: a deletion asks first, for the model that was shown when it did. `tab` is the tab they stand in."""
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    asked_for = gr.State()
    tab.select(lambda: "", None, own.done, **quiet)
    gr.on(
        [own.rename.click, own.new_name.submit],
        functools.partial(_rename, page),
        [page.model, own.new_name],
        [page.model, own.done],
        concurrency_limit=1,
        **quiet,
    )
    own.delete.click(functools.partial(_ask, page), page.model, [own.question, own.asked, asked_for, own.done], **quiet)
    own.keep.click(lambda: gr.update(visible=False), None, own.question, **quiet)
    own.confirm.click(
        functools.partial(_delete, page),
        [page.model, asked_for],
        [page.model, own.question, own.done],
        concurrency_limit=1,
        **quiet,
    )


@answer_in_one_sentence
def _rename(page, name, new_name):
    renamed = page.own_models.rename(name, new_name)
    words = f"<p>{html.escape(name)} is now called <b>{html.escape(renamed)}</b>.</p>"
    return gr.update(choices=page.shelf.names, value=renamed), words


@answer_in_one_sentence
def _ask(page, name):
    name = page.shelf.get(name).name
    words = (
        f'<div class="verdict rejected"><h3>Delete {html.escape(name)}?</h3><p>The model and its report go for good, '
        "for everybody who uses this page. Download it first if it may be needed again.</p></div>"
    )
    return gr.update(visible=True), words, name, ""


@answer_in_one_sentence
def _delete(page, name, asked_for):
    if name != asked_for:
        raise ValueError("another model is chosen by now; press “Delete …” again.")
    page.own_models.delete(name)
    chosen = gr.update(choices=page.shelf.names, value=page.shelf.names[0])
    return chosen, gr.update(visible=False), f"<p>{html.escape(name)} was deleted.</p>"
