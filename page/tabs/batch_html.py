"""What the tab Batch says: the table, where the work stands, whether the batch has drifted; as cells and HTML."""

import html

from rendering.histogram import ACCEPTED_COLOR, REJECTED_COLOR, histogram_svg
from rendering.words import count_of, duration
from training.fitting.recalibration import warning_of
from training.inference.drift import MIN_SCORES

HEADERS = ["image", "verdict", "score", "file", "p-value", "area (pixels)", "area (%)", "no."]
DATATYPES = ["html", "str", "number", "str", "number", "number", "number", "number"]
NUMBER_COLUMN = HEADERS.index("no.")
"""Tells which image a row shows, however the user has sorted the table."""

SIGNIFICANT = 0.01
"""A smaller p-value of the drift test is a warning."""

REASSURING = 0.1
"""From this p-value on, nothing is said to have changed; between both it is not clear."""

VERDICTS = {"defect": "rejected", "good": "accepted", "unfamiliar": "unfamiliar"}
"""What the table on the page says of a row; files keep the words that other programs know."""

HINT = "<p>Choose images, or a ZIP of images, then inspect them all.</p>"


def table_cells(rows):
    """The rows as cells, worst first: rejected ones by their scores, what has no verdict, then the accepted ones.

    A file's name comes from the user: it stands in a column of plain text, which shows markup as it is.
    """
    order = {"defect": 0, "unfamiliar": 1, "unreadable": 2, "good": 3}
    ranked = sorted(rows, key=lambda row: (order[row.result.verdict], -(row.result.anomaly_score or 0), row.index))
    return [_cells(row) for row in ranked]


def _cells(row):
    result = row.result
    if result.verdict == "unreadable":
        reason = result.error if result.error.startswith(result.file) else f"{result.file}: {result.error}"
        return ["", result.verdict, None, reason, None, None, None, row.index + 1]
    thumbnail = f'<img alt="" src="data:image/jpeg;base64,{row.thumbnail}">'
    score, p_value = round(result.anomaly_score, 3), round(result.p_value, 4)
    area = [result.defect_pixels, round(100 * result.defect_share, 3)]
    return [thumbnail, VERDICTS[result.verdict], score, result.file, p_value, *area, row.index + 1]


def progress_words(done, total, seconds):
    """How far the work is, with a bar and, once that can be told, the time that is left."""
    left = f", about {duration(seconds / done * (total - done))} left" if done else ""
    return f"<p>{done} of {total} images{left}.</p>{bar(done, total)}"


def bar(done, total):
    """A progress bar, as HTML."""
    return f'<progress aria-label="images done" value="{done}" max="{total}"></progress>'


def batch_verdict(batch):
    """What has come of a batch that has ended."""
    good, defects = batch.count("good"), batch.count("defect")
    unfamiliar, unreadable = batch.count("unfamiliar"), batch.count("unreadable")
    counts = f"{defects:,} rejected, {good:,} accepted"
    counts += f", {unfamiliar:,} unfamiliar" if unfamiliar else ""
    counts += f", {unreadable} unreadable" if unreadable else ""
    doubtful = sum(row.result.error != "" for row in batch.rows) - unreadable
    notes = f" {warning_of(batch.model.calibration)}".rstrip()
    if unfamiliar:
        notes += f" Of {count_of(unfamiliar, 'image')} there is no verdict: unlike anything that the model knows."
    if doubtful:
        notes += f" Of {count_of(doubtful, 'image')} the depth does not fit the model; see the table's column error."
    if batch.folder.num_masks:
        notes += f" Left out: {count_of(batch.folder.num_masks, 'mask')} in folders of ground truth."
    css = "rejected" if defects or unfamiliar or unreadable else "accepted"
    done, total = len(batch.rows), len(batch.folder)
    ended = f"{done} of {total} images" if done < total else count_of(total, "image")
    rate = in_percent(batch.false_alarm_rate)
    return (
        f'<div class="verdict {css}"><h2>{counts}</h2><p>{ended} inspected in {duration(batch.seconds)} with '
        f"{html.escape(batch.model.name)}, at {rate} % accepted false alarms. Click a row to see it in Inspect."
        f"{notes}</p></div>"
    )


