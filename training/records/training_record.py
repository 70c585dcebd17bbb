"""What a training says of itself in its checkpoint, `training.json`; what is published of it names no image."""

import hashlib
import json
import os
from pathlib import Path

from pipelines.checkpoint_names import TRAINING_RECORD
from pipelines.checkpoint_reading import read_json

MEASURED = ("training_seconds", "peak_memory_gb", "precision")
"""What the record says of the run itself."""


def settings_to_record(options):
    """What of a training's options others may read, `dict`: no folders of this machine, no token."""
    hidden = ("config", "hub_token", "hub_model_id", "hub_private_repo", "push_to_hub")
    settings = {name: value for name, value in options.items() if not name.endswith("_dir") and name not in hidden}
    if settings.get("groups") is not None and Path(settings["groups"]).is_file():
        settings["groups"] = Path(settings["groups"]).name
    return settings


def write_record(folder, settings, training_seconds, peak_memory_gb, held_out, precision=None):
    """Leave the record in a checkpoint.

    Args:
        folder (`str` or `Path`): the checkpoint.
        settings (`dict`): as `settings_to_record` gives them.
        training_seconds, peak_memory_gb (`float`, *optional*): None where they were not measured.
        held_out (`dict[str, list]`): each category's images that calibrate it.
        precision (`str`, *optional*): what the network computed in, such as "bfloat16".
    """
    record = {
        "settings": settings,
        "training_seconds": training_seconds,
        "peak_memory_gb": peak_memory_gb,
        "precision": precision,
        "held_out": {name: [path.name for path in files] for name, files in held_out.items()},
    }
    (Path(folder) / TRAINING_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def read_record(folder):
    """The content of a checkpoint's record; {} where there is none that can be read."""
    path = Path(folder) / TRAINING_RECORD
    try:
        return read_json(path)
    except (ValueError, OSError):
        return {}


def publishable_record(record):
    """What of a record others may read, `dict`: of held-out images their number and a hash of all their names.

    The split follows from names and seed alone (`data.splits.hold_out`), so that whoever has the images finds it
    again, and sees by the hash whether it is the same.
    """
    shared = {name: record[name] for name in MEASURED if name in record}
    if isinstance(record.get("settings"), dict):
        hidden = ("resume_from_checkpoint", "init_from")  # may be folders of this machine
        shared["settings"] = {name: value for name, value in record["settings"].items() if name not in hidden}
    if isinstance(record.get("held_out"), dict):
        shared["held_out"] = {name: _without_names(names) for name, names in record["held_out"].items()}
    return shared


def hash_names(names):
    """SHA-256 of file names, in whatever order they come, as hexadecimal digits."""
    return hashlib.sha256(os.fsencode("\n".join(sorted(names)))).hexdigest()


def _without_names(names):
    if isinstance(names, list):
        return {"pictures": len(names), "sha256": hash_names(map(str, names))}
    names = names if isinstance(names, dict) else {}
    return {key: names.get(key) for key in ("pictures", "sha256")}  # of a record that was published before
