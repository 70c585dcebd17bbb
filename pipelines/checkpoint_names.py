"""What a checkpoint is made of: components, files, and the formats that were."""

from .score_calibration import REFERENCES

FORMAT_VERSION = 5
"""Written to `model_index.json`; a checkpoint of a later format is refused by name."""

CALIBRATION_VERSION = 3
"""A calibration of an earlier format ranks another score: it is left out, and the checkpoint asks to be calibrated."""

GAUSSIAN_VERSION = 4
"""A Gaussian of an earlier format is laid out differently: its checkpoint has to be trained again."""

HALF_PRECISION_COMPONENTS = ("unet", "feature_extractor", *REFERENCES, "categories")
"""Stored in float16 where half precision is asked for; training rounds them before they are calibrated."""

FLOAT32_TENSORS = ("feature_", "pixel_", "calibration.", "familiarity.")
"""What begins like this stays in float32 all the same: statistics of pixels, features and scores."""

ENTRY_MODULES = {
    "pipeline_anomaly_scoring": "AnomalyScoringPipeline",
    "pipeline_gradient_denoise": "GradientDenoisePipeline",
}
"""Modules of the pipelines, and their classes. A checkpoint carries both: the second is loaded by `custom_pipeline`."""

SAVING = ".saving-"
"""A folder beside the checkpoint that begins like this is being written, or was left by a process that was killed."""

COMPONENTS = ("unet", "scheduler", "feature_extractor", *REFERENCES, "familiarity", "calibration", "categories")

MODEL_INDEX = "model_index.json"

EVALUATION = "evaluation.json"

TRAINING_RECORD = "training.json"

IMAGE_RECORD = "training_images.safetensors"
"""Digests of the images that were trained on and held out; see `training/records/image_record.py`."""

CARD = "README.md"

WEIGHTS = "diffusion_pytorch_model.safetensors"

HALF_PRECISION_VARIANT = "fp16"

HALF_PRECISION_WEIGHTS = f"diffusion_pytorch_model.{HALF_PRECISION_VARIANT}.safetensors"
"""A second name of half-precision weights. diffusers refuses `variant="fp16"` where no component has such a file, and
takes the plain name of those that have none: in a folder the smallest component that all checkpoints have does."""

CONFIGS = ("config.json", "scheduler_config.json")
"""One of them is in every component's folder."""

COMPONENT_FILES = (*CONFIGS, WEIGHTS, HALF_PRECISION_WEIGHTS)
