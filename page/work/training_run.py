"""One training in a process of its own: started like any other, watched by the file it writes, stopped, bounded."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

from page.server.settings import ROOT
from pipelines.checkpoint_names import MODEL_INDEX
from training.records.progress import loss_curve, read_progress, separation_curve

CHECKPOINTING_STEPS = 100
GRACE_SECONDS = 120
"""A training that is asked to end finishes its step and writes a checkpoint; after so long it is ended all the same."""

LOOK_EVERY = 0.2
NICENESS = 10
"""Users' images go first."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training stands.

    Args:
        state (`str`): "running", "finished", "stopped" or "failed".
        phase (`str`): "preparing", and then those of `training.records.progress`.
        step, max_steps (`int`): optimizer steps done and asked for.
        seconds (`float`): since it was started.
        seconds_left (`float`, *optional*): of the steps, and after them of all that follows; None while nobody can
            tell.
        seconds_after (`float`, *optional*): an estimate of what follows the steps, while they are taken.
        seconds_to_limit (`float`, *optional*): after so long it is stopped.
        images_per_second (`float`, *optional*): while it trains.
        message (`str`): why it stopped or failed, in a sentence; else "".
    """

    state: str
    phase: str
    step: int
    max_steps: int
    seconds: float
    seconds_left: float | None = None
    seconds_after: float | None = None
    seconds_to_limit: float | None = None
    images_per_second: float | None = None
    message: str = ""


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be trained: a preset, its number of steps, and what else the server says to `training/train.py`."""

    preset: str
    steps: int
    options: tuple = field(default=())


class TrainingRun:
    """Starts `training/train.py` through `accelerate launch`, from its last checkpoint if there is one.

    Args:
        name (`str`): of the model.
        images (`Path`): folder of good images.
        output (`Path`): where the checkpoint goes.
        request (`TrainingRequest`): what is trained.
        max_minutes (`int`): it is stopped after so long.
        when_ended (`Callable[[TrainingRun, str], None]`): called once, in a thread of the run, with it and its state,
            before anyone is told of the end; raises where the result cannot be used.
        left_out (`list[str]`): sentences on images that are not trained on.
    """

    def __init__(self, name, images, output, request, max_minutes, when_ended, left_out=()):
        self.name, self.output, self.left_out = name, output, list(left_out)
        self._request, self._max_minutes, self._when_ended = request, max_minutes, when_ended
        self._asked, self._too_long, self._ended = threading.Event(), False, threading.Event()
        self._state, self._message, self._seconds = "running", "", 0.0
        self._lines_before = len(read_progress(output))
        self._began = time.monotonic()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command(images),
            cwd=ROOT,
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        self._thread = threading.Thread(target=self._attend, daemon=True)
        self._thread.start()

    @property
    def is_running(self):
        """Whether it has not ended yet, nor what follows its end."""
        return not self._ended.is_set()

    @property
    def is_stopping(self):
        """Whether it was asked to end."""
        return self._asked.is_set()

    def stop(self):
        """Ask it to end; it writes a checkpoint first, from which it can be resumed. Returns at once."""
        self._asked.set()

    def moved(self, output):
        """Learn that what came of it lies elsewhere (`Path`), and is called after that."""
        self.name, self.output = output.name, output

    def wait(self, seconds=None):
        """Wait for its end, at most so long. Returns whether it has ended."""
        return self._ended.wait(seconds)

    def status(self):
        """Where it stands, `TrainingStatus`."""
        ended = self._ended.is_set()
        seconds = self._seconds if ended else time.monotonic() - self._began
        last = (self._lines() or [{"phase": "preparing", "step": 0, "max_steps": self._request.steps}])[-1]
        return TrainingStatus(
            self._state if ended else "running",
            last["phase"],
            last["step"],
            last["max_steps"],
            seconds,
            last.get("seconds_left"),
            last.get("seconds_after"),
            None if ended else 60 * self._max_minutes - seconds,
            last.get("images_per_second"),
            self._message if ended else "",
        )

    def curves(self):
        """`loss_curve` and `separation_curve` (`training.records.progress`) of the steps so far, a pair."""
        entries = read_progress(self.output)
        return loss_curve(entries), separation_curve(entries)

    def _command(self, images):
        arguments = {
            "train_data_dir": images,
            "output_dir": self.output,
            "preset": self._request.preset,
            "max_train_steps": self._request.steps,
            "checkpointing_steps": CHECKPOINTING_STEPS,
            "checkpoints_total_limit": 1,
            "resume_from_checkpoint": "latest",
        }
        options = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "training/train.py"]
        return [*launcher, *options, "--report", *self._request.options]

    def _lines(self):
        """What this process, and none before it, has said of its progress."""
        return read_progress(self.output)[self._lines_before :]

    def _attend(self):
        signalled = None
        while self._process.poll() is None:
            now = time.monotonic()
            if now - self._began > 60 * self._max_minutes and not self._asked.is_set():
                self._too_long = True
                self._asked.set()
            if self._asked.is_set() and signalled is None:
                signalled = now
                self._ask_to_end()
            if signalled is not None and now - signalled > GRACE_SECONDS:
                os.killpg(self._process.pid, signal.SIGKILL)
            time.sleep(LOOK_EVERY)
        self._conclude()

    def _ask_to_end(self):
        """SIGTERM to the training itself: its launcher, which waits for it, ends after it."""
        lines = self._lines()
        try:
            if lines and os.getpgid(lines[-1]["pid"]) == self._process.pid:
                os.kill(lines[-1]["pid"], signal.SIGTERM)
            else:
                os.killpg(self._process.pid, signal.SIGTERM)
        except ProcessLookupError:  # it has just ended by itself
            return

    def _conclude(self):
        state, message = self._outcome()
        try:
            self._when_ended(self, state)
        except Exception as error:
            logger.exception("what was trained as %s cannot be used", self.name)
            state, message = "failed", str(error) if isinstance(error, ValueError) else "The result cannot be used."
        self._said.close()
        self._seconds = time.monotonic() - self._began
        self._state, self._message = state, message
        self._ended.set()

    def _outcome(self):
        if self._process.returncode == 0 and (self.output / MODEL_INDEX).is_file():
            return "finished", ""
        if self._too_long:
            return "stopped", f"The limit of {self._max_minutes} minutes was reached."
        if self._asked.is_set():
            return "stopped", ""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        logger.error("training %s failed:\n%s", self.name, "\n".join(lines[-30:]))
        reasons = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
        return "failed", reasons[-1] if reasons else "The training broke off; the server's log says where."
