"""The folder that a command writes to: checked before anything is computed, created when everything else is."""

import os
from pathlib import Path


def check_output_dir(path):
    """Check that the output folder can be created or written to, without creating it.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if it cannot.
    """
    path = Path(path)
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"output_dir {path} cannot be created: {existing} is no folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"output_dir {path} cannot be written to; choose another or change its permissions.")
    return path


def prepare_output_dir(path):
    """Check and create the output folder.

    Raises:
        ValueError: if it cannot be created or written to.
    """
    path = check_output_dir(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {path} cannot be created: {error.strerror}.") from error
    return path
