"""The answer in the words of a quality engineer, as HTML: verdict, what the rate promises, colour scale."""

import base64
import html
import io
import math

from PIL import Image

from page.work.inspection import MAX_NUMBERED, MAX_REGIONS
from rendering.heat_map import legend
from rendering.words import count_of, duration


def verdict(numbers, calibration):
    """Whether the part is accepted, and why; what only a statistician asks for is folded away.

    Args:
        numbers (`Verdict`): of `page.work.inspection`.
        calibration: config of the `ScoreCalibration`.

    Returns:
        `str`: HTML.
    """
    if numbers["is_unfamiliar"]:
        return _unfamiliar(numbers)
    css, title, place = _headline(numbers)
    count, threshold = calibration.num_groups or calibration.num_ranked, numbers["image_threshold"]
    limit = "every part is" if threshold is None else f"parts above {threshold:.2f} are"
    images = "," if calibration.num_groups is None else f", in {count_of(calibration.num_ranked, 'image')},"
    compared = f"Of {count} good parts measured for comparison{images} {_as_high(numbers['p_value'], count)}"
    return (
        f'<div class="verdict {css}" role="status"><h2>{title}</h2>{_warning(numbers)}<p>{place}</p>'
        f"<p><b>Score {numbers['anomaly_score']:.2f}.</b> At this setting, {limit} rejected. {compared} scored at "
        f"least as high.</p><p>{promise(numbers['false_alarm_rate'], calibration)}</p>"
        f"<details><summary>Details</summary><p><b>p-value {numbers['p_value']:.2g}:</b> the share of good parts that "
        f"score at least as high, this part counted among them.</p>{_foundation(calibration)}</details></div>"
    )


def _headline(numbers):
    """Class of the box, title, and a sentence on where it differs."""
    if not numbers["is_anomalous"]:
        return "accepted", "Accepted: this looks like a good part", "Nothing is outlined."
    listed = len(numbers["regions"])
    places = ("at least " if listed == MAX_REGIONS else "") + count_of(listed, "place")
    area = f"{count_of(numbers['defect_pixels'], 'pixel')} or {_share(numbers['defect_share'])} of the image"
    place = f"The outlined area, {area}, in {places}, is where it differs."
    if numbers["defect_share"] == 0:
        place = "No single place stands out enough to be outlined; the colours show where it differs most."
    return "rejected", "Rejected: this does not look like a good part", place


def _unfamiliar(numbers):
    """Neither accepted nor rejected: what the image shows is nothing that the model knows."""
    fitting = ", ".join(f"<b>{html.escape(name)}</b>" for name in numbers["fitting_models"])
    remedy = (
        f"<p>Among the models here, {fitting} {'knows' if len(numbers['fitting_models']) == 1 else 'know'} such "
        "images: choose it at the top of the page.</p>"
        if fitting
        else "<p>If it is the right part, take the image as those were taken that the model has learned from, or "
        "recalibrate or train a model on images of good parts as they look now.</p>"
    )
    return (
        '<div class="verdict unfamiliar" role="status"><h2>No verdict: this is unlike anything this model knows</h2>'
        f"{_warning(numbers)}<p>Is it another part, or another camera or light? The model can tell good from defective "
        f"only in images like those that it was calibrated on. The colours mean little here.</p>{remedy}"
        f"<details><summary>Details</summary><p><b>Unfamiliarity {numbers['unfamiliarity']:.1f}:</b> how far the image "
        f"as a whole is from the good ones; 1 is the limit. Its score would be {numbers['anomaly_score']:.2f}, its "
        f"p-value {numbers['p_value']:.2g}.</p></details></div>"
    )


def invitation(model, has_examples):
    """What stands in place of a verdict before there is an image, as HTML; `model` is the chosen one's name."""
    examples = " Or click one of the examples." if has_examples else ""
    return (
        '<div class="verdict unknown"><h2>Show it a part</h2><p>Drop an image here, choose a file, paste one or take '
        f"a photograph.{examples}</p><p>The chosen model, <b>{html.escape(model)}</b>, knows one kind of part: the "
        "image must show one such part, taken like the images that the model has learned from.</p></div>"
    )


def _warning(numbers):
    return f"<p><b>Doubtful:</b> {html.escape(numbers['warning'])}</p>" if numbers["warning"] else ""


def _as_high(p_value, count):
    """How many of `count` good parts scored as high as a p-value says; a part counts by the share of its images."""
    parts = p_value * (count + 1) - 1
    if parts < 0.05:
        return "none"
    return f"{parts:.0f}" if abs(parts - round(parts)) < 0.05 else f"about {parts:.1f}"


def no_verdict(refusal):
    """What stands in a verdict's place while the rate is none that is offered, as HTML; `refusal` is the sentence."""
    sentence = str(refusal)
    sentence = html.escape(sentence[:1].upper() + sentence[1:])
    return f'<div class="verdict unknown" role="status"><h2>No verdict at this rate</h2><p>{sentence}</p></div>'


def repair_progress(progress):
    """Where a repair stands, with a bar, as HTML; `progress` is a `Progress`, or None before the first step."""
    if progress is None:
        return "<p>Waiting for the first step …</p><progress></progress>"
    doing = f"drawing anew, noise {progress.timestep}" if progress.timestep else "last touches"
    left = progress.seconds / progress.step * (progress.most_steps - progress.step)
    return (
        f"<p>Step {progress.step} of at most {progress.most_steps}: {doing}. {duration(progress.seconds)} so far, "
        f"{duration(left)} more at most: it ends as soon as the model accepts the image.</p>"
        f'<progress aria-label="steps done" value="{progress.step}" max="{progress.most_steps}"></progress>'
    )


