"""What the tab Batch shows of a batch at the rate that is chosen: all of it follows at once, files when asked for."""

import gradio as gr

from page.server.user_errors import answer_in_one_sentence
from page.tabs.batch_html import (
    HINT,
    SIGNIFICANT,
    bar,
    batch_verdict,
    drift_words,
    histogram_words,
    in_percent,
    rate_words,
    table_cells,
)
from page.tabs.verdict import no_verdict
from page.work.rates import RateRefused, offered_percent
from training.data.layouts import MIN_IMAGES

TABLE = "Table (CSV)"
RESULTS = "Table (CSV), overlays and masks (ZIP)"


@answer_in_one_sentence
def judge_batch(page, batch, model, percent):
    """All that can be said of a batch at the rate that is chosen; no network runs. Of one that runs, the table.

    Where another model is chosen, or the rate is not offered, nothing is said of it at that.
    """
    hidden = gr.update(visible=False)
    nothing = hidden, "", hidden, "", "", hidden, hidden
    is_other = batch is not None and model != batch.model.name
    try:
        if batch is None:
            offered_percent(page.shelf.get(model), percent)
        elif not is_other:
            batch.judge_at(percent)
    except RateRefused as refusal:
        table, *others = nothing
        return table, no_verdict(refusal), *others
    if batch is None:
        table, *others = nothing
        return table, HINT, *others
    cells = table_cells(batch.rows)
    table = gr.update(value=cells, visible=bool(cells))
    if batch.is_running:
        return table, *(gr.skip(),) * 7
    p_value = batch.drift()
    drifted = p_value is not None and p_value < SIGNIFICANT
    return (
        table,
        batch_verdict(batch),
        drift_words(batch, p_value) if cells else "",
        gr.update(visible=len(batch.scores) >= MIN_IMAGES, **({"open": True} if drifted else {})),
        rate_words(batch, model),
        histogram_words(batch),
        _files(batch) if cells else hidden,
        gr.update(
            visible=batch.archive is None and bool(cells),
            value=f"Draw overlays and masks at {in_percent(batch.false_alarm_rate)} %",
        ),
    )


def _files(batch):
    """The files at the current rate: the table always, overlays and masks once they are drawn at that."""
    names = [batch.table] if batch.archive is None else [batch.table, batch.archive]
    label = f"{TABLE if batch.archive is None else RESULTS}, at {in_percent(batch.false_alarm_rate)} %"
    return gr.update(value=[str(name) for name in names], label=label, visible=True)


@answer_in_one_sentence
def draw_anew(batch):
    """Draw overlays and masks at the current rate; yields how far that is."""
    if batch is None or batch.is_running:
        raise ValueError("inspect a batch to its end first.")
    total = len(batch.scores)
    for count in batch.draw_anew():
        yield f"<p>{count} of {total} images drawn.</p>{bar(count, total)}"
