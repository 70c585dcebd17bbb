"""What of a checkpoint folder is shared: an allow list, and what is never read, let alone sent."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.checkpoint_files import CARD, ENTRY_MODULES, HALF_PRECISION_WEIGHTS, MODEL_INDEX, WEIGHTS
from training.measured_results import EVALUATION, is_sheet
from training.training_record import TRAINING_RECORD

TRAINING_LEFTOVERS = ("checkpoint-*", "logs", "progress.jsonl", "__pycache__", ".*")
"""At the top of the folder: what only the training itself needs."""

PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
"""Loading one of these can run any code."""

ROOT_FILES = (MODEL_INDEX, CARD, EVALUATION, TRAINING_RECORD, "LICENSE", "CITATION.cff")
COMPONENT_FILES = ("config.json", "scheduler_config.json", WEIGHTS, HALF_PRECISION_WEIGHTS)
PICTURE_FOLDER = "examples"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


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
        ValueError: if it is no checkpoint, or has a pickle in it (but for what training itself left behind).
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
            if path.suffix.lower() in PICKLES:
                raise ValueError(f"{folder} holds {name}, a pickle, which is never sent; delete it or move it away.")
            (shared if _is_shared(name, components, code) else left_out).append(name)
    return Contents(shared, left_out)


def list_components(folder):
    """Name of each component of a checkpoint, to the module of its class.

    Raises:
        ValueError: if the folder is no checkpoint.
    """
    path = Path(folder) / MODEL_INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MODEL_INDEX}; name the folder of a finished checkpoint.")
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    return {
        name: value[0]
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }


def is_ours(name, components):
    """Whether a file on the Hub belongs to a checkpoint, so that it goes once the checkpoint no longer has it.

    Cards, pictures and whatever else somebody put there stay.
    """
    if is_sheet(name):
        return True
    parent, _, file = name.rpartition("/")
    if not parent:
        return file in (MODEL_INDEX, EVALUATION, TRAINING_RECORD) or file.endswith(".py")
    return parent in components and (file in COMPONENT_FILES or file.endswith(".py"))


def _is_shared(name, components, code):
    parent, _, file = name.rpartition("/")
    if parent == PICTURE_FOLDER:
        return file.lower().endswith(PICTURES)
    if not parent and file in ROOT_FILES:
        return True
    if parent in components and file in COMPONENT_FILES:
        return True
    return file.endswith(".py") and file.removesuffix(".py") in code.get(parent, ())


def _imported_modules(folder, entries):
    """Names of modules of a folder and of every sibling they import, directly or through others."""
    found, queue = set(), list(entries)
    while queue:
        name = queue.pop()
        path = folder / f"{name}.py"
        if name in found or "/" in name or not path.is_file():
            continue
        found.add(name)
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is no Python code; save the checkpoint again.") from error
        queue += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return found
