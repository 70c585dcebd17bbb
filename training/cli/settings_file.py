"""Settings of a training from a YAML or JSON file, as if they stood on the command line before its own options."""

import argparse
import json
from pathlib import Path

import yaml


def read_settings(path):
    """The settings in a file: option names without their dashes, to values.

    A finished checkpoint's `training.json` is taken too: its `settings` are read.

    Args:
        path (`str` or `Path`): YAML, or JSON, which is YAML as well.

    Returns:
        `dict`

    Raises:
        ValueError: if it cannot be read, or holds no mapping of names to plain values or lists of them.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    try:
        settings = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}.") from error
    if isinstance(settings, dict) and isinstance(settings.get("settings"), dict):
        settings = settings["settings"]
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; write lines such as 'max_train_steps: 2000'.")
    for name, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str | int | float | bool | None):
                raise ValueError(f"{path} gives {name} a value that is neither text nor a number nor a list of these.")
    return settings


def as_arguments(settings, parser, path):
    """Settings as words of a command line.

    Args:
        settings (`dict`): as `read_settings` gives them; None stands for the default.
        parser (`argparse.ArgumentParser`): knows the options.
        path (`str` or `Path`): of the file, for errors.

    Returns:
        `list[str]`

    Raises:
        ValueError: for a name that is no option, or a switch that is neither true nor false.
    """
    options = {action.dest: action for action in parser._actions if action.option_strings}
    words = []
    for name, value in settings.items():
        action = options.get(name)
        if action is None or name in ("help", "config"):
            raise ValueError(f"{path} names {name}, which is no setting; --help lists them.")
        if value is None:
            continue
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise ValueError(f"{path} sets {name} to {value!r}; it is true or false.")
            if value:
                words.append(f"--{name}")
            elif isinstance(action, argparse.BooleanOptionalAction):
                words.append(f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words
