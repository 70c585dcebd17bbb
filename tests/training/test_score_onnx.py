"""examples/score_onnx.py, the file for a machine without PyTorch: what it writes, what it says, how it ends."""

import ast
import csv
import json
import shutil
import sys

import numpy as np
import pytest
from image_folders import write_images
from images import photo
from paths import ROOT, TILE
from PIL import Image
from sentences import assert_sentence

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from examples import score_onnx
from pipelines import heat_map
from pipelines.anomaly_scoring_output import AnomalyScoringOutput
from pipelines.image_files import FILE_FORMATS, MAX_PIXELS
from pipelines.image_preprocessing import DARKER, as_uint8, to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import SLACK
from training.data.image_reading import read_image
from training.export import export
from training.inference import score_table


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, mixed_precision="no")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(pipe, folder)
    return folder


@pytest.fixture(scope="module")
def tree(scratched, tmp_path_factory):
    """Images of every kind in folders, some of them of one name, and files that are none."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("a", "b", "kinds", ".hidden"):
        (root / name).mkdir()
    shutil.copyfile(TILE, root / "a" / "001.png")
    Image.fromarray(scratched).save(root / "b" / "001.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(scratched).save(root / "kinds" / "turned.jpg", exif=turned, quality=95)
    translucent = Image.fromarray(photo(40, 24)).convert("RGBA")
    translucent.putalpha(128)
    translucent.save(root / "kinds" / "translucent.png")
    Image.fromarray(scratched[..., 0].astype(np.uint16) * 257).save(root / "kinds" / "deep.png")
    Image.fromarray(photo(8, 8)[..., 0].astype(np.uint16)).save(root / "kinds" / "too dark.png")
    Image.new("L", (1, 1), 90).save(root / "kinds" / "=tiny.bmp")
    (root / "kinds" / "torn.jpg").write_bytes((root / "kinds" / "turned.jpg").read_bytes()[:2000])
    (root / "kinds" / "huge.ppm").write_bytes(b"P5 8001 8000 255\n")
    (root / "kinds" / "animated.gif").write_bytes(b"")
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    frames[0].save(root / "kinds" / "animated.gif", save_all=True, append_images=frames[1:])
    (root / "kinds" / "empty.png").write_bytes(b"")
    whole = (root / "kinds" / "turned.jpg").read_bytes()
    place = whole.index(b"Exif\x00\x00") + 6
    (root / "kinds" / "bad exif.jpg").write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
    (root / "notes.txt").write_text("no image")
    shutil.copyfile(TILE, root / ".hidden" / "tile.png")
    return root


def run(*arguments):
    """Exit status of the command, or its sentence."""
    with pytest.raises(SystemExit) as ended:
        score_onnx.main([str(argument) for argument in arguments])
    return ended.value.code


def read_table(folder):
    with open(folder / "scores.csv", newline="", encoding="utf-8") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def scored(exported, tree, tmp_path_factory):
    """What the command leaves of the tree."""
    output = tmp_path_factory.mktemp("scored")
    assert run("--model", exported, "--output_dir", output, "--false_alarm_rate", 0.3, tree) == 3
    return output


UNREADABLE = {
    "kinds/torn.jpg": "damaged",
    "kinds/huge.ppm": "8001×8000 pixels",
    "kinds/animated.gif": "several images",
    "kinds/empty.png": "not an image in a known format",
}
READABLE = {"a/001.png", "b/001.png", "kinds/turned.jpg", "kinds/translucent.png", "kinds/deep.png"}
READABLE |= {"kinds/too dark.png", "kinds/=tiny.bmp", "kinds/bad exif.jpg"}


def test_every_image_of_a_tree_has_a_row_and_a_broken_one_is_no_end(scored):
    table = read_table(scored)
    assert set(table) == READABLE | set(UNREADABLE)
    for name, words in UNREADABLE.items():
        assert table[name]["verdict"] == "unreadable"
        assert_sentence(table[name]["error"], name, words)
        assert table[name]["anomaly_score"] == ""
    doubtful = {name for name in READABLE if table[name]["error"]}
    assert doubtful == {"kinds/too dark.png"}
    assert_sentence(table["kinds/too dark.png"]["error"], "65535", "too dark")


def test_rows_maps_masks_and_overlays_are_those_of_the_pipeline(scored, tree, pipe):
    table, saturation = read_table(scored), heat_map.saturation_of(pipe)
    names = sorted(READABLE)
    output = pipe([read_image(tree / name) for name in names], false_alarm_rate=0.3)
    assert {row["verdict"] for row in table.values()} == set(score_table.VERDICTS)
    for index, name in enumerate(names):
        expected = score_table.scored_row(name, output, index).cells()
        row = table[name]
        assert row["verdict"] == expected["verdict"]
        for column, tolerance in (("anomaly_score", 2e-4), ("p_value", 1e-4), ("defect_share", 2e-3)):
            assert float(row[column]) == pytest.approx(float(expected[column]), abs=tolerance)
        mask = np.asarray(Image.open(scored / "masks" / f"{name}.png")) > 0
        assert (mask != output.pred_mask[index]).mean() < 2e-3
        assert int(row["defect_pixels"]) == mask.sum()
        strength = np.clip(output.anomaly_map[index] / saturation, 0, 1) * 255
        grey = np.asarray(Image.open(scored / "maps" / f"{name}.png")).astype(float)
        np.testing.assert_allclose(grey, strength, atol=1.5)
        shown = as_uint8(to_rgb(read_image(tree / name)))
        drawn = heat_map.outline(heat_map.overlay(shown, output.anomaly_map[index], saturation), mask)
        found = np.asarray(Image.open(scored / "overlays" / f"{name}.png")).astype(int)
        np.testing.assert_allclose(found, drawn.astype(int), atol=2)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 1])
def test_verdicts_and_masks_follow_the_rate_as_the_pipelines_do(exported, pipe, tree, rate):
    model = score_onnx.Model(exported, rate)
    image = read_image(tree / "b" / "001.png")
    expected = pipe(image, false_alarm_rate=rate)
    row, _, mask = model.judge(image)
    assert model.rate == expected.false_alarm_rate
    assert (row["verdict"] == "defect") == expected.is_anomalous[0]
    assert (mask != expected.pred_mask[0]).mean() < 2e-3


def test_a_rate_that_cannot_be_promised_is_said_and_every_image_is_a_line_with_its_number(
    exported, tree, tmp_path, capsys
):
    options = ["--false_alarm_rate", 0.001, "--no_overlays", "--no_masks", "--no_maps"]
    assert run("--model", exported, "--output_dir", tmp_path, *options, tree / "a", tree / "b") == 0
    promise, first, second, summary = capsys.readouterr().out.splitlines()
    assert promise.startswith("0.10% cannot be promised; the smallest rate, ")
    assert first.startswith("[1/2] a/001.png: score ")
    assert second.startswith("[2/2] b/001.png: score ")
    assert "0 unreadable" in summary
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_files_of_one_name_do_not_overwrite_each_other_nor_are_results_scored(exported, tree, tmp_path):
    shutil.copytree(tree / "a", tmp_path / "a")
    shutil.copytree(tree / "b", tmp_path / "b")
    files = [tmp_path / "a" / "001.png", tmp_path / "b" / "001.png"]
    for _ in range(2):  # the second time with drawings of the first among the images
        assert run("--model", exported, "--output_dir", tmp_path, tmp_path) == 0
        assert set(read_table(tmp_path)) == {"a/001.png", "b/001.png"}
    assert run("--model", exported, "--output_dir", tmp_path / "out", *files) == 0
    for kind in score_onnx.DRAWINGS:
        written = sorted(
            path.relative_to(tmp_path / "out" / kind).as_posix() for path in (tmp_path / "out" / kind).rglob("*.png")
        )
        assert written == ["a/001.png.png", "b/001.png.png"]


def test_ctrl_c_leaves_the_table_of_what_was_scored(exported, tree, tmp_path, monkeypatch, capsys):
    judge, calls = score_onnx.Model.judge, []

    def interrupted(model, image):
        calls.append(image)
        if len(calls) == 3:  # after the trial at its start and the first image
            raise KeyboardInterrupt
        return judge(model, image)

    monkeypatch.setattr(score_onnx.Model, "judge", interrupted)
    assert run("--model", exported, "--output_dir", tmp_path, tree / "a", tree / "b") == 130
    assert list(read_table(tmp_path)) == ["a/001.png"]
    assert "scores.csv" in capsys.readouterr().err


def spoiled(exported, folder, name, text):
    shutil.copytree(exported, folder)
    (folder / name).write_text(text)
    return folder


def test_what_cannot_be_used_ends_with_a_sentence_and_writes_nothing(exported, tree, tmp_path):
    calibration = json.loads((exported / "calibration.json").read_text())
    shutil.copytree(exported, tmp_path / "incomplete")
    (tmp_path / "incomplete" / "model.onnx").unlink()
    write_images(tmp_path / "other", 1, suffix=".txt.png")
    (tmp_path / "empty").mkdir()
    smaller = json.dumps(calibration | {"resolution": 32})
    cases = [
        ([tmp_path / "missing", tree], ["missing", "does not exist"]),
        ([tmp_path / "incomplete", tree], ["model.onnx"]),
        ([spoiled(exported, tmp_path / "json", "calibration.json", "{"), tree], ["calibration.json"]),
        ([spoiled(exported, tmp_path / "keys", "calibration.json", "{}"), tree], ["calibration.json", "resolution"]),
        ([spoiled(exported, tmp_path / "onnx", "model.onnx", "onnx"), tree], ["model.onnx", "export the model again"]),
        ([spoiled(exported, tmp_path / "size", "calibration.json", smaller), tree], ["model.onnx"]),
        ([exported, tmp_path / "none.png"], ["none.png", "does not exist"]),
        ([exported, tmp_path / "empty"], ["no images"]),
        ([exported, tree, "--false_alarm_rate", 5], ["0.05 for 5 %"]),
        ([exported, tree, "--false_alarm_rate", 0], ["--false_alarm_rate is 0"]),
    ]
    for arguments, words in cases:
        sentence = run("--output_dir", tmp_path / "out", "--model", *arguments)
        assert_sentence(sentence, "error: ", *words)
        assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    assert run("--model", exported, "--output_dir", tmp_path / "file", tree).startswith("error: ")


def test_it_stands_alone_and_holds_the_facts_of_the_pipelines():
    tree = ast.parse((ROOT / "examples" / "score_onnx.py").read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}
    assert score_onnx.COLUMNS == score_table.COLUMNS
    assert score_onnx.VERDICTS == score_table.VERDICTS
    assert np.array_equal(score_onnx.PLASMA, heat_map.PLASMA)
    for name in ("MAX_OPACITY", "OUTLINE_COLOR"):
        assert getattr(score_onnx, name) == getattr(heat_map, name)
    assert (score_onnx.MAX_PIXELS, score_onnx.DARKER, score_onnx.SLACK) == (MAX_PIXELS, DARKER, SLACK)
    assert set(score_onnx.FORMATS) <= set(FILE_FORMATS)
    assert set(score_onnx.OUTPUTS) <= {*AnomalyScoringOutput.__dataclass_fields__}
