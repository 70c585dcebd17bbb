"""The command that trains a checkpoint again: images, the nearest preset, every setting that differs from it."""

import shlex

from pipelines.checkpoint_loading import is_hub_id
from rendering.words import one_line
from training.cli.arguments import parse_args
from training.cli.presets import PRESETS

MAX_LISTED = 200
"""Folders, or values of a setting, that a command lists."""

UNSTATED = ("resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers")
UNSTATED += ("report_to", "logging_dir", "preset", "alpha", "dataset_name", "config", "train_data_dir", "output_dir")
UNSTATED += ("validation_steps", "report")
"""Settings that do not change what is trained, or are named apart."""


def repeat_command(settings, folders, output_dir="OUT"):
    """A command for a shell, over several lines; whatever the settings hold is quoted.

    Args:
        settings (`dict`): as `training.json` records them, perhaps by somebody else.
        folders (`list[str]`): of good images; a data set that the settings name stands instead of them.
        output_dir (`str`): where the checkpoint goes.

    Returns:
        `str`
    """
    changed = {preset: list(_changed_settings(settings, preset)) for preset in PRESETS}
    preset = min(
        PRESETS,
        key=lambda name: (_num_unsaid(settings, name), len(changed[name]), name != settings.get("preset")),
    )
    data_set = data_set_of(settings)
    source = ["--dataset_name", data_set] if data_set else ["--train_data_dir", *folders[:MAX_LISTED]]
    first = ["accelerate", "launch", "training/train.py", "--preset", preset, *source, "--output_dir", output_dir]
    lines = [first, *([f"--{name}", *values] for name, values in changed[preset])]
    return " \\\n    ".join(shlex.join(one_line(word) for word in line) for line in lines)


def data_set_of(settings):
    """Hub id of the data set that settings name; None if it was trained on folders."""
    name = settings.get("dataset_name") if isinstance(settings, dict) else None
    return name if isinstance(name, str) and is_hub_id(name) else None


def _defaults(preset):
    """Name and default of every setting that a command states."""
    defaults = vars(parse_args(["--preset", preset, "--train_data_dir", "X", "--output_dir", "X"]))
    for name, default in defaults.items():
        if name not in UNSTATED and not name.startswith(("hub_", "push_to_")):
            yield name, default


def _num_unsaid(settings, preset):
    """How many settings are nothing where the preset has something, which no option can say."""
    return sum(default is not None and settings.get(name, default) is None for name, default in _defaults(preset))


def _changed_settings(settings, preset):
    """Name and values of every known setting that differs from the preset's default."""
    if settings.get("alpha") is not None:
        yield "alpha", [settings["alpha"]]
    for name, default in _defaults(preset):
        value = settings.get(name, default)
        if value in (default, None):
            continue
        if isinstance(default, bool):
            yield (name if value else f"no-{name}"), []
        else:
            yield name, value[:MAX_LISTED] if isinstance(value, list) else [value]
