"""Validation while training: it looks at the right images, measures what it says, and changes nothing."""

import random

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from launching import TWELVE_STEPS
from launching import train as run_training
from paths import TILES
from sentences import refused
from tiny_pipeline import build_tiny_pipeline

from rendering.sheet import LABEL_COLORS
from training.data.splits import hold_out
from training.data.synthetic_defects import KINDS
from training.engine.data_statistics import DataStatistics
from training.engine.initial_weights import Networks
from training.engine.validation import NUM_IMAGES, Validation, choose_images, separation_of
from training.fitting.calibration_fit import MIN_DISJOINT, fit_calibration, split_held_out
from training.records.progress import SEPARATION, read_progress, separation_curve

RESOLUTION = 64


def train(environment, folder, steps):
    """The training of `finished` with a validation after so many steps each."""
    arguments = ["--train_data_dir", TILES, "--output_dir", folder / "out", *TWELVE_STEPS]
    done = run_training(environment, *arguments, "--validation_steps", steps)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def validated(environment, tmp_path_factory):
    """The output folder of one that validates often."""
    return train(environment, tmp_path_factory.mktemp("validated"), 3)


@pytest.fixture(scope="module")
def unvalidated(environment, tmp_path_factory):
    """The output folder of one that never does."""
    return train(environment, tmp_path_factory.mktemp("unvalidated"), 0)


def test_validation_changes_no_byte_of_what_is_trained(validated, unvalidated):
    names = [path.relative_to(unvalidated) for path in sorted(unvalidated.rglob("*.safetensors"))]
    assert {path.parts[0] for path in names} >= {"checkpoint-12", "unet", "calibration", "gaussian", "memory"}
    for name in [*names, "checkpoint-12/state.json"]:
        assert (validated / name).read_bytes() == (unvalidated / name).read_bytes(), name


def test_every_validation_and_one_after_the_last_step_stand_in_the_progress(validated, unvalidated):
    curve = separation_curve(read_progress(validated))
    assert curve["step"] == [3, 6, 9, 12]
    assert all(0 <= value <= 1 for name in SEPARATION for value in curve[name])
    assert all(seconds > 0 for seconds in curve["validation_seconds"])
    assert separation_curve(read_progress(unvalidated))["step"] == []


