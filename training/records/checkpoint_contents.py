"""What of a checkpoint folder is shared: an allow list, and what is never read, let alone sent."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.checkpoint_names import (
    CARD,
    COMPONENT_FILES,
    COMPONENTS,
    ENTRY_MODULES,
    EVALUATION,
    IMAGE_RECORD,
    MODEL_INDEX,
    TRAINING_RECORD,
)
from pipelines.checkpoint_reading import leads_out, read_json
from pipelines.code_bundle import sibling_imports
from pipelines.safetensors_only import is_pickle
from training.records.measured_results import is_sheet
from training.records.progress import PROGRESS
from training.records.synthetic_record import SYNTHETIC_CHECK

REPORT = "report.html"
"""What a training leaves to be looked at; it holds images of the parts."""

TRAINING_LEFTOVERS = ("checkpoint-*", "logs", PROGRESS, REPORT, SYNTHETIC_CHECK, "__pycache__", ".*")
"""At the top of the folder: what is for whoever trains, and for nobody else."""

ROOT_FILES = (MODEL_INDEX, CARD, EVALUATION, TRAINING_RECORD, IMAGE_RECORD, "LICENSE", "CITATION.cff")
IMAGE_FOLDER = "examples"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
MAX_CODE = 1 << 20
"""Bytes of a code file."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint's files, as paths relative to it.

    Args:
        shared (`list[str]`): what is sent, in the order of names.
        left_out (`list[str]`): files and, with a slash at their end, whole folders that stay.
    """

    shared: list
    left_out: list


def list_contents(folder):
    """Decide which files of a checkpoint are shared.

    Args:
        folder (`str` or `Path`): the checkpoint.

    Returns:
        `Contents`

    Raises:
        ValueError: if it is no checkpoint, or has a pickle in it (but for what training itself left behind), or a link
            to a file that is none of it.
    """
    folder = Path(folder)
    components = list_components(folder)
    code = {"": _imported_modules(folder, ENTRY_MODULES)}
    code |= {name: _imported_modules(folder / name, [module]) for name, module in components.items()}
    shared, left_out = [], []
    for entry in sorted(folder.iterdir()):
        if any(entry.match(pattern) for pattern in TRAINING_LEFTOVERS):
            left_out.append(entry.name + "/" * entry.is_dir())
            continue
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if not path.is_file():
                continue
            name = path.relative_to(folder).as_posix()
            if is_pickle(name):
                raise ValueError(f"{folder} holds {name}, a pickle, which is never sent; delete it or move it away.")
            if leads_out(path, folder):
                raise ValueError(f"{folder} holds {name}, a link that leads out of it; put the file itself there.")
            (shared if _is_shared(name, components, code) else left_out).append(name)
    return Contents(shared, left_out)


def list_loaded(folder):
    """Names of the files of a checkpoint that loading reads or runs: index, configs, weights and code.

    Raises:
        ValueError: as `list_contents`.
    """
    names = list_contents(folder).shared
    return [name for name in names if name == MODEL_INDEX or (name not in ROOT_FILES and not name.endswith(IMAGES))]


def list_components(folder):
    """Name of each component of a checkpoint, to the module of its class.

    Raises:
        ValueError: if the folder is no checkpoint.
    """
    path = Path(folder) / MODEL_INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MODEL_INDEX}; name the folder of a finished checkpoint.")
    return {
        name: value[0]
        for name, value in read_json(path).items()
        if name in COMPONENTS and isinstance(value, list) and len(value) == 2 and _is_module(value[0])
    }


def is_ours(name, components):
    """Whether a file on the Hub belongs to a checkpoint, so that it goes once the checkpoint no longer has it.

    Cards, images and whatever else somebody put there stay.
    """
    if is_sheet(name):
        return True
    parent, _, file = name.rpartition("/")
    if not parent:
        return file in (MODEL_INDEX, EVALUATION, TRAINING_RECORD, IMAGE_RECORD) or file.endswith(".py")
    return parent in components and (file in COMPONENT_FILES or file.endswith(".py"))


def _is_shared(name, components, code):
    parent, _, file = name.rpartition("/")
    if parent == IMAGE_FOLDER:
        return file.lower().endswith(IMAGES)
    if not parent and file in ROOT_FILES:
        return True
    if parent in components and file in COMPONENT_FILES:
        return True
    return file.endswith(".py") and file.removesuffix(".py") in code.get(parent, ())


def _is_module(name):
    return isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII) is not None


def _imported_modules(folder, entries):
    """Names of modules of a folder and of every sibling they import: those of a checkpoint of before bundles do."""
    found, queue = set(), list(entries)
    while queue:
        name = queue.pop()
        path = folder / f"{name}.py"
        if name in found or not _is_module(name) or not path.is_file():
            continue
        found.add(name)
        try:
            if path.stat().st_size > MAX_CODE:
                raise ValueError(f"{path} has {path.stat().st_size} bytes")
            queue += [node.module for node in sibling_imports(path.read_text())]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path} is no Python code; save the checkpoint again.") from error
    return found
