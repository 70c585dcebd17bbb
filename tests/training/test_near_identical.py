"""Images of one part found because they are nearly the same."""

import io
import itertools
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from rendered_parts import rendered, save
from sentences import refused

from training.data.groups import find_groups
from training.data.near_identical import LookAlikes, describe_images, find_near_identical, group_descriptors
from training.data.splits import count_parts, hold_out


def under_other_light(grey):
    return (255 * (grey / 255.0) ** 1.4 * 0.8).astype(np.uint8)


def shifted(grey, by=1):
    return np.roll(grey, (by, -by), (0, 1))


def as_jpeg(grey):
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=80)
    return np.asarray(Image.open(stream))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """16 parts; four of them come again: as a copy, under other light, shifted, as a JPEG decoded and saved again."""
    images = {f"{seed:02d}.png": rendered(seed) for seed in range(16)}
    again = [lambda grey: grey, under_other_light, shifted, as_jpeg]
    images |= {f"{seed:02d} (again).png": change(rendered(seed)) for seed, change in enumerate(again)}
    return save(tmp_path_factory.mktemp("twins"), images)


def test_copies_and_the_same_part_under_other_light_or_shifted_are_found_and_no_others(twins):
    labels = find_near_identical(twins, shows_progress=False)
    for (first, a), (second, b) in itertools.combinations(zip(twins, labels, strict=True), 2):
        assert (a == b) == (first.name[:2] == second.name[:2]), (first.name, second.name)


def test_what_is_found_is_said_in_one_line_and_kept_together(twins, caplog):
    caplog.set_level(logging.INFO)
    groups = find_groups(twins, name="plates", shows_progress=False)
    (said,) = [line for line in caplog.messages if "parts" in line]
    assert said == "plates: 20 images are of about 16 parts: near-identical ones are kept on one side of every split"
    for seed in range(20):
        training, held_out = hold_out(twins, 0.25, seed, groups)
        assert {groups[image] for image in training} & {groups[image] for image in held_out} == set()
        assert count_parts(held_out, groups) == 4
        assert sorted(training + held_out) == twins


def test_copies_of_one_image_are_one_part_however_many(tmp_path):
    images = save(tmp_path, {f"{index}.png": rendered(0) for index in range(12)})
    assert len(set(find_near_identical(images, shows_progress=False))) == 1
    with refused(ValueError, "12 images are of 1 part", "at least 8 parts", "--groups none"):
        find_groups(images, shows_progress=False)
    assert find_groups(images, "none") is None


def test_many_images_of_few_parts_are_told_apart(tmp_path):
    """More images of a part than are compared as neighbours."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, take in itertools.product(range(9), range(14)):
        noisy = rendered(part) * rng.uniform(0.7, 1.0) + rng.normal(0, 2, (96, 96))
        arrays[f"{part}-{take:02d}.png"] = noisy.clip(0, 255).astype(np.uint8)
    images = save(tmp_path, arrays)
    labels = find_near_identical(images, shows_progress=False)
    assert len({(image.name[0], label) for image, label in zip(images, labels, strict=True)}) == len(set(labels))
    assert 9 <= len(set(labels)) <= 24  # a noisy take may stay alone; no two parts are taken for one


def test_real_tiles_are_grouped_by_the_frames_that_follow_each_other(tile_files):
    """The same tile under the next exposure has the next frame numbers, no more than 100 apart among these 24."""
    groups = find_groups(tile_files, shows_progress=False)
    frame = {image: int(image.stem.split("_")[-1]) for image in tile_files}
    for first, second in itertools.combinations(tile_files, 2):
        if groups[first] == groups[second]:
            assert abs(frame[first] - frame[second]) < 100, (first.name, second.name)
    assert 12 <= count_parts(tile_files, groups) < 24


def test_an_image_that_cannot_be_read_is_like_no_other(twins, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    labels = find_near_identical([*twins, broken], shows_progress=False)
    assert list(labels).count(labels[-1]) == 1


def test_descriptors_of_unlike_images_group_nothing_whatever_the_number():
    rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).half()
    described = describe_images([])._replace(features=rows, digests=[str(index) for index in range(300)])
    assert len(set(group_descriptors(described))) == 300


def test_a_stream_knows_another_image_of_a_part_that_is_held_out(twins):
    sample = [image for image in twins if "again" not in image.name]
    alike = LookAlikes(sample, sample[:4])
    for image in twins:
        seed = int(image.name[:2])
        assert alike.contains(np.asarray(Image.open(image).convert("RGB"))) == (seed < 4), image.name
