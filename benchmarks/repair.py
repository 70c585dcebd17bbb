"""How well defects are removed: synthetic ones, where the truth is known, and real ones, where only scoring can judge.

    python benchmarks/repair.py --model CKPT --data_dir CATEGORY [--output_dir OUT]

Synthetic defects change good test images, at their own size and by clearly more than their texture varies. Beside our
repair stand the paper's Algorithm 1, Eq. 13 without a diffusion model and a plain round trip through one (AnoDDPM).
Acceptance is scoring's verdict on the images that come back; as repairs look at that score, it proves less than the
error that is left. OUT gets a table, JSON, contact sheets and the curve of Eq. 12.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.plotting import pyplot, require_matplotlib
from benchmarks.synthetic_truth import add_clear_defects, as_image, as_sample, compare, read_good
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from rendering.repair_views import side_by_side, strip
from training.data.image_reading import read_as_8_bits
from training.data.labelled_images import find_labelled_images
from training.runtime.process import keep_large_buffers, use_all_cores

RATE = 0.05
"""False alarm rate of the scoring that accepts or rejects; the smallest that can be promised, where that is larger."""

METHODS = {
    "ours": {},
    "ours, true mask": {},
    "resampling alone": {"num_gradient_steps": 0},
    "Algorithm 1": {"strengths": (), "denoise_every": 5, "gradient_scale": 1.0, "use_memory": False},
    "Eq. 13 alone": {"strengths": (), "gradient_scale": 1.0, "use_memory": False},
    "DDPM round trip": {"strengths": (0.25,), "num_resamples": 1, "fill_mask": False, "num_gradient_steps": 0},
}
"""Arguments of the pipeline. Those after the third are not told where the defect is: they may change every pixel."""

WITH_TRUE_MASK = ("ours, true mask",)
EVERYWHERE = ("Algorithm 1", "Eq. 13 alone", "DDPM round trip")


@dataclass
class Row:
    """One method on one set of images, NaN where there is no truth or nothing to count.

    An image that scoring does not reject is left alone, and all of its error with it: `error_left_if_rejected` leaves
    those out; `error_left_pooled` is all error left over all error there was; `accepted` is the share of those rejected
    before that are accepted after.
    """

    images: str
    method: str
    count: int
    rejected_before: float
    accepted: float
    error_left: float
    median_error_left: float
    error_left_if_rejected: float
    error_left_pooled: float
    psnr_outside: float
    ssim_outside: float
    untouched: float
    seconds: float


def repair(pipe, images, masks, options, progress):
    """Repair 8-bit images one by one; returns the outputs and the seconds of each."""
    outputs, seconds = [], []
    for image, mask in zip(images, masks, strict=True):
        start = time.perf_counter()
        settings = {"output_type": "np", "false_alarm_rate": RATE, "return_steps": True} | options
        outputs.append(pipe(image, mask=mask, **settings))
        seconds.append(time.perf_counter() - start)
        progress.update()
    return outputs, np.array(seconds)


def measure_synthetic(pipe, synthetic, method, progress):
    """A `Row`, and the outputs, of one method on synthetic defects."""
    images = [as_image(each.defective) for each in synthetic]
    masks = [None] * len(synthetic)
    if method in WITH_TRUE_MASK:
        masks = [each.mask for each in synthetic]
    elif method in EVERYWHERE:
        masks = [np.ones_like(each.mask) for each in synthetic]
    # Those that are not told where the defect is do not know when to stop either: at a rate of 1 nothing is accepted.
    options = METHODS[method] | ({"false_alarm_rate": 1.0} if method in EVERYWHERE else {})
    outputs, seconds = repair(pipe, images, masks, options, progress)
    row = _row(pipe, "synthetic", method, outputs, seconds)
    left, psnr, ssim = np.transpose(
        [compare(each, as_sample(output.images[0])) for each, output in zip(synthetic, outputs, strict=True)]
    )
    rejected = rejected_before(pipe, outputs)
    row.error_left, row.median_error_left = float(left.mean()), float(np.median(left))
    row.error_left_if_rejected = float(left[rejected].mean()) if rejected.any() else float("nan")
    before = np.array([((each.defective - each.good)[:, each.mask] ** 2).sum() for each in synthetic])
    row.error_left_pooled = float((left * before).sum() / before.sum())
    row.psnr_outside, row.ssim_outside = float(np.median(psnr)), float(np.median(ssim))
    return row, outputs


def measure_real(pipe, paths, name, progress):
    """A `Row`, and the outputs, of our repair on images without a known truth."""
    images = [read_as_8_bits(path, pipe.config.white_level) for path in paths]
    outputs, seconds = repair(pipe, images, [None] * len(paths), {}, progress)
    return _row(pipe, name, "ours", outputs, seconds), outputs


def rejected_before(pipe, outputs):
    """Whether scoring rejects each given image, bool, (n,)."""
    return _rejects(pipe, [output.anomaly_score[0] for output in outputs])


def _rejects(pipe, scores):
    calibration, scores = pipe.calibration, torch.tensor(np.array(scores))
    p_values = calibration.p_value(scores, list(pipe.config.timesteps), pipe.uses_bfloat16()).cpu().numpy()
    return p_values <= calibration.effective_rate(RATE) + 1e-12


def _row(pipe, images, method, outputs, seconds):
    rejected = rejected_before(pipe, outputs)
    accepted = ~_rejects(pipe, [output.repaired_score[0] for output in outputs])
    changed = np.array([output.masks[0].any() for output in outputs])
    return Row(
        images=images,
        method=method,
        count=len(outputs),
        rejected_before=float(rejected.mean()),
        accepted=float(accepted[rejected].mean()) if rejected.any() else float("nan"),
        error_left=float("nan"),
        median_error_left=float("nan"),
        error_left_if_rejected=float("nan"),
        error_left_pooled=float("nan"),
        psnr_outside=float("nan"),
        ssim_outside=float("nan"),
        untouched=float(1 - changed.mean()),
        seconds=float(np.median(seconds[changed])) if changed.any() else float("nan"),
    )


def contact_sheet(columns, size=160):
    """Columns of images, each from top to bottom, as one."""
    stacked = []
    for images in columns:
        column = Image.new("RGB", (size, size * len(images)))
        for row, image in enumerate(images):
            column.paste(image.convert("RGB").resize((size, size)), (0, row * size))
        stacked.append(column)
    return side_by_side(stacked)


def _columns(images, outputs):
    """Given image, mask, repaired image of each."""
    return [
        [image, Image.fromarray((255 * output.masks[0]).astype(np.uint8)), Image.fromarray(output.images[0])]
        for image, output in zip(images, outputs, strict=True)
    ]


def plot_distance(curves, path):
    """Eq. 12 against steps, one curve for each repaired image of each method, as a PNG."""
    figure, panel = pyplot().subplots(figsize=(6, 4))
    for color, (method, distances) in enumerate(curves.items()):
        for number, distance in enumerate(distances):
            panel.plot(distance, color=f"C{color}", alpha=0.5, label=None if number else method)
    panel.set_xlabel("step")
    panel.set_ylabel("Eq. 12 per channel and place (good images: about 1)")
    panel.set_yscale("log")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def format_rows(rows):
    """A Markdown table."""
    lines = [
        "| images | method | n | rejected before | of these accepted | error left, mean (median) | if rejected | "
        "pooled | PSNR outside, dB | SSIM outside | untouched | s a repair |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        error = _shown(row.error_left, ".1%")
        if error != "–":
            error += f" ({row.median_error_left:.1%})"
        cells = [row.images, row.method, row.count, f"{row.rejected_before:.0%}", _shown(row.accepted, ".0%"), error]
        cells += [_shown(row.error_left_if_rejected, ".1%"), _shown(row.error_left_pooled, ".1%")]
        cells += [
            _shown(row.psnr_outside, ".1f"),
            _shown(row.ssim_outside, ".3f"),
            f"{row.untouched:.0%}",
            _shown(row.seconds, ".1f"),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    lines.append("PSNR, SSIM and seconds are medians; seconds are those of images that were changed.")
    return "\n".join(lines)


def _shown(value, form):
    return "–" if np.isnan(value) else format(value, form)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="category in MVTec-AD layout")
    parser.add_argument("--category", help="for a checkpoint of several categories")
    parser.add_argument("--num_synthetic", type=int, default=24, help="synthetic defects")
    parser.add_argument("--num_real", type=int, default=12, help="images with real defects, evenly taken")
    parser.add_argument("--num_good", type=int, default=40, help="good test images that should come back untouched")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="to compare")
    parser.add_argument("--seed", type=int, default=0, help="of synthetic defects")
    parser.add_argument("--output_dir", default="outputs/repair", help="table, JSON, sheets and curve")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    try:
        require_matplotlib()
        pipe = GradientDenoisePipeline.from_pretrained(args.model).for_category(args.category)
        pipe.set_progress_bar_config(disable=True)
        if torch.cuda.is_available():
            pipe.to("cuda")
        labelled = find_labelled_images(Path(args.data_dir))
        good = [item.path for item in labelled if item.defect == "good"]
        defective = [item.path for item in labelled if item.defect != "good"]
        if not good:
            raise ValueError(f"{args.data_dir} has no good test images to put defects into.")
        if args.num_synthetic < 1:
            raise ValueError(f"--num_synthetic is {args.num_synthetic}; it must be at least 1.")
        samples = [read_good(path, pipe.config.white_level) for path in _evenly(good, args.num_synthetic)]
        synthetic = add_clear_defects(samples, args.num_synthetic, args.seed)
        output_dir = Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    real, untouched = _evenly(defective, args.num_real), _evenly(good, args.num_good)
    print(format_rows(compare_methods(pipe, args.methods, synthetic, real, untouched, output_dir)))
    print(f"table, sheets and curve: {output_dir}")


def compare_methods(pipe, methods, synthetic, real, untouched, output_dir):
    """Repair synthetic defects by every method, real ones and good images by ours, `list[Row]`; leaves sheets."""
    rows, curves = [], {}
    total = len(methods) * len(synthetic) + len(real) + len(untouched)
    with tqdm(total=total, desc="repairing", unit="image") as progress:
        columns = [[as_image(each.good), as_image(each.defective)] for each in synthetic]
        for method in methods:
            row, outputs = measure_synthetic(pipe, synthetic, method, progress)
            rows.append(row)
            for column, output in zip(columns, outputs, strict=True):
                column.append(Image.fromarray(output.images[0]))
            curves[method] = [output.distance[0] for output in outputs[:4]]
            longest = max(outputs, key=lambda output: len(output.steps[0]))
            strip(longest.steps[0]).save(output_dir / f"strip-{method.lower().replace(' ', '-').replace(',', '')}.png")
            _save(rows, output_dir)
        contact_sheet(columns[:12]).save(output_dir / "synthetic.png")
        for name, paths in (("real defects", real), ("good", untouched)):
            if not paths:
                continue
            row, outputs = measure_real(pipe, paths, name, progress)
            rows.append(row)
            if name == "real defects":
                images = [read_as_8_bits(path, pipe.config.white_level) for path in paths]
                contact_sheet(_columns(images, outputs)).save(output_dir / "real.png")
                curves[name] = [output.distance[0] for output in outputs[:4]]
            _save(rows, output_dir)
    plot_distance(curves, output_dir / "distance.png")
    return rows


def _save(rows, output_dir):
    (output_dir / "repair.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    (output_dir / "repair.md").write_text(format_rows(rows) + "\n")


def _evenly(items, count):
    """At most `count` of the items, at even distances."""
    if len(items) <= count:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


if __name__ == "__main__":
    main()
