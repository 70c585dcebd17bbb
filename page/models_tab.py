"""The tab Models: what the chosen model is, what was measured of it, and the door to models on the Hub."""

import functools
import html
from pathlib import Path

import gradio as gr

from .card_html import harmless_card
from .checkpoint_zip import pack_for_download
from .model_html import calibration_html, results_html
from .model_shelf import measured_results
from .settings import EMBEDDED_MODELS
from .user_errors import answer_in_one_sentence

NO_CARD = "This model has no card."
NO_HUB = "<p>Models on the Hugging Face Hub cannot be opened here: the owner of this page has allowed none.</p>"
HUB_INFO = "Only its weights are loaded, into our own classes: none of its code runs, and no pickles are read."


def build_models_tab(page, demo, tab):
    """Lay out the tab and wire it; `demo` is the page as a whole, `tab` the tab."""
    gr.Markdown("The model is chosen at the top of the page.")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            facts = gr.HTML(label="Model", elem_id="model-facts")
            results = gr.HTML(label="Measured results", elem_id="model-results")
            pack = gr.Button("Prepare download", elem_id="pack-model")
            download = gr.File(label="The model as a ZIP", visible=False, interactive=False, elem_id="model-zip")
            if page.settings.hub_models:
                hub_id, fetch, progress = _hub_row(page)
            else:
                gr.HTML(NO_HUB)
        with gr.Column(scale=1, min_width=320), gr.Accordion("Model card", open=True):
            card = gr.Markdown(max_height=520, latex_delimiters=[], elem_id="model-card")

    show = {
        "fn": functools.partial(_show, page),
        "inputs": page.model,
        "outputs": [facts, results, card, download, pack],
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    for event in (demo.load, tab.select, page.model.change):
        event(**show)
    pack.click(functools.partial(_pack, page), page.model, download, api_visibility="private", concurrency_limit=2)
    if page.settings.hub_models:
        gr.on(
            [fetch.click, hub_id.submit],
            functools.partial(_open, page),
            hub_id,
            [progress, page.model],
            api_visibility="private",
            concurrency_limit=1,
            show_progress="hidden",
        ).failure(lambda: "", None, progress, api_visibility="private", show_progress="hidden")


def _hub_row(page):
    allowed = ", ".join(page.settings.hub_models)
    info = HUB_INFO if "*" in page.settings.hub_models else f"{HUB_INFO} Allowed: {allowed}."
    hub_id = gr.Textbox(
        label="Open a model of the Hugging Face Hub",
        info=info,
        placeholder="organisation/name",
        max_lines=1,
        max_length=200,
        elem_id="hub-id",
    )
    fetch = gr.Button("Open", elem_id="open-hub-model")
    progress = gr.HTML("", elem_id="hub-progress")
    return hub_id, fetch, progress


@answer_in_one_sentence
def _show(page, name):
    model = page.shelf.get(name)
    card = harmless_card(model.card) or NO_CARD
    hidden = gr.update(value=None, visible=False)
    offered = gr.update(interactive=_is_for_download(page, model))
    return calibration_html(model), results_html(measured_results(model)), card, hidden, offered


@answer_in_one_sentence
def _pack(page, name):
    model = page.shelf.get(name)
    if not _is_for_download(page, model):
        raise ValueError(f"{model.name} is not offered for download; the owner of this page has it.")
    file = model.name.split(":")[0].replace("/", "-")
    return gr.update(value=pack_for_download(model.folder, file), visible=True)


def _is_for_download(page, model):
    """Models made here and the embedded ones are; the owner's others, and those that the Hub has, are not."""
    parents = (Path(page.settings.trained_models).resolve(), EMBEDDED_MODELS)
    return model.folder.resolve().parent in parents


@answer_in_one_sentence
def _open(page, hub_id):
    """Say that a model is being fetched; then choose it."""
    hub_id = str(hub_id or "").strip()
    yield f"<p>Fetching {html.escape(hub_id[:200])} and trying it out …</p>", gr.skip()
    names = page.shelf.open_from_hub(hub_id)
    yield (
        f"<p>{html.escape(names[0])} is open and chosen.</p>",
        gr.update(choices=page.shelf.names, value=names[0]),
    )
