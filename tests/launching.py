"""Start the training command as a user does, through `accelerate launch`, with a network small enough to wait for."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.killing import two_processes_command

NETWORK = ["--resolution", "64", "--patch_size", "4", "--feature_grid", "16", "--dataloader_num_workers", "0"]
NETWORK += ["--mixed_precision", "no", "--groups", "none"]  # several of the few tiles are the same under other light
TINY = [*NETWORK, "--block_out_channels", "32", "32", "--train_batch_size", "4", "--lr_warmup_steps", "2"]
TWELVE_STEPS = [*TINY, "--max_train_steps", "12", "--checkpointing_steps", "2"]


def launch_command(*arguments, quiet=False):
    quiet = ["--quiet"] if quiet else []
    return [sys.executable, "-m", "accelerate.commands.launch", *quiet, "training/train.py", *map(str, arguments)]


def run_in_two_processes(environment, script, *arguments):
    """Run a command of this project in two processes, as `torchrun` starts them on a machine without a GPU."""
    return run(two_processes_command(script, *arguments), environment)


def stay_on_one_core():
    """Networks this small gain nothing from a second thread, and wait long for it where the machine is busy."""
    if hasattr(os, "sched_setaffinity"):  # macOS has none
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def launch(environment, *arguments, quiet=False):
    return run(launch_command(*arguments, quiet=quiet), environment)


def run(command, environment):
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        preexec_fn=stay_on_one_core,
        capture_output=True,
        text=True,
        timeout=600,
    )


@contextmanager
def started(environment, *arguments, command=launch_command):
    """A training in a process group of its own, which is killed at the end of the block; yields its `Popen`."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment,
        preexec_fn=stay_on_one_core,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(reached, process):
    """Wait until `reached()` is true of a run that `started` yields; it must not end before."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, f"the run ended too soon: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
