"""How good a model is, in words and images, as HTML: on synthetic defects, and on parts that a user knows."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from rendering.words import count_of, one_line
from training.fitting.synthetic_check import ENOUGH_FOUND

UNFAMILIAR = "Unfamiliar"
SIDE = 320
"""Longest side of the views of known parts, in pixels."""

NOT_CHECKED = (
    '<div class="verdict unknown"><h2>How well it finds defects is not known</h2><p>No synthetic defects were tried. '
    "Give it some parts that you know, below.</p></div>"
)
WHAT_HELPS = (
    "What helps: more images of good parts (about 100), more steps, and images that are taken alike: the same "
    "camera, light and place of the part."
)


def synthetic_words(record):
    """How many synthetic defects a model finds, with a warning where they are too few.

    Args:
        record (`dict`, *optional*): as `training.records.synthetic_record` reads it.

    Returns:
        `str`: HTML.
    """
    if record is None:
        return NOT_CHECKED
    found, count = record["rejected"], record["count"]
    rate = _per_cent(record["false_alarm_rate"], record["is_estimate"])
    is_enough = is_good_enough(record)
    share = f"{found} of {count}"
    title = f"{'It' if is_enough else 'Do not rely on it: it'} finds {share} synthetic defects"
    words = (
        f"<p>{count_of(count, 'synthetic defect')}, some hardly visible, were drawn into good images that were not "
        f"trained on. At the default setting, which rejects {rate} of good parts, <b>{found / count:.0%} were "
        f"rejected</b> ({_kinds(record['by_kind'])}).</p>"
    )
    if not is_enough:
        words += (
            f"<p><b>A model that is of use rejects at least {ENOUGH_FOUND:.0%} of such defects.</b> Of real defects "
            f"this one will miss most. {WHAT_HELPS}</p>"
        )
    if record["is_estimate"]:
        words += (
            "<p>There were few good images, so that the same ones served to calibrate the model and to try it: this "
            "is a little too good.</p>"
        )
    words += "<p>Real defects look different: try some that you know, below.</p>"
    css = "accepted" if is_enough else "rejected"
    return f'<div class="verdict {css}" role="status"><h2>{title}</h2>{words}</div>{_synthetic_views(record["shown"])}'


def is_good_enough(record):
    """Whether a model finds enough synthetic defects not to be warned of."""
    return record["rejected"] >= ENOUGH_FOUND * record["count"]


def synthetic_sentence(record):
    """The same in one paragraph, for a model that was trained here, as HTML; "" without a record."""
    if record is None:
        return ""
    doubt = f"<p><b>Do not rely on it:</b> a model that is of use rejects at least {ENOUGH_FOUND:.0%} of them.</p>"
    css, doubt = ("accepted", "") if is_good_enough(record) else ("rejected", doubt)
    rate = _per_cent(record["false_alarm_rate"], record["is_estimate"])
    return (
        f'<div class="verdict {css}"><p>Of {count_of(record["count"], "synthetic defect")} drawn into good images, '
        f"<b>{record['rejected'] / record['count']:.0%}</b> were rejected at the default setting, which rejects {rate} "
        f"of good parts.</p>{doubt}</div>"
    )


def known_words(judged, are_defective, is_estimate=False):
    """What a model makes of parts that a user knows.

    Args:
        judged (`list[tuple]`): for each image its name, and either the reason why it could not be read, `str`, or a
            `Verdict` with the image under its heat map, uint8 RGB (height, width, 3).
        are_defective (`bool`): whether the user calls them defective, or good.
        is_estimate (`bool`): whether the model's false alarm rate is one.

    Returns:
        `str`: HTML.
    """
    read = [(name, answer) for name, answer in judged if not isinstance(answer, str)]
    words = [_verdict_word(numbers) for _, (numbers, _) in read]
    right = words.count("Rejected" if are_defective else "Accepted")
    kind, verb = ("defective", "rejected") if are_defective else ("good", "accepted")
    if not read:
        title, css = "None of the images could be read", "unknown"
    else:
        title = f"{right} of {count_of(len(read), f'{kind} part')} {'is' if right == 1 else 'are'} {verb}"
        css = "accepted" if right == len(read) else "rejected"
    rate = ""
    if read:
        share = _per_cent(read[0][1][0]["false_alarm_rate"], is_estimate)
        rate = f"<p>At the default setting, which rejects {share} of good parts.</p>"
    if unlike := words.count(UNFAMILIAR):
        verb = "is" if unlike == 1 else "are"
        rate += f"<p>{count_of(unlike, 'image')} {verb} unlike anything the model knows: another part?</p>"
    views = "".join(
        _figure(
            [(heat_map, f"heat map of {name}")],
            f"<b>{word}</b>: {html.escape(one_line(name))}",
            word == ("Rejected" if are_defective else "Accepted"),
        )
        for word, (name, (_, heat_map)) in zip(words, read, strict=True)
    )
    unread = "".join(f"<p>{html.escape(one_line(reason))}</p>" for _, reason in judged if isinstance(reason, str))
    return (
        f'<div class="verdict {css}" role="status"><h2>{title}</h2>{rate}{unread}</div><div class="views">{views}</div>'
    )


def _verdict_word(numbers):
    """What is said of a `Verdict` in a word."""
    if numbers["is_unfamiliar"]:
        return UNFAMILIAR
    return "Rejected" if numbers["is_anomalous"] else "Accepted"


def _synthetic_views(shown):
    if not shown:
        return ""
    figures = "".join(
        _figure(
            [(one["image"], f"synthetic {one['kind']}, outlined"), (one["heat_map"], "its heat map")],
            f"<b>{'Rejected' if one['is_rejected'] else 'Missed'}</b>: {html.escape(one_line(one['kind']))}",
            one["is_rejected"],
        )
        for one in shown
    )
    legend = "<p>Left, the synthetic defect, outlined in green; right, what the model marks, outlined in cyan.</p>"
    return f'{legend}<div class="views pairs">{figures}</div>'


def _figure(views, caption, is_right):
    images = "".join(
        f'<img alt="{html.escape(one_line(alt))}" src="data:image/webp;base64,'
        f'{view if isinstance(view, str) else _as_webp(view)}">'
        for view, alt in views
    )
    css = "right" if is_right else "wrong"
    return f'<figure class="{css}"><div>{images}</div><figcaption>{caption}</figcaption></figure>'


def _kinds(by_kind):
    return ", ".join(f"{html.escape(one_line(kind))} {found} of {count}" for kind, (found, count) in by_kind.items())


def _per_cent(rate, is_estimate):
    """A share of good parts that may be rejected, rounded up: it is never understated."""
    return f"{'about' if is_estimate else 'at most'} {math.ceil(1000 * rate - 1e-6) / 10:g} %"


def _as_webp(pixels):
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
