"""What is said of a training, as HTML."""

import html

from rendering.words import count_of, duration

PHASES = {
    "preparing": "Preparing: looking at the images",
    "training": "Learning what good parts look like",
    "stopped": "Stopping",
    "references": "Remembering features of good parts",
    "calibration": "Measuring how good parts score, which fixes the false alarm rate",
    "saving": "Saving",
    "finished": "Saving",
}
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


def list_left_out(left_out):
    """Sentences on images that are not trained on, as HTML to unfold; "" without any."""
    if not left_out:
        return ""
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in left_out)
    return f"<details><summary>{count_of(len(left_out), 'file')} left out</summary><ul>{items}</ul></details>"


def _running(name, status, is_stopping):
    doing = "Stopping after this step; what was learned is kept" if is_stopping else PHASES[status.phase]
    steps = "" if status.phase == "preparing" else f"Step {status.step:,} of {status.max_steps:,}, "
    words = f"<p><b>{doing} …</b></p><p>{steps}{duration(status.seconds)} so far"
    if status.phase == "training" and status.seconds_left is not None:
        words += f"; about {duration(status.seconds_left)} left, and then a few minutes to calibrate"
    if status.images_per_second:
        words += f" ({status.images_per_second:.1f} images a second)"
    return f"Training {html.escape(name)}", "accepted", words + ".</p>"


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
