"""Our model and its rivals side by side: same backbone, resolution, images and metrics.

    python benchmarks/accuracy.py CATEGORY [CATEGORY …] --seeds 0 1 2

Each category is a folder in MVTec-AD layout. A model of ours is trained by `training/train.py` with its defaults unless
OUT/models/CATEGORY-SEED-STEPS-steps exists. Each result is kept in OUT/results/CATEGORY.csv as soon as it is there, so
that a stopped run goes on where it was; with `--output_dir benchmarks` it starts from those that are kept here. Test
images are used to report only.
"""

import argparse
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from benchmarks.bootstrap import standard_errors
from benchmarks.category import (
    DEFAULT_BACKBONE,
    RESOLUTION,
    Category,
    blended_maps,
    rule_slug,
    steps_of,
    without_references,
)
from benchmarks.kept_results import METRICS, KeptResults
from benchmarks.plotting import pyplot, require_matplotlib
from benchmarks.rivals import PADIM_REDUCED, PADIM_STRIDES, PATCHCORE_STRIDES, padim, patchcore, spade
from pipelines.anomaly_maps import SMOOTHING_SIGMA, render, resize_map, worst_mean
from pipelines.score_calibration import combine
from training.data.groups import HELP as GROUPS_HELP
from training.engine.data_statistics import fit_feature_statistics
from training.evaluation.metrics import image_metrics, pixel_metrics
from training.fitting.blend_weights import choose_image_components, choose_map_weights
from training.fitting.feature_references import GRID_SIZE, fit_feature_reference
from training.runtime.process import keep_large_buffers, use_all_cores

RIVALS_SIGMA = 4.0
"""Smoothing of the rivals' maps, in pixels, as in their own implementations."""

RIVALS = {
    "PaDiM": padim,
    "PaDiM, strides 4, 8, 16": partial(padim, strides=PADIM_STRIDES),
    "PaDiM, 100 channels": partial(padim, num_channels=PADIM_REDUCED),
    "PatchCore": patchcore,
    "PatchCore, strides 8, 16": partial(patchcore, strides=PATCHCORE_STRIDES),
    "SPADE": spade,
}
OURS = {
    "ours": {},
    "ours, Eq. 10 alone": {"alpha": 0.0, "image_parts": (False, True)},
    "ours, Eq. 9 alone": {"alpha": 1.0, "image_parts": (True, False)},
}
REFERENCES = "ours, without a network"
LIBRARY = ("PaDiM (anomalib)", "PatchCore (anomalib)")
METHODS = [*OURS, REFERENCES, *RIVALS, *LIBRARY]


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("categories", nargs="+", help="folders in MVTec-AD layout")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=[*OURS, REFERENCES, *RIVALS],
        metavar="METHOD",
        help=str(METHODS),
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of splits, training, coresets and channels")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="everyone's backbone")
    parser.add_argument("--max_train_steps", type=int, help="of our models; default that of training/train.py")
    parser.add_argument(
        "--resolution",
        type=int,
        choices=[RESOLUTION * factor for factor in (1, 2, 4)],
        help=f"of everyone's images, {RESOLUTION} by default; maps are compared at that in any case",
    )
    parser.add_argument(
        "--rivals_sigma",
        type=float,
        default=RIVALS_SIGMA,
        help="smoothing of the maps of PaDiM, PatchCore and SPADE in pixels of their images",
    )
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--output_dir", default="outputs/accuracy", help="models, results, table and plot")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    try:
        require_matplotlib()
        if set(args.methods) & set(LIBRARY) and importlib.util.find_spec("anomalib") is None:
            raise ValueError("that method needs anomalib; install it into an environment of its own.")
        results = run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = format_table(results)
    output_dir = Path(args.output_dir)
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (output_dir / "table.md").write_text(table)
    plot(results, output_dir / "plot.png")
    print(table)
    print(f"results, table and plot: {output_dir}")