def repair_verdict(output, changed, was_stopped=False):
    """What a repair has come to, as HTML: accepted, not accepted or stopped.

    Args:
        output (`GradientDenoiseOutput`): of one image.
        changed (`np.ndarray`): bool, the image's pixels that are not as they were.
        was_stopped (`bool`): whether it was ended before its end.
    """
    before, after, accepted = output.anomaly_score[0], output.repaired_score[0], output.is_accepted[0]
    at = f"at {100 * output.false_alarm_rate:.4g} % accepted false alarms"
    if not changed.any():
        if accepted:
            css, title, text = "accepted", "Nothing to repair", f"The image came back as it was, accepted {at}."
        elif was_stopped:
            css, title, text = "unknown", "Stopped", "Nothing was drawn yet: the image came back as it was."
        else:
            css, title = "rejected", "Nothing is marked"
            text = f"The image came back as it was, still rejected {at}. Mark what is to be drawn anew."
        return f'<div class="verdict {css}" role="status"><h2>{title}</h2><p>{text}</p></div>'
    area = f"{count_of(int(changed.sum()), 'pixel')}, {_share(changed.mean())} of the image"
    share = f"{area}, were drawn anew; all others are as given."
    if accepted:
        css, title = "accepted", "Accepted: the model takes the result for a good part"
        text = "That does not prove that the defect is gone: compare both images."
    elif was_stopped:
        css, title = "unknown", "Stopped before it was done"
        text = "This is what had been drawn by then; the model does not accept it. To let it end, repair again."
    else:
        css, title = "rejected", "Not accepted: the result still does not look like a good part"
        text = "Mark more of the defect and repair again; some places the model cannot draw well."
    return (
        f'<div class="verdict {css}" role="status"><h2>{title}</h2><p>{text}</p><p>{share}</p>'
        f"<p><b>Score {before:.2f} before, {after:.2f} after</b>, judged {at}.</p></div>"
    )


def promise(false_alarm_rate, calibration):
    """What a rate, above 0 and up to 1, means in good parts; an estimate where the calibration was cross-fitted."""
    base = 100 if false_alarm_rate >= 0.01 else 1000
    parts = math.ceil(false_alarm_rate * base * 10 - 1e-6) / 10
    rejected = f"{parts:g} {'is' if parts == 1 else 'are'} rejected"
    if calibration.cross_fitted:
        return (
            f"<b>Estimate:</b> of {base} good parts, about {rejected}. The model was compared with only "
            f"{calibration.num_groups or calibration.num_ranked} good parts, too few for a guarantee."
        )
    return (
        f"<b>Promise:</b> of {base} good parts, at most {rejected} on average, while part, camera and light stay as "
        "they were when the model was calibrated."
    )


def _foundation(calibration):
    """What the promise rests on where parts have several images; "" elsewhere."""
    if calibration.cross_fitted or calibration.num_groups is None:
        return ""
    return (
        f"<p>The promise holds for new parts and rests on the {calibration.num_groups} that were compared, each of "
        "which counts once however many images it has.</p>"
    )


def list_regions(numbers):
    """The outlined places, numbered as in the image, the largest first, as an HTML table; "" where there are none."""
    rows = "".join(
        f"<tr><td><b>{index}</b></td><td>{region['x']}, {region['y']}</td>"
        f"<td>{region['width']} × {region['height']}</td>"
        f"<td>{region['area']:,}</td><td>{region['area'] / (numbers['width'] * numbers['height']):.2%}</td>"
        f"<td>{region['peak']:.1f}</td></tr>"
        for index, region in enumerate(numbers["regions"][:MAX_NUMBERED], 1)
    )
    if not rows:
        return ""
    head = "".join(
        f"<th>{title}</th>"
        for title in ("no.", "left, top", "width × height", "area in pixels", "share", "worst value")
    )
    more = len(numbers["regions"]) - MAX_NUMBERED
    or_more = " or more" if len(numbers["regions"]) == MAX_REGIONS else ""
    return f'<table class="regions"><tr>{head}</tr>{rows}</table>' + (
        f"<p>and {more}{or_more} smaller.</p>" if more > 0 else ""
    )


def _share(share):
    """A share that is not 0 in per cent: a small one never reads as nothing."""
    return f"{share:.1%}" if share >= 0.001 else f"{max(share, 1e-5):.3%}"


def colour_scale(saturation, threshold):
    """The scale of `heat_map.overlay` from 0 to `saturation` with the pixel threshold, if any, marked, as HTML."""
    mark = "everything is outlined" if threshold is None else f"outlined above {threshold:.1f}"
    threshold = threshold or 0
    png = io.BytesIO()
    Image.fromarray(legend(saturation, threshold, height=16, width=640)).save(png, format="PNG")
    place = 100 * min(max(threshold / saturation, 0.15), 0.85)
    return (
        f'<div class="scale"><div class="mark" style="left: {place:.1f}%">{mark}</div>'
        f'<img alt="colour scale from 0 to {saturation:.1f}" '
        f'src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
        f'<div class="ends"><span>0: average good part</span><span>{saturation:.1f} or more</span></div>'
        "How unusual each place is, in standard deviations of good parts. The colours mean the same in every image."
        "</div>"
    )
