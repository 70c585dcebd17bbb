"""Start commands as a user does, with networks small enough to wait for, or from a process that is prepared for it."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from paths import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.interrupted_runs import two_processes_command

SECONDS = 600
"""A command that has not ended after so long is killed."""

NETWORK = ["--resolution", "64", "--patch_size", "4", "--feature_grid", "16", "--dataloader_num_workers", "0"]
NETWORK += ["--mixed_precision", "no", "--groups", "none"]  # several of the few tiles are the same under other light
TINY = [
    *NETWORK,
    "--no-report",
    "--block_out_channels",
    "32",
    "32",
    "--train_batch_size",
    "4",
    "--lr_warmup_steps",
    "2",
]
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
        timeout=SECONDS,
    )


def train(environment, *arguments, num_processes=1):
    """Run the training command without `accelerate launch`, which takes as long as such a training to start."""
    return run_script(environment, "training/train.py", *arguments, num_processes=num_processes)


def run_script(environment, script, *arguments, num_processes=1):
    """Run a command of this project in processes that begin with the libraries imported; see `PreparedProcess`."""
    return _prepared_process(tuple(sorted(environment.items()))).run(script, arguments, num_processes)


PREPARED = """
import json, os, runpy, signal, sys
sys.path.insert(0, os.path.abspath("training"))
import accelerate, numpy, pandas, PIL.Image, safetensors.torch, scipy.ndimage, scipy.stats, sklearn.metrics, timm, torch
from diffusers import DDPMScheduler, UNet2DModel, optimization, training_utils
for line in sys.stdin:
    order, children = json.loads(line), set()
    for own in order["environments"]:
        child = os.fork()
        if child == 0:
            break
        children.add(child)
    if child == 0:
        break
    first = 0
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status and not first:
            first = status
            for other in children:
                os.kill(other, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(first), flush=True)
else:
    sys.exit()
for number, name in enumerate((os.devnull, order["stdout"], order["stderr"])):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY), number)
os.environ.update(own)
sys.argv = [order["script"], *order["arguments"]]
runpy.run_path(order["script"], run_name="__main__")
"""


class PreparedProcess:
    """Imports the libraries once and is forked for each command: importing takes as long as a tiny training.

    Args:
        environment (`dict`): of all commands, since libraries read some of it when they are imported.
    """

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PREPARED],
            cwd=ROOT,
            env=environment,
            preexec_fn=stay_on_one_core,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self._process.kill)

    def run(self, script, arguments, num_processes=1):
        """Run a script to its end, by several processes as `torchrun` does; a `subprocess.CompletedProcess`."""
        arguments = [*map(str, arguments)]
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder, name)) for name in ("stdout", "stderr")}
            order = files | {"script": script, "arguments": arguments, "environments": _of_ranks(num_processes)}
            print(json.dumps(order), file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], SECONDS)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([script, *arguments], SECONDS)
            status = int(self._process.stdout.readline())
            said = {name: Path(file).read_text() for name, file in files.items()}
        return subprocess.CompletedProcess([script, *arguments], status, **said)


def _of_ranks(num_processes):
    """What `torchrun` adds to the environment of each process."""
    if num_processes == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as server:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


@cache
def _prepared_process(environment):
    return PreparedProcess(dict(environment))


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
