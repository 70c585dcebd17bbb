"""The calibration benchmark: promises that are kept and broken, its intervals, its command."""

import json
import shutil

import numpy as np
import pytest
import torch
from measurements import images
from paths import TILES
from PIL import Image
from sentences import assert_sentence, refused

from benchmarks.calibration import find_held_out, main, measure_images
from benchmarks.parts import RATES as PART_RATES
from benchmarks.parts import WAYS, compare_splits, format_part_table
from benchmarks.promise_statistics import split_p_values
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.data.splits import hold_out
from training.fitting.calibration_fit import fit_image_ranks
from training.records.training_record import publishable_record, read_record, write_record

# measured rates


# intervals and distances


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
