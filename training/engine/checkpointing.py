"""Checkpoints of a run under way: written beside their final name and renamed, so that none is ever half there."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from pipelines.checkpoint_names import SAVING
from training.data.run_record import RUN_RECORD, read_run
from training.engine.training_state import check_state, save_state, save_statistics
from training.runtime.whole_files import PARTIAL

PREFIX = "checkpoint-"


def clear_leftovers(output_dir):
    """Delete what a training that was killed has left half written in its folder."""
    for pattern in (f".{PREFIX}*{PARTIAL}*", f"{SAVING}*"):
        for leftover in output_dir.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class FormerRun:
    """What a run goes on from; of one that starts afresh, nothing.

    Args:
        checkpoint (`Path`, *optional*): folder of its state.
        record (`dict`, *optional*): what that says of the run (`run_record.py`).
    """

    checkpoint: Path | None = None
    record: dict | None = None

    @property
    def step(self):
        """Optimizer steps that are done."""
        return step_of(self.checkpoint)

    @property
    def seconds(self):
        """Spent in them."""
        return self.record["seconds"] if self.record else 0.0


def find_former_run(output_dir, resume_from_checkpoint, max_train_steps):
    """The `FormerRun` that a run is to go on from.

    Raises:
        ValueError: if there is none of that name, its files are not whole, or it is beyond `max_train_steps`.
    """
    checkpoint = find_checkpoint(output_dir, resume_from_checkpoint)
    if checkpoint is None:
        return FormerRun()
    if step_of(checkpoint) > max_train_steps:
        raise ValueError(
            f"{checkpoint.name} is beyond --max_train_steps {max_train_steps}; ask for at least as many steps."
        )
    check_state(checkpoint)
    return FormerRun(checkpoint, read_run(checkpoint))


class RunKeeper:
    """Saves the state of a run, and counts its seconds, those of former runs included.

    Args:
        accelerator (`Accelerator`), output_dir (`Path`): of the run.
        total_limit (`int`): checkpoints that are kept.
        record (`dict`): the run's, but for its seconds.
        statistics (`DataStatistics`): what the training started from.
        trained (`Trained`): what is saved.
        seconds_before (`float`): of former runs.
    """

    def __init__(self, accelerator, output_dir, total_limit, record, statistics, trained, seconds_before):
        self._accelerator, self._output_dir, self._total_limit = accelerator, output_dir, total_limit
        self._record, self._statistics, self._trained = record, statistics, trained
        self._seconds_before, self._began = seconds_before, time.perf_counter()

    @property
    def seconds_here(self):
        """Of this run, so far."""
        return time.perf_counter() - self._began

    @property
    def seconds(self):
        """Of all runs that led here, to a tenth."""
        return round(self._seconds_before + self.seconds_here, 1)

    def save(self, step):
        """Save the state after a step; every process has to call it."""
        record = self._record | {"seconds": self.seconds}
        save_run(self._accelerator, self._output_dir, step, self._total_limit, record, self._statistics, *self._trained)


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
