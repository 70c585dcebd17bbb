"""Trackers: real trainings log losses, validations and a sheet, and what was logged is read back from their files."""

import importlib.util
import io
import json
import sqlite3
import struct
import sys

import numpy as np
import pytest
from launching import ROOT, TINY, launch, run
from launching import train as run_training
from paths import TILES
from PIL import Image
from sentences import assert_sentence

from rendering.sheet import LABEL_COLORS
from training.records.progress import LOSSES, SEPARATION, loss_curve, read_progress, separation_curve
from training.train import main

SCALARS = {*LOSSES, "lr", *(f"validation/{name}" for name in SEPARATION)}
SHEET = "validation"
LEVELDB_BLOCK = 32768


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def train(environment, output_dir, *trackers):
    """A training of three steps with validations after the second and the third."""
    arguments = ["--train_data_dir", TILES, "--output_dir", output_dir, *TINY, "--max_train_steps", 3]
    done = run_training(environment, *arguments, "--validation_steps", 2, "--report_to", *trackers)
    assert done.returncode == 0, done.stderr
    return read_progress(output_dir)


def assert_a_sheet(image):
    """Check that an image is a whole sheet: five columns on white, with outlines of synthetic defects."""
    assert image.shape[-1] == 3
    assert image.shape[0] > 1000
    assert image.shape[1] > 600
    assert (image[:, -3:] == 255).all()
    assert (image == LABEL_COLORS[0]).all(axis=-1).any()


@needs("tensorboard")
def test_tensorboard_shows_losses_validations_and_a_sheet(environment, tmp_path):
    entries = train(environment, tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs" / "training"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == SCALARS
    assert [event.step for event in events.Scalars("noise")] == [1, 2, 3]
    assert events.Scalars("features")[-1].value == pytest.approx(loss_curve(entries)["features"][-1], abs=1e-5)
    for name in SEPARATION:
        logged = events.Scalars(f"validation/{name}")
        assert [event.step for event in logged] == separation_curve(entries)["step"] == [2, 3]
        assert [event.value for event in logged] == pytest.approx(separation_curve(entries)[name], abs=1e-5)
    sheets = events.Images(SHEET)
    assert [sheet.step for sheet in sheets] == [2, 3]
    assert_a_sheet(np.asarray(Image.open(io.BytesIO(sheets[-1].encoded_image_string))))


def records_of(content):
    """What a log in LevelDB's format holds: blocks of pieces, each a checksum, a length and a kind before its bytes."""
    place, whole = 7, b""  # after the head
    while place + 7 <= len(content):
        left = LEVELDB_BLOCK - place % LEVELDB_BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


@needs("wandb")
def test_weights_and_biases_keeps_them_in_an_offline_run(environment, tmp_path):
    entries = train(environment | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}, tmp_path, "wandb")
    from wandb.proto import wandb_internal_pb2

    folder = next((tmp_path / "logs" / "wandb").glob("offline-run-*"))
    rows = {}
    for data in records_of(next(folder.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            items = {"/".join([item.key, *item.nested_key]).strip("/"): item.value_json for item in record.history.item}
            rows.setdefault(record.history.step.num, {}).update(items)
    assert rows[3].keys() >= SCALARS
    for name in SEPARATION:
        found = [float(rows[step][f"validation/{name}"]) for step in (2, 3)]
        assert found == pytest.approx(separation_curve(entries)[name], abs=1e-5)
    images = sorted(folder.glob(f"files/media/images/{SHEET}*.png"))
    assert len(images) == 2
    assert_a_sheet(np.asarray(Image.open(images[0]).convert("RGB")))


@needs("trackio")
def test_trackio_keeps_them_in_its_database(environment, tmp_path):
    folder = tmp_path / "trackio"
    entries = train(environment | {"TRACKIO_DIR": str(folder)}, tmp_path / "out", "trackio")
    with sqlite3.connect(folder / "training.db") as database:
        values = {}
        for step, metrics in database.execute("select step, metrics from metrics"):
            values.setdefault(step, {}).update(json.loads(metrics))
    assert values[3].keys() >= SCALARS
    for name in SEPARATION:
        found = [values[step][f"validation/{name}"] for step in (2, 3)]
        assert found == pytest.approx(separation_curve(entries)[name], abs=1e-5)
    assert_a_sheet(np.asarray(Image.open(folder / "media" / values[3][SHEET]["file_path"]).convert("RGB")))


@needs("tensorboard")
@needs("trackio")
def test_several_trackers_get_the_same(environment, tmp_path):
    train(environment | {"TRACKIO_DIR": str(tmp_path / "trackio")}, tmp_path / "out", "tensorboard", "trackio")
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents.*"))
    assert (tmp_path / "trackio" / "training.db").is_file()


@pytest.mark.usefixtures("one_core")
def test_an_unknown_tracker_is_refused_in_a_sentence_before_anything_is_written(tmp_path):
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path / "out"), *TINY]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--report_to", "tensorbored"])
    assert_sentence(ended.value.code, "error: ", "tensorbored", "tensorboard", "wandb", "trackio")
    assert not (tmp_path / "out").exists()


WITHOUT_PACKAGE = """
import importlib.util, sys
sys.path.insert(0, {root!r})
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "aim" else find_spec(name, *rest)
import training.train
training.train.main()
"""


def test_a_tracker_whose_package_is_absent_is_refused_in_a_sentence_before_anything_is_written(environment, tmp_path):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path / "out", *TINY, "--report_to", "aim"]
    command = [sys.executable, "-c", WITHOUT_PACKAGE.format(root=str(ROOT)), *map(str, arguments)]
    done = run(command, environment)
    assert done.returncode == 1
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert_sentence(sentence, "--report_to aim", "pip install aim")
    assert not (tmp_path / "out").exists()


@needs("wandb")
def test_a_tracker_that_does_not_start_ends_the_run_with_a_sentence(environment, tmp_path):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TINY, "--max_train_steps", 3]
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": "online", "WANDB_API_KEY": "short"}
    done = launch(environment | home, *arguments, "--report_to", "wandb", quiet=True)
    assert done.returncode != 0
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert_sentence(sentence, "--report_to wandb", "cannot be started", "log in")
