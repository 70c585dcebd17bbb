"""The end of a training run: averaged weights, calibration and settings become one saved pipeline."""

import json
import logging
from pathlib import Path

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.calibration import describe, fit_calibration
from training.feature_reference import fit_feature_reference
from training.model import round_to_half
from training.process import peak_memory_gb

logger = logging.getLogger(__name__)

TRAINING_RECORD = "training.json"


def finish_pipeline(args, unet, scheduler, extractor, data_mean, data_std, images, calibration_files, training_seconds):
    """Fit the references to the training `images`, calibrate on held-out files, save; returns the pipeline.

    Weights are rounded to what is stored on disk before they are calibrated (the extractor's were when it was loaded),
    so that the thresholds belong to exactly the model that users load. `training_seconds` is None for a resumed run.
    """
    unet.eval()
    round_to_half(unet)
    gaussian, memory = fit_feature_reference(extractor, images, args.seed)
    pipe = AnomalyScoringPipeline(
        unet=unet,
        scheduler=scheduler,
        feature_extractor=extractor,
        gaussian=gaussian.to(unet.device),
        memory=memory.to(unet.device),
        patch_size=args.patch_size,
        data_mean=data_mean,
        data_std=data_std,
        timesteps=args.timesteps,
        alpha=args.alpha,
    )
    pipe.register_modules(calibration=fit_calibration(pipe, calibration_files, args.timesteps, args.seed))
    pipe.to("cpu").save_pretrained(args.output_dir, half_precision=True)
    record = {
        "settings": {name: value for name, value in vars(args).items() if not name.endswith("_dir")},
        "training_seconds": training_seconds,
        "peak_memory_gb": peak_memory_gb(),
        "held_out": [path.name for path in calibration_files],
    }
    (Path(args.output_dir) / TRAINING_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    logger.info(describe(pipe.calibration))
    logger.info("saved to %s", args.output_dir)
    return pipe
