"""A checkpoint on disk: what it is made of, and saving it whole, code and all."""

import inspect
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .code_bundle import SECTION_LINE, write_bundle
from .safetensors_only import WEIGHT_LISTS
from .score_calibration import REFERENCES

FORMAT_VERSION = 5
"""Written to `model_index.json`; a checkpoint of a later format is refused by name."""

CALIBRATION_VERSION = 3
"""A calibration of an earlier format ranks another score: it is left out, and the checkpoint asks to be calibrated."""

GAUSSIAN_VERSION = 4
"""A Gaussian of an earlier format is laid out differently: its checkpoint has to be trained again."""

HALF_PRECISION_COMPONENTS = ("unet", "feature_extractor", *REFERENCES, "categories")
"""Stored in float16 where half precision is asked for; training rounds them before they are calibrated."""

FLOAT32_TENSORS = ("feature_", "pixel_", "calibration.")
"""What begins like this stays in float32 all the same: statistics of pixels, features and scores."""

ENTRY_MODULES = {
    "pipeline_anomaly_scoring": "AnomalyScoringPipeline",
    "pipeline_gradient_denoise": "GradientDenoisePipeline",
}
"""Modules of the pipelines, and their classes. A checkpoint carries both: the second is loaded by `custom_pipeline`."""

SAVING = ".saving-"
"""A folder beside the checkpoint that begins like this is being written, or was left by a process that was killed."""

COMPONENTS = ("unet", "scheduler", "feature_extractor", *REFERENCES, "calibration", "categories")

MODEL_INDEX = "model_index.json"
EVALUATION = "evaluation.json"
TRAINING_RECORD = "training.json"
IMAGE_RECORD = "training_images.safetensors"
"""Digests of the images that were trained on and held out; see `training/records/image_record.py`."""

CARD = "README.md"
CARD_MARK = "<!-- Written by save_pretrained. Remove this line to keep the card as you edit it. -->"
WEIGHTS = "diffusion_pytorch_model.safetensors"
HALF_PRECISION_VARIANT = "fp16"
HALF_PRECISION_WEIGHTS = f"diffusion_pytorch_model.{HALF_PRECISION_VARIANT}.safetensors"
"""A second name of half-precision weights. diffusers refuses `variant="fp16"` where no component has such a file, and
takes the plain name of those that have none: in a folder the smallest component that all checkpoints have does."""


def save_checkpoint(pipe, save_components, save_directory, half_precision, options):
    """Write a pipeline folder: components, names that a foreign process can resolve, code files, model card.

    Everything is written to a folder beside its place first and moved when it is whole. `model_index.json`, without
    which nothing is loaded, is taken away first and put back last: no mixture of two checkpoints is ever loaded.

    Args:
        pipe (`DiffusionPipeline`): the pipeline.
        save_components: `DiffusionPipeline.save_pretrained` bound to it.
        save_directory (`str` or `Path`): where to.
        half_precision (`bool`): whether `HALF_PRECISION_COMPONENTS` are stored in float16.
        options (`dict`): further arguments for `save_components`; `variant="fp16"` means `half_precision`.

    Raises:
        ValueError: if the folder cannot be written, or an option asks for pickled weights or another variant.
    """
    if not options.pop("safe_serialization", True):
        raise ValueError("weights are saved as safetensors only; leave safe_serialization at True.")
    if options.pop("push_to_hub", False):
        raise ValueError("save_pretrained does not push; save the folder, then push it with training/publish.py.")
    half_precision |= is_half_precision_variant(options.pop("variant", None))
    save_directory = Path(save_directory)
    try:
        save_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=SAVING) as partial:
            partial = Path(partial)
            save_components(str(partial), **options)
            for weights in partial.glob(f"*/*{WEIGHT_LISTS}"):
                raise ValueError(f"{weights.parent.name} would be split into several files; leave max_shard_size out.")
            if half_precision:
                for component in HALF_PRECISION_COMPONENTS:
                    if (partial / component).is_dir():
                        _store_half_precision(partial / component / WEIGHTS)
                extractor = partial / "feature_extractor"
                shutil.copyfile(extractor / WEIGHTS, extractor / HALF_PRECISION_WEIGHTS)
            _forget_origin(partial)
            _share_with_others(partial)
            _write_code(pipe, partial)
            if _owns_card(save_directory / CARD):
                (partial / CARD).write_text(_model_card(pipe))
            (save_directory / MODEL_INDEX).unlink(missing_ok=True)
            for entry in sorted(partial.iterdir(), key=lambda path: path.name == MODEL_INDEX):
                _replace(entry, save_directory / entry.name)
    except OSError as error:
        raise ValueError(f"{save_directory} cannot be written: {error.strerror or error}.") from error


