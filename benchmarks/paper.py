"""The paper's own tables and figures on any categories in MVTec-AD layout, beside what the paper prints.

    python benchmarks/paper.py table1 CATEGORY [CATEGORY …]     the method and ours, category by category
    python benchmarks/paper.py table2 CATEGORY [CATEGORY …]     strides and grid of the features
    python benchmarks/paper.py table3 CATEGORY CATEGORY […]     one model for all categories against separate ones
    python benchmarks/paper.py figure5 CATEGORY [CATEGORY …]    alpha from 0 to 1, on real and on synthetic defects
    python benchmarks/paper.py figure6 CATEGORY [CATEGORY …]    KL against the squared RGB difference

Models are kept in OUT/models and trained when they are not there. Nothing is chosen on a test image.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from benchmarks.category import (
    DEFAULT_BACKBONE,
    PAPER_ALPHA,
    Category,
    blended_maps,
    standardized_components,
    steps_of,
    train,
    without_references,
)
from benchmarks.plotting import pyplot, require_matplotlib
from pipelines.denoising_network import predict
from pipelines.gaussian_diffusion import add_noise, predict_sample
from pipelines.image_preprocessing import normalize_contrast
from pipelines.measurement import Measurement
from pipelines.score_calibration import ScoreCalibration
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.data.groups import HELP as GROUPS_HELP
from training.evaluation.metrics import pixel_metrics
from training.fitting.blend_weights import REDUCTION
from training.fitting.normalisation import fit_normalisation
from training.runtime.process import keep_large_buffers, use_all_cores

PAPER_TABLE_1 = {
    "bottle": ((98.5, 95.3), (99.0, 96.8), (99.1, 97.2), (97.7, 95.0)),
    "cable": ((98.1, 91.1), (97.7, 93.5), (94.7, 76.0), (95.2, 88.7)),
    "capsule": ((98.8, 92.3), (99.0, 93.4), (94.3, 91.7), (98.0, 90.1)),
    "carpet": ((98.9, 94.5), (99.3, 97.7), (95.5, 92.9), (98.9, 95.8)),
    "grid": ((96.1, 90.5), (99.0, 96.1), (99.7, 98.4), (99.1, 98.1)),
    "hazelnut": ((98.4, 84.0), (98.9, 96.7), (99.7, 98.1), (97.7, 89.5)),
    "leather": ((99.2, 97.9), (99.7, 99.4), (98.6, 98.0), (99.5, 99.1)),
    "metal_nut": ((98.0, 92.9), (98.6, 91.7), (99.5, 94.1), (96.8, 93.0)),
    "pill": ((97.0, 95.3), (99.0, 95.4), (97.6, 88.9), (92.5, 94.5)),
    "screw": ((98.7, 94.6), (98.9, 95.3), (97.6, 98.2), (99.0, 95.6)),
    "tile": ((94.3, 93.7), (98.0, 94.3), (99.2, 98.9), (92.1, 95.1)),
    "toothbrush": ((98.7, 94.3), (98.9, 95.1), (98.1, 90.3), (98.9, 94.7)),
    "transistor": ((97.9, 91.4), (98.0, 81.4), (90.9, 81.6), (92.6, 89.7)),
    "wood": ((95.7, 89.3), (96.7, 95.8), (96.4, 94.6), (94.7, 92.9)),
    "zipper": ((98.5, 95.0), (99.0, 96.6), (98.8, 96.3), (97.6, 93.6)),
}
"""Pixel AUROC and PRO in per cent of PaDiM, CFlow, DRAEM and the paper's method (same settings everywhere)."""

PAPER_COLUMNS = ("PaDiM", "CFlow", "DRAEM", "the paper")
STRIDES = ([16], [8, 16], [4, 8, 16], [2, 4, 8, 16])
GRIDS = (8, 16)
"""Tried beside the preset's grid, which is that of the UNet."""

ABLATION_SHARE = 1 / 3
"""Models of an ablation are trained for this share of the preset's steps."""

UNIFIED_FACTOR = 2
"""A model for several categories is trained for so many times the steps of a separate one, as in the paper."""

ALPHAS = np.linspace(0, 1, 11)


@dataclass
class Row:
    """A line of a table: category, what was measured, its pixel AUROC, AP and PRO (NaN where there is none)."""

    category: str
    method: str
    pixel_auroc: float
    pixel_ap: float
    pro: float


