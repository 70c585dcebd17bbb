"""What is said of a model, as HTML: what it was calibrated on, and what was measured of it."""

import html
import math

from rendering.words import count_of, one_line
from training.records.measured_results import ALL

COLUMNS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "detection_rate": "defective parts rejected",
}
SHARES = ("detection_rate",)
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
            f"<td>{_figure(metrics[column], '.0%' if column in SHARES else '.3f')}</td>" for column in COLUMNS
        )
        rows += f"<tr><td>{_text('all defects' if name == ALL else name)}</td><td>{count}</td>{cells}</tr>"
    return (
        f"<p><b>Measured</b> on {_text(results['data'])}: {count_of(good, 'good image')} and "
        f"{sum(counts.values())} with defects. False alarms: {least} "
        f"<b>{results['promised_false_alarm_rate']:.1%}</b> {kind}, <b>{_figure(measured, '.1%')}</b> measured.</p>"
        f'<div class="wide"><table class="regions results"><tr>{head}</tr>{rows}</table></div>'
        "<p>1 is perfect; AUROC is 0.5 for guessing. AP and PRO say how well the marked pixels are those of the defect."
        "</p>"
    )


def _text(name):
    """A name from a file as HTML in which nothing is markup, and nothing turns what stands beside it around."""
    return html.escape(one_line(name))


def _figure(value, form):
    return "–" if math.isnan(value) else format(value, form)
