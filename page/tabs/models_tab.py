"""The tab Models: what the chosen model is, what was measured of it, and the door to models on the Hub."""

import functools
import html
import math
import re
from pathlib import Path

import gradio as gr

from page.models.checkpoint_zip import pack_for_download, report_for_download
from page.models.model_shelf import measured_results
from page.server.settings import EMBEDDED_MODELS
from page.server.user_errors import answer_in_one_sentence
from page.tabs.own_model import build_own_model, wire_own_model
from page.tabs.quality_html import synthetic_sentence
from page.work.own_models import is_own
from rendering.words import count_of, one_line, percent
from training.records.error_rates import ALL
from training.records.synthetic_record import read_check

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
            download = gr.Files(label="The model as a ZIP", visible=False, interactive=False, elem_id="model-zip")
            own = build_own_model(page)
            if page.settings.hub_models:
                hub_id, fetch, progress = _hub_row(page)
            else:
                gr.HTML(NO_HUB)
        with gr.Column(scale=1, min_width=320), gr.Accordion("Model card", open=True):
            card = gr.Markdown(max_height=520, latex_delimiters=[], elem_id="model-card")

    show = {
        "fn": functools.partial(_show, page),
        "inputs": page.model,
        "outputs": [facts, results, card, own.column, own.new_name, own.question, download, pack],
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    for event in (demo.load, tab.select, page.model.change):
        event(**show)
    wire_own_model(page, own, tab)
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
    facts = calibration_html(model) + synthetic_sentence(read_check(model.folder, model.category))
    own = gr.update(visible=is_own(page.settings, model)), "", gr.update(visible=False)
    return facts, results_html(measured_results(model)), card, *own, hidden, offered


@answer_in_one_sentence
def _pack(page, name):
    model = page.shelf.get(name)
    if not _is_for_download(page, model):
        raise ValueError(f"{model.name} is not offered for download; the owner of this page has it.")
    file = model.name.split(":")[0].replace("/", "-")
    files = [pack_for_download(model.folder, file)]
    if is_own(page.settings, model):
        files.append(report_for_download(model.folder, file))
    return gr.update(value=[each for each in files if each is not None], visible=True)


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


MAX_SHOWN = 20_000
"""Letters of a card that are shown."""

FENCE = r"^((?:(?!\n)[\W\d])*?(?:`{3,}|~{3,}))[ \t]*([^`\n]*)$"
LANGUAGES = ("python", "bash", "json", "yaml", "bibtex", "text")
"""Code in these is coloured. Others could be drawn: Gradio makes diagrams, with links, of what is called mermaid."""


def harmless_card(card):
    """Markdown of a card in which nothing is HTML, nothing is fetched to be shown, and every letter can be seen.

    The page takes scripts out of Markdown by itself. What it leaves could still cover the page (styles), ask for a
    password (forms), tell somebody that the card was looked at (images), or turn the text around.
    """
    card = re.sub(r"<!--.*?-->", "", card[:MAX_SHOWN], flags=re.DOTALL)
    card = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in card)
    card = card.replace("<", "‹").replace("![", "[")
    return re.sub(FENCE, _known_language, card, flags=re.MULTILINE).strip()


def _known_language(match):
    language = match.group(2).strip().lower()
    return match.group(1) + (language if language in LANGUAGES else "")


COLUMNS = {
    "detection_rate": "defective parts rejected",
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
}
SHARES = ("detection_rate", "false_alarm_rate")
NOT_MEASURED = "<p><b>Not measured.</b> Nobody has left results of test images with known defects with this model.</p>"


def calibration_html(model):
    """What a model was compared with, and what it can promise, as HTML."""
    config = model.calibration.config
    kind = "estimated" if config.cross_fitted else "promised"
    doubt = " With so few it is an estimate, not a promise." if config.cross_fitted else ""
    return (
        f'<div class="verdict accepted"><h2>{_text(model.name)}</h2><p>Its scores were compared with those of '
        f"<b>{count_of(config.num_ranked, 'good image')}</b>{_of_parts(config)} that it was not trained on. The "
        f"smallest false alarm rate that can be {kind} is <b>{model.smallest_percent:g} %</b>.{doubt}</p>"
        f"<p>It looks at images at {model.scoring.resolution} × {model.scoring.resolution} pixels, whatever their "
        "own size.</p></div>"
    )


def _of_parts(config):
    """What follows from several images of a part, as HTML; "" where each shows a part of its own."""
    if config.num_groups is None:
        return ""
    return f" of <b>{count_of(config.num_groups, 'part')}</b>, each of which counts once however many images it has,"


def results_html(results):
    """What was measured, as an HTML table, whoever wrote it.

    Args:
        results (`dict`, *optional*): as `training.records.measured_results` reads it.
    """
    if results is None:
        return NOT_MEASURED
    counts = dict(results["pictures"])
    good = counts.pop("good", 0)
    measured = results["groups"][ALL]["false_alarm_rate"]
    least, kind = ("about", "estimated") if results.get("is_estimate") else ("at most", "promised")
    head = "".join(f"<th>{title}</th>" for title in ("", "images", *COLUMNS.values()))
    rows = ""
    for name, metrics in results["groups"].items():
        count = sum(counts.values()) if name == ALL else counts.get(name, 0)
        cells = "".join(
            f'<td data-title="{title}">{_figure(column, metrics[column])}</td>' for column, title in COLUMNS.items()
        )
        name = _text("all defects" if name == ALL else name)
        rows += f'<tr><th scope="row">{name}</th><td data-title="images">{count}</td>{cells}</tr>'
    return (
        f"<p><b>Measured</b> on {_text(results['data'])}: {count_of(good, 'good image')} and "
        f"{sum(counts.values())} with defects. False alarms: {least} "
        f"<b>{percent(results['promised_false_alarm_rate'])}</b> {kind}, "
        f"<b>{_figure('false_alarm_rate', measured)}</b> measured.</p>"
        f'<div class="wide"><table class="regions results"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
        "<p>1 is perfect; AUROC is 0.5 for guessing. AP and PRO say how well the marked pixels are those of the defect."
        "</p>"
    )


def _text(name):
    """A name from a file as HTML in which nothing is markup, and nothing turns what stands beside it around."""
    return html.escape(one_line(name))


def _figure(name, value):
    if math.isnan(value):
        return "–"
    return percent(value) if name in SHARES else f"{value:.3f}"