def in_percent(rate):
    """A rate in per cent, without zeros at its end."""
    return f"{100 * rate:.2f}".rstrip("0").rstrip(".")


def rate_words(batch, chosen):
    """How the results of a batch that has ended follow the rate, and the model, that are chosen since; "" if need be.

    Args:
        batch (`Batch`): ended.
        chosen (`str`): name of the model that is chosen now.
    """
    inspected = f"{html.escape(batch.model.name)} at {in_percent(batch.false_alarm_rate)} %"
    if chosen != batch.model.name:
        return f"<p>{html.escape(chosen)} is chosen now; what stands here is of {inspected} still.</p>"
    if batch.false_alarm_rate == batch.first_rate:
        return ""
    words = (
        f"Now judged at {in_percent(batch.false_alarm_rate)} %, inspected at {in_percent(batch.first_rate)} %: "
        "verdicts, areas, histogram and the CSV follow the rate at once, for scores and p-values stay what they are."
    )
    if batch.archive is None:
        words += " Overlays and masks are of the rate before until they are drawn anew."
    return f"<p>{words}</p>"


def histogram_words(batch):
    """Histogram of the batch over that of the calibration, with a legend; "" if nothing could be scored."""
    if not len(batch.scores):
        return ""
    return (
        '<div class="histogram"><p>Share of images by score: '
        f'<i style="background: currentColor; opacity: .3"></i>{len(batch.ranked_scores)} good images of the '
        f'calibration; this batch, <i style="background: {ACCEPTED_COLOR}"></i>accepted and '
        f'<i style="background: {REJECTED_COLOR}"></i>rejected</p>'
        f"{histogram_svg(batch.ranked_scores, batch.scores, batch.image_threshold)}</div>"
    )


def drift_words(batch, p_value):
    """Whether the good-looking images of a batch look as they did when the model was calibrated.

    Args:
        batch (`Batch`): ended.
        p_value (`float`, *optional*): of its drift test.
    """
    defects, scored, details = batch.count("defect"), len(batch.scores), ""
    unfamiliar = batch.count("unfamiliar")
    if p_value is not None:
        details = (
            f"<details><summary>Details</summary><p><b>p-value {p_value:.2g}</b> of a two-sample Kolmogorov-Smirnov "
            "test: the scores of the images that are accepted, against those of the calibration's good images.</p>"
            "</details>"
        )
    if unfamiliar > scored:
        css, title = "rejected", "Most images are unlike anything this model knows"
        text = (
            "Another part, another camera or another light? Choose the model of this part. If it is the right one, "
            "camera or light have changed so much that a new model has to be trained on images as they look now."
        )
    elif p_value is not None and p_value < SIGNIFICANT:
        css, title = "rejected", "Warning: this batch does not look like the calibration's images"
        text = (
            "The images that are accepted score unlike the good images that the model was calibrated on. Either "
            "defects are among them that were not found, or camera, light or part have changed: then the promise on "
            "false alarms no longer holds, and recalibrating on images of good parts restores it."
        )
    elif scored >= MIN_SCORES and defects > scored / 2:
        css, title = "rejected", "Most images are rejected"
        text = (
            "If most of these parts are good, camera, light or the part have changed since the model was calibrated: "
            "recalibrate on images of good parts."
        )
    elif p_value is None:
        css, title = "unknown", "Too few images to tell whether camera or light have changed"
        text = f"{scored - defects} are accepted; at least {MIN_SCORES} are needed for a comparison."
    elif p_value < REASSURING:
        css, title = "unknown", "Not clear whether camera or light have changed"
        text = (
            "The images that are accepted score a little unlike the good images that the model was calibrated on. That "
            f"happens by chance in {p_value:.0%} of such batches. Inspect more images of good parts to know."
        )
    else:
        css, title = "accepted", "No sign that camera or light have changed"
        text = "The images that are accepted score as the good images do that the model was calibrated on."
    return f'<div class="verdict {css}"><h3>{title}</h3><p>{text}</p>{details}</div>'
