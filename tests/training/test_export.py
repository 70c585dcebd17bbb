"""Scoring exported for machines without PyTorch: the same scores, p-values, maps and verdicts from other runtimes."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from images import EIGHT_BIT_MODES, grey_ramp, photo, saved_and_reopened
from paths import TILES
from PIL import Image
from sentences import assert_sentence
from tiny_pipeline import CATEGORY_TIMESTEPS

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from benchmarks import export as benchmark
from examples.score_onnx import to_size, to_square
from pipelines.anomaly_maps import resize_map
from pipelines.image_preprocessing import preprocess
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import REFERENCES
from training import export as exporting
from training.data.image_folders import find_images
from training.data.image_reading import read_image
from training.inference.scoring_graph import ScoringGraph

FORMATS = ["onnx"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)
TOLERANCE = 1e-4
"""In standard deviations of good images."""

TOLERANCES = {"onnx": TOLERANCE, "openvino": 5e-3}
"""OpenVINO's exponential keeps about four digits of KL at small timesteps."""


def load(folder, name):
    package, load_model = benchmark.RUNTIMES[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    return load_model(folder, 1)


@pytest.fixture(scope="module")
def files():
    """Six test images of tiles, good and defective, each of its own size."""
    return find_images(TILES / "test")[::3][:6]


@pytest.fixture(scope="module")
def scoring(unified):
    """The category "negative" of the checkpoint of two, in which every part of the score has some weight."""
    pipe = AnomalyScoringPipeline.from_pretrained(unified, mixed_precision="no")
    for calibration in pipe.categories.calibration:
        references = len(calibration.config.map_weights) - 1
        weights = [0.5, *[0.5 / references] * references]
        calibration.register_to_config(map_weights=weights, image_parts=None, image_rule="mean")
    pipe = pipe.for_category("negative")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def exported(unified, scoring, tmp_path_factory):
    """What the command writes of it, in every format that can be written here, over what was there before."""
    checkpoint, output = (tmp_path_factory.mktemp(name) for name in ("weighted", "exported"))
    pipe = AnomalyScoringPipeline.from_pretrained(unified)
    pipe.categories.set_calibration("negative", scoring.calibration)
    pipe.save_pretrained(checkpoint, half_precision=True)
    for name in ("model.onnx", "calibration.json", "notes.txt"):
        (output / name).write_text("before")
    options = ["--category", "negative", "--output_dir", str(output), "--format", *FORMATS]
    exporting.main(["--model", str(checkpoint), *options])
    return output


# the graph


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("timesteps", [[5, 50, 100], [50]])
def test_the_graph_scores_as_the_pipeline_does_whatever_has_no_weight(tiny_checkpoint, files, alpha, timesteps):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, alpha=alpha, mixed_precision="no")
    for weights, parts, rule in (
        ([0.0, 1.0, 0.0, 0.0], [False, False, True, False, False], "max"),
        ([1.0, 0.0, 0.0, 0.0], [False, True, False, False, True], "max"),
        ([0.0, 0.5, 0.0, 0.5], [True, False, False, False, False], "max"),
        ([0.2, 0.3, 0.3, 0.2], None, "max"),
        ([0.2, 0.3, 0.3, 0.2], None, "mean"),
    ):
        pipe.calibration.register_to_config(map_weights=weights, image_parts=parts, image_rule=rule)
        images = [read_image(path) for path in files[:2]]
        expected = pipe(images, timesteps=timesteps)
        graph = ScoringGraph(pipe, timesteps)
        squares = np.stack([to_square(image, pipe.resolution) for image in images])
        scores, p_values, maps, unfamiliarity = graph(torch.from_numpy(squares))
        np.testing.assert_allclose(scores, expected.anomaly_score, atol=TOLERANCE)
        np.testing.assert_array_equal(p_values, expected.p_value)
        np.testing.assert_allclose(unfamiliarity, expected.unfamiliarity, rtol=1e-4)
        for own, anomaly_map in zip(maps, expected.anomaly_map, strict=True):
            np.testing.assert_allclose(resize_map(own, anomaly_map.shape), anomaly_map, atol=TOLERANCE)
    assert pipe.unet.conv_out.weight.shape[0] == 6 * pipe.config.patch_size**2 + 192  # the pipeline keeps its own


