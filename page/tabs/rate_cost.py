"""What a false alarm rate costs, beside the slider that chooses it: known defects that are rejected at it, and missed.

It follows from the p-values that the model's own evaluation has left with it; nothing is computed anew.
"""

import functools
import html

import gradio as gr

from page.models.model_shelf import measured_results
from page.server.user_errors import answer_in_one_sentence
from rendering.error_curve import DEFECTS_ACCEPTED, GOOD_REJECTED, error_curve_svg
from rendering.words import count_of, one_line, percent
from training.records.error_rates import ALL, GOOD, rejected_shares

NOT_MEASURED = (
    '<p class="cost">How many defects are rejected at this setting is <b>not measured</b>: no results of test images '
    "with known defects came with this model.</p>"
)
MAX_NAMED = 6


def show_rate_cost(page, slider, elem_id):
    """Put what a rate costs here, and keep it in step with a slider of rates in per cent and the page's model."""
    first = page.shelf.get(page.shelf.names[0])
    shown = gr.HTML(rate_cost_html(first, first.default_percent), elem_id=elem_id)
    gr.on(
        [slider.change, page.model.change],
        functools.partial(_rate_cost, page),
        [page.model, slider],
        shown,
        api_visibility="private",
        preprocess=False,  # Gradio would refuse a rate out of range
        trigger_mode="always_last",
        concurrency_limit=8,
        show_progress="hidden",
    )


@answer_in_one_sentence
def _rate_cost(page, name, rate_percent):
    return rate_cost_html(page.shelf.get(name), rate_percent)


def rate_cost_html(model, rate_percent):
    """What a rate costs with a model, in a sentence and a curve, as HTML.

    Args:
        model (`Model`): of the shelf.
        rate_percent (`float`, *optional*): the accepted false alarm rate in per cent; None, and what lies beyond what
            the slider offers, are taken for its nearest end.
    """
    low, high = model.smallest_percent / 100, model.largest_percent / 100
    rate = min(max((rate_percent or 0) / 100, low), high)
    results = measured_results(model)
    if results is None:
        return NOT_MEASURED
    if not results.get("p_values"):
        return _at_one_rate(results)

    def errors_at(rate):
        shares = rejected_shares(results["p_values"], rate)
        missed = {DEFECTS_ACCEPTED: 1 - shares[ALL]} if ALL in shares else {}
        return missed | ({GOOD_REJECTED: shares[GOOD]} if GOOD in shares else {})

    return (
        f'<p class="cost">{_sentence(results, rejected_shares(results["p_values"], rate))}</p>'
        '<details class="cost"><summary>Both errors at every rate</summary>'
        f"{error_curve_svg(errors_at, rate, (low, high))}</details>"
    )


def _sentence(results, shares):
    """Shares of known defects, the kind that is missed most first, and of good images, that are rejected."""
    counts = dict(results["pictures"])
    good = counts.pop(GOOD, 0)
    said = []
    if ALL in shares:
        kinds = sorted(set(shares) - {ALL, GOOD}, key=lambda kind: (shares[kind], kind))
        named = [f"{html.escape(one_line(kind))} {percent(shares[kind])}" for kind in kinds[:MAX_NAMED]]
        more = ", …" if len(kinds) > MAX_NAMED else ""
        kinds_named = f" ({', '.join(named)}{more})" if len(kinds) > 1 else ""
        images = count_of(sum(counts.values()), "known defective image")
        said.append(f"<b>{percent(shares[ALL])}</b> of {images} were rejected{kinds_named}")
    if GOOD in shares:
        said.append(f"{percent(shares[GOOD])} of {count_of(good, 'good one' if said else 'good image')}")
    return f"At this setting, {', and '.join(said)}{'' if ALL in shares else ' were rejected'}."


def _at_one_rate(results):
    """What older results say: shares at the rate that they were measured at, and at no other."""
    measured = results["groups"][ALL]["detection_rate"]
    if not 0 <= measured <= 1:
        return NOT_MEASURED
    return (
        '<p class="cost">How many defects are rejected at this setting is <b>not measured</b>; at '
        f"{percent(results['promised_false_alarm_rate'])}, {percent(measured)} of the known defective images were.</p>"
    )
