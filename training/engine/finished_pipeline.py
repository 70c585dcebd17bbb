"""The end of a training run: averaged weights, calibration and settings become one saved pipeline."""

import logging

from pipelines.category_bank import CategoryBank
from pipelines.checkpoint_loading import locate_checkpoint
from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.engine.report import NUM_SAMPLES, SAMPLE_STEPS, Making, leave_report
from training.engine.synthetic_views import leave_check
from training.fitting.calibration_fit import NUM_SYNTHETIC, fit_calibration, split_held_out
from training.fitting.feature_references import MAX_IMAGES, fit_feature_reference
from training.fitting.promise import describe_promise
from training.fitting.synthetic_check import NUM_CHECKED, check_synthetic_defects
from training.networks.unet import round_to_half
from training.records.image_record import KnownImages, read_image_record, write_image_record
from training.records.measured_results import forget_results
from training.records.training_record import settings_to_record, write_record
from training.runtime.collectives import is_main_process
from training.runtime.process import peak_memory_gb

NUM_SHOWN = 6
"""Synthetic defects of each category that the report and the page show."""

FEATURES_SHARE = 0.2
"""Features alone, for the references, take about this share of the time of an image that is measured."""

logger = logging.getLogger(__name__)


def images_measured_after(settings, data, device):
    """Of each category, how many images are measured after the steps, `dict[str, float]`: for `ProgressLog`."""
    in_bfloat16 = has_bfloat16(device)
    found = {}
    for name, (trained, held_out) in data.splits.items():
        ranked, fitted = split_held_out(held_out, settings.run.seed, data.groups[name])
        found[name] = FEATURES_SHARE * min(len(trained), MAX_IMAGES) + len(ranked) * (1 + in_bfloat16) + NUM_SYNTHETIC
        found[name] += 0 if ranked is fitted else len(fitted)
        if settings.run.report:
            found[name] += NUM_CHECKED + NUM_SAMPLES * SAMPLE_STEPS / len(settings.scoring.timesteps)
    return found


def finish_pipeline(settings, networks, categories, data, training_seconds, log, validation=None, precision=None):
    """Fit references to training images, calibrate on held-out ones, try it on synthetic defects, save.

    Returns the pipeline.

    Weights are rounded to what is stored on disk before they are calibrated (the extractor's were when it was loaded),
    so that the thresholds belong to exactly the model that users load. Several processes share the images out; each
    has to call this, and the main one saves.

    Args:
        settings (`TrainingSettings`): all of them.
        networks (`Networks`): what was trained, and what with.
        categories (`dict[str, GoodImages]`): training images of each.
        data (`TrainingData`): all images, and which of them show the same part.
        training_seconds (`float`): spent in the training steps, by all runs that led here.
        log (`ProgressLog`): is told what is being done.
        validation (`Validation`, *optional*): what the report shows of it; it has measured.
        precision (`str`, *optional*): what the network computed in, such as "bfloat16".
    """
    networks.unet.eval()
    round_to_half(networks.unet)
    timesteps = settings.scoring.timesteps
    pipelines, checks = {}, {}
    to_measure = images_measured_after(settings, data, networks.unet.device)
    for label, (name, (_, held_out)) in enumerate(data.splits.items()):
        log.log_phase("references")
        device = networks.unet.device
        references = fit_feature_reference(networks.extractor, categories[name], settings.run.seed)._asdict()
        pipe = AnomalyScoringPipeline(
            **networks.shared(),
            **networks.of_category(label, len(data.splits)),
            **{name: reference.to(device) for name, reference in references.items()},
            timesteps=timesteps,
        )
        del to_measure[name]
        later = sum(to_measure.values())
        checks[name] = _calibrate(settings, pipe, held_out, data.groups[name], log, later)
        if is_main_process():
            logger.info("%s: %s", name, describe_promise(pipe.calibration))
        pipelines[name] = pipe
    if len(pipelines) > 1:
        bank = CategoryBank.from_pipelines(pipelines)
        pipe = AnomalyScoringPipeline(**networks.shared(), categories=bank, timesteps=timesteps)
    device = networks.unet.device
    pipe.to("cpu")
    if is_main_process():
        log.log_phase("saving")
        made = Making(settings.options, training_seconds, log.phase_seconds, precision)
        _save(pipe, settings, data, made)
        if settings.run.report:
            leave_check(pipe, checks, settings.run.output_dir)
            leave_report(pipe.to(device), made, list(categories.values()), data.splits, validation, checks)
            pipe.to("cpu")
        logger.info("saved to %s; the same again:", settings.run.output_dir)
        logger.info(made.command())
    log.log_phase("finished")
    return pipe


def _calibrate(settings, pipe, held_out, groups, log, later):
    """Calibrate the pipeline of a category; returns its `SyntheticCheck`, None where no report is wanted.

    `later` is how many images are measured for others after that.
    """
    run, timesteps = settings.run, settings.scoring.timesteps
    checked = NUM_CHECKED if run.report else 0
    log.log_phase("calibration")
    calibration = fit_calibration(
        pipe,
        held_out,
        timesteps,
        run.seed,
        alpha=settings.scoring.alpha,
        groups=groups,
        on_progress=lambda done, total: log.log_measured(done, total - done + checked + later),
    )
    pipe.register_modules(calibration=calibration.to(pipe.unet.device))
    if not run.report:
        return None
    log.log_phase("checking")
    ranked, _ = split_held_out(held_out, run.seed, groups)
    return check_synthetic_defects(
        pipe,
        ranked,
        run.seed,
        num_shown=NUM_SHOWN,
        on_progress=lambda done, total: log.log_measured(done, total - done + later),
    )


def _save(pipe, settings, data, made):
    """Save the checkpoint, with the records of what it was trained on, and how."""
    output_dir, init_from = settings.run.output_dir, settings.data.init_from
    forget_results(output_dir)
    pipe.save_pretrained(output_dir, half_precision=True)
    first = None
    if init_from is not None:
        first = read_image_record(locate_checkpoint(init_from)) or KnownImages(None, frozenset())
    write_image_record(output_dir, data.splits, data.stream is not None, first)
    held_out = {name: images for name, (_, images) in data.splits.items()}
    recorded = settings_to_record(settings.options)
    write_record(output_dir, recorded, made.training_seconds, peak_memory_gb(), held_out, made.precision)