def test_a_pipeline_without_references_has_a_graph_too(tiny_checkpoint, files):
    loaded = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, **dict.fromkeys(REFERENCES), alpha=0.5)
    calibration = type(loaded.calibration)(resolution=64, grid_size=16, num_ranked=4)
    loaded.register_modules(calibration=calibration)
    image = read_image(files[0])
    scores, _, _, unfamiliarity = ScoringGraph(loaded)(torch.from_numpy(to_square(image, 64)[None]))
    np.testing.assert_allclose(scores, loaded(image).anomaly_score, rtol=1e-5)
    assert unfamiliarity.isnan().all()  # that calibration has no limit


# the files


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_other_runtimes_agree_with_the_pipeline_in_any_batch(scoring, exported, files, name, batch_size):
    model = load(exported, name)
    found = benchmark.compare(scoring, {name: model}, files, batch_size)[name]
    assert found["verdicts"] == 0
    assert found["images"] == len(files)
    assert found["score"] < TOLERANCES[name]
    assert found["map"] < TOLERANCES[name]
    assert found["p_value"] < 1e-6
    assert found["unfamiliarity"] < 1e-3


def test_they_agree_on_images_of_12_bits_in_16(scoring, exported, files, tmp_path):
    pipe = AnomalyScoringPipeline.from_pipe(scoring, white_level=4095)
    pipe.set_progress_bar_config(disable=True)
    for path in files[:2]:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(tmp_path / f"{path.stem}.png")
    found = benchmark.compare(pipe, {"onnx": load(exported, "onnx")}, find_images(tmp_path))["onnx"]
    assert found["score"] < TOLERANCE


def test_a_model_that_differs_is_reported(scoring, exported, files):
    model = load(exported, "onnx")

    def wrong(squares):
        scores, p_values, maps, unfamiliarity = model(squares)
        return scores - 100, p_values - 0.5, maps + 2, unfamiliarity + 3

    found = benchmark.compare(scoring, {"wrong": wrong}, files)["wrong"]
    rejected = sum(scoring(read_image(path)).is_anomalous[0] for path in files)
    assert found["score"] == pytest.approx(100, abs=0.01)
    assert found["p_value"] == pytest.approx(0.5)
    assert found["map"] == pytest.approx(2, abs=0.01)
    assert found["unfamiliarity"] == pytest.approx(3, abs=0.01)
    assert found["verdicts"] == rejected > 0


def test_the_benchmark_prints_times_beside_pytorchs(scoring, exported, files, capsys):
    models = {"onnxruntime": load(exported, "onnx")}
    differences = benchmark.compare(scoring, models, files[:1])
    benchmark.print_tables(differences, benchmark.measure(scoring, models, repeats=1))
    printed = capsys.readouterr().out
    assert "0 of 1" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("whole", "graph"))]
    assert [row[2] for row in rows] == ["PyTorch", "onnxruntime"] * 2
    assert all(float(row[3]) > 0 and row[4].endswith("×") for row in rows)


def test_the_calibration_holds_what_verdicts_need(scoring, exported):
    calibration = json.loads((exported / "calibration.json").read_text())
    assert calibration["category"] == "negative"
    assert calibration["resolution"] == 64
    assert calibration["timesteps"] == CATEGORY_TIMESTEPS
    own, count = scoring.calibration, len(calibration["image_thresholds"])
    assert count == own.config.num_ranked
    assert calibration["false_alarm_rate"] == own.effective_rate()
    for rate in (0.1, 0.3):
        rank = int(rate * (count + 1))
        expected = own.image_threshold(rate, CATEGORY_TIMESTEPS)
        assert calibration["image_thresholds"][rank - 1] == expected
        expected = own.pixel_threshold(rate, scoring.alpha, CATEGORY_TIMESTEPS)
        assert calibration["pixel_thresholds"][rank - 1] == expected