def measure(data, pipe, components, method, alpha=None, references=True, masks=None, reduction=1):
    """Pixel metrics of the maps that a pipeline's components give, on a square that is `reduction` times smaller."""
    calibration = pipe.calibration if references else without_references(pipe.calibration)
    maps = blended_maps(pipe, calibration, components, pipe.alpha if alpha is None else alpha, reduction)
    masks = [mask[::reduction, ::reduction] for mask in (data.masks if masks is None else masks)]
    return Row(data.folder.name, method, **pixel_metrics(masks, list(maps.numpy())))


def table1(args):
    """The method as the paper has it, and with references and weights chosen on synthetic defects."""
    rows = []
    for data in _categories(args):
        for name, values in zip(PAPER_COLUMNS, PAPER_TABLE_1.get(data.folder.name, ()), strict=False):
            rows.append(Row(data.folder.name, f"{name}, printed", values[0] / 100, float("nan"), values[1] / 100))
        pipe, components = data.pipeline, data.components
        rows.append(measure(data, pipe, components, f"Eq. 11, alpha {PAPER_ALPHA}", PAPER_ALPHA, references=False))
        rows.append(measure(data, pipe, components, f"with references, chosen weights, alpha {pipe.alpha:g}"))
    return rows


def table2(args):
    """Eq. 10 alone with features of fewer strides or on coarser grids."""
    grid = PRESETS[DEFAULT_PRESET]["feature_grid"]
    variants = [(strides, grid) for strides in STRIDES] + [(STRIDES[-1], size) for size in GRIDS]
    rows = []
    for data in _categories(args, ABLATION_SHARE):
        for strides, size in variants:
            numbers = [str(stride) for stride in strides]
            options = ["--feature_strides", *numbers, "--feature_grid", str(size)]
            pipe = data.trained(f"strides-{'-'.join(numbers)}-grid-{size}", options)
            components = standardized_components(pipe, data.test)
            name = f"grid {size}, strides {', '.join(numbers)}"
            rows.append(measure(data, pipe, components, f"Eq. 10, {name}", 0.0, references=False))
            rows.append(measure(data, pipe, components, f"with references, {name}", 0.0))
    return rows


def table3(args):
    """One class-conditional model for all categories against one for each."""
    if len(args.categories) < 2:
        raise ValueError("table3 compares one model for several categories with separate ones; name at least two.")
    steps = steps_of(args.max_train_steps)
    name = "unified-" + "-".join(sorted(Path(folder).resolve().name for folder in args.categories))
    settings = args.seed, args.backbone, args.output_dir, UNIFIED_FACTOR * steps, args.groups
    unified = train(args.categories, f"{name}-{args.seed}", *settings)
    rows = []
    for data in _categories(args):
        for method, pipe in (("separate", data.pipeline), ("unified", unified.for_category(data.folder.name))):
            components = standardized_components(pipe, data.test)
            rows.append(measure(data, pipe, components, f"{method}, Eq. 10 alone", 0.0, references=False))
            rows.append(measure(data, pipe, components, f"{method}, with references"))
    return rows


def figure5(args):
    """PRO and pixel AUROC for alpha from 0 to 1, on real defects and on those put into held-out good images."""
    rows = []
    for data in _categories(args):
        pipe = data.pipeline
        synthetic = standardized_components(pipe, (samples for samples, _ in data.synthetic))
        synthetic_masks = [mask.numpy() for _, masks in data.synthetic for mask in masks]
        kinds = (("real", data.components, None), ("synthetic", synthetic, synthetic_masks))
        curves = {}
        for kind, components, masks in kinds:
            curves[kind] = [
                measure(
                    data,
                    data.pipeline,
                    components,
                    f"{kind}, alpha {alpha:.1f}",
                    alpha,
                    masks=masks,
                    reduction=REDUCTION,
                )
                for alpha in tqdm(ALPHAS, desc=f"{data.folder.name}, {kind}", unit="alpha")
            ]
            rows += curves[kind]
        ranks = spearmanr(*([row.pro for row in curves[kind]] for kind in ("real", "synthetic"))).statistic
        print(f"{data.folder.name}: PRO on synthetic and real defects have Spearman's rank correlation {ranks:.2f}")
    plot_alpha(rows, Path(args.output_dir) / "figure5.png")
    return rows


