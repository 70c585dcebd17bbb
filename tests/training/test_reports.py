"""The two commands that report: evaluation of a labelled category, scores of an unlabelled folder tree."""

import csv
import json
import shutil

import numpy as np
import pytest
from launching import run_script
from paths import TILES
from PIL import Image

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.image_reading import read_image
from training.data.labelled_images import find_labelled_images


@pytest.fixture(scope="module")
def run(environment):
    """Run one of the commands in a process of its own."""
    return lambda script, *arguments: run_script(environment, f"training/{script}", *arguments)


@pytest.fixture(scope="module")
def evaluation(run, tiny_checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    done = run("evaluate.py", "--model", tiny_checkpoint, "--data_dir", TILES, "--output_dir", output)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "report.json").read_text()), output


def test_evaluation_reports_the_category_and_each_defect_type(evaluation, tiny_pipeline):
    stdout, report, _ = evaluation
    assert set(report["groups"]) == {"all", "blowhole", "crack"}
    assert report["pictures"] == {"good": 3, "blowhole": 2, "crack": 1}
    labelled = find_labelled_images(TILES)
    scores = [tiny_pipeline(read_image(item.path)).anomaly_score[0] for item in labelled]
    pairs = [
        (bad > good)
        for bad, b in zip(scores, labelled, strict=True)
        if b.defect != "good"
        for good, g in zip(scores, labelled, strict=True)
        if g.defect == "good"
    ]
    assert report["groups"]["all"]["image_auroc"] == pytest.approx(np.mean(pairs))
    assert f"{report['groups']['all']['native_pro']:.3f}" in stdout
    assert report["is_estimate"] == tiny_pipeline.calibration.config.cross_fitted
    assert ("false alarm rate: estimated at" if report["is_estimate"] else "promised at most") in stdout


def test_evaluation_sheet_has_a_row_for_each_image(evaluation):
    with Image.open(evaluation[2] / "sheet.png") as sheet:
        width, height = sheet.size
    assert width > 5 * 192
    assert height > 6 * 192


def test_pixels_without_a_mask_are_not_measured_and_that_is_said(run, tiny_checkpoint, tmp_path):
    shutil.copytree(TILES, tmp_path / "tiles")
    next((tmp_path / "tiles" / "ground_truth" / "crack").iterdir()).unlink()
    done = run("evaluate.py", "--model", tiny_checkpoint, "--data_dir", tmp_path / "tiles", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 image of a defect without a mask, left out of the pixels' figures: crack/" in done.stderr
    assert "pixels are not measured on 1 image of defects without a mask" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pictures_without_mask"] == 1
    assert report["groups"]["crack"]["pro"] is None
    assert report["groups"]["crack"]["image_auroc"] is not None
    assert report["groups"]["blowhole"]["pro"] > 0
    (crack,) = [line for line in done.stdout.splitlines() if line.startswith("crack") and "not measured" in line][:1]
    assert crack.count("not measured") == 3


def test_folder_scores_equal_the_pipelines_and_a_broken_file_is_a_row(run, tiny_checkpoint, tmp_path):
    images = tmp_path / "pictures"
    shutil.copytree(TILES / "test", images)
    good = sorted((images / "good").iterdir())
    (images / "broken.png").write_bytes(b"no image")
    output = tmp_path / "scores"
    done = run("score_folder.py", "--model", tiny_checkpoint, "--input_dir", images, "--output_dir", output)
    assert done.returncode == 0, done.stderr
    with open(output / "scores.csv", newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 7
    assert rows["broken.png"]["verdict"] == "unreadable"
    assert "not an image" in rows["broken.png"]["error"]
    expected = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)(read_image(good[0]))
    row = rows[f"good/{good[0].name}"]
    assert float(row["anomaly_score"]) == pytest.approx(float(expected.anomaly_score[0]), abs=1e-3)
    assert row["verdict"] == ("defect" if expected.is_anomalous[0] else "good")
    with Image.open(output / "overlays" / "good" / f"{good[0].name}.png") as overlay:
        assert overlay.size == read_image(good[0]).size


def test_masks_of_a_data_set_are_not_scored_and_an_unknown_depth_is_noted_in_its_row(run, tiny_checkpoint, tmp_path):
    images, output = tmp_path / "tiles", tmp_path / "scores"
    shutil.copytree(TILES / "test" / "crack", images / "test" / "crack")
    shutil.copytree(TILES / "ground_truth", images / "Ground Truth")
    (file,) = (images / "test" / "crack").iterdir()
    Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16).save(images / "deep.png")
    done = run("score_folder.py", "--model", tiny_checkpoint, "--input_dir", images, "--output_dir", output)
    assert done.returncode == 0, done.stderr
    assert "left out: 3 masks in folders of ground truth" in done.stderr
    with open(output / "scores.csv", newline="") as stream:
        rows = {row["file"]: row["error"] for row in csv.DictReader(stream)}
    assert rows.keys() == {"deep.png", f"test/crack/{file.name}"}
    assert rows["deep.png"].startswith("deep.png has values up to")
    assert rows[f"test/crack/{file.name}"] == ""


def test_folder_without_images_gives_one_sentence_and_writes_no_table(run, tiny_checkpoint, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no images here")
    output = tmp_path / "scores"
    done = run("score_folder.py", "--model", tiny_checkpoint, "--input_dir", tmp_path / "notes", "--output_dir", output)
    assert done.returncode != 0
    assert "holds no images" in done.stderr
    assert not (output / "scores.csv").exists()


@pytest.mark.parametrize("wrong", [["--batch_size", "0"], ["--false_alarm_rate", "5"]])
def test_a_wrong_option_gives_one_sentence_and_leaves_no_table(run, tiny_checkpoint, tmp_path, wrong):
    done = run("score_folder.py", "--model", tiny_checkpoint, "--input_dir", TILES, "--output_dir", tmp_path, *wrong)
    assert done.returncode != 0
    assert wrong[0].removeprefix("--") in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