def test_one_file_holds_the_weights_and_takes_any_number_of_images(exported):
    import onnx

    model = onnx.load(exported / "model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [exporting.OPSET]
    (shape,) = [value.type.tensor_type.shape.dim for value in model.graph.input]
    assert shape[0].dim_param
    assert [dim.dim_value for dim in shape[1:]] == [64, 64, 3]
    assert [value.name for value in model.graph.output] == list(exporting.OUTPUTS)


def test_an_export_replaces_its_former_and_leaves_other_files(exported):
    found = {path.name for path in exported.iterdir()}
    models = ["model.onnx", *["model.xml", "model.bin"] * ("openvino" in FORMATS)]
    assert found == {"notes.txt", "calibration.json", *models}
    assert (exported / "notes.txt").read_text() == "before"


# refusals


def refusal_of(*arguments):
    with pytest.raises(SystemExit) as ended:
        exporting.main([str(argument) for argument in arguments])
    message = ended.value.code
    assert message.startswith("error: ")
    return message


def test_what_cannot_be_exported_is_refused_and_nothing_written(tiny_pipeline, tiny_checkpoint, unified, tmp_path):
    output = tmp_path / "out"
    uncalibrated = AnomalyScoringPipeline.from_pipe(tiny_pipeline, calibration=None)
    uncalibrated.save_pretrained(tmp_path / "uncalibrated")
    cases = [
        (["--model", tmp_path / "uncalibrated"], "no calibration"),
        (["--model", tiny_checkpoint, "--timesteps", 7], "[7]"),
        (["--model", tiny_checkpoint, "--category", "screw"], "'screw'"),
        (["--model", unified], "tile, negative"),
    ]
    for options, words in cases:
        assert_sentence(refusal_of(*options, "--output_dir", output), words)
        assert not output.exists()
    (tmp_path / "file").write_text("x")
    assert_sentence(refusal_of("--model", tiny_checkpoint, "--output_dir", tmp_path / "file"), "file", "output_dir")


def test_timestep_0_is_refused_by_name(tiny_checkpoint):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, timesteps=[0, 50, 100])
    pipe.calibration.register_to_config(timesteps=[0, 50, 100])
    with pytest.raises(ValueError, match="timestep 0 cannot be exported") as refused:
        exporting.exported_calibration(pipe)
    assert_sentence(str(refused.value), "--timesteps", "[0, 50, 100]")
    assert exporting.exported_calibration(pipe, [50])["timesteps"] == [50]


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_package_is_named(tiny_checkpoint, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    options = ["--model", tiny_checkpoint, "--output_dir", tmp_path / "out", "--format", name]
    assert_sentence(refusal_of(*options), f"pip install {package}", f"--format {name}")


def test_a_failed_export_leaves_the_former_whole(tiny_pipeline, exported, monkeypatch):
    before = {path: path.read_bytes() for path in exported.iterdir()}

    def interrupted(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_onnx", interrupted)
    with pytest.raises(ValueError, match="No space left") as refused:
        exporting.export(tiny_pipeline, exported)
    assert_sentence(str(refused.value), str(exported))
    assert {path: path.read_bytes() for path in exported.iterdir()} == before


# what the example does to images


def every_kind_of_image():
    for mode in EIGHT_BIT_MODES:
        yield mode, Image.fromarray(photo(40, 24)).convert("P" if mode == "PA" else mode).convert(mode)
    translucent = Image.fromarray(photo(40, 24)).convert("RGBA")
    translucent.putalpha(Image.fromarray(grey_ramp(40, 24)))
    yield "translucent", translucent
    deep = (photo(40, 24)[..., 0].astype(np.uint16) << 8) + 77
    yield "16 bit", saved_and_reopened(Image.fromarray(deep), "PNG")
    yield "16 bit, big-endian", Image.frombytes("I;16B", (24, 40), deep.astype(">u2").tobytes())
    yield "32 bit", Image.fromarray(deep.astype(np.int32))
    yield "float", Image.fromarray((deep / 65535).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated", saved_and_reopened(Image.fromarray(photo(40, 24)), "JPEG", exif=exif)


@pytest.mark.parametrize(("kind", "image"), every_kind_of_image())
def test_the_example_reads_every_kind_of_image_as_the_pipeline_does(kind, image):
    samples, _ = preprocess(image, 16)
    np.testing.assert_allclose(to_square(image, 16), samples[0].permute(1, 2, 0) / 2 + 0.5, atol=1e-6)


@pytest.mark.parametrize("size", [(100, 37), (16, 16), (9, 5), (1, 1)])
def test_the_example_resizes_maps_as_the_pipeline_does(size):
    anomaly_map = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    expected = resize_map(torch.from_numpy(anomaly_map), size[::-1])
    np.testing.assert_allclose(to_size(anomaly_map, size), expected, atol=1e-4)
