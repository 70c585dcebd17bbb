"""Training: real `accelerate launch` runs that finish, resume, refuse and learn."""

import json
import shutil

import numpy as np
import pytest
import torch
from launching import TINY, launch, train
from paths import TILES
from PIL import Image
from safetensors.torch import load_file
from sentences import assert_sentence

from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.good_images import GoodImages
from training.data.layouts import find_good_images
from training.data.splits import hold_out
from training.fitting.calibration_fit import fit_calibration
from training.train import main

TIMESTEPS = [5, 50, 100]


def test_a_run_ends_as_a_complete_pipeline_that_loads_and_scores(finished):
    pipe = AnomalyScoringPipeline.from_pretrained(finished)
    assert pipe.resolution == 64
    assert pipe.unet.config.out_channels == 2 * 48 + 192
    assert not pipe.unet.training
    tiles = [Image.open(path) for path in find_good_images(TILES)[:3]]
    output = pipe(tiles)
    assert [anomaly_map.shape for anomaly_map in output.anomaly_map] == [(tile.height, tile.width) for tile in tiles]
    assert np.isfinite(output.anomaly_score).all()
    names = {path.name for path in finished.iterdir()}
    assert {"README.md", "model_index.json", "pipeline_anomaly_scoring.py", "unet", "calibration"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_a_run_keeps_the_checkpoints_it_was_told_to_keep(finished):
    assert sorted(path.name for path in finished.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_a_run_writes_no_pickle(finished):
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".md", ".py", ".html"}


def test_the_pipeline_holds_the_moving_average_of_the_weights_and_not_the_last_ones(finished):
    checkpoint = finished / "checkpoint-12"
    last = load_file(checkpoint / "model.safetensors")
    average = load_file(checkpoint / "ema.safetensors")
    average = [average[str(index)] for index in range(len(average))]
    shipped = dict(AnomalyScoringPipeline.from_pretrained(finished).unet.named_parameters())
    assert len(shipped) == len(average)
    for (name, parameter), averaged in zip(shipped.items(), average, strict=True):
        assert torch.equal(parameter, averaged.half().float()), name
    assert any(not torch.equal(parameter, last[name].half().float()) for name, parameter in shipped.items())


def test_held_out_images_calibrate_and_are_named_in_the_record(finished):
    files = find_good_images(TILES)
    held_out = hold_out(files, 0.25, 0)[1]
    record = json.loads((finished / "training.json").read_text())
    assert record["held_out"] == {TILES.name: [path.name for path in held_out]}
    assert record["settings"]["max_train_steps"] == 12
    pipe = AnomalyScoringPipeline.from_pretrained(finished)
    assert pipe.calibration.config.num_ranked == len(held_out) == 6
    expected = fit_calibration(pipe, held_out, TIMESTEPS)
    torch.testing.assert_close(pipe.calibration.part_scores, expected.part_scores, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(pipe.calibration.kl_mean, expected.kl_mean, atol=1e-5, rtol=1e-3)


def test_what_auto_became_is_said_and_recorded(environment, tmp_path):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TINY, "--max_train_steps", "1", "--report"]
    done = train(environment, *arguments, "--mixed_precision", "auto")
    assert done.returncode == 0, done.stderr
    expected = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    assert f"the network computes in {expected} (--mixed_precision auto)" in done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["precision"], record["settings"]["mixed_precision"]) == (expected, "auto")
    assert f">{expected}<" in (tmp_path / "report.html").read_text()


def test_a_run_in_bfloat16_is_calibrated_in_float32(environment, tmp_path):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TINY, "--max_train_steps", "2"]
    done = train(environment, *arguments, "--mixed_precision", "bf16")
    assert done.returncode == 0, done.stderr
    assert "the network computes in bfloat16 (--mixed_precision bf16)" in done.stderr
    assert json.loads((tmp_path / "training.json").read_text())["precision"] == "bfloat16"
    pipe = AnomalyScoringPipeline.from_pretrained(tmp_path, mixed_precision="no")
    expected = fit_calibration(pipe, hold_out(find_good_images(TILES), 0.25, 0)[1], TIMESTEPS)
    torch.testing.assert_close(pipe.calibration.kl_mean, expected.kl_mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pipe.calibration.part_scores, expected.part_scores, atol=1e-4, rtol=1e-4)


