"""Speed of scoring a folder on one and two processes, and whether runs that are killed end as undisturbed ones.

    python benchmarks/inspecting.py --model CKPT --input_dir FOLDER --images 512 --kills 20

The folder's images, repeated, are scored by `training/score_folder.py` itself: by one process with one thread, by one
with two, by two with one each. What it prints of its speed is the table. Each kill then comes at a random moment within
0.9 of the time of a run in two processes, every second time once a file is being written from then on; it takes all
processes, or one of the two. The run is resumed, in turn by two processes and by one with as many threads; every file
that it leaves must hold the very bytes of the undisturbed run's. Ends with exit status 1 if one does not.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from tqdm.auto import tqdm

from benchmarks.interrupted_runs import ROOT, compare, digests_of, finish, kill_all, two_processes_command
from training.data.image_folders import find_images
from training.inference.scored_chunks import CHUNKS
from training.runtime.whole_files import PARTIAL

SCRIPT = "training/score_folder.py"
SETUPS = ((1, 1), (1, 2), (2, 2))
"""Processes, and threads of all of them together."""

MOMENTS = 0.9
LOOK_EVERY = 0.001


def repeat_images(input_dir, folder, count):
    """Fill a new folder with links to the images of another, so many that there are `count`."""
    folder.mkdir()
    for number, path in enumerate(islice(cycle(find_images(input_dir)), count)):
        (folder / f"{number:07}{path.suffix}").symlink_to(path.resolve())


def start(processes, threads, *arguments):
    """Start scoring in one or two processes, on as many cores as there are threads in all; returns the `Popen`."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.Popen(
        command if processes == 1 else two_processes_command(SCRIPT, *arguments),
        cwd=ROOT,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measure(options, folder):
    """Print a row for each of `SETUPS` that has its cores: images a second, and against the first."""
    print("| processes | threads | images/s | a core | × the first |\n| --- | --- | --- | --- | --- |")
    first = None
    for processes, threads in SETUPS:
        if threads > len(os.sched_getaffinity(0)):
            print(f"| {processes} | {threads} | there are fewer cores | | |")
            continue
        printed = finish(start(processes, threads, *options, "--output_dir", folder / f"{processes}-{threads}"))
        speed = float(re.search(r"(\S+) images a second", printed).group(1))
        first = first or speed
        print(f"| {processes} | {threads} | {speed:.2f} | {speed / threads:.2f} | {speed / first:.2f} |", flush=True)


def kill(process, output_dir, delay, while_writing, takes_all):
    """Kill all processes of a run, or one of the two, `delay` seconds from now; returns what happened, in words."""
    time.sleep(delay)
    while while_writing and process.poll() is None and not any((output_dir / CHUNKS).glob(f".*{PARTIAL}")):
        time.sleep(LOOK_EVERY)
    if process.poll() is not None:
        process.communicate()
        return "it had ended"
    finished = len(list((output_dir / CHUNKS).glob("part-*")))
    scoring = psutil.Process(process.pid).children()
    if takes_all or not scoring:
        kill_all(process)
        return f"all killed, {finished} parts finished"
    random.choice(scoring).kill()
    process.communicate()
    return f"one killed, {finished} parts finished"


def kill_and_resume(options, folder, kills, seed):
    """Print a row for each kill; returns how many runs ended with other bytes than the undisturbed one."""
    random.seed(seed)
    began = time.perf_counter()
    finish(start(2, 2, *options, "--output_dir", folder / "whole"))
    seconds = time.perf_counter() - began
    expected = digests_of(folder / "whole")
    print(f"undisturbed: {seconds:.0f} s, {len(expected)} files compared")
    print("| kill | after | while writing | what happened | resumed by | end |\n" + "| --- " * 6 + "|")
    failed = 0
    for number in tqdm(range(kills), desc="kills"):
        output_dir, delay = folder / str(number), random.uniform(0, MOMENTS * seconds)
        while_writing, takes_all, processes = number % 2 == 1, number % 4 < 2, 1 + number % 3 % 2
        process = start(2, 2, *options, "--output_dir", output_dir)
        happened = kill(process, output_dir, delay, while_writing, takes_all)
        try:
            finish(start(processes, processes, *options, "--output_dir", output_dir))
            outcome = compare(expected, digests_of(output_dir)) or "identical"
        except ValueError as error:
            outcome = f"failed: {error}"
        failed += outcome != "identical"
        row = (number + 1, f"{delay:.1f} s", "yes" if while_writing else "", happened, processes, outcome)
        tqdm.write("| " + " | ".join(map(str, row)) + " |")
    print(f"{kills - failed} of {kills} resumed runs ended with the very bytes of the undisturbed one")
    return failed


def main():
    """Measure, kill, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/magnetic-tile", help="checkpoint folder")
    parser.add_argument("--input_dir", default="tests/fixtures/magnetic_tile", help="folder tree of images")
    parser.add_argument("--images", type=int, default=512, help="how many are scored")
    parser.add_argument("--part_size", type=int, default=32, help="images that are written at once")
    parser.add_argument("--no_speed", action="store_true", help="only kill")
    parser.add_argument("--kills", type=int, default=0, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        repeat_images(args.input_dir, folder / "pictures", args.images)
        options = ["--model", args.model, "--input_dir", folder / "pictures", "--part_size", args.part_size]
        if not args.no_speed:
            measure(options, folder)
        failed = kill_and_resume(options, folder, args.kills, args.seed) if args.kills else 0
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
