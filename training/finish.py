"""The end of a training run: averaged weights, calibration and settings become one saved pipeline."""

import json
import logging
import resource
from pathlib import Path

import torch

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.calibration import describe, fit_calibration

logger = logging.getLogger(__name__)

TRAINING_RECORD = "training.json"


def finish_pipeline(args, unet, scheduler, extractor, data_mean, data_std, calibration_files, training_seconds):
    """Calibrate on held-out pictures and save to `args.output_dir`; returns the pipeline.

    Weights are rounded to what is stored on disk before they are calibrated, so that the thresholds belong to exactly
    the model that users load. `training_seconds` is None for a resumed run.
    """
    unet.eval()
    _round_to_half(unet)
    _round_to_half(extractor.backbone)
    pipe = AnomalyScoringPipeline(
        unet=unet,
        scheduler=scheduler,
        feature_extractor=extractor,
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
        "peak_memory_gb": round(_peak_memory_gb(), 2),
        "held_out": [path.name for path in calibration_files],
    }
    (Path(args.output_dir) / TRAINING_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    logger.info(describe(pipe.calibration))
    logger.info("saved to %s", args.output_dir)
    return pipe


def _peak_memory_gb():
    """Peak memory of this process and of its largest worker, in GB."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20


def _round_to_half(module):
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data.copy_(tensor.data.half())