def test_contrast_and_feature_statistics_are_those_of_the_training_images(finished):
    images = GoodImages(hold_out(find_good_images(TILES), 0.25, 0)[0], 64)
    samples = torch.stack([images[index] for index in range(len(images))])
    pipe = AnomalyScoringPipeline.from_pretrained(finished)
    assert pipe.config.data_mean == pytest.approx(samples.mean().item(), abs=1e-5)
    within_images = (samples - samples.mean(dim=(2, 3), keepdim=True)).square().mean().sqrt().item()
    assert pipe.config.data_std == pytest.approx(within_images, rel=1e-3)
    features = pipe.feature_extractor(samples)
    # the backbone was rounded to what is stored after its statistics were measured
    torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(192), atol=0.1, rtol=0)
    torch.testing.assert_close(features.std(dim=(0, 2, 3)), torch.ones(192), atol=0.1, rtol=0)


# refusals


def bad_input(name, tmp_path):
    """Arguments of a run that cannot start, and words that its refusal has to hold."""
    folder, output_dir = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    if name == "no folder":
        folder.rmdir()
    elif name == "text files":
        for index in range(20):
            (folder / f"{index}.txt").write_text("text")
    elif name == "three images":
        for path in find_good_images(TILES)[:3]:
            shutil.copy(path, folder)
    elif name != "empty folder":
        folder = TILES
    if name == "output below a file":
        (tmp_path / "regular").write_text("file")
        output_dir = tmp_path / "regular" / "out"
    options, words = {
        "three images": ([], [" 3 ", "8"]),
        "output below a file": ([], [str(output_dir)]),
        "alpha 2": (["--alpha", "2"], ["alpha", "2"]),
        "timestep twice": (["--timesteps", "5", "5"], ["timesteps", "5"]),
        "timestep 1000": (["--timesteps", "1000"], ["timesteps", "1000"]),
        "eleven timesteps": (["--timesteps", *map(str, range(11))], ["timesteps", "1 to 10 values"]),
        "no steps": (["--max_train_steps", "0"], ["max_train_steps", "0"]),
        "odd resolution": (["--resolution", "100"], ["resolution", "100"]),
        "unknown backbone": (["--feature_extractor", "efficientnet_lite99"], ["efficientnet_lite99"]),
        "unknown checkpoint": (["--resume_from_checkpoint", "checkpoint-7"], ["checkpoint-7"]),
    }.get(name, ([], [str(folder)]))
    return [
        "--train_data_dir",
        str(folder),
        "--output_dir",
        str(output_dir),
        *TINY,
        "--max_train_steps",
        "1",
        *options,
    ], words


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    "name",
    [
        "no folder",
        "empty folder",
        "text files",
        "three images",
        "output below a file",
        "alpha 2",
        "timestep twice",
        "timestep 1000",
        "eleven timesteps",
        "no steps",
        "odd resolution",
        "unknown backbone",
        "unknown checkpoint",
    ],
)
def test_a_run_that_cannot_start_ends_with_a_sentence_and_has_written_nothing(name, tmp_path, capsys):
    arguments, words = bad_input(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code not in (None, 0)
    if isinstance(ended.value.code, str):  # Python prints it and exits with status 1
        assert_sentence(ended.value.code, *words)
    else:
        *usage, message = capsys.readouterr().err.splitlines()
        assert usage[0].startswith("usage:")
        assert all(word in message for word in ("error:", *words))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_beyond_the_steps_asked_for_is_refused(tmp_path):
    (tmp_path / "out" / "checkpoint-7").mkdir(parents=True)
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path / "out"), *TINY, "--max_train_steps", "6"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--resume_from_checkpoint", "latest"])
    assert_sentence(ended.value.code, "checkpoint-7", "6")
    assert not (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.parametrize("option", [["--lr_scheduler", "nonsense"], ["--timesteps", "5", "5"]])
def test_an_unknown_choice_is_refused_before_anything_is_read(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--train_data_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out"), *option])
    assert option[0] in capsys.readouterr().err


def test_a_launched_run_that_cannot_start_prints_its_sentence_and_no_traceback(environment, tmp_path):
    arguments, words = bad_input("three images", tmp_path)
    done = launch(environment, *arguments, quiet=True)  # without --quiet accelerate adds a traceback of its own
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert_sentence(next(line for line in done.stderr.splitlines() if line.startswith("error:")), *words)
    assert not (tmp_path / "out").exists()


# learning
