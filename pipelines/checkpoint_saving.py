"""Saving a checkpoint whole, code and all."""

import inspect
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .checkpoint_card import owns_card, short_card
from .checkpoint_names import (
    CARD,
    ENTRY_MODULES,
    FLOAT32_TENSORS,
    FORMAT_VERSION,
    HALF_PRECISION_COMPONENTS,
    HALF_PRECISION_VARIANT,
    HALF_PRECISION_WEIGHTS,
    MODEL_INDEX,
    SAVING,
    WEIGHTS,
)
from .code_bundle import SECTION_LINE, write_bundle
from .safetensors_only import WEIGHT_LISTS


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
            if owns_card(save_directory / CARD):
                (partial / CARD).write_text(short_card(pipe))
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
    is_at_hand = own.stem in ENTRY_MODULES and not SECTION_LINE.search(own.read_text())  # all of `pipelines/` is
    origin = Path(pipe.config.get("_name_or_path") or own.parent)
    for module, class_name in ENTRY_MODULES.items():
        places = [own.parent] if is_at_hand or module == own.stem else [origin, own.parent]
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