def run(args):
    """Every result asked for, read where it is kept already: a list of dicts with category, method, seed, metrics."""
    results = []
    for category in map(Path, args.categories):
        kept = KeptResults(Path(args.output_dir) / "results", category.name)
        for seed in args.seeds:
            settings = {method: _settings(args, method, seed) for method in args.methods}
            wanted = [method for method in args.methods if kept.find(settings[method]) is None]
            if wanted:
                output_dir = Path(args.output_dir)
                given = args.backbone, output_dir, args.max_train_steps, args.resolution, args.groups
                data = Category(category, seed, *given)
                for method in tqdm(wanted, desc=f"{category.name}, seed {seed}", unit="method"):
                    kept.keep(settings[method], _measure(data, method, args.rivals_sigma))
            results += [kept.find(settings[method]) for method in args.methods]
    return results


def _settings(args, method, seed):
    """What a method's result depends on, `dict` of `kept_results.SETTINGS`; rivals hold nothing out."""
    return {
        "backbone": args.backbone,
        "method": method,
        "seed": seed,
        "resolution": args.resolution or RESOLUTION,
        "smoothing": f"{args.rivals_sigma:g}" if method in RIVALS else "",
        "groups": rule_slug(args.groups).removeprefix("-groups-") if method in (*OURS, REFERENCES) else "",
        "steps": steps_of(args.max_train_steps) if method in OURS else "",
    }


def _measure(data, method, rivals_sigma):
    if method in OURS:
        scores, maps = _ours(data, **OURS[method])
    elif method == REFERENCES:
        scores, maps = _references(data)
    elif method in LIBRARY:
        from benchmarks.anomalib_rivals import ANOMALIB

        generator = torch.Generator().manual_seed(data.seed)
        scores, maps = ANOMALIB[method](data.extractor, data.batches(data.files), data.test, generator)
        maps = resize_map(maps, data.masks[0].shape)
    else:
        generator = torch.Generator().manual_seed(data.seed)
        grid_maps = RIVALS[method](data.extractor, data.batches(data.files), data.test, generator)
        maps = render(grid_maps[:, None].float(), len(data.masks[0]), rivals_sigma / data.reduction)[:, 0]
        scores = maps.amax(dim=(1, 2))  # the image score of all three papers' implementations
    scores, maps = scores.numpy(), list(maps.numpy())
    measured = image_metrics(data.defective, scores, data.defective) | pixel_metrics(data.masks, maps)
    return {
        "category": data.folder.name,
        "method": method,
        "seed": data.seed,
        "backbone": data.backbone,
        "good": len(data.files),
        "test": len(data.labelled),
        **{name: measured[name] for name in METRICS},
        "standard_error": standard_errors(data.defective, scores, data.masks, maps, data.seed),
    }


@torch.inference_mode()
def _ours(data, alpha=None, image_parts=None):
    """Scores and maps of a trained model, or of its network alone with another alpha."""
    pipe = data.pipeline
    calibration = without_references(pipe.calibration, image_parts) if image_parts else pipe.calibration
    alpha = pipe.alpha if alpha is None else alpha
    scores = calibration.image_score(data.components, list(pipe.config.timesteps))
    return scores, blended_maps(pipe, calibration, data.components, alpha, data.reduction)


