"""Checkpoints of a run under way: written beside their final name and renamed, so that none is ever half there."""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from pipelines.checkpoint_files import SAVING
from training.data.run_record import RUN_RECORD
from training.engine.training_state import save_state, save_statistics
from training.runtime.whole_files import PARTIAL

PREFIX = "checkpoint-"


def clear_leftovers(output_dir):
    """Delete what a training that was killed has left half written in its folder."""
    for pattern in (f".{PREFIX}*{PARTIAL}*", f"{SAVING}*"):
        for leftover in output_dir.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


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


def save_run(accelerator, output_dir, step, total_limit, run, statistics, *trained):
    """Write everything a resumed run needs and drop the oldest checkpoints beyond `total_limit`.

    Args:
        accelerator (`Accelerator`), output_dir (`Path`), step (`int`): of the run.
        total_limit (`int`): checkpoints that are kept.
        run (`dict`): the run's record (`run_record.py`).
        statistics (`DataStatistics`): what the training started from.
        *trained: UNet, optimizer, learning rate's schedule and average, as `training_state.save_state` takes them.

    Raises:
        ValueError: if it cannot be written; what was written before stays.
    """
    target = output_dir / f"{PREFIX}{step}"
    partial = output_dir / f".{target.name}{PARTIAL}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            save_state(partial, accelerator, *trained)
            save_statistics(partial, statistics)
            (partial / RUN_RECORD).write_text(json.dumps(run))
            _flush(partial)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = os.strerror(error.errno) if getattr(error, "errno", None) else str(error).splitlines()[0]
            raise ValueError(
                f"{target} cannot be written ({reason}); make room, then go on with --resume_from_checkpoint latest."
            ) from error
        _remove(target)
        partial.rename(target)
        for old in _list_checkpoints(output_dir)[:-total_limit]:
            _remove(old)
    accelerator.wait_for_everyone()


def _flush(folder):
    """Have the system write a folder's files to disk before it gets its name, for a machine that loses power."""
    for path in folder.iterdir():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def _remove(folder):
    """Delete a folder; one that is half deleted when the process is killed has no checkpoint's name any more."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}{PARTIAL}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _list_checkpoints(output_dir):
    return sorted(filter(_is_checkpoint, output_dir.glob(f"{PREFIX}*")), key=step_of)


def _is_checkpoint(path):
    return path.name.startswith(PREFIX) and path.name.removeprefix(PREFIX).isdecimal()
