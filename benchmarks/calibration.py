"""Does the calibration keep its promise? False alarm rates of good images, promised and measured.

    python benchmarks/calibration.py --model CKPT --data_dir CATEGORY

CATEGORY is the folder in MVTec-AD layout that the model was trained on. Good images that it was not trained on are
measured once, in float32; then calibrations are fitted to many random splits of them, into disjoint parts and with the
checkpoint's choice of parts, and give p-values to images that took no part. There are two pools of new images:

- `held out`: new images are a random part of the held-out ones. That makes them exchangeable with the ranked ones
  whatever they show, so this judges the method and its code, not the data.
- `test/good`: held-out images calibrate, all of test/good is new. This judges whether the dataset's own two halves
  are exchangeable, as the promise presumes.

Where parts were photographed several times, `--groups` says which images show the same one, as in training. The pools
above then treat images as if each showed a part of its own, and a second table says what that does to new parts
(`parts.py`).
"""

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks.parts import coarse_features, compare_splits, format_part_table
from benchmarks.plotting import pyplot, require_matplotlib
from benchmarks.promise_statistics import RATES, split_p_values, summarize
from pipelines.checkpoint_names import TRAINING_RECORD
from pipelines.measurement import Measurement
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.good_images import GoodImages
from training.data.groups import HELP as GROUPS_HELP
from training.data.groups import find_groups
from training.data.image_folders import find_images
from training.data.layouts import find_good_images
from training.data.splits import hold_out, part_numbers
from training.records.image_record import digests_of, read_image_record
from training.records.training_record import hash_names
from training.runtime.process import keep_large_buffers, show_messages, use_all_cores

MIN_HELD_OUT = 20

