"""The end of a training run: averaged weights, calibration and settings become one saved pipeline."""

import logging

from pipelines.category_bank import CategoryBank
from pipelines.checkpoint_loading import locate_checkpoint
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.repeat_command import repeat_command
from training.engine.report import leave_report
from training.fitting.calibration_fit import fit_calibration
from training.fitting.feature_references import fit_feature_reference
from training.fitting.promise import describe_promise
from training.networks.unet import round_to_half
from training.records.image_record import KnownImages, read_image_record, write_image_record
from training.records.measured_results import forget_results
from training.records.training_record import settings_to_record, write_record
from training.runtime.collectives import is_main_process
from training.runtime.process import peak_memory_gb

logger = logging.getLogger(__name__)


def finish_pipeline(
    args, unet, scheduler, extractor, statistics, categories, data, training_seconds, log, validation=None
):
    """Fit references to training images, calibrate on held-out ones, save; returns the pipeline.

    Weights are rounded to what is stored on disk before they are calibrated (the extractor's were when it was loaded),
    so that the thresholds belong to exactly the model that users load. Several processes share the images out; each
    has to call this, and the main one saves.

    Args:
        args: settings of `training/train.py`.
        unet, scheduler, extractor: what was trained, and what with.
        statistics (`DataStatistics`): what the training started from.
        categories (`list[GoodImages]`): training images of each.
        data (`TrainingData`): all images, and which of them show the same part.
        training_seconds (`float`): spent in the training steps, by all runs that led here.
        log (`ProgressLog`): is told what is being done.
        validation (`Validation`, *optional*): what the report shows of it; it has measured.
    """
    device, splits = unet.device, data.splits
    unet.eval()
    round_to_half(unet)
    shared = {
        "unet": unet,
        "scheduler": scheduler,
        "feature_extractor": extractor,
        "patch_size": args.patch_size,
        "timesteps": args.timesteps,
        "white_level": statistics.white_level,
    }
    pipelines = {}
    for label, (name, (_, held_out)) in enumerate(splits.items()):
        log.log_phase("references")
        references = fit_feature_reference(extractor, categories[label], args.seed)
        pipe = AnomalyScoringPipeline(
            **shared,
            **{name: reference.to(unet.device) for name, reference in references._asdict().items()},
            data_mean=statistics.data_mean[label].item(),
            data_std=statistics.data_std[label].item(),
            class_label=label if len(splits) > 1 else None,
        )
        log.log_phase("calibration")
        pipe.register_modules(
            calibration=fit_calibration(
                pipe, held_out, args.timesteps, args.seed, alpha=args.alpha, groups=data.groups[name]
            ).to(unet.device)
        )
        if is_main_process():
            logger.info("%s: %s", name, describe_promise(pipe.calibration))
        pipelines[name] = pipe
    if len(pipelines) > 1:
        pipe = AnomalyScoringPipeline(**shared, categories=CategoryBank.from_pipelines(pipelines))
    pipe.to("cpu")
    if is_main_process():
        log.log_phase("saving")
        forget_results(args.output_dir)
        pipe.save_pretrained(args.output_dir, half_precision=True)
        held_out = {name: images for name, (_, images) in splits.items()}
        first = None
        if args.init_from is not None:
            first = read_image_record(locate_checkpoint(args.init_from)) or KnownImages(None, frozenset())
        write_image_record(args.output_dir, splits, data.stream is not None, first)
        write_record(args.output_dir, settings_to_record(args), training_seconds, peak_memory_gb(), held_out)
        if args.report:
            leave_report(pipe.to(device), args, categories, splits, validation, training_seconds, log.phase_seconds)
            pipe.to("cpu")
        logger.info("saved to %s; the same again:", args.output_dir)
        logger.info(repeat_command(vars(args), args.train_data_dir or [], args.output_dir))
    log.log_phase("finished")
    return pipe
