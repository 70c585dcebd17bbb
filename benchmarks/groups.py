"""How well are images of one part found where nobody says which they are, and at what cost?

    python benchmarks/groups.py CATEGORY [CATEGORY ...] [--groups TABLE.csv]

For each category: how many parts are found among its good images. With `--groups`, the truth (`training/train.py
--help`), how many true parts are found whole, and how many found ones mix several. Then some images come again: darker,
brighter, shifted, noisier, compressed, at another size; how many of those are found. Last, what it takes, for these
images and for 100,000 of them (the comparison is measured with as many random descriptors, or with `--many` and then
computed: it grows with the square of their number).
"""

import argparse
import io
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from training.data.good_images import find_white_level
from training.data.groups import HELP as GROUPS_HELP
from training.data.groups import find_groups
from training.data.image_reading import read_as_8_bits
from training.data.layouts import find_good_images
from training.data.near_identical import Descriptors, describe_images, find_near_identical, group_descriptors
from training.runtime.process import keep_large_buffers, use_all_cores

NUM_AGAIN = 36
MANY = 100_000


def changed(rgb, kind, random):
    """An image, uint8, as it might come again."""
    values = rgb.astype(np.float32)
    if kind == "darker":
        values *= 0.6
    elif kind == "brighter":
        values = 255 * (values / 255) ** 0.6
    elif kind == "shifted":
        by = np.round(random.uniform(2, 5, 2) / 256 * rgb.shape[0]).astype(int)
        values = np.pad(values, ((by[0], 0), (by[1], 0), (0, 0)), mode="edge")[: rgb.shape[0], : rgb.shape[1]]
    elif kind == "noisier":
        values += random.normal(0, 3, values.shape)
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if kind == "compressed":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=75)
        image = Image.open(stream)
    return image.resize((image.width * 3 // 4, image.height * 3 // 4)) if kind == "smaller" else image


KINDS = ("darker", "brighter", "shifted", "noisier", "compressed", "smaller")


def found_again(images, folder, seed=0):
    """How many of some images that come again are found, `dict[str, str]` by kind of change."""
    random, white_level = np.random.default_rng(seed), find_white_level(images)
    chosen = random.choice(len(images), min(NUM_AGAIN, len(images)), replace=False)
    again = []
    for number, place in enumerate(chosen):
        rgb = np.asarray(read_as_8_bits(images[place], white_level))
        again.append(folder / f"{number:02d}.png")
        changed(rgb, KINDS[number % len(KINDS)], random).convert("RGB").save(again[-1])
    labels = find_near_identical([*images, *again])
    counts = defaultdict(list)
    for number, place in enumerate(chosen):
        counts[KINDS[number % len(KINDS)]].append(labels[len(images) + number] == labels[place])
    return {kind: f"{sum(found)} of {len(found)}" for kind, found in counts.items()}


def compare_with_truth(labels, truth):
    """How many true parts of several images are found whole, of how many, and how many found ones mix several."""
    found, true = defaultdict(set), defaultdict(set)
    for label, name in zip(labels, truth, strict=True):
        found[label].add(name)
        true[name].add(label)
    several = [name for name in true if truth.count(name) > 1]
    return sum(len(true[name]) == 1 for name in several), len(several), sum(len(names) > 1 for names in found.values())


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("categories", nargs="+", type=Path, help="folders of good images, or data sets")
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--many", type=int, default=MANY, help="random descriptors that the comparison is timed with")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/groups"), help="for images that come again")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        for category in args.categories:
            images = find_good_images(category)
            began = time.perf_counter()
            descriptors = describe_images(images)
            described = time.perf_counter()
            labels = group_descriptors(descriptors)
            compared = time.perf_counter()
            print(f"{category.name}: {len(images)} images, {len(set(labels))} parts found")
            if args.groups is not None:
                groups = find_groups(images, args.groups)
                whole, several, mixed = compare_with_truth(labels.tolist(), [groups[image] for image in images])
                print(
                    f"  of {several} parts with several images {whole} are found whole; {mixed} found ones mix several"
                )
            again = found_again(images, args.output_dir)
            print("  come again and found: " + ", ".join(f"{kind} {count}" for kind, count in again.items()))
            each = 1000 * (described - began) / len(images)
            print(f"  {each:.1f} ms an image to describe it, {compared - described:.2f} s to compare all")
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = torch.randn(args.many, descriptors.features.shape[1], generator=torch.Generator().manual_seed(0)).half()
    began = time.perf_counter()
    group_descriptors(Descriptors(rows, [str(place) for place in range(args.many)]))
    seconds = (time.perf_counter() - began) * (MANY / args.many) ** 2
    print(f"{MANY:,} images: {each * MANY / 60_000:.0f} minutes to describe them, {seconds / 60:.1f} to compare them")


if __name__ == "__main__":
    main()
