"""Which images a checkpoint was trained on: whoever trains it further, calibrates or measures it must not be misled.

`training_images.safetensors` holds, for each category, the first eight bytes of the SHA-256 of every image's file, as
int64: of those trained on, and of those held out. No name and nothing of an image can be read from it.
"""

import hashlib
import logging
import shutil
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from pipelines.checkpoint_names import IMAGE_RECORD, MODEL_INDEX
from rendering.words import count_of, one_line
from training.records.training_record import read_record

TRAINED_ON, HELD_OUT = "trained_on", "held_out"
MAX_BYTES = 1 << 30

logger = logging.getLogger(__name__)


class KnownImages(NamedTuple):
    """Digests of a checkpoint's images; `trained_on` is None where they are not known, as of a stream."""

    trained_on: Set | None
    held_out: Set


def digest_of(image):
    """The digest of a `Path` or a `HubImage`, `int`; None for a file that cannot be read."""
    try:
        content = image.read_bytes() if isinstance(image, Path) else image.read()
    except (OSError, ValueError):
        return None
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def digests_of(images, shows_progress=True):
    """The digest of each image, `list[int | None]`, in their order."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(digest_of, images)
        return list(tqdm(found, total=len(images), desc="digests", unit="image", disable=not shows_progress))


def write_image_record(folder, splits, is_stream=False, first=None, shows_progress=True):
    """Leave the record in a checkpoint.

    Args:
        folder (`str` or `Path`): the checkpoint.
        splits (`dict[str, tuple[list, list]]`): each category's images that were trained on and that were held out.
        is_stream (`bool`): whether more was trained on than `splits` holds.
        first (`KnownImages`, *optional*): of the checkpoint that the training started from, which count as well.
        shows_progress (`bool`): whether to show a progress bar.
    """
    tensors = {}
    is_known = not is_stream and (first is None or first.trained_on is not None)
    before = first.trained_on if first is not None and is_known else ()
    for name, (trained_on, held_out) in splits.items():
        if is_known:
            tensors[f"{name}/{TRAINED_ON}"] = _as_tensor([*digests_of(trained_on, shows_progress), *before])
            before = ()
        tensors[f"{name}/{HELD_OUT}"] = _as_tensor(digests_of(held_out, shows_progress))
    path = Path(folder) / IMAGE_RECORD
    save_file(tensors, path)
    path.chmod((Path(folder) / MODEL_INDEX).stat().st_mode)


def copy_image_record(folder, target):
    """Take the record of a checkpoint over into another folder, whose model was trained on the same images."""
    source = Path(folder) / IMAGE_RECORD
    if source.is_file() and Path(folder).resolve() != Path(target).resolve():
        shutil.copyfile(source, Path(target) / IMAGE_RECORD)


def read_image_record(folder):
    """The images of all categories of a checkpoint together, `KnownImages`; None where it has no record.

    Raises:
        ValueError: if the record is damaged.
    """
    path = Path(folder) / IMAGE_RECORD
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        tensors = load_file(path)
        if any(tensor.dtype != torch.int64 or tensor.ndim != 1 for tensor in tensors.values()):
            raise ValueError("it holds no digests")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch the checkpoint again.") from error
    found = {kind: [t for name, t in tensors.items() if name.endswith(f"/{kind}")] for kind in (TRAINED_ON, HELD_OUT)}
    sets = {kind: frozenset(torch.cat(each).tolist()) if each else frozenset() for kind, each in found.items()}
    knows_all = len(found[TRAINED_ON]) == len(found[HELD_OUT])
    return KnownImages(sets[TRAINED_ON] if knows_all else None, sets[HELD_OUT])


def not_trained_on(folder, images, groups=None):
    """Those of some images that a checkpoint was not trained on, nor on another image of the same part.

    Args:
        folder (`str` or `Path`): the checkpoint.
        images (`list[Path]` or `list[HubImage]`): given by a user.
        groups (`dict`, *optional*): the part that each shows.

    Returns:
        `list` or None: of the images, in their order; None where the checkpoint's record cannot tell.

    Raises:
        ValueError: if the record is damaged.
    """
    known = read_image_record(folder)
    if known is None:
        named = _held_out_by_name(folder, images)
        if named is None:
            return None
        tainted = set(images) - named
    else:
        digests = dict(zip(images, digests_of(images, shows_progress=False), strict=True))
        if known.trained_on is None:
            tainted = {image for image in images if digests[image] not in known.held_out}
        else:
            tainted = {image for image in images if digests[image] in known.trained_on}
    parts = set() if groups is None else {groups[image] for image in tainted}
    return [image for image in images if image not in tainted and (groups is None or groups[image] not in parts)]


def leave_out_trained_on(folder, images, groups=None):
    """`not_trained_on`, with a warning of how many are left out; all of them where the record cannot tell."""
    known = read_image_record(folder)
    tells = known is not None and known.trained_on is not None
    kept = not_trained_on(folder, images, groups) if tells else images
    if len(kept) < len(images):
        count = count_of(len(images) - len(kept), "image")
        logger.warning("left out: %s that the model was trained on, or others of the same part", count)
    return kept


def _held_out_by_name(folder, images):
    """Images that an older checkpoint's record names as held out, `set`; None if it names none."""
    held_out = read_record(folder).get("held_out")
    names = list(held_out.values()) if isinstance(held_out, dict) else []
    if not names or not all(isinstance(each, list) for each in names):
        return None
    wanted = {name for each in names for name in each}
    named = [image for image in images if image.name in wanted]
    unique = {name for name in wanted if sum(image.name == name for image in named) == 1}
    return {image for image in named if image.name in unique}


def _as_tensor(digests):
    return torch.tensor([digest for digest in digests if digest is not None], dtype=torch.int64)