logger = logging.getLogger(__name__)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="category in MVTec-AD layout that the model was trained on")
    parser.add_argument("--category", help="what it shows, for a checkpoint of several categories")
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--splits", type=int, default=200, help="random splits of each pool")
    parser.add_argument("--seed", type=int, default=0, help="draws the splits and smooths the p-values")
    parser.add_argument("--output_dir", help="results and plot; default outputs/calibration/CATEGORY")
    args = parser.parse_args(argv)
    show_messages()
    keep_large_buffers()
    use_all_cores()
    try:
        require_matplotlib()
        pools, rows = run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    results = {name: summarize(pool, args.seed) for name, pool in pools.items()}
    output_dir = Path(args.output_dir or Path("outputs", "calibration", Path(args.data_dir).resolve().name))
    output_dir.mkdir(parents=True, exist_ok=True)
    record = {"splits": args.splits, "seed": args.seed, "pools": results}
    if rows:
        record["new_parts"] = [row._asdict() | {"kept": row.kept} for row in rows[1]]
    (output_dir / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(pools, results, output_dir / "plot.png")
    print(format_table(results))
    if rows:
        print(format_part_table(rows[1], *rows[0], args.splits))
    print(f"results and plot: {output_dir}")


def run(args):
    """Measure the images as the command line says and split them.

    Returns:
        `tuple[dict[str, SplitPValues], tuple | None]`: of the pools; and with `--groups` the numbers of images and
        parts, and the rows of `parts.compare_splits`.
    """
    if args.splits < 1:
        raise ValueError(f"splits are {args.splits}; there must be at least 1.")
    pipe = AnomalyScoringPipeline.from_pretrained(args.model)
    if torch.cuda.is_available():
        pipe.to("cuda")
    pipe = pipe.for_category(args.category)
    if pipe.calibration is None:
        raise ValueError(f"{args.model} has no calibration; run training/calibration.py on good images first.")
    held_out, test_good = find_held_out(args.model, args.data_dir, args.category), []
    try:
        test_good = find_images(Path(args.data_dir, "test", "good"))
    except ValueError as error:
        logger.warning("new images of test/good are left out: %s", error)
    good = measure_images(pipe, held_out)
    over_splits = partial(split_p_values, pipe.calibration, good, splits=args.splits, seed=args.seed)
    pools = {"held out": over_splits()}
    if test_good:
        pools["test/good"] = over_splits(new=measure_images(pipe, test_good))
    if args.groups is None:
        return pools, None
    images = sorted([*find_good_images(args.data_dir), *test_good])
    parts = torch.tensor(part_numbers(images, find_groups(images, args.groups)))
    features = coarse_features(pipe.feature_extractor, images, pipe.resolution, pipe.config.white_level)
    rows = compare_splits(features, parts, args.splits, args.seed)
    return pools, ((len(images), len(parts.unique())), rows)


def find_held_out(model, data_dir, category=None):
    """The images of `data_dir`/train/good that a checkpoint's training held out, `list[Path]`, by its record.

    A published record names none; they are found by its seed and compared with its hash.

    Raises:
        ValueError: if there is no record, or it has fewer than `MIN_HELD_OUT` or others than are there.
    """
    path, folder = Path(model) / TRAINING_RECORD, Path(data_dir) / "train" / "good"
    known = read_image_record(model)
    if known is not None:
        images = find_good_images(data_dir)
        digests = zip(images, digests_of(images, shows_progress=False), strict=True)
        held_out = [image for image, digest in digests if digest in known.held_out]
        if len(held_out) < MIN_HELD_OUT:
            raise ValueError(
                f"{model} held out {len(held_out)} of the images of {data_dir}; at least {MIN_HELD_OUT} are needed."
            )
        return held_out
    if not path.is_file():
        raise ValueError(f"{model} has no {TRAINING_RECORD}, which names the images it was not trained on.")
    record = json.loads(path.read_text())
    held_out = record.get("held_out")
    if not isinstance(held_out, dict):
        raise ValueError(f"{path} does not name held-out images by category; train the model with this version.")
    category = next(iter(held_out)) if len(held_out) == 1 else category
    names = held_out.get(category, [])
    if isinstance(names, dict):
        names = _names_by_seed(path, record, data_dir, names)
    if len(names) < MIN_HELD_OUT:
        raise ValueError(f"{path} names {len(names)} held-out images; at least {MIN_HELD_OUT} are needed.")
    files = [file for file in find_images(folder) if file.name in set(names)]
    if len(files) != len(names):
        raise ValueError(f"{path} names {len(names)} held-out images, but {folder} holds {len(files)} of that name.")
    return files


def _names_by_seed(path, record, data_dir, published):
    """Names of the held-out images, found by the seed of a record that does not name them."""
    settings = record.get("settings") or {}
    fraction, seed = settings.get("calibration_fraction", 0.25), settings.get("seed", 0)
    names = [file.name for file in hold_out(find_good_images(data_dir), fraction, seed)[1]]
    if hash_names(names) != published.get("sha256"):
        raise ValueError(
            f"{path} was published without names, and by its seed other images of {data_dir} would be held out; name "
            "the images that it was trained on."
        )
    return names


def measure_images(pipe, files):
    """`Measurement` of images on the CPU, at all timesteps and under the noise of the pipeline's calibration."""
    timesteps = list(pipe.calibration.config.timesteps)
    noise, batches = pipe.calibration.noise_fields(timesteps), []
    with tqdm(total=len(files), desc="measuring", unit="image") as progress:
        for samples in DataLoader(
            GoodImages(files, pipe.resolution, white_level=pipe.config.white_level), batch_size=8
        ):
            batches.append([maps.cpu() for maps in pipe.measure(samples, timesteps, noise, "no")])
            progress.update(len(samples))
    return Measurement(*(torch.cat(maps) for maps in zip(*batches, strict=True)))


def format_table(results):
    """Markdown: one row for each pool and promise, then a sentence on the uniformity of each pool's p-values."""
    lines = [
        "| new images | asked | promised | exact | measured | 95 % interval of all | promise |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    sentences = [""]
    for name, pool in results.items():
        for row in pool["rates"]:
            numbers = " | ".join(f"{row[key]:.3f}" for key in ("asked", "promised", "exact", "measured"))
            interval = " to ".join(f"{end:.3f}" for end in row["interval"])
            lines.append(f"| {name} | {numbers} | {interval} | {'kept' if row['kept'] else 'broken'} |")
        test = pool["uniformity"]
        sentences.append(
            f"- {name}: {pool['fitted']} images fitted, {pool['ranked']} ranked, {pool['new']} new in a split. "
            f"Kolmogorov-Smirnov p-value {test['first_split']:.2f} in the first split; over all splits, which share "
            f"images, median {test['median']:.2f}, below 0.05 in {test['share_below']:.1%}."
        )
    return "\n".join([*lines, *sentences, ""])


def plot(pools, results, path):
    """Promised against measured rates with their intervals, and the distribution of smoothed p-values, as a PNG."""
    figure, (rates, distribution) = pyplot().subplots(1, 2, figsize=(11, 4.5))
    for name, pool in pools.items():
        rows = results[name]["rates"]
        promised, measured = ([row[key] for row in rows] for key in ("promised", "measured"))
        errors = [[abs(row["interval"][end] - row["measured"]) for row in rows] for end in (0, 1)]
        rates.errorbar(promised, measured, yerr=errors, fmt="o", markersize=4, capsize=2, label=name)
        distribution.ecdf(pool.smoothed.flatten().numpy(), label=name)
    rates.set(xlabel="promised false alarm rate", ylabel="measured, with 95 % intervals")
    distribution.set(xlabel="smoothed p-value of new good images, all splits", ylabel="share at most as high")
    for panel, end, name in ((rates, max(RATES), "promise"), (distribution, 1, "uniform")):
        panel.plot([0, end], [0, end], color="grey", linewidth=1, label=name)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
