"""Where the time of a training step goes, against the floor: the UNet's forward and backward alone.

    python benchmarks/training.py CATEGORY --steps 40

Runs `training/train.py` itself, its functions timed from outside, and stops it before it calibrates; the first steps,
which warm up, are left out. Other options are handed on to it: `--preset paper`, `--mixed_precision no`. On a GPU every
timed part waits for its kernels, which makes the whole a little slower than an untimed run; that run's speed is
printed too.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from pipelines.feature_extraction import TimmFeatureExtractor
from training import train as training
from training.cli.arguments import parse_args
from training.data.layouts import find_good_images
from training.engine import training_step
from training.engine.losses import DenoisingLoss
from training.engine.settings import TrainingSettings
from training.runtime.process import keep_large_buffers, peak_memory_gb

WARM_UP = 5
"""Steps that are not counted."""

PARTS = {
    "data": (training, "read_batches"),
    "features": (TimmFeatureExtractor, "forward"),
    "noise": (DenoisingLoss, "draw_noise"),
    "UNet forward": (UNet2DModel, "forward"),
    "UNet and loss backward": (Accelerator, "backward"),
    "clipping": (Accelerator, "clip_grad_norm_"),
    "optimizer": (torch.optim.AdamW, "step"),
    "average of weights": (EMAModel, "step"),
}
"""Part of a step, and the function that does it. What is left over is the loss's arithmetic and the bookkeeping."""

UNET = ("UNet forward", "UNet and loss backward")


class Stopped(Exception):
    """Raised when enough steps are timed."""


class StepTimer:
    """Wraps the functions of a training step while it is entered, and adds up what each takes.

    Args:
        times_parts (`bool`): without it only whole steps are timed.
    """

    def __init__(self, times_parts=True):
        self.steps, self.parts, self.first_step = [], defaultdict(list), None
        self._wrapped = PARTS if times_parts else {}
        self._originals, self._began, self._sums, self.unet_call = {}, None, defaultdict(float), None

    def __enter__(self):
        self._entered = _now()
        for part, (owner, name) in self._wrapped.items():
            self._originals[owner, name] = original = getattr(owner, name)
            setattr(owner, name, self._timed(part, original))
        self._originals[training_step, "mean_losses"] = original = training_step.mean_losses
        training_step.mean_losses = self._at_the_end_of_a_step(original)
        self._originals[training, "finish_pipeline"] = training.finish_pipeline
        training.finish_pipeline = self._stop
        return self

    def __exit__(self, *_):
        for (owner, name), original in self._originals.items():
            setattr(owner, name, original)

    def _timed(self, part, function):
        def timed(*args, **kwargs):
            began = _now()
            try:
                return function(*args, **kwargs)
            finally:
                self._sums[part] += _now() - began
                if part == "UNet forward" and torch.is_grad_enabled():  # a validation has none
                    self.unet_call = args, kwargs, torch.is_autocast_enabled(args[1].device.type)

        return timed

    def _at_the_end_of_a_step(self, function):
        def ended(*args):
            result = function(*args)
            now = _now()
            if self._began is None:
                self.first_step = now - self._entered
            else:
                self.steps.append(now - self._began)
                for part in self._wrapped:
                    self.parts[part].append(self._sums.pop(part, 0.0))
            self._began = now
            return result

        return ended

    def _stop(self, *_):
        raise Stopped

    def median_step(self):
        """Seconds."""
        return statistics.median(self.steps[WARM_UP:])

    def shares(self):
        """Mean seconds of each part in a step, `dict[str, float]`, and of what is left over."""
        means = {part: statistics.mean(seconds[WARM_UP:]) for part, seconds in self.parts.items()}
        return means | {"everything else": statistics.mean(self.steps[WARM_UP:]) - sum(means.values())}


def _now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run(arguments, times_parts=True):
    """Run a training up to its last step; returns the `StepTimer`."""
    with tempfile.TemporaryDirectory() as folder, StepTimer(times_parts) as timer:
        try:
            options = parse_args([*arguments, "--output_dir", folder, "--checkpointing_steps", "1000000"])
            training.train(TrainingSettings.of(vars(options)))
        except Stopped:
            return timer
    raise ValueError("the training ended before it was finished.")


