"""Speed and memory of scoring, as ratios against the bare UNet forward and the bare backbone in the same run.

    python benchmarks/speed.py --model CKPT

Times are medians over repeated batches of pictures that are as large as the model's square; the process's peak memory
is printed at the end. Precisions that the hardware lacks are left out.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.process import keep_large_buffers, peak_memory_gb, use_all_cores


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


@torch.inference_mode()
def measure(pipe, batch_size, repeats):
    """Rows of (what, precision, seconds per picture)."""
    shape = (batch_size, pipe.resolution, pipe.resolution, 3)
    pictures = list(np.random.default_rng(0).integers(0, 256, shape, "uint8"))
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
            "pipeline, whole call": lambda: pipe(pictures, batch_size=batch_size),
        }
        name = {"no": "float32", "bf16": "bfloat16"}[precision]
        rows += [(what, name, median_seconds(call, repeats) / batch_size) for what, call in calls.items()]
    return rows


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/magnetic-tile", help="checkpoint folder")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per batch")
    parser.add_argument("--repeats", type=int, default=5, help="timed batches")
    args = parser.parse_args()
    keep_large_buffers()
    use_all_cores()
    pipe = AnomalyScoringPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    automatic = "bfloat16" if pipe._uses_bfloat16() else "float32"
    rows = measure(pipe, args.batch_size, args.repeats)
    print(
        f"batches of {args.batch_size}, {pipe.resolution}×{pipe.resolution} pixels, timesteps "
        f"{list(pipe.config.timesteps)}, {torch.get_num_threads()} threads, {pipe.unet.device}; "
        f"this checkpoint runs in {automatic} by itself here"
    )
    print(f"{'':22}{'precision':>10}{'ms a picture':>14}{'× UNet':>9}{'× backbone':>12}")
    for what, precision, seconds in rows:
        same = {w: s for w, p, s in rows if p == precision}
        print(
            f"{what:22}{precision:>10}{1000 * seconds:14.1f}{seconds / same['UNet forward']:9.2f}"
            f"{seconds / same['backbone forward']:12.2f}"
        )
    print(f"peak memory of the process: {peak_memory_gb():.2f} GB")


if __name__ == "__main__":
    main()
