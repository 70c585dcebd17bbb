"""The calibration benchmark: promises that are kept and broken, its intervals, its command."""

import json
import shutil

import numpy as np
import pytest
import torch
from paths import TILES
from PIL import Image
from scipy.stats import binomtest, kstest
from sentences import assert_sentence, refused

from benchmarks.calibration import find_held_out, format_table, main, measure_images
from benchmarks.parts import RATES as PART_RATES
from benchmarks.parts import WAYS, compare_splits, format_part_table
from benchmarks.promise_statistics import (
    RATES,
    distance_from_uniform,
    independent_images,
    split_p_values,
    summarize,
    wilson_interval,
)
from pipelines.measurement import Measurement
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.data.splits import hold_out
from training.fitting.calibration_fit import fit_image_ranks
from training.records.training_record import publishable_record, read_record, write_record

CALIBRATION = ScoreCalibration(timesteps=[5], resolution=8, grid_size=4)


def images(count, seed, shift=0.0):
    """Measurement of made-up images, each with its own level of normal errors."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(count, 1, 1, 1, generator=generator) + shift
    kl, feature_error = (level + 0.1 * torch.randn(count, 1, 4, 4, generator=generator) for _ in range(2))
    return Measurement(kl, feature_error, kl[:, :0])


@pytest.fixture(scope="module")
def redrawn():
    """160 exchangeable images, split anew each time."""
    return split_p_values(CALIBRATION, images(160, seed=0), splits=200)


def new_pool(seed, shift=0.0, splits=30):
    """160 images that calibrate, 60 others that are new in every split."""
    new = images(60, seed + 1000, shift)
    return split_p_values(CALIBRATION, images(160, seed), new, splits=splits)


# measured rates


def test_parts_have_the_sizes_that_are_documented(redrawn):
    config = redrawn.calibration.config
    assert redrawn.p_values.shape == redrawn.smoothed.shape == (200, 40)
    assert (config.num_fitted, config.num_ranked) == (48, 72)
    pool = new_pool(0)
    assert pool.p_values.shape == (30, 60)
    assert (pool.calibration.config.num_fitted, pool.calibration.config.num_ranked) == (64, 96)


def test_exchangeable_images_are_rejected_as_often_as_the_ranks_allow_and_never_more_than_promised(redrawn):
    summary = summarize(redrawn)
    assert [row["asked"] for row in summary["rates"]] == list(RATES)
    for row in summary["rates"]:
        assert row["promised"] == max(row["asked"], 1 / 73)
        assert row["exact"] == pytest.approx(int(row["promised"] * 73 + 1e-9) / 73)
        low, high = row["interval"]
        assert low <= row["exact"] <= high  # fixed seed: 200 splits leave little to chance
        assert low < row["measured"] < high < row["measured"] + 0.02
        assert row["kept"]
    assert summary["uniformity"]["share_below"] == pytest.approx(0.05, abs=0.04)
    assert 0.3 < summary["uniformity"]["median"] < 0.7


def test_other_images_break_the_promise_and_the_table_says_so():
    kept, broken = summarize(new_pool(0)), summarize(new_pool(0, shift=1.5))
    assert all(row["kept"] for row in kept["rates"])
    assert kept["uniformity"]["median"] > 0.05
    for row in broken["rates"]:
        assert not row["kept"]
        assert row["measured"] > row["interval"][0] > row["promised"]
    assert broken["uniformity"]["median"] < 0.001
    assert broken["uniformity"]["share_below"] == 1
    table = format_table({"test/good": broken})
    assert table.count("| broken |") == len(broken["rates"])
    assert "kept" not in table
    assert "| test/good | 0.100 | 0.100 | 0.093 |" in table  # 9 of 97
    assert "64 images fitted, 96 ranked, 60 new" in table


def test_images_that_score_lower_keep_the_promise_but_are_not_uniform():
    summary = summarize(new_pool(0, shift=-1.5))
    assert all(row["kept"] for row in summary["rates"])
    assert summary["uniformity"]["median"] < 0.001


def test_rates_too_small_to_be_promised_are_reported_once_as_the_smallest():
    pool = split_p_values(CALIBRATION, images(20, seed=0), splits=5)
    assert pool.calibration.config.num_ranked == 9
    rows = summarize(pool)["rates"]
    assert [(row["asked"], row["promised"], row["exact"]) for row in rows] == [(0.01, 0.1, 0.1), (0.2, 0.2, 0.2)]


def test_equal_scores_never_reject_and_smoothing_makes_them_uniform():
    equal = Measurement(torch.ones(40, 1, 4, 4), torch.ones(40, 1, 4, 4), torch.ones(40, 0, 4, 4))
    pool = split_p_values(CALIBRATION, equal, splits=40)
    assert (pool.p_values == 1).all()
    assert kstest(pool.smoothed.flatten().numpy(), "uniform").pvalue > 0.01


def test_smoothed_p_values_lie_within_one_rank_below_the_p_values(redrawn):
    below = redrawn.p_values - redrawn.smoothed
    assert below.min() >= 0
    assert below.max() <= 1 / 73 + 1e-9
    assert below.mean().item() == pytest.approx(0.5 / 73, rel=0.05)


def test_splits_follow_the_seed_alone_and_leave_the_calibration_as_it_is():
    before = {name: tensor.clone() for name, tensor in CALIBRATION.state_dict().items()}
    first, again, other = (split_p_values(CALIBRATION, images(40, 0), splits=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.smoothed, again.smoothed)
    assert not torch.equal(first.p_values, other.p_values)
    for name, tensor in CALIBRATION.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# intervals and distances


def test_wilson_interval_is_that_of_scipy():
    for rejected, count in ((0, 20), (3, 50), (40, 40)):
        expected = binomtest(rejected, count).proportion_ci(method="wilson")
        assert wilson_interval(rejected / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_a_split_counts_as_the_independent_images_that_its_variance_says(redrawn):
    by_split = (redrawn.p_values <= 0.2).double().mean(dim=1)
    exact = 14 / 73
    variance = by_split.var().item()  # splits are independent given the images
    assert exact * (1 - exact) / variance == pytest.approx(independent_images(redrawn) / 200, rel=0.25)
    assert independent_images(redrawn) / 200 < 40  # new images of one split share their threshold


def test_intervals_of_the_same_new_images_hold_the_exact_rate_in_most_worlds():
    held = []
    for seed in range(40):
        pool = new_pool(seed, splits=4)
        for k in (1, 4, 9, 19):
            exact = k / 97
            measured = (pool.p_values <= exact + 1e-12).double().mean().item()
            low, high = wilson_interval(measured, independent_images(pool))
            held.append(low <= exact <= high)
    assert np.mean(held) > 0.9


def test_distance_from_uniform_is_that_of_scipy():
    values = torch.rand(3, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 1.5
    expected = [kstest(row.numpy(), "uniform").statistic for row in values]
    assert distance_from_uniform(values).tolist() == pytest.approx(expected)


# measured images


def test_p_values_of_a_split_are_those_of_the_pipeline_with_its_calibration(tiny_checkpoint, tile_files):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    good, new = (measure_images(pipe, files) for files in (tile_files[:18], tile_files[18:]))
    pool = split_p_values(pipe.calibration, good, new, splits=2)
    pool.calibration.noise.copy_(pipe.calibration.noise)
    pipe.register_modules(calibration=pool.calibration)
    output = pipe([Image.open(path) for path in tile_files[18:]])
    np.testing.assert_allclose(output.p_value, pool.p_values[-1].numpy(), atol=1e-9)
    assert len(set(output.p_value)) > 1


def test_normalisation_and_ranks_are_those_of_the_fit_itself(tiny_checkpoint, tile_files):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    measured = measure_images(pipe, tile_files)
    again = ScoreCalibration.from_config(pipe.calibration.config)
    fit_image_ranks(again, measured, measured)
    for name, expected in pipe.calibration.state_dict().items():
        if name.endswith(("_mean", "_std")):  # the fit's own ranks are cross-fitted
            torch.testing.assert_close(again.state_dict()[name], expected, msg=name)
    scores = again.part_scores.sub(again.part_score_mean[:, None]).div(again.part_score_std[:, None])
    torch.testing.assert_close(scores.std(dim=1), torch.ones_like(scores[:, 0]))


# the command


@pytest.fixture(scope="module")
def held_out_checkpoint(tiny_checkpoint, tile_files, tmp_path_factory):
    """The tiny pipeline with a training record that names the tiles that calibrated it."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("held_out") / "tiny")
    record(folder, {"tiles before they were renamed": [path.name for path in tile_files]})
    return folder