@torch.inference_mode()
def _references(data):
    """Scores and maps of Gaussians and memory alone, with weights chosen on synthetic defects in held-out images."""
    with tqdm(total=len(data.training_files), desc="feature statistics", leave=False) as progress:
        fit_feature_statistics(data.extractor, data.batches(data.training_files), progress)
    fitted = fit_feature_reference(data.extractor, data.images(data.training_files), data.seed)
    references = fitted.gaussian, fitted.memory, fitted.coarse_gaussian

    def distances(batches):
        found = []
        for batch in batches:
            features = data.extractor(batch)
            maps = [resize_map(reference(features), (GRID_SIZE, GRID_SIZE)) for reference in references]
            found.append(torch.stack(maps, dim=1))
        return torch.cat(found)

    held_out = distances(data.batches(data.held_out))
    std, mean = torch.std_mean(held_out, dim=(0, 2, 3), keepdim=True)
    held_out, synthetic, new = (
        (each - mean) / std
        for each in (held_out, distances(samples for samples, _ in data.synthetic), distances(data.test))
    )
    masks = torch.cat([masks for _, masks in data.synthetic])
    image_parts, image_rule, _ = choose_image_components(held_out, synthetic)
    with_empty_kl = F.pad(synthetic, (0, 0, 0, 0, 1, 0))
    even = [1 / len(references)] * len(references)
    _, map_weights, _ = choose_map_weights(with_empty_kl, masks, data.resolution, SMOOTHING_SIGMA, 0.0, even)
    std, mean = torch.std_mean(worst_mean(held_out), dim=0)
    scores = combine(((worst_mean(new) - mean) / std)[:, image_parts], image_rule)
    blended = (new * torch.tensor(map_weights).view(-1, 1, 1)).sum(dim=1, keepdim=True)
    return scores, render(blended, len(data.masks[0]), SMOOTHING_SIGMA / data.reduction)[:, 0]


def summarize(results):
    """Mean over seeds and standard error of each category, method and metric: {(category, method): {metric: (…)}}."""
    summary = {}
    for category in dict.fromkeys(result["category"] for result in results):
        for method in dict.fromkeys(result["method"] for result in results):
            runs = [r for r in results if (r["category"], r["method"]) == (category, method)]
            cells = {}
            for metric in METRICS:
                values = np.array([run[metric] for run in runs])
                images = np.mean([run["standard_error"][metric] ** 2 for run in runs])
                seeds = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
                cells[metric] = (float(values.mean()), float(np.sqrt(images + seeds)))
            summary[category, method] = cells
    return summary


def format_table(results):
    """Markdown: one table a category, value ± standard error, the best of each column in bold; then the averages."""
    summary = summarize(results)
    categories = list(dict.fromkeys(category for category, _ in summary))
    methods = list(dict.fromkeys(method for _, method in summary))
    lines = []
    for category in categories:
        rows = {method: summary[category, method] for method in methods}
        lines += _rows(category, rows)
    if len(categories) > 1:
        averages = {}
        for method in methods:
            cells = [summary[category, method] for category in categories]
            averages[method] = {
                metric: (
                    float(np.mean([cell[metric][0] for cell in cells])),
                    float(np.sqrt(np.sum([cell[metric][1] ** 2 for cell in cells])) / len(cells)),
                )
                for metric in METRICS
            }
        lines += _rows("average", averages)
    return "\n".join(lines)


def _rows(title, rows):
    best = {metric: max(cells[metric][0] for cells in rows.values()) for metric in METRICS}
    lines = [f"| {title} | image AUROC | pixel AUROC | pixel AP | PRO |", "| --- | --- | --- | --- | --- |"]
    for method, cells in rows.items():
        texts = []
        for metric in METRICS:
            value, error = cells[metric]
            text = f"{value:.3f} ± {error:.3f}"
            texts.append(f"**{text}**" if value == best[metric] else text)
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def plot(results, path):
    """Image AUROC and PRO of every method and category, with standard errors, as a PNG."""
    summary = summarize(results)
    categories = list(dict.fromkeys(category for category, _ in summary))
    methods = list(dict.fromkeys(method for _, method in summary))
    figure, panels = pyplot().subplots(1, 2, figsize=(12, 1.2 + 0.32 * len(methods)), sharey=True)
    for panel, (metric, title) in zip(panels, (("image_auroc", "image AUROC"), ("pro", "PRO")), strict=True):
        for offset, category in enumerate(categories):
            values, errors = zip(*(summary[category, method][metric] for method in methods), strict=True)
            places = np.arange(len(methods)) + 0.12 * (offset - (len(categories) - 1) / 2)
            panel.errorbar(values, places, xerr=errors, fmt="o", markersize=4, capsize=2, label=category)
        panel.set_xlabel(title)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    panels[1].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
