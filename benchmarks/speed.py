"""Speed and memory of scoring, as ratios against the bare UNet forward and the bare backbone in the same run.

    python benchmarks/speed.py --model CKPT

Times are medians over repeated batches of images that are as large as the model's square. Peak memory is that of a
process of its own that loads the checkpoint and scores, for each precision. Precisions that the hardware lacks are
left out.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.runtime.process import keep_large_buffers, peak_memory_gb, use_all_cores

PRECISIONS = {"no": "float32", "bf16": "bfloat16"}


def median_seconds(call, repeats):
    """Median wall time of `call` over `repeats` runs after one that warms up, in seconds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_images(pipe, batch_size):
    """A batch of images of the model's size, uint8 RGB."""
    shape = (batch_size, pipe.resolution, pipe.resolution, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, "uint8"))


def peak_memory_of(model, category, precision, batch_size):
    """Peak memory in GB of a fresh process that loads a checkpoint and scores three batches."""
    command = [sys.executable, __file__, "--model", model, "--batch_size", str(batch_size), "--memory_of", precision]
    command += ["--category", category] if category else []
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.inference_mode()
def measure(pipe, batch_size, repeats):
    """Rows of (what, precision, seconds per image)."""
    images = random_images(pipe, batch_size)
    timesteps = pipe.config.timesteps
    device, grid = pipe.unet.device, pipe.unet.config.sample_size
    model_input = torch.randn(batch_size * len(timesteps), pipe.unet.config.in_channels, grid, grid, device=device)
    model_timesteps = torch.tensor(list(timesteps), device=device).repeat(batch_size)
    samples = torch.randn(batch_size, 3, pipe.resolution, pipe.resolution, device=device)
    rows = []
    for precision in ["no"] + ["bf16"] * has_bfloat16(device):
        pipe.register_to_config(mixed_precision=precision)

        def unet_forward(enabled=precision == "bf16"):
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                pipe.unet(model_input, model_timesteps)

        calls = {
            "UNet forward": unet_forward,
            "backbone forward": lambda: pipe.feature_extractor(samples),
            "pipeline, whole call": lambda: pipe(images, batch_size=batch_size),
        }
        name = PRECISIONS[precision]
        rows += [(what, name, median_seconds(call, repeats) / batch_size) for what, call in calls.items()]
    return rows


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/magnetic-tile", help="checkpoint folder")
    parser.add_argument("--category", help="for a checkpoint of several categories")
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch")
    parser.add_argument("--repeats", type=int, default=5, help="timed batches")
    parser.add_argument("--memory_of", choices=PRECISIONS, help="print only the peak memory in GB of this precision")
    args = parser.parse_args()
    keep_large_buffers()
    use_all_cores()
    pipe = AnomalyScoringPipeline.from_pretrained(args.model).for_category(args.category)
    pipe.set_progress_bar_config(disable=True)
    if args.memory_of:
        pipe.register_to_config(mixed_precision=args.memory_of)
        for _ in range(3):
            pipe(random_images(pipe, args.batch_size), batch_size=args.batch_size)
        print(f"{peak_memory_gb():.2f}")
        return
    if torch.cuda.is_available():
        pipe.to("cuda")
    automatic = "bfloat16" if pipe.uses_bfloat16() else "float32"
    rows = measure(pipe, args.batch_size, args.repeats)
    print(
        f"batches of {args.batch_size}, {pipe.resolution}×{pipe.resolution} pixels, timesteps "
        f"{list(pipe.config.timesteps)}, {torch.get_num_threads()} threads, {pipe.unet.device}; "
        f"this checkpoint runs in {automatic} by itself here"
    )
    print(f"{'':22}{'precision':>10}{'ms an image':>14}{'× UNet':>9}{'× backbone':>12}")
    for what, precision, seconds in rows:
        same = {w: s for w, p, s in rows if p == precision}
        print(
            f"{what:22}{precision:>10}{1000 * seconds:14.1f}{seconds / same['UNet forward']:9.2f}"
            f"{seconds / same['backbone forward']:12.2f}"
        )
    for precision, name in PRECISIONS.items():
        if any(name == measured for _, measured, _ in rows):
            memory = peak_memory_of(args.model, args.category, precision, args.batch_size)
            print(f"peak memory of a process that scores in {name}: {memory:.2f} GB")


if __name__ == "__main__":
    main()