def record(folder, held_out):
    (folder / "training.json").write_text(json.dumps({"held_out": held_out}))


@pytest.mark.usefixtures("one_core")
def test_the_command_writes_json_and_plot_and_prints_the_table(held_out_checkpoint, tmp_path, capsys):
    arguments = ["--model", str(held_out_checkpoint), "--data_dir", str(TILES), "--splits", "5"]
    main([*arguments, "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    pools = results["pools"]
    assert results["splits"] == 5
    assert {name: (pool["fitted"], pool["ranked"], pool["new"]) for name, pool in pools.items()} == {
        "held out": (7, 11, 6),
        "test/good": (10, 14, 3),
    }
    printed = capsys.readouterr().out
    for name, pool in pools.items():
        for row in pool["rates"]:
            low, high = row["interval"]
            assert 0 <= low <= row["measured"] <= high <= 1
            assert f"| {name} | {row['asked']:.3f} | {row['promised']:.3f} |" in printed
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 800


@pytest.mark.usefixtures("one_core")
def test_without_test_images_only_the_held_out_ones_are_judged(held_out_checkpoint, tmp_path, caplog):
    shutil.copytree(TILES / "train", tmp_path / "tiles" / "train")
    arguments = ["--model", str(held_out_checkpoint), "--data_dir", str(tmp_path / "tiles"), "--splits", "2"]
    with caplog.at_level("WARNING"):
        main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["pools"]) == ["held out"]
    assert_sentence(caplog.messages[-1], "test/good", "left out")


def test_of_several_categories_the_one_asked_for_is_found(tile_files, tmp_path):
    names = [path.name for path in tile_files]
    record(tmp_path, {"nut": ["1.png"] * 30, "tile": names[:20]})
    assert find_held_out(tmp_path, TILES, "tile") == tile_files[:20]


def test_images_that_a_published_record_does_not_name_are_found_by_its_seed(tile_files, tmp_path):
    held_out = hold_out(tile_files, 0.9, 3)[1]
    settings = {"calibration_fraction": 0.9, "seed": 3}
    write_record(tmp_path, settings, None, None, {"tile": held_out})
    assert find_held_out(tmp_path, TILES) == held_out
    for _ in range(2):  # published again it stays the same
        published = publishable_record(read_record(tmp_path))
        (tmp_path / "training.json").write_text(json.dumps(published))
        assert not [path for path in held_out if path.name in json.dumps(published)]
        assert find_held_out(tmp_path, TILES) == held_out
    published["settings"]["seed"] = 4
    (tmp_path / "training.json").write_text(json.dumps(published))
    with refused(ValueError, "published without names", str(TILES)):
        find_held_out(tmp_path, TILES)


def test_records_that_do_not_fit_are_refused_with_a_sentence(tile_files, tmp_path):
    names = [path.name for path in tile_files]
    with refused(ValueError, "training.json", str(tmp_path)):
        find_held_out(tmp_path, TILES)
    for held_out, words in (
        ({"tile": names[:19]}, ["19", "20"]),
        ({"tile": [*names, "missing.png"]}, ["25", "24"]),
        ({"nut": names, "bolt": names}, ["names 0"]),
        (names, ["by category"]),
    ):
        record(tmp_path, held_out)
        with refused(ValueError, *words):
            find_held_out(tmp_path, TILES)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"--splits": "0"}, "0"),
        ({"--category": "nut"}, "nut"),
        ({"--data_dir": "missing"}, "missing"),
        ({"--model": "missing"}, "missing"),
    ],
)
def test_the_command_refuses_with_a_sentence_and_writes_nothing(held_out_checkpoint, tmp_path, options, word):
    arguments = {"--model": str(held_out_checkpoint), "--data_dir": str(TILES), "--output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as ended:
        main([part for pair in (arguments | options).items() for part in pair])
    assert ended.value.code.startswith("error: ")
    assert_sentence(ended.value.code, word)
    assert not (tmp_path / "out").exists()


# parts that come several times


def test_whole_parts_held_out_keep_the_promise_for_new_parts_and_images_held_out_break_it():
    generator = torch.Generator().manual_seed(0)
    parts = torch.arange(60).repeat_interleave(5)
    own = torch.randn(60, 24, 2, 2, generator=generator)
    features = own[parts] + 0.2 * torch.randn(300, 24, 2, 2, generator=generator)
    rows = compare_splits(features.half(), parts, splits=12)
    assert [(row.way, row.asked) for row in rows] == [(way, rate) for way in WAYS for rate in PART_RATES]
    for row in rows:
        assert row.kept == (row.way == "by part"), row
        assert row.interval[0] <= row.measured <= row.interval[1]
    table = format_part_table(rows, 300, 60, 12)
    assert "300 good images of 60 parts, 12 splits" in table
    assert (table.count("| kept |"), table.count("| broken |")) == (3, 3)


def test_a_checkpoint_calibrated_by_parts_is_split_by_images_all_the_same():
    settings = {"num_ranked": 30, "num_groups": 10, "ranks_bfloat16": True}
    calibration = ScoreCalibration(timesteps=[5], resolution=8, grid_size=4, **settings)
    pool = split_p_values(calibration, images(40, seed=0), splits=2)
    assert pool.calibration.config.num_groups is None
    assert pool.p_values.min() >= 1 / (pool.calibration.config.num_ranked + 1) - 1e-9
