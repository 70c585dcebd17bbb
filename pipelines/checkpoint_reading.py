"""Validate the files of an untrusted checkpoint before anything is built from them or memory is allocated.

Nothing is unpickled, no code in the folder is run or imported, no link out of it is followed, and no memory is taken
before the shapes in the weights' header are those that the config asks for.
"""

import inspect
import json
import math
import re

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import safe_open

from .checkpoint_names import WEIGHTS
from .config_checks import check_stock_config, shown
from .denoising_network import check_unet_config
from .safetensors_only import refuse_pickles

MAX_JSON = 4 << 20
"""Bytes of a config; the largest that was written here had some ten thousand."""

MAX_DEPTH = 8
"""Of lists and objects in a config."""

MAX_COMPONENT = 4 << 30
"""Bytes of a component in memory. One of the `paper` preset takes 0.5 GB."""

PRIVATE_SETTINGS = ("_class_name", "_diffusers_version", "_name_or_path")

FLOATS, WHOLE_NUMBERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "I8", "U8", "BOOL")
"""Types of tensors, as safetensors calls them."""


def read_component(folder, component_class, options):
    """Read one component of a checkpoint with a class of our own choice.

    Args:
        folder (`Path`): the component's.
        component_class (`type`): of our own or of diffusers; from a model of diffusers down to a scheduler.
        options (`dict`): further arguments for its `from_pretrained`.

    Raises:
        ValueError: with the reason, if a file cannot be used.
        OSError, RuntimeError, SafetensorError: if one is damaged or missing.
    """
    refuse_pickles(folder)
    config = _checked_config(folder, component_class)
    if not issubclass(component_class, torch.nn.Module):
        return _built(component_class, config)
    with torch.device("meta"):  # shapes, but no memory
        model = _built(component_class, config)
    check_tensors(folder / WEIGHTS, model.state_dict())
    component = component_class.from_pretrained(str(folder), use_safetensors=True, **options)
    for name, tensor in component.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite.")
    if hasattr(component, "check_values"):
        component.check_values()
    return component


def read_json(path):
    """An object of JSON from a file that may be anything.

    Raises:
        ValueError: if the file is too large, or holds no JSON object, or one with NaN, infinities or too many levels.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} is damaged: it has {size / 1e6:.0f} MB, and no config has more than 4.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:
        raise ValueError(f"{path} is damaged: it has more than {MAX_DEPTH} levels.")
    return content


def check_tensors(path, expected):
    """Check the header of a safetensors file; no tensor is read.

    Args:
        path (`Path`): the file.
        expected (`dict[str, torch.Tensor]`): exactly these names and shapes; devices and precision do not matter.

    Raises:
        ValueError: with the first tensor that is missing, unknown, or of another shape or kind, or if all of them
            together take more than `MAX_COMPONENT`.
        SafetensorError, OSError: if the file is damaged or missing.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if needed > MAX_COMPONENT:
        raise ValueError(f"it would take {needed / 2**30:.1f} GB of memory; {MAX_COMPONENT >> 30} are accepted.")
    with safe_open(path, "pt") as file:
        found = set(file.keys())
        for name in sorted(expected.keys() - found)[:1]:
            raise ValueError(f"{path.name} lacks {name}.")
        for name in sorted(found - expected.keys())[:1]:
            raise ValueError(f"{path.name} holds {shown(name)}, which belongs to nothing.")
        for name, tensor in expected.items():
            view = file.get_slice(name)
            if tuple(view.get_shape()) != tuple(tensor.shape):
                shapes = "×".join(map(str, view.get_shape())), "×".join(map(str, tensor.shape))
                raise ValueError(f"{name} in {path.name} is {shapes[0] or 'a number'}, not {shapes[1] or 'a number'}.")
            kinds = FLOATS if tensor.is_floating_point() else WHOLE_NUMBERS
            if view.get_dtype() not in kinds:
                raise ValueError(f"{name} in {path.name} has the type {view.get_dtype()}; {', '.join(kinds)} are read.")


def refuse_links_out(folder, components):
    """Check that what a checkpoint's folder holds lies in it: a link to elsewhere would let a stranger choose a file.

    Links within the Hub's cache, from a snapshot to its blobs, are none of these.

    Args:
        folder (`Path`): the checkpoint.
        components (iterable of `str`): names of its components.

    Raises:
        ValueError: with the name of the first link that leads out.
    """
    names = set(components)
    for path in sorted(folder.iterdir()):
        is_component = path.name in names
        if (is_component or not path.is_dir()) and leads_out(path, folder):
            raise ValueError(f"{path.name} is a link that leads out of {folder}; put the file itself there.")
        for file in sorted(path.iterdir()) if is_component and path.is_dir() else []:
            if leads_out(file, folder):
                raise ValueError(f"{path.name}/{file.name} is a link that leads out of {folder}; put the file there.")


def leads_out(path, folder):
    """Whether a path below a checkpoint's folder is, in the end, somewhere else."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a circle
        return True
    return not any(target.is_relative_to(allowed) for allowed in roots)


def one_line(error, longest=300):
    """The message of an exception as part of a sentence: one line without control characters or a stop at its end."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error)[: 10 * longest])
    text = re.sub(r"\s+", " ", text).strip()
    return (text if len(text) <= longest else text[:longest] + "…").removesuffix(".") or type(error).__name__


def _checked_config(folder, component_class):
    config = read_json(folder / component_class.config_name)
    known = inspect.signature(component_class.__init__).parameters
    made_for = config.get("_class_name", component_class.__name__)
    if made_for != component_class.__name__:
        raise ValueError(f"its config is one of {shown(made_for)}; {component_class.__name__} is accepted.")
    for name in config:
        if name not in PRIVATE_SETTINGS and (name.startswith("_") or name not in known):
            raise ValueError(f"its config sets {shown(name)}, which {component_class.__name__} does not know.")
    config = {name: value for name, value in config.items() if name not in PRIVATE_SETTINGS}
    if component_class in (UNet2DModel, DDPMScheduler):
        check_stock_config(component_class, config)
    if component_class is UNet2DModel:
        check_unet_config(config)
    return config


def _built(component_class, config):
    try:
        return component_class(**config)
    except ValueError as error:
        raise ValueError(f"{one_line(error)}.") from error
    except Exception as error:  # whatever a stock network makes of settings of the right kind that do not go together
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"no {component_class.__name__} can be built of its config ({reason}).") from error


def _refuse_constant(name):
    raise ValueError(f"{name} is no number")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number
