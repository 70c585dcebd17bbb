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
import math
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from scipy.stats import norm
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks.parts import coarse_features, compare_splits, format_part_table
from benchmarks.plotting import pyplot, require_matplotlib
from pipelines.checkpoint_files import TRAINING_RECORD
from pipelines.measurement import Measurement
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.data.good_images import GoodImages
from training.data.groups import HELP as GROUPS_HELP
from training.data.groups import find_groups
from training.data.image_folders import find_images
from training.data.layouts import find_good_images
from training.data.splits import hold_out, part_numbers
from training.fitting.calibration_fit import FITTED_SHARE, fit_image_ranks
from training.records.image_record import digests_of, read_image_record
from training.records.training_record import hash_names
from training.runtime.process import keep_large_buffers, show_messages, use_all_cores

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MIN_HELD_OUT = 20

NEW_SHARE = 0.25
"""Share of the held-out images that is new in a split; of the rest, `FITTED_SHARE` fits the normalisation."""

NUM_SIMULATED = 2000
"""Splits of exchangeable images that a Kolmogorov-Smirnov distance is compared with."""

logger = logging.getLogger(__name__)


class SplitPValues(NamedTuple):
    """P-values of new good images over splits, float64, (splits, images), and the last split's calibration.

    `smoothed` ones are drawn uniformly from what ties and the finite number of ranks leave open, so that they are
    exactly uniform on [0, 1] if new and ranked images are exchangeable. `redrawn` says whether each split has new
    images of its own rather than the same ones.
    """

    p_values: torch.Tensor
    smoothed: torch.Tensor
    calibration: ScoreCalibration
    redrawn: bool


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


def split_p_values(calibration, good, new=None, splits=200, seed=0):
    """`SplitPValues` of new good images under calibrations fitted to random splits of others.

    Args:
        calibration (`ScoreCalibration`): gives timesteps and deciding components; it is left as it is.
        good (`Measurement`): of the images that are split.
        new (`Measurement`, *optional*): of new images; without it, each split takes `NEW_SHARE` of `good` for them.
    """
    generator = torch.Generator().manual_seed(seed)
    count, timesteps = len(good.kl), list(calibration.config.timesteps)
    num_new = round(NEW_SHARE * count) if new is None else 0
    num_fitted = round(FITTED_SHARE * (count - num_new))
    sizes = {"num_fitted": num_fitted, "num_ranked": count - num_new - num_fitted}
    fresh = ScoreCalibration.from_config(
        calibration.config,
        **sizes,
        num_groups=None,
        num_fitted_groups=None,
        ranks_bfloat16=False,
        cross_fitted=False,
    )
    smallest, p_values, smoothed = 1 / (sizes["num_ranked"] + 1), [], []
    for _ in tqdm(range(splits), desc="splitting", unit="split"):
        parts = torch.randperm(count, generator=generator).split([*sizes.values(), num_new])
        fitted, ranked, drawn = (Measurement(*(maps[part] for maps in good)) for part in parts)
        fit_image_ranks(fresh, fitted, ranked)
        standardized = fresh.standardize(drawn if new is None else new, timesteps)
        scores = fresh.image_score(standardized, timesteps)
        p_value = fresh.p_value(scores, timesteps)
        lowest = fresh.p_value(scores.nextafter(torch.tensor(math.inf)), timesteps) - smallest  # without ties
        p_values.append(p_value)
        smoothed.append(torch.lerp(lowest, p_value, torch.rand(p_value.shape, generator=generator).double()))
    return SplitPValues(torch.stack(p_values), torch.stack(smoothed), fresh, new is None)