def is_half_precision(folder):
    """Whether a checkpoint folder stores its UNet in float16."""
    with safe_open(Path(folder) / "unet" / WEIGHTS, "pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype == torch.float16


def _share_with_others(folder):
    """Let whoever may read the index read the weights too: safetensors writes them for their owner alone."""
    for path in folder.rglob("*.safetensors"):
        path.chmod((folder / MODEL_INDEX).stat().st_mode)


def _forget_origin(folder):
    """Take out of the configs where each component was loaded from: a path of the machine that saved it."""
    for path in (folder / MODEL_INDEX, *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_code(pipe, folder):
    """Put the code of both pipelines and of the components into a folder, and name it in `model_index.json`.

    A foreign process that has loaded one of the pipelines has only that one's code at hand; the other's is taken from
    the folder that the checkpoint was loaded from, if it still is there.
    """
    own = Path(inspect.getfile(type(pipe)))
    is_foreign = SECTION_LINE.search(own.read_text()) is not None
    origin = Path(pipe.config.get("_name_or_path") or own.parent)
    for module, class_name in ENTRY_MODULES.items():
        places = [origin, own.parent] if is_foreign and module != own.stem else [own.parent]
        source = next((place / f"{module}.py" for place in places if (place / f"{module}.py").is_file()), None)
        if source is not None:
            write_bundle(source, folder, class_name, module)
    index_path = folder / MODEL_INDEX
    index = json.loads(index_path.read_text())
    index["_class_name"] = [own.stem, type(pipe).__name__]
    scoring, class_name = next(iter(ENTRY_MODULES.items()))
    if (folder / f"{scoring}.py").is_file():  # what a checkpoint loads as, whichever pipeline saves it
        index["_class_name"] = [scoring, class_name]
    index["_format_version"] = FORMAT_VERSION
    for name, component in pipe.components.items():
        if component is None or type(component).__module__.split(".")[0] == "diffusers":
            continue
        class_name = type(component).__name__
        index[name] = [write_bundle(Path(inspect.getfile(type(component))), folder / name, class_name), class_name]
    index_path.write_text(json.dumps(index, indent=2) + "\n")


def is_half_precision_variant(variant):
    """Whether a `variant` asks for float16; a ValueError if it is none that there is."""
    if variant not in (None, HALF_PRECISION_VARIANT):
        raise ValueError(f"variant is {variant!r}; {HALF_PRECISION_VARIANT!r} is accepted, and None for what there is.")
    return variant is not None


def _store_half_precision(path):
    """Rewrite a safetensors file with its networks' weights in float16; statistics of pixels and features stay."""
    tensors = {
        name: tensor if name.startswith(FLOAT32_TENSORS) or tensor.dtype != torch.float32 else tensor.half()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def _replace(source, target):
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def _owns_card(path):
    """Whether the card may be replaced: there is none yet, or it is still the one that was written here."""
    return not path.exists() or CARD_MARK in path.read_text(errors="replace")


def _parts_in_words(calibration):
    """What the map is made of, in per cent, and what decides the score, as the calibration chose it."""
    names = ("KL", "feature error", *REFERENCES.values())
    shares = ", ".join(
        f"{name} {share:.0%}" for name, share in zip(names, calibration.map_shares, strict=False) if share
    )
    deciding = [name for name, decides in zip(names, calibration.image_parts, strict=False) if decides]
    *others, last = deciding
    rule = (
        {"max": "the largest of what", "mean": "the mean of what"}[calibration.config.image_rule] if others else "what"
    )
    listed = f"{', '.join(others)} and {last} give" if others else f"{last} gives"
    return f" The map is made of {shares}. An image's score is {rule} {listed} it."


def _model_card(pipe):
    calibration = pipe.calibration
    if pipe.categories is not None:
        names = ", ".join("`" + name.replace("`", "'") + "`" for name in pipe.categories.config.names)
        promise = f"One checkpoint for several categories: `pipe(image, category=…)` with one of {names}."
    elif calibration is None:
        promise = "This checkpoint is not calibrated yet: it measures maps but gives no verdict."
    else:
        config = calibration.config
        parts = "" if config.num_groups is None else f" of {config.num_groups} parts"
        promise = (
            f"Verdicts are calibrated on {config.num_ranked} good images{parts} that the model was not trained on; "
            f"the smallest false alarm rate they can promise is {100 * calibration.effective_rate(0):.2g} %."
        )
        if config.num_groups is not None:
            promise += " It follows from the parts, not from their images, and holds for new parts."
        if config.cross_fitted:
            promise += " They also fitted the normalisation (cross-fitting), so that the rate is an estimate."
        promise += _parts_in_words(calibration)
    return f"""---
library_name: diffusers
pipeline_tag: image-segmentation
tags:
- anomaly-detection
- anomaly-localization
- diffusers
---

{CARD_MARK}

# Defect detection with a diffusion model of good parts

Trained on images of good parts alone, this pipeline says whether an image shows a defect, and where.

```python
from diffusers import DiffusionPipeline
from PIL import Image
pipe = DiffusionPipeline.from_pretrained("PATH_OR_HUB_ID", trust_remote_code=True)
result = pipe(Image.open("part.png"))
```

`result.anomaly_map[0]` is the heat map at the image's own size, `result.is_anomalous[0]` the verdict,
`result.p_value[0]` the share of good images that score at least as high.

What would the part look like without its defect? The second pipeline of this checkpoint draws it:

```python
repair = DiffusionPipeline.from_pretrained(
    "PATH_OR_HUB_ID", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
repair(Image.open("part.png")).images[0].save("repaired.png")
```

{promise}

Images are squashed to {pipe.resolution}×{pipe.resolution} pixels. Settings: timesteps
{list(pipe.config.timesteps)}, alpha {pipe.alpha}.
"""
