"""Kill a training with SIGKILL again and again, resume it, and compare its end with that of an uninterrupted run.

    python benchmarks/kills.py tests/fixtures/magnetic_tile --kills 20

Half of the kills come at a random moment, the others in turn while a checkpoint is being written, while features of
good parts are collected, during the calibration and during the final save. The network is small, so that a run takes
seconds; what is killed is the same code. Prints a row for each kill; ends with exit status 1 unless every resumed run
has ended with the very bytes of the uninterrupted one.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm.auto import tqdm

from benchmarks.interrupted_runs import ROOT, compare, digests_of, finish
from pipelines.checkpoint_names import SAVING, TRAINING_RECORD
from training.engine.checkpointing import PREFIX
from training.records.checkpoint_contents import REPORT
from training.records.progress import PROGRESS, read_progress
from training.runtime.whole_files import PARTIAL

SETTINGS = ["--resolution", "64", "--patch_size", "4", "--feature_grid", "16", "--block_out_channels", "32", "32"]
SETTINGS += ["--train_batch_size", "4", "--max_train_steps", "12", "--checkpointing_steps", "2"]
SETTINGS += ["--lr_warmup_steps", "2", "--dataloader_num_workers", "1", "--mixed_precision", "no"]
UNCOMPARED = (TRAINING_RECORD, PROGRESS, REPORT)
"""Seconds and memory differ from run to run; settings and held-out images of the record are compared."""

MOMENTS = ("a checkpoint is written", "references", "calibration", "the final save")
LOOK_EVERY = 0.001


def start(data_dir, output_dir):
    """Start a training, which resumes from its last checkpoint if there is one, in a process group of its own."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "training/train.py", *SETTINGS]
    command += [
        "--train_data_dir",
        str(data_dir),
        "--output_dir",
        str(output_dir),
        "--resume_from_checkpoint",
        "latest",
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True
    )


def has_come(moment, output_dir):
    """Whether a training has reached one of `MOMENTS`."""
    if moment == MOMENTS[0]:
        return any(output_dir.glob(f".{PREFIX}*{PARTIAL}"))
    if moment == MOMENTS[3]:
        return any(output_dir.glob(f"{SAVING}*"))
    lines = read_progress(output_dir)
    return bool(lines) and lines[-1]["phase"] == moment


def kill(process, moment, output_dir, delay):
    """Kill a training `delay` seconds after a moment has come, or after its start if `moment` is None.

    Returns:
        `str`: where it was then, "" if it had ended before.
    """
    while moment is not None and not has_come(moment, output_dir):
        if process.poll() is not None:
            return ""
        time.sleep(LOOK_EVERY)
    time.sleep(delay)
    if process.poll() is not None:
        return ""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    lines = read_progress(output_dir)
    return f"{lines[-1]['phase']}, step {lines[-1]['step']}" if lines else "before its first step"


def fingerprint(output_dir):
    """Digest of every file of a finished checkpoint, `dict[str, str]`, and of what its record says of the run."""
    digests = {
        name: digest
        for name, digest in digests_of(output_dir).items()
        if name not in UNCOMPARED and not name.startswith(PREFIX)
    }
    record = json.loads((output_dir / TRAINING_RECORD).read_text())
    return digests | {"record": json.dumps({key: record[key] for key in ("settings", "held_out")})}


def kill_and_resume(data_dir, output_dir, moment, random_state, seconds, expected):
    """One row: moment, where the run was, checkpoint it went on from, outcome."""
    process = start(data_dir, output_dir)
    delay = random_state.uniform(0, seconds) if moment is None else random_state.uniform(0, 0.05)
    where = kill(process, moment, output_dir, delay)
    folders = sorted(int(path.name.removeprefix(PREFIX)) for path in output_dir.glob(f"{PREFIX}*"))
    if not where:
        return (
            moment or "random",
            "it had ended",
            folders[-1],
            compare(expected, fingerprint(output_dir)) or "identical",
        )
    try:
        finish(start(data_dir, output_dir))
        outcome = compare(expected, fingerprint(output_dir)) or "identical"
    except ValueError as error:
        outcome = f"failed: {error}"
    return moment or "random", where or "it had ended", folders[-1] if folders else 0, outcome


def main():
    """Run, kill, resume, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data_dir", help="folder of good images, or a category in MVTec-AD layout")
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    args = parser.parse_args()
    random_state, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        whole = Path(folder) / "whole"
        finish(start(args.data_dir, whole))
        seconds = time.perf_counter() - began
        expected = fingerprint(whole)
        print(f"uninterrupted: {seconds:.0f} s, {len(expected)} files compared")
        print("| kill | moment | it was at | resumed from step | end |\n| --- | --- | --- | --- | --- |")
        for number in tqdm(range(args.kills), desc="kills"):
            moment = None if number % 2 else MOMENTS[number // 2 % len(MOMENTS)]
            row = kill_and_resume(args.data_dir, Path(folder) / str(number), moment, random_state, seconds, expected)
            rows.append(row)
            tqdm.write(f"| {number + 1} | " + " | ".join(map(str, row)) + " |")
    identical = sum(row[-1] == "identical" for row in rows)
    print(f"{identical} of {len(rows)} resumed runs ended with the very bytes of the uninterrupted one")
    sys.exit(identical != len(rows))


if __name__ == "__main__":
    main()