def summarize(pool, seed=0):
    """What is reported of a pool.

    Returns:
        `dict`: fitted, ranked, new (images in a split); uniformity (see there); rates, one dict for each promise: the
        rate asked for, the promised (effective) one, the exact one of exchangeable images without ties, the measured
        one (mean over splits), its interval (95 % for all rates together) and whether the promise is kept, that is,
        not below the interval.
    """
    num_ranked, rates = pool.calibration.config.num_ranked, {}
    for asked in RATES:
        promised = pool.calibration.effective_rate(asked)
        exact = math.floor(promised * (num_ranked + 1) + 1e-9) / (num_ranked + 1)
        measured = (pool.p_values <= promised + 1e-12).double().mean().item()
        low, high = wilson_interval(measured, independent_images(pool), 0.05 / len(RATES))
        row = {"asked": asked, "promised": promised, "exact": exact, "measured": measured}
        row |= {"interval": (low, high), "kept": low <= promised}
        rates.setdefault(promised, row)  # rates too small to be promised all become the smallest that can
    sizes = {"fitted": pool.calibration.config.num_fitted, "ranked": num_ranked, "new": pool.p_values.shape[1]}
    return {**sizes, "uniformity": uniformity(pool, seed), "rates": list(rates.values())}


def independent_images(pool):
    """So many independent images would leave a false alarm rate as uncertain as the mean over a pool's splits is.

    In a split with n ranked and m new exchangeable images the threshold's true rate follows Beta(k, n + 1 - k), with
    mean p = k / (n + 1) (Vovk, "Conditional validity of inductive conformal predictors"), so that the measured one has
    variance p (1 - p) (1 / m + (1 - 1 / m) / (n + 2)): one split counts as 1 / (1 / m + …) independent images.

    Splits share images. Where new ones are redrawn, all this holds given the images already, and given them splits
    are independent: they add up. Where they are the same in each, all splits count as one, for the variance of a mean
    is at most that of one of its terms: the interval is rather too wide.
    """
    (splits, num_new), num_ranked = pool.p_values.shape, pool.calibration.config.num_ranked
    one_split = 1 / (1 / num_new + (1 - 1 / num_new) / (num_ranked + 2))
    return splits * one_split if pool.redrawn else one_split


def wilson_interval(rate, count, error=0.05):
    """Wilson's interval, (low, high), of a share measured on `count` independent images; 95 % by default."""
    spread = float(norm.isf(error / 2)) ** 2 / count
    centre, margin = rate + spread / 2, math.sqrt(spread * rate * (1 - rate) + spread**2 / 4)
    return (centre - margin) / (1 + spread), (centre + margin) / (1 + spread)


def uniformity(pool, seed=0):
    """Kolmogorov-Smirnov test of the smoothed p-values, split by split.

    Those of a split share its ranks, so their distance from the uniform distribution is not compared with the test's
    own table, which is for independent values, but with simulated splits of as many exchangeable images.

    Returns:
        `dict`: the test's p-value in the first_split; over all splits, their median and the share_below 0.05. Splits
        share images: the share is 0.05 on average if new images are redrawn; if not, splits tend to agree.
    """
    (_, num_new), num_ranked = pool.smoothed.shape, pool.calibration.config.num_ranked
    generator = torch.Generator().manual_seed(seed)
    ranked, new, within = (
        torch.rand(NUM_SIMULATED, count, generator=generator, dtype=torch.float64)
        for count in (num_ranked, num_new, num_new)
    )
    simulated = (torch.searchsorted(ranked.sort(dim=1).values, new) + within) / (num_ranked + 1)
    expected = distance_from_uniform(simulated).sort().values
    as_far = NUM_SIMULATED - torch.searchsorted(expected, distance_from_uniform(pool.smoothed))
    p_values = (1 + as_far.double()) / (1 + NUM_SIMULATED)
    first, median, share = p_values[0], p_values.quantile(0.5), (p_values < 0.05).double().mean()
    return {"first_split": first.item(), "median": median.item(), "share_below": share.item()}


def distance_from_uniform(values):
    """Kolmogorov-Smirnov distance from the uniform distribution on [0, 1], (rows, values) to (rows,)."""
    ordered, count = values.sort(dim=1).values, values.shape[1]
    steps = torch.arange(count + 1, dtype=values.dtype) / count
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(dim=1)


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