def floor(unet_call, repeats):
    """Median seconds of the UNet's forward and backward on what a step gave it, in its precision, nothing else."""
    (unet, sample, *rest), kwargs, autocasts = unet_call
    times = []
    for _ in range(repeats + 2):
        began = _now()
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=autocasts):
            output = unet(sample, *rest, **kwargs)[0]
        output.float().square().mean().backward()
        times.append(_now() - began)
        unet.zero_grad()
    return statistics.median(times[2:])


def alternatives(unet_call, repeats):
    """`floor` of the same pass as it is, in the channels-last layout, recomputed and compiled, `dict[str, float]`."""
    (unet, sample, *rest), *others = unet_call
    compiled = torch.compile(unet)
    found = {"as it is": floor(unet_call, repeats), "compiled": floor(((compiled, sample, *rest), *others), repeats)}
    unet.enable_gradient_checkpointing()
    found["recomputed"] = floor(unet_call, repeats)
    unet.disable_gradient_checkpointing()
    unet.to(memory_format=torch.channels_last)
    sample = sample.contiguous(memory_format=torch.channels_last)
    return found | {"channels last": floor(((unet, sample, *rest), *others), repeats)}


def link_images(data_dir, folder, count):
    """Fill a folder with `count` names for the good images of another."""
    files = find_good_images(data_dir)
    for number in range(count):
        file = files[number % len(files)]
        os.link(file, folder / f"{number:07}{file.suffix}")


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data_dir", help="folder of good images, or a category in MVTec-AD layout")
    parser.add_argument("--steps", type=int, default=40, help="steps that are counted")
    parser.add_argument("--files", type=int, help="instead: seconds to the first step on so many files (hard links)")
    parser.add_argument(
        "--alternatives",
        action="store_true",
        help="also time the UNet compiled, recomputed, in channels-last layout",
    )
    args, others = parser.parse_known_args()
    keep_large_buffers()
    if args.files:
        with tempfile.TemporaryDirectory(dir=Path(args.data_dir).parent) as folder:
            link_images(args.data_dir, Path(folder), args.files)
            timer = run(["--train_data_dir", folder, "--max_train_steps", "1", *others], times_parts=False)
        print(f"{args.files} files: the first step is done after {timer.first_step:.1f} s")
        return
    arguments = ["--train_data_dir", args.data_dir, "--max_train_steps", str(args.steps + WARM_UP + 1), *others]
    timer = run(arguments)
    batch = parse_args([*arguments, "--output_dir", "X"]).train_batch_size
    shares = timer.shares()
    whole = sum(shares.values())
    print(
        f"batches of {batch}, {torch.get_num_threads()} threads; a step takes {1000 * whole:.0f} ms while it is timed"
    )
    print(f"{'':26}{'ms a step':>10}{'share':>8}")
    for part, seconds in shares.items():
        print(f"{part:26}{1000 * seconds:10.1f}{seconds / whole:8.1%}")
    unet = sum(shares[part] for part in UNET)
    print(f"{'all but the UNet':26}{1000 * (whole - unet):10.1f}{1 - unet / whole:8.1%}")
    untimed = run(arguments, times_parts=False).median_step()
    alone = floor(timer.unet_call, args.steps // 2)
    print(f"images a second: {batch / untimed:.2f} untimed, {batch / alone:.2f} the UNet's forward and backward alone")
    print(f"peak memory: {peak_memory_gb():.2f} GB")
    if torch.cuda.is_available():
        print(f"peak memory of tensors on the GPU: {torch.cuda.max_memory_allocated() / 2**30:.2f} GB")
    if args.alternatives:
        for name, seconds in alternatives(timer.unet_call, args.steps // 2).items():
            print(f"the UNet {name}: {1000 * seconds:.0f} ms forward and backward")


if __name__ == "__main__":
    main()
