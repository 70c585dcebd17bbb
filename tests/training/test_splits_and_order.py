"""Images held out, and the endless rotated sequence of the others."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from image_folders import SIZE, write_images
from PIL import Image
from sentences import refused
from torch.utils.data import DataLoader

from training.cli.arguments import parse_args
from training.data.augmentation import ShuffledRotatedImages
from training.data.good_images import GoodImages, find_categories
from training.data.layouts import MIN_IMAGES, find_good_images
from training.data.splits import hold_out
from training.data.training_data import DataSettings, find_training_data


def level(sample):
    """Index of the image of `write_images` that a sample shows, after checking that it is still constant."""
    torch.testing.assert_close(sample, sample[0, 0, 0].expand_as(sample), atol=1e-5, rtol=0)
    return round((sample.mean().item() + 1) / 2 * 255 / 8)


@pytest.fixture
def images(tmp_path):
    return GoodImages(write_images(tmp_path / "good", 10), SIZE)


def test_held_out_images_and_the_rest_are_disjoint_and_complete(tile_files):
    for fraction, expected in ((0.25, 6), (0.5, 12), (0.01, 4), (0.99, 20)):
        training, held_out = hold_out(tile_files, fraction, 0)
        assert len(held_out) == expected
        assert not set(training) & set(held_out)
        assert sorted(training + held_out) == sorted(tile_files)


def test_the_split_follows_seed_and_names_but_not_the_order_or_place_of_the_files(tile_files, tmp_path):
    split = hold_out(tile_files, 0.25, 0)
    shuffled = [tile_files[index] for index in np.random.default_rng(0).permutation(len(tile_files))]
    assert hold_out(shuffled, 0.25, 0) == split
    assert hold_out(tile_files, 0.25, 0) == split
    assert hold_out(tile_files, 0.25, 1) != split
    folder = tmp_path / "elsewhere" / "good"
    shutil.copytree(tile_files[0].parent, folder)
    copies = hold_out(find_good_images(folder), 0.25, 0)
    assert [[path.name for path in part] for part in copies] == [[path.name for path in part] for part in split]


def test_at_least_four_images_fall_on_either_side_of_the_split(tmp_path):
    files = write_images(tmp_path, MIN_IMAGES)
    for fraction in (0.01, 0.25, 0.99):
        training, held_out = hold_out(files, fraction, 0)
        assert len(training) == len(held_out) == 4


def test_every_image_comes_once_before_any_comes_again(images):
    sequence = ShuffledRotatedImages([images], 3 * len(images), rotation_degrees=0, seed=0)
    shown = [level(sequence[place][0]) for place in range(len(sequence))]
    epochs = [shown[start : start + len(images)] for start in range(0, len(shown), len(images))]
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(images)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sequence_taken_up_at_any_place_is_the_tail_of_the_whole(tile_files):
    images = GoodImages(tile_files[:8], SIZE)
    whole = ShuffledRotatedImages([images], 20, rotation_degrees=5, seed=3)
    for start in (1, 7, 8, 13):
        tail = ShuffledRotatedImages([images], 20 - start, rotation_degrees=5, seed=3, start=start)
        assert len(tail) == 20 - start
        for place in range(len(tail)):
            assert torch.equal(tail[place][0], whole[start + place][0])
            assert tail[place][2] == whole[start + place][2] == start + place


def test_categories_take_turns_however_many_images_they_have(tmp_path):
    few, many = (
        GoodImages(write_images(tmp_path / name, count), SIZE) for name, count in (("few", MIN_IMAGES), ("many", 20))
    )
    sequence = ShuffledRotatedImages([few, many], 40, rotation_degrees=0, seed=0)
    assert [label for _, label, _ in sequence] == [0, 1] * 20
    shown = [level(sample) for sample, label, _ in sequence if label == 1]
    assert sorted(shown) == list(range(20))
    alone = ShuffledRotatedImages([few], 20, rotation_degrees=0, seed=0)
    assert [level(sample) for sample, label, _ in sequence if label == 0] == [level(sample) for sample, _, _ in alone]


def test_folders_of_the_same_name_cannot_be_two_categories(tmp_path):
    for parent in ("left", "right"):
        write_images(tmp_path / parent / "part", MIN_IMAGES)
    found = find_categories([tmp_path / "left" / "part", tmp_path / "right"])
    assert list(found) == ["part", "right"]
    with pytest.raises(ValueError, match="must differ"):
        find_categories([tmp_path / "left" / "part", tmp_path / "right" / "part"])


def test_order_and_rotations_follow_the_seed(tile_files):
    images = GoodImages(tile_files[:8], SIZE)
    first, same, other = (
        torch.stack([sample for sample, _, _ in ShuffledRotatedImages([images], 16, 5, seed=seed)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_spawned_worker_processes_serve_the_same_sequence(images):
    sequence = ShuffledRotatedImages([images], 12, rotation_degrees=5, seed=0)
    loader = DataLoader(
        sequence, batch_size=4, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    served = torch.cat([samples for samples, _, _ in loader])
    assert torch.equal(served, torch.stack([sequence[place][0] for place in range(12)]))


@pytest.mark.parametrize("degrees", [1, 5, 45])
def test_rotation_leaves_a_constant_image_constant_up_to_its_corners(images, degrees):
    sequence = ShuffledRotatedImages([images], 2 * len(images), rotation_degrees=degrees, seed=0)
    assert sorted(level(sequence[place][0]) for place in range(len(images))) == list(range(len(images)))


@pytest.mark.parametrize("limit", [2.0, 10.0])
def test_rotations_use_their_range_both_ways_and_never_exceed_it(tmp_path, limit):
    size = 128
    rows = np.zeros((size, size), np.float32)
    rows[size // 2 :] = 1.0  # one horizontal edge, whose slope is the angle
    Image.fromarray((rows * 255).astype(np.uint8)).save(tmp_path / "edge.png")
    sequence = ShuffledRotatedImages([GoodImages([tmp_path / "edge.png"], size)], 60, limit, seed=0)
    angles = []
    for place in range(len(sequence)):
        edge = (1 - sequence[place][0][0]).sum(dim=0) / 2  # height of the dark part in each column
        middle = edge[size // 4 : -size // 4]
        slope = (middle[-1] - middle[0]) / (len(middle) - 1)
        angles.append(torch.rad2deg(torch.atan(slope)).item())
    assert max(angles) <= limit + 0.2
    assert min(angles) >= -limit - 0.2
    assert max(angles) > 0.7 * limit
    assert min(angles) < -0.7 * limit


def test_no_rotation_serves_the_images_untouched(tile_files):
    images = GoodImages(tile_files[:8], SIZE)
    sequence = ShuffledRotatedImages([images], 8, rotation_degrees=0, seed=0)
    untouched = [images[index] for index in range(8)]
    for place in range(8):
        assert sum(torch.equal(sequence[place][0], sample) for sample in untouched) == 1


def test_the_next_image_stands_in_for_one_that_disappears_from_a_training(tmp_path, caplog):
    files = write_images(tmp_path, 20)
    images, strict = GoodImages(files, SIZE, replaces_unreadable=True), GoodImages(files, SIZE)
    for path in (files[3], files[4], files[19]):
        path.unlink()
    assert [level(images[index]) for index in (2, 3, 4, 5, 19)] == [2, 5, 5, 5, 0]
    assert sum(files[4].name in message for message in caplog.messages) == 1
    with refused(ValueError, files[3].name):
        strict[3]
    for path in files[5:14]:
        path.unlink()
    with refused(ValueError, "10", files[12].name):
        images[3]


def test_of_a_large_folder_only_heads_are_read_but_what_is_held_out_is_decoded(tmp_path, monkeypatch):
    files = write_images(tmp_path, 40, size=(64, 64))
    for path in files[::2]:
        path.write_bytes(path.read_bytes()[:-30])
    (tmp_path / "text.png").write_text("text")
    assert find_good_images(tmp_path) == files[1::2]
    for module in ("layouts", "training_data"):
        monkeypatch.setattr(f"training.data.{module}.CHECKED_WHOLE", 10)
    assert find_good_images(tmp_path) == files
    arguments = parse_args(
        ["--train_data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--groups", "none"]
    )
    ((training, held_out),) = find_training_data(DataSettings.of(vars(arguments)), tmp_path / "out").splits.values()
    assert len(training) == 30
    assert held_out == [path for path in files[1::2] if path not in training]
    assert 0 < len(held_out) < 10


def test_no_more_images_are_held_out_than_calibration_has_a_use_for(tmp_path, monkeypatch):
    write_images(tmp_path, 30)
    monkeypatch.setattr("training.data.training_data.MAX_HELD_OUT", 6)
    arguments = parse_args(
        ["--train_data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--groups", "none"]
    )
    ((training, held_out),) = find_training_data(DataSettings.of(vars(arguments)), tmp_path / "out").splits.values()
    assert (len(training), len(held_out)) == (24, 6)
