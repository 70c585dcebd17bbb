"""Is an image of another part told from good and defective ones, and what does it cost?

    python benchmarks/unfamiliar.py DATA/screw DATA/bottle DATA/pill … [--seeds 0 1 2]

For each category, what images look like as a whole is fitted as in a training with its defaults (the network has no
part in it), and the limit is set on held-out good images and synthetic defects. A row says how many of the good test
images and of the defective ones are called unfamiliar, how many of every other category's images, and of images of
nothing: black, white, grey, noise, and tiles of one colour.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm.auto import tqdm

from benchmarks.category import DEFAULT_BACKBONE, Category
from pipelines.feature_familiarity import image_statistics
from pipelines.score_calibration import ScoreCalibration
from training.data.splits import part_numbers
from training.fitting.calibration_fit import split_held_out
from training.fitting.familiarity import FAMILIAR_RATE, familiarity_limit, fit_familiarity
from training.runtime.process import keep_large_buffers, use_all_cores

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Row(NamedTuple):
    """Shares of images called unfamiliar by one category's limit, in [0, 1]; `others` by their category."""

    promised: float
    good: float
    defective: float
    others: dict
    nothing: float
    nearest: float


def images_of_nothing(resolution, seed=0):
    """Flat images of several greys and colours, and noise, (n, 3, resolution, resolution) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    flat = [torch.full((3, resolution, resolution), level) for level in LEVELS]
    colours = [2 * torch.rand(3, 1, 1, generator=generator).expand(3, resolution, resolution) - 1 for _ in range(5)]
    noise = [2 * torch.rand(3, resolution, resolution, generator=generator) - 1 for _ in range(3)]
    noise += [(s * torch.randn(3, resolution, resolution, generator=generator)).clamp(-1, 1) for s in (0.05, 0.3)]
    return torch.stack([*flat, *colours, *noise])


class Looks:
    """What a category's images look like as a whole, measured once: `image_statistics` of raw features, by split."""

    def __init__(self, category):
        extractor = category.extractor

        @torch.inference_mode()
        def statistics(batches):
            return torch.cat([image_statistics(extractor.raw_features(batch)) for batch in batches])

        ranked, _ = split_held_out(category.held_out, category.seed, category.groups)
        self.name, self.defective = category.folder.name, category.defective
        self.parts = part_numbers(ranked, category.groups)
        self.training = statistics(category.batches(category.training_files))
        self.ranked = statistics(category.batches(ranked))
        self.test = statistics(category.test)
        self.synthetic = statistics(samples for samples, _ in category.synthetic)
        self.nothing = statistics(images_of_nothing(category.resolution).split(8))


def measure(looks, own):
    """The `Row` of one of all `Looks`."""
    means, stds = own.training.chunk(2, dim=1)
    mean, std = means.mean(dim=0), (stds.square().mean(dim=0) + means.var(dim=0, correction=0)).sqrt()

    def standardized(raw):  # as the extractor does with the channels' statistics: the features themselves are not kept
        return torch.cat([(raw[:, : len(mean)] - mean) / std, raw[:, len(mean) :] / std], dim=1)

    familiarity = fit_familiarity(standardized(own.training))

    def distance(raw):
        return familiarity.distance(standardized(raw))

    calibration = ScoreCalibration(num_ranked=len(own.ranked), num_groups=len(set(own.parts)))
    calibration.ranked_groups.copy_(torch.tensor(own.parts))
    limit = familiarity_limit(calibration, distance(own.ranked), distance(own.synthetic))
    test = (distance(own.test) > limit).numpy()
    others = {each.name: distance(torch.cat([each.training, each.test])) / limit for each in looks if each is not own}
    return Row(
        calibration.effective_rate(FAMILIAR_RATE),
        test[~own.defective].mean(),
        test[own.defective].mean(),
        {name: (found > 1).double().mean().item() for name, found in others.items()},
        (distance(own.nothing) > limit).double().mean().item(),
        min(found.min().item() for found in others.values()),
    )


def print_table(rows):
    """Print `dict[str, Row]`, by category."""
    print(f"{'':16}{'promised':>10}{'good':>8}{'defective':>11}{'nothing':>9}{'nearest':>9}  other categories")
    for name, row in rows.items():
        others = ", ".join(f"{other} {share:.1%}" for other, share in row.others.items())
        print(
            f"{name:16}{row.promised:10.1%}{row.good:8.1%}{row.defective:11.1%}{row.nothing:9.0%}{row.nearest:9.2f}"
            f"  {others}"
        )


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("categories", nargs="+", type=Path, help="folders in MVTec-AD layout, two or more")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the split and of the synthetic defects")
    parser.add_argument("--feature_extractor", default=DEFAULT_BACKBONE, help="timm name of the backbone")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    try:
        for seed in args.seeds:
            categories = (Category(path, seed, args.feature_extractor, Path()) for path in args.categories)
            bar = tqdm(categories, total=len(args.categories), desc=f"seed {seed}", unit="category")
            looks = [Looks(category) for category in bar]
            rows = {own.name: measure(looks, own) for own in looks}
            print(
                f"seed {seed}; share of images called unfamiliar; nearest: the other image that is nearest, 1 the limit"
            )
            print_table(rows)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
