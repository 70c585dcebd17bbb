"""What a checkpoint says of its run, so that a resumed one goes on with the same images and the same settings.

`checkpoint-N/run.json` holds the settings that may not change, the names of the images of both splits, and the
seconds trained so far. It stays on the machine that trains: nothing of a `checkpoint-N` folder is ever shared.
"""

import json
import logging
from collections import Counter, defaultdict
from pathlib import Path

from training.data.layouts import says_what_it_shows
from training.data.splits import MIN_HELD_OUT, split_key

RUN_RECORD = "run.json"

FIXED_SETTINGS = (
    "init_from",
    "groups",
    "group_column",
    "seed",
    "resolution",
    "rotation_degrees",
    "patch_size",
    "block_out_channels",
    "layers_per_block",
    "feature_extractor",
    "feature_strides",
    "feature_grid",
    "prediction_type",
    "normalize_contrast",
)
"""What weights and the order of images depend on. Rates, loss weights and the number of steps may be changed."""

LONG_KEY = 6
"""Folders and name of a file, counted from its end, that tell it from another with the same name and folder."""

logger = logging.getLogger(__name__)


def describe_run(options, splits, groups, images_per_step):
    """The record of a run, `dict`, but for its seconds.

    Args:
        options (`dict`): those of `training/train.py`.
        splits (`dict[str, tuple[list, list]]`): each category's images to train on and held-out ones.
        groups (`dict[str, dict | None]`): the part that each of them shows.
        images_per_step (`int`): of all processes together.
    """
    return {
        "settings": {name: options[name] for name in FIXED_SETTINGS},
        "pictures_per_step": images_per_step,
        "pictures": {category: _keys_by_side(split) for category, split in splits.items()},
        "groups": {
            category: groups.get(category) and [groups[category][file] for file in held_out]
            for category, (_, held_out) in splits.items()
        },
    }


def run_keys(files):
    """What a run's record knows its images by, `dict`: `split_key`, and where several share it, more of the path."""
    counts = Counter(map(split_key, files))
    is_shared = {file: counts[split_key(file)] > 1 and isinstance(file, Path) for file in files}
    return {file: "/".join(file.parts[-LONG_KEY:]) if is_shared[file] else split_key(file) for file in files}


def _keys_by_side(split):
    keys = run_keys([file for files in split for file in files])
    return [[keys[file] for file in files] for files in split]


def read_run(checkpoint):
    """The record in a checkpoint folder, `dict`.

    Raises:
        ValueError: if there is none that can be read.
    """
    try:
        run = json.loads((checkpoint / RUN_RECORD).read_text())
        if not {"settings", "pictures_per_step", "pictures", "seconds"} <= run.keys():
            raise ValueError("something is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{checkpoint.name} has no readable {RUN_RECORD}; resume from another checkpoint.") from error
    return run


def check_same_settings(checkpoint, run, options, images_per_step):
    """Check that a run may go on from a checkpoint.

    Raises:
        ValueError: naming the first setting that differs.
    """
    for name, former in run["settings"].items():
        if options.get(name) != former:
            raise ValueError(
                f"{checkpoint.name} was trained with --{name} {_words(former)}, not {_words(options.get(name))}; "
                "resume with the same, or train afresh in another --output_dir."
            )
    if images_per_step != run["pictures_per_step"]:
        raise ValueError(
            f"{checkpoint.name} was trained on {run['pictures_per_step']} images a step, not {images_per_step}; "
            "choose processes, --train_batch_size and --gradient_accumulation_steps so that their product stays."
        )


def under_present_names(run, found):
    """A run's record with its only category as it is called now: it was "good" where a folder alone gave its name.

    Args:
        run (`dict`): as in `read_run`.
        found (`dict[str, list]`): what the folders hold now.
    """
    if len(found) > 1 or not all(map(says_what_it_shows, run["pictures"])):
        return run
    present = {name: dict(zip(found, run.get(name, {}).values(), strict=False)) for name in ("pictures", "groups")}
    return run | present


def restore_splits(checkpoint, run, found):
    """The splits that a checkpoint was trained with, for a run that goes on from it.

    An image that was trained on is never held out afterwards, nor the other way round, whatever was added to the
    folder or taken from it: what is gone is left out and what is new is not used, with a warning.

    Args:
        checkpoint (`Path`), run (`dict`): as in `read_run`.
        found (`dict[str, list]`): what the folders hold now.

    Returns:
        `dict[str, tuple[list, list]]`

    Raises:
        ValueError: if the categories are others, or too few of their images are left.
    """
    if list(found) != list(run["pictures"]):
        raise ValueError(
            f"{checkpoint.name} was trained on {', '.join(run['pictures'])}, not {', '.join(found)}; name the same "
            "folders in the same order."
        )
    restored = {}
    for category, files in found.items():
        now = defaultdict(list)
        for file, key in sorted(run_keys(files).items(), reverse=True):
            now[key].append(file)
        former = run["pictures"][category]
        held_out, training = ([now[key].pop() for key in keys if now[key]] for keys in reversed(former))
        if not training or len(held_out) < min(MIN_HELD_OUT, len(former[1])):
            raise ValueError(
                f"only {len(training)} + {len(held_out)} of the {len(former[0])} + {len(former[1])} images that "
                f"{checkpoint.name} trained on and held out are left in {category}; restore them."
            )
        gone = len(former[0]) + len(former[1]) - len(training) - len(held_out)
        new = sum(map(len, now.values()))
        if gone or new:
            logger.warning("%s: since %s %d images are gone, %d are new", category, checkpoint.name, gone, new)
            logger.warning("what is gone is left out, and what is new is not used by a run that is resumed")
        restored[category] = (training, held_out)
    return restored


def restore_groups(run, splits):
    """The part that each held-out image of a resumed run shows, `dict[str, dict | None]`, as `describe_run` noted it.

    Args:
        run (`dict`): as in `read_run`.
        splits (`dict[str, tuple[list, list]]`): as `restore_splits` returned them.
    """
    groups = {}
    for category, (_, held_out) in splits.items():
        noted = run.get("groups", {}).get(category)
        parts = noted and dict(zip(run["pictures"][category][1], noted, strict=True))
        keys = run_keys([*splits[category][0], *held_out])
        groups[category] = parts and {file: parts[keys[file]] for file in held_out}
    return groups


def _words(value):
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