def test_two_processes_share_a_validation_out_and_find_the_same(environment, validated, tmp_path):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TWELVE_STEPS, "--validation_steps", 3]
    done = run_training(environment, *arguments, "--train_batch_size", 2, "--report", num_processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
    expected, found = (separation_curve(read_progress(folder)) for folder in (validated, tmp_path))
    assert found["step"] == expected["step"]
    for name in ("kl_pixel_auroc", "features_pixel_auroc"):
        assert found[name] == pytest.approx(expected[name], abs=0.01), name


# Which images


@pytest.fixture
def held_out(tile_files, tmp_path):
    """As many images as are split in two; those that are ranked cannot be read."""
    for index in range(MIN_DISJOINT):
        (tmp_path / f"{index}.jpg").write_bytes(tile_files[index % len(tile_files)].read_bytes())
    files = sorted(tmp_path.iterdir())
    ranked, fitted = split_held_out(files, 0)
    assert sorted([*ranked, *fitted]) == files
    for path in ranked:
        path.write_bytes(b"torn")
    return files


def test_images_whose_scores_are_ranked_are_never_looked_at(held_out):
    images = choose_images(held_out, NUM_IMAGES, RESOLUTION, 0)
    assert len(images) == 2 * NUM_IMAGES
    ranked = split_held_out(held_out, 0)[0]
    with refused(ValueError, "is not an image") as caught:
        fit_calibration(build_tiny_pipeline(), held_out, [5])
    assert any(path.name in str(caught.value) for path in ranked)


def test_good_images_come_first_and_every_kind_of_defect_follows(tile_files):
    images = choose_images(tile_files, NUM_IMAGES, RESOLUTION, 0)
    good, synthetic = images[:NUM_IMAGES], images[NUM_IMAGES:]
    assert len(synthetic) == 2 * len(KINDS)
    for (sample, blank), (changed, mask) in zip(good, synthetic, strict=True):
        assert not blank.any()
        assert mask.any()
        assert (sample - changed)[:, mask].abs().max() > 0.03


# What is measured


def maps_of(masks, inside, outside):
    grid = masks.float()[:, None].repeat(1, 2, 1, 1)
    return outside + (inside - outside) * grid


@pytest.mark.parametrize(("inside", "outside", "auroc"), [(2.0, 0.0, 1.0), (0.0, 0.0, 0.5), (-1.0, 0.0, 0.0)])
def test_pixel_auroc_says_how_well_defects_are_found(inside, outside, auroc):
    pipe = build_tiny_pipeline()
    masks = torch.zeros(4, RESOLUTION, RESOLUTION, dtype=torch.bool)
    masks[2:, 16:48, 16:48] = True
    maps = torch.nn.functional.avg_pool2d(maps_of(masks, inside, outside), RESOLUTION // pipe.config.score_grid)
    found = separation_of(pipe, maps, masks)
    for part in ("kl", "features"):
        assert found[f"{part}_pixel_auroc"] == pytest.approx(auroc, abs=0.02)


def test_image_auroc_ranks_images_by_their_worst_places_part_by_part():
    pipe = build_tiny_pipeline()
    masks = torch.zeros(4, RESOLUTION, RESOLUTION, dtype=torch.bool)
    masks[2:, :8, :8] = True
    maps = torch.zeros(4, 2, 16, 16)
    maps[:, 0, 0, 0:3] = torch.tensor([1.0, 3.0, 2.0, 4.0])[:, None]  # of four pairs one is the wrong way round
    maps[:, 1, 0, 0:3] = torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None]
    found = separation_of(pipe, maps, masks)
    assert found["kl_image_auroc"] == 0.75
    assert found["features_image_auroc"] == 0


@pytest.fixture
def validation(tile_files):
    """A validation of the tiny network with its averaged weights; both, and the weights that are trained."""
    pipe = build_tiny_pipeline()
    ema = EMAModel(pipe.unet.parameters())
    with torch.no_grad():
        for average in ema.shadow_params:
            average.mul_(1.5)
    splits = {"tile": hold_out(tile_files, 0.25, 0)}
    features = pipe.feature_extractor.feature_mean, pipe.feature_extractor.feature_std
    statistics = DataStatistics(torch.tensor([-0.1]), torch.tensor([0.3]), *features, 65535)
    networks = Networks(pipe.unet, pipe.scheduler, pipe.feature_extractor, statistics, 4)
    return Validation(networks, splits, {}, [5, 50, 100], 0, "no"), pipe, ema


def test_a_validation_leaves_random_numbers_weights_and_their_average_alone(validation):
    validation, pipe, ema = validation
    pipe.unet.train()
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    average = [tensor.clone() for tensor in ema.shadow_params]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = validation.measure(ema)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert pipe.unet.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())
    assert all(map(torch.equal, ema.shadow_params, average))
    assert not any(parameter.is_inference() for parameter in pipe.unet.parameters())
    second = validation.measure(ema)
    assert {name: first[name] for name in SEPARATION} == {name: second[name] for name in SEPARATION}


def test_it_is_the_averaged_weights_that_are_measured(validation):
    validation, pipe, ema = validation
    averaged = validation.measure(ema)
    maps = validation.categories["tile"].maps
    ema.copy_to(pipe.unet.parameters())
    assert {name: validation.measure(ema)[name] for name in SEPARATION} == {name: averaged[name] for name in SEPARATION}
    assert torch.equal(validation.categories["tile"].maps, maps)
    other = EMAModel(build_tiny_pipeline().unet.parameters())
    validation.measure(other)
    assert not torch.equal(validation.categories["tile"].maps, maps)


def test_a_sheet_shows_a_defect_of_each_kind_beside_what_is_found(validation):
    validation, _, ema = validation
    assert not validation.has_measured
    validation.measure(ema)
    assert validation.has_measured
    sheet = np.asarray(validation.draw_sheets()["tile"])
    assert sheet.shape[0] > len(KINDS) * 160
    assert (sheet == LABEL_COLORS[0]).all(axis=-1).sum() > 50  # outlines of the synthetic defects
