"""Kill commands of this project and see what they leave: what the benchmarks that kill have in common."""

import hashlib
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def two_processes_command(script, *arguments):
    """The command line that runs a script of this project in two processes, as `torchrun` starts them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*torchrun, script, *map(str, arguments)]


def finish(process):
    """Wait for a command (`subprocess.Popen`, its stderr as text) to end; returns what it printed, None if not piped.

    Raises:
        ValueError: with its last words, if it fails.
    """
    printed, words = process.communicate()
    if process.returncode:
        raise ValueError(words.strip().rpartition("\n")[2])
    return printed


def kill_all(process):
    """Kill a command and all processes that it has started, which may be in groups of their own."""
    try:
        doomed = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        doomed = []
    for each in doomed:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()
    psutil.wait_procs(doomed)


def digests_of(folder):
    """SHA-256 of every file below a folder, `dict[str, str]` by its path there."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def compare(expected, found):
    """What is different between two results of `digests_of`, in words; "" if nothing is."""
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return ", ".join(different)
