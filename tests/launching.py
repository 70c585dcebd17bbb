"""Start the training command as a user does, through `accelerate launch`, with a network small enough to wait for."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ["--resolution", "64", "--patch_size", "4", "--feature_grid", "16", "--dataloader_num_workers", "0"]
NETWORK += ["--mixed_precision", "no"]
TINY = [*NETWORK, "--block_out_channels", "32", "32", "--train_batch_size", "4", "--lr_warmup_steps", "2"]


def launch_command(*arguments, quiet=False):
    quiet = ["--quiet"] if quiet else []
    return [sys.executable, "-m", "accelerate.commands.launch", *quiet, "training/train.py", *map(str, arguments)]


def stay_on_one_core():
    """Networks this small gain nothing from a second thread, and wait long for it where the machine is busy."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def launch(environment, *arguments, quiet=False):
    return subprocess.run(
        launch_command(*arguments, quiet=quiet),
        cwd=ROOT,
        env=environment,
        preexec_fn=stay_on_one_core,
        capture_output=True,
        text=True,
        timeout=600,
    )
