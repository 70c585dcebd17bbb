"""What is said of a training, as HTML."""

import html

from rendering.curves import curves_svg
from rendering.words import count_of, duration

PHASES = {
    "preparing": "Preparing: looking at the images",
    "training": "Learning what good parts look like",
    "stopped": "Stopping",
    "references": "Remembering features of good parts",
    "calibration": "Measuring how good parts score, which fixes the false alarm rate",
    "checking": "Trying it on synthetic defects",
    "saving": "Saving, and writing the report",
    "finished": "Saving",
}
LOSS_TITLES = {"features": "Error in features", "noise": "Error in pixels"}
SEPARATION_TITLE = "Defects told apart (1: all, 0.5: a guess)"
SEPARATION_PLOTTED = "features_pixel_auroc"
NO_TRAINING = "<p>Nothing is being trained.</p>"


def describe_training(name, status, is_stopping=False):
    """Where a training stands.

    Args:
        name (`str`): of the model.
        status (`TrainingStatus`): of `page.work.training_run`.
        is_stopping (`bool`): whether it was asked to stop.

    Returns:
        `str`: HTML.
    """
    title, css, words = _ending(name, status) if status.state != "running" else _running(name, status, is_stopping)
    bar = f'<progress aria-label="steps done" value="{status.step}" max="{status.max_steps}"></progress>'
    return f'<div class="verdict training {css}"><h2>{title}</h2>{bar}{words}</div>'


def draw_curves(losses, separation):
    """How a training goes, as HTML: errors, and how well synthetic defects are told apart; "" before the first step.

    Args:
        losses, separation (`dict[str, list]`): `loss_curve` and `separation_curve` of `training.records.progress`.
    """
    if not losses["step"]:
        return ""
    drawn = [curves_svg(title, losses["step"], {title: losses[name]}) for name, title in LOSS_TITLES.items()]
    if separation["step"]:
        values = {SEPARATION_TITLE: separation[SEPARATION_PLOTTED]}
        drawn.append(curves_svg(SEPARATION_TITLE, separation["step"], values, (0.0, 1.0)))
    return f'<div class="curves">{"".join(f"<div>{svg}</div>" for svg in drawn)}</div>'


def list_left_out(left_out):
    """Sentences on images that are not trained on, as HTML to unfold; "" without any."""
    if not left_out:
        return ""
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in left_out)
    return f"<details><summary>{count_of(len(left_out), 'file')} left out</summary><ul>{items}</ul></details>"


def expectation(max_minutes):
    """How long a training takes, before any of it is measured, `str`: what it depends on.

    Args:
        max_minutes (`int`): a training is stopped after so long.
    """
    return (
        "How long it takes depends on this computer, on what else it does and on the number of steps: 4,000 took half "
        "an hour on two fast cores, and six hours on slow ones. After the first steps the page says how long yours "
        f"take. After {duration(60 * max_minutes)} it is stopped, and can be resumed."
    )


def _running(name, status, is_stopping):
    doing = "Stopping after this step; what was learned is kept" if is_stopping else PHASES[status.phase]
    steps = "" if status.phase == "preparing" else f"Step {status.step:,} of {status.max_steps:,}, "
    words = f"<p><b>{doing} …</b></p><p>{steps}{duration(status.seconds)} so far"
    if status.images_per_second:
        words += f" ({status.images_per_second:.1f} images a second)"
    words += ".</p>"
    if not is_stopping:
        words += _left(status)
    return f"Training {html.escape(name)}", "accepted", words


def _left(status):
    """What is left, as HTML; in the first steps, that it cannot be told yet."""
    if status.seconds_left is None:
        if status.phase not in ("preparing", "training"):
            return ""
        return "<p>How long it takes is estimated from the first steps.</p>"
    if status.phase != "training":
        return f"<p><b>About {duration(status.seconds_left)} left.</b></p>"
    after = status.seconds_after or 0.0
    words = (
        f"<p><b>About {duration(status.seconds_left + after)} left</b> at this speed: {duration(status.seconds_left)} "
        f"of steps, then {duration(after)} to calibrate and to try it.</p>"
    )
    return words + _beyond_limit(status, after)


def _beyond_limit(status, after):
    """That a training will not end in time, as HTML; "" where it will."""
    limit, steps_left = status.seconds_to_limit, status.max_steps - status.step
    if limit is None or status.seconds_left + after <= limit:
        return ""
    fitting = status.step + int(max(limit - after, 0) / max(status.seconds_left, 1e-9) * steps_left)
    return (
        f"<p><b>That is longer than may be: it will be stopped in {duration(max(limit, 0))}.</b> What was learned is "
        f"kept, and it can be resumed. To be done in time, stop and delete it, and train with about {fitting:,} steps."
        "</p>"
    )


def _ending(name, status):
    name, took = html.escape(name), f"after {duration(status.seconds)}"
    if status.state == "finished":
        words = f"<p>Done {took}. It is among the models at the top of the page now.</p>"
        return f"{name} is trained", "accepted", words
    if status.state == "stopped":
        words = status.message or f"What was learned in {count_of(status.step, 'step')} is kept."
        return (
            f"{name} was stopped {took}",
            "rejected",
            f"<p>{html.escape(words)} Resume or delete it under “Unfinished trainings”.</p>",
        )
    return f"{name} could not be trained", "rejected", f"<p>{html.escape(status.message)}</p>"
