"""What a training leaves to be looked at, `OUT/report.html`: one page, for whoever has to trust the model.

It holds images of the parts, so that it is never published (`checkpoint_contents.py`).
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.checkpoint_reading import one_line
from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from pipelines.score_calibration import REFERENCES
from rendering import report_page as html
from rendering.curves import curves_svg
from rendering.heat_map import saturation_of
from rendering.histogram import histogram_svg
from rendering.sheet import view_sheet
from rendering.words import count_of, duration, percent
from training.cli.repeat_command import repeat_command
from training.engine.synthetic_views import views_of
from training.engine.validation import image_of
from training.fitting.promise import describe_promise
from training.fitting.recalibration import warning_of
from training.records.checkpoint_contents import REPORT
from training.records.progress import loss_curve, read_progress, separation_curve
from training.records.training_record import settings_to_record
from training.runtime.process import describe_device, peak_memory_gb
from training.runtime.whole_files import whole_file

NUM_SAMPLES = 4
SAMPLE_STEPS = 20
"""Of the reverse process: its whole noise schedule is respaced to so many."""

SAMPLE_CELL = 160
PAIRS = 3
"""So many synthetic defects are shown beside each other, each twice."""

LOSS_TITLES = {
    "features": "Error in features (Eq. 10)",
    "noise": "Error in pixels (Eq. 4)",
    "bound": "Variational bound (Eq. 5 to 7, nats)",
}
SEPARATION_TITLES = {
    "image_auroc": "Images told apart (image AUROC)",
    "pixel_auroc": "Defects' pixels found (pixel AUROC)",
}
COMPONENT_NAMES = {"features": "feature error", "kl": "KL"}

SHOWN_PHASES = ("references", "calibration", "checking")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Making:
    """How a checkpoint was made.

    Args:
        options (`dict`): those of `training/train.py`, by name.
        training_seconds (`float`): spent in the training steps, by all runs that led here.
        phase_seconds (`dict[str, float]`): of what followed, by phase.
        precision (`str`, *optional*): what the network computed in, such as "bfloat16".
    """

    options: dict
    training_seconds: float
    phase_seconds: dict
    precision: str | None = None

    def command(self):
        """That makes it again, for a shell."""
        return repeat_command(self.options, self.options["train_data_dir"] or [], self.options["output_dir"])


def leave_report(pipe, made, categories, splits, validation=None, checks=None):
    """Write the report of a checkpoint that is saved; where that fails, a warning says why.

    Args:
        pipe (`AnomalyScoringPipeline`): what was trained, on the device that draws samples.
        made (`Making`): how it was made.
        categories (`list[GoodImages]`): training images of each.
        splits (`dict[str, tuple]`): names of the categories, with their training and held-out images.
        validation (`Validation`, *optional*): that has measured.
        checks (`dict[str, SyntheticCheck]`, *optional*): of each category, what the finished model makes of synthetic
            defects.
    """
    target = Path(made.options["output_dir"]) / REPORT
    try:
        text = build_report(pipe, made, categories, splits, validation, checks)
        with whole_file(target) as stream:
            stream.write(text.encode())
    except (OSError, ValueError) as error:
        logger.warning("the model is saved, but its report could not be written: %s", one_line(error))
    else:
        logger.info("report: %s", target)


def build_report(pipe, made, categories, splits, validation=None, checks=None):
    """The page, `str` of HTML; arguments are those of `leave_report`.

    Raises:
        ValueError: if an image that it shows cannot be read any more.
    """
    entries = read_progress(made.options["output_dir"])
    several = len(splits) > 1
    sheets = validation.draw_sheets() if validation else {}
    sections = []
    for images, name in zip(categories, splits, strict=True):
        scoring = pipe.for_category(name if several else None)
        check = checks[name] if checks else None
        found = _category_section(scoring, images, check, sheets.get(name), made.options["seed"])
        sections.append(html.section(f"Category {name}" if several else "What the model does", *found))
    trained, held_out = (sum(len(split[side]) for split in splits.values()) for side in (0, 1))
    more = " and more that were streamed" if made.options["streaming"] else ""
    steps = count_of(made.options["max_train_steps"], "step")
    lead = (
        f"A model of {count_of(trained, 'good image')}{more}, trained for {steps} in "
        f"{duration(made.training_seconds)}. It was calibrated on {count_of(held_out, 'other')}, which were held out."
    )
    return html.page(
        f"Training report: {', '.join(splits)}",
        lead,
        [
            html.facts(_key_facts(pipe, made, trained, held_out)),
            html.section("How training went", *_curves(entries)),
            *sections,
            html.section("How it was made", *_making(made, entries, splits)),
        ],
    )


def draw_samples(pipe, images, seed):
    """Draw images by the reverse process from pure noise: a repair of all there is, without a gradient step.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline of one category.
        images (`list[np.ndarray]`): uint8, (height, width, 3); only their sizes count, and whether they are grey.
        seed (`int`): draws the noise.

    Returns:
        `list[PIL.Image.Image]`: RGB, of the images' sizes.
    """
    precision = "bf16" if has_bfloat16(pipe.unet.device) else "no"  # nothing is scored
    repair = GradientDenoisePipeline.from_pipe(pipe, mixed_precision=precision)
    repair.set_progress_bar_config(disable=True)
    return repair(
        images,
        mask=[np.ones(image.shape[:2], bool) for image in images],
        num_inference_steps=SAMPLE_STEPS,
        strengths=(1.0,),
        num_resamples=1,
        num_gradient_steps=0,
        generator=torch.Generator().manual_seed(seed),
    ).images


def _key_facts(pipe, made, trained, held_out):
    memory = peak_memory_gb()
    return {
        "good images trained on": f"{trained:,}",
        "held out": f"{held_out:,}",
        "steps": f"{made.options['max_train_steps']:,}",
        "time of the steps": duration(made.training_seconds),
        "peak memory": "not measured" if memory is None else f"{memory:.1f} GB",
        "weights of the network": f"{sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} million",
    }


def _curves(entries):
    losses, separation = loss_curve(entries), separation_curve(entries)
    if losses["step"]:
        yield html.paragraph(
            "Errors on the images that are trained on. They should fall, quickly at first, and then level off."
        )
        yield html.side_by_side(
            curves_svg(title, losses["step"], {name: losses[name]}) for name, title in LOSS_TITLES.items()
        )
    if separation["step"]:
        yield html.paragraph(
            "How well the network alone tells synthetic defects, put into held-out good images, from what is "
            "good: 1 is perfect, 0.5 a guess. It is measured on few images, so that small steps up or down mean "
            "nothing. The finished model also compares images with references of good features."
        )
        yield html.side_by_side(
            curves_svg(
                title,
                separation["step"],
                {COMPONENT_NAMES[name]: separation[f"{name}_{measure}"] for name in COMPONENT_NAMES},
                (0.0, 1.0),
            )
            for measure, title in SEPARATION_TITLES.items()
        )


def _category_section(pipe, images, check, sheet, seed):
    calibration, timesteps = pipe.calibration, list(pipe.config.timesteps)
    rate, bfloat16 = calibration.effective_rate(), pipe.uses_bfloat16()
    threshold = calibration.image_threshold(None, timesteps, bfloat16)
    yield html.paragraph(f"It was {describe_promise(calibration)} {warning_of(calibration)}".strip())
    good = calibration.ranked_scores(timesteps, bfloat16).cpu().numpy()
    synthetic = np.empty(0) if check is None else check.scores.numpy()
    caption = (
        f"Scores. Grey: the {len(good)} held-out good images that are ranked, of which {percent(rate)} may be rejected."
    )
    if check is not None:
        accepted = len(synthetic) - check.num_rejected
        caption += (
            f" Coloured: {len(synthetic)} synthetic defects put into these images, some of them faint, scored by the "
            f"finished model: {check.num_rejected} are rejected (vermilion), {accepted} accepted (blue)."
        )
    yield html.drawing(histogram_svg(good, synthetic, threshold, "synthetic defects"), caption, "histogram")
    if check is not None:
        yield html.table(
            {"Synthetic defects": "rejected"}
            | {kind: f"{found} of {count}" for kind, (found, count) in check.by_kind().items()}
        )
        yield html.figure(
            view_sheet(_synthetic_rows(pipe, check), ("synthetic defect", "heat map") * PAIRS, SAMPLE_CELL),
            "Some of them. Left, the image, with the defect outlined in green; right, the heat map, with what the "
            "model marks outlined in cyan.",
        )
    yield html.table(components_table(calibration))
    if sheet is not None:
        yield html.figure(
            sheet,
            "The last validation: synthetic defects in held-out images, and what each component of the network alone "
            "makes of them. The colours end at one and a half times the largest value that is usual in a good one.",
        )
    places = np.linspace(0, len(images) - 1, NUM_SAMPLES).round().astype(int)
    shown = [image_of(images[place]) for place in places]
    rows = [
        ("good images that it was trained on", [Image.fromarray(pixels) for pixels in shown]),
        ("drawn by the network", draw_samples(pipe, shown, seed)),
    ]
    yield html.figure(
        view_sheet(rows, ("",) * NUM_SAMPLES, SAMPLE_CELL),
        f"Above, good images. Below, what the network draws from pure noise in {SAMPLE_STEPS} steps: the more it "
        "looks like a good part, the more it has learned. Scoring asks for less: it adds only a little noise.",
    )


def _synthetic_rows(pipe, check):
    """Rows of a sheet: synthetic defects that were rejected, then accepted ones, some beside each other."""
    saturation = saturation_of(pipe)
    for is_rejected, caption in ((True, "rejected"), (False, "accepted")):
        alike = [views_of(checked, saturation) for checked in check.shown if checked.is_rejected == is_rejected]
        for start in range(0, len(alike), PAIRS):
            yield caption, [view for pair in alike[start : start + PAIRS] for view in pair]


def components_table(calibration):
    """What the score and the map are made of, and how they do on the synthetic defects that chose it."""
    config = calibration.config
    rows = {"Component": "its weight in the map / whether the image's score looks at it"}
    names = ("KL (Eq. 9)", "feature error (Eq. 10)", *(name.removeprefix("the ") for name in REFERENCES.values()))
    for name, share, decides in zip(names, calibration.map_shares, calibration.image_parts, strict=False):
        rows[name] = f"{share:.0%} / {'yes' if decides else 'no'}"
    rule = {"max": "the largest of these", "mean": "the mean of these"}[config.image_rule]
    rows["the image's score"] = rule if sum(calibration.image_parts) > 1 else "that component's"
    if config.planted_image_auroc is not None:
        rows["this choice, on synthetic defects"] = (
            f"image AUROC {config.planted_image_auroc:.3f}, PRO {config.planted_pro:.3f}"
        )
    return rows


def _making(made, entries, splits):
    times = {"training steps": duration(made.training_seconds)}
    if validations := separation_curve(entries)["validation_seconds"]:
        times["of these, validations"] = f"{sum(validations):.1f} s"
    times |= {name: duration(seconds) for name, seconds in made.phase_seconds.items() if name in SHOWN_PHASES}
    yield html.section("Time", html.table(times), level=3)
    images = {name: f"{len(trained):,} trained on, {len(kept):,} held out" for name, (trained, kept) in splits.items()}
    yield html.section("Images", html.table(images), level=3)
    device = describe_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {"computed on": device, "computed in": made.precision, "PyTorch": torch.__version__}
    settings |= settings_to_record(made.options)
    settings = {name: _words(value) for name, value in settings.items() if value is not None}
    yield html.section("The same again", html.command(made.command()), level=3)
    yield html.section("All settings", html.table(settings), level=3)


def _words(value):
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
