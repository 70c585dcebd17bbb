"""Checkpoints of a run under way: written beside their final name and renamed, so that none is ever half there."""

import os
import shutil
from pathlib import Path

from training.training_state import save_state

PREFIX = "checkpoint-"


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


def find_checkpoint(output_dir, resume_from_checkpoint):
    """The folder to resume from, or None to start afresh.

    Args:
        output_dir (`Path`): where checkpoints lie.
        resume_from_checkpoint (`str`, *optional*): a folder's name or path, or "latest" (None if there is none yet).

    Raises:
        ValueError: if the named checkpoint does not exist.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        checkpoints = _list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    for folder in (Path(resume_from_checkpoint), output_dir / resume_from_checkpoint):
        if folder.is_dir() and _is_checkpoint(folder):
            return folder
    raise ValueError(
        f"there is no checkpoint {resume_from_checkpoint}; --resume_from_checkpoint latest finds the last."
    )


def step_of(checkpoint):
    """The optimizer step that a checkpoint folder was saved after; 0 for None."""
    return int(checkpoint.name.removeprefix(PREFIX)) if checkpoint else 0


def save_checkpoint(accelerator, output_dir, step, total_limit, *trained):
    """Write everything a resumed run needs and drop the oldest checkpoints beyond `total_limit`.

    Args:
        accelerator (`Accelerator`), output_dir (`Path`), step (`int`): of the run.
        total_limit (`int`): checkpoints that are kept.
        *trained: UNet, optimizer, learning rate's schedule and average, as `training_state.save_state` takes them.
    """
    target = output_dir / f"{PREFIX}{step}"
    partial = output_dir / f".{target.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_state(partial, accelerator, *trained)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in _list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _list_checkpoints(output_dir):
    return sorted(filter(_is_checkpoint, output_dir.glob(f"{PREFIX}*")), key=step_of)


def _is_checkpoint(path):
    return path.name.startswith(PREFIX) and path.name.removeprefix(PREFIX).isdecimal()