def figure6(args):
    """The pixel component alone: KL (Eq. 9) against the squared RGB difference of x_0 and its prediction."""
    rows = []
    for data in _categories(args):
        pipe = data.pipeline
        rgb_components = data.components.clone()
        rgb_components[:, :1] = standardized_rgb(
            pipe,
            rgb_difference(pipe, tqdm(data.batches(data.held_out), desc="RGB, good", unit="batch")),
            rgb_difference(pipe, tqdm(data.test, desc="RGB, test", unit="batch")),
        )
        for name, components in (("KL", data.components), ("RGB", rgb_components)):
            rows.append(measure(data, pipe, components, f"{name} alone", 1.0))
            rows.append(measure(data, pipe, components, f"{name} with Eq. 10, alpha {PAPER_ALPHA}", PAPER_ALPHA, False))
    return rows


def standardized_rgb(pipe, good, new):
    """RGB differences of new images in standard deviations of good ones at each timestep and place, as KL is."""
    timesteps, grid = list(pipe.config.timesteps), pipe.config.score_grid
    calibration = ScoreCalibration(timesteps, pipe.resolution, grid)
    good, new = (
        Measurement(maps, maps, maps.new_zeros(len(maps), 0, grid, grid), maps.new_zeros(len(maps)))
        for maps in (good, new)
    )
    fit_normalisation(calibration, good)
    return calibration.standardize(new, timesteps)[:, :1]


@torch.inference_mode()
def rgb_difference(pipe, batches):
    """Squared difference of x_0 and its prediction from x_t, (images, timesteps, grid, grid)."""
    timesteps, found = list(pipe.config.timesteps), []
    noise, grid = pipe.calibration.noise_fields(timesteps), pipe.config.score_grid
    for batch in batches:
        sample = normalize_contrast(batch, pipe.config.data_mean, pipe.config.data_std)
        sample = sample.repeat_interleave(len(timesteps), dim=0)
        t = torch.tensor(timesteps).repeat(len(batch))
        alphas_cumprod = pipe.scheduler.alphas_cumprod
        noisy_sample = add_noise(sample, noise.repeat(len(batch), 1, 1, 1), alphas_cumprod, t)
        predicted_noise, _, _ = predict(pipe.unet, pipe.scheduler, noisy_sample, t, pipe.config.patch_size, grid)
        difference = (predict_sample(noisy_sample, predicted_noise, alphas_cumprod, t) - sample).square().mean(dim=1)
        found.append(F.adaptive_avg_pool2d(difference.unflatten(0, (len(batch), len(timesteps))), grid))
    return torch.cat(found)


def plot_alpha(rows, path):
    """PRO against alpha for each category, real defects drawn through and synthetic ones dashed, as a PNG."""
    figure, panel = pyplot().subplots(figsize=(6, 4))
    for index, category in enumerate(dict.fromkeys(row.category for row in rows)):
        for kind, style in (("real", "-"), ("synthetic", "--")):
            values = [row.pro for row in rows if row.category == category and row.method.startswith(kind)]
            panel.plot(ALPHAS, values, style, color=f"C{index}", label=f"{category}, {kind}")
    panel.set_xlabel("alpha")
    panel.set_ylabel("PRO")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def format_rows(rows):
    """A Markdown table; what was not measured, or is not printed in the paper, is a dash."""
    lines = ["| category | method | pixel AUROC | pixel AP | PRO |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = ("–" if np.isnan(value) else f"{value:.3f}" for value in (row.pixel_auroc, row.pixel_ap, row.pro))
        lines.append(f"| {row.category} | {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _categories(args, share=1.0):
    """The categories named on the command line, one at a time: each holds all its test images' components."""
    steps = args.max_train_steps
    if steps is None and share < 1:
        steps = round(share * steps_of())
    for folder in args.categories:
        yield Category(Path(folder), args.seed, args.backbone, Path(args.output_dir), steps, groups=args.groups)


TABLES = {"table1": table1, "table2": table2, "table3": table3, "figure5": figure5, "figure6": figure6}


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=sorted(TABLES), metavar="WHAT", help=", ".join(sorted(TABLES)))
    parser.add_argument("categories", nargs="+", help="folders in MVTec-AD layout")
    parser.add_argument("--seed", type=int, default=0, help="of splits and training")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="of the features")
    parser.add_argument("--max_train_steps", type=int, help="of each model; default the preset's, table2 a third of it")
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--output_dir", default="outputs/paper", help="models, tables and plots")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    output_dir = Path(args.output_dir)
    try:
        require_matplotlib()
        output_dir.mkdir(parents=True, exist_ok=True)
        rows = TABLES[args.what](args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    table = format_rows(rows)
    (output_dir / f"{args.what}.json").write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")
    (output_dir / f"{args.what}.md").write_text(table + "\n")
    print(table)
    print(f"table and plots: {output_dir}")


if __name__ == "__main__":
    main()
