"""A saved checkpoint in fresh processes: the same scores with and without this repository, and no stranger's code."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from fingerprints import FINGERPRINT, fingerprint, repaired, run_fresh
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file
from sentences import refused

from pipelines.checkpoint_names import FORMAT_VERSION
from pipelines.feature_extraction import TimmFeatureExtractor
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from pipelines.score_calibration import REFERENCES

WEIGHTS = "diffusion_pytorch_model.safetensors"

SCORING = f"""
import json, sys
import torch

{FINGERPRINT}
torch.set_num_threads({{threads}})
files = {{files}}
"""

FOREIGN = """
import hashlib
from pathlib import Path

from diffusers import DiffusionPipeline

answer = {{}}
try:
    DiffusionPipeline.from_pretrained("{folder}")
except ValueError as error:
    answer["refusal"] = str(error)
pipe = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)
answer["module"] = type(pipe).__module__
answer["scores"] = fingerprint(pipe, files)
result = pipe([files[0], Path(files[1])])
drawn = [*pipe.image_processor.visualize(result, files[:2]), pipe.image_processor.legend(result)]
answer["drawn"] = [hashlib.sha256(image.tobytes()).hexdigest() for image in drawn]
repair = DiffusionPipeline.from_pretrained(
    "{folder}", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
answer["repair"] = [type(repair).__name__, repaired(repair, files)]
answer["from_pipe"] = repaired(type(repair).from_pipe(pipe), files)
pipe.save_pretrained("resaved")
again = DiffusionPipeline.from_pretrained("resaved", trust_remote_code=True)
answer["resaved"] = fingerprint(again, files)
half = DiffusionPipeline.from_pretrained("{half}", trust_remote_code=True)
answer["half"] = fingerprint(half, files)
answer["half_types"] = sorted({{str(parameter.dtype) for parameter in half.unet.parameters()}})
cast = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True, dtype=torch.bfloat16)
answer["cast_types"] = sorted({{str(parameter.dtype) for parameter in cast.unet.parameters()}})
answer["calibration_types"] = sorted({{str(buffer.dtype) for buffer in cast.calibration.buffers()}})
answer["uncalibrated"] = DiffusionPipeline.from_pretrained("{bare}", trust_remote_code=True).calibration is None
answer["repository_on_path"] = any("{root}" == path for path in sys.path)
print("ANSWER" + json.dumps(answer))
"""

LOCAL = """
sys.path.insert(0, "{root}")
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline

answer = {{name: fingerprint(AnomalyScoringPipeline.from_pretrained(name), files) for name in ["{folder}", "resaved"]}}
answer["remote_modules"] = [name for name in sys.modules if name.startswith("diffusers_modules")]
print("ANSWER" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def images(tile_files):
    """Three real tiles of different sizes."""
    return [str(path) for path in tile_files[:3]]


@pytest.fixture(scope="module")
def half_checkpoint(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "half"
    tiny_pipeline.save_pretrained(folder, half_precision=True)
    return folder


@pytest.fixture(scope="module")
def bare_checkpoint(tiny_pipeline, tmp_path_factory):
    """A checkpoint without a calibration."""
    folder = tmp_path_factory.mktemp("bare") / "bare"
    AnomalyScoringPipeline(
        tiny_pipeline.unet, tiny_pipeline.scheduler, tiny_pipeline.feature_extractor
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("workplace")


def filled(script, **values):
    """A script of this file with its folders and images, running on as many threads as this process."""
    return script.format(root=ROOT, threads=torch.get_num_threads(), **values)


@pytest.fixture(scope="module")
def foreign(tiny_checkpoint, half_checkpoint, bare_checkpoint, images, workplace):
    """What a process that has never seen this repository makes of the checkpoints: answers and stderr."""
    folders = {"folder": tiny_checkpoint, "half": half_checkpoint, "bare": bare_checkpoint}
    return run_fresh(filled(SCORING + FOREIGN, files=images, **folders), workplace)


@pytest.fixture(scope="module")
def expected(tiny_pipeline, images):
    """The fingerprint of the pipeline that was saved, from this process."""
    return fingerprint(tiny_pipeline, images)


def copy_of(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# fresh processes


def test_a_foreign_process_scores_bit_by_bit_like_the_pipeline_that_was_saved(foreign, expected):
    answer, _ = foreign
    assert answer["module"].startswith("diffusers_modules")
    assert not answer["repository_on_path"]
    assert answer["scores"] == expected


def test_a_foreign_process_reads_files_by_their_paths_and_draws_what_it_found(foreign, tiny_pipeline, images):
    opened = [Image.open(path) for path in images[:2]]
    result = tiny_pipeline(opened)
    processor = tiny_pipeline.image_processor
    drawn = [*processor.visualize(result, opened), processor.legend(result)]
    assert foreign[0]["drawn"] == [hashlib.sha256(image.tobytes()).hexdigest() for image in drawn]


def test_loading_in_a_foreign_process_warns_of_nothing(foreign):
    _, stderr = foreign
    for complaint in ("xpected type", "Warning", "warning", "were not used", "newly initialized", "Traceback"):
        assert complaint not in stderr, stderr


def test_diffusers_refuses_without_trust_in_remote_code(foreign):
    assert "trust_remote_code" in foreign[0]["refusal"]


def test_a_checkpoint_saved_again_by_a_foreign_process_scores_the_same_there(foreign, expected):
    assert foreign[0]["resaved"] == expected


def test_the_local_class_scores_both_bit_by_bit_alike_without_remote_code(
    foreign, expected, tiny_checkpoint, images, workplace
):
    answer, _ = run_fresh(filled(SCORING + LOCAL, files=images, folder=tiny_checkpoint), workplace)
    assert answer[str(tiny_checkpoint)] == expected
    assert answer["resaved"] == expected
    assert answer["remote_modules"] == []


def test_a_foreign_process_repairs_like_this_one_with_the_second_pipeline_of_the_folder(foreign, tiny_pipeline, images):
    expected = repaired(GradientDenoisePipeline.from_pipe(tiny_pipeline), images)
    assert foreign[0]["repair"] == ["GradientDenoisePipeline", expected]
    assert foreign[0]["from_pipe"] == expected


def test_a_foreign_process_saves_all_that_it_loaded(foreign, tiny_checkpoint, workplace):
    resaved = workplace / "resaved"
    assert contents(resaved) == contents(tiny_checkpoint)
    original, again = (json.loads((folder / "model_index.json").read_text()) for folder in (tiny_checkpoint, resaved))
    original.pop("_name_or_path", None)
    again.pop("_name_or_path", None)
    assert again == original


def test_half_precision_is_read_as_float32_and_scores_alike_here_and_in_a_foreign_process(
    foreign, half_checkpoint, tiny_pipeline, images
):
    answer, _ = foreign
    assert answer["half_types"] == ["torch.float32"]
    pipe = AnomalyScoringPipeline.from_pretrained(half_checkpoint)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipe.feature_extractor.parameters()} == {torch.float32}
    assert fingerprint(pipe, images) == answer["half"]
    opened = [Image.open(path) for path in images]
    moved = torch.from_numpy(pipe(opened).anomaly_score - tiny_pipeline(opened).anomaly_score)
    assert moved.abs().max() < 0.05


def test_a_cast_on_loading_reaches_the_network_but_not_the_calibration(foreign):
    answer, _ = foreign
    assert answer["cast_types"] == ["torch.bfloat16"]
    assert answer["calibration_types"] == ["torch.float32"]


def test_a_checkpoint_without_calibration_loads_everywhere(foreign, bare_checkpoint):
    assert foreign[0]["uncalibrated"]
    assert AnomalyScoringPipeline.from_pretrained(bare_checkpoint).calibration is None


def test_the_local_class_runs_no_code_of_the_checkpoint(tiny_checkpoint, expected, images, tmp_path):
    folder, marker = copy_of(tiny_checkpoint, tmp_path), tmp_path / "marker"
    poison = f"open({str(marker)!r}, 'w').write('executed')\n"
    poisoned = list(folder.rglob("*.py"))
    assert {"pipeline_anomaly_scoring.py", "feature_extractor_component.py"} <= {path.name for path in poisoned}
    for path in poisoned:
        path.write_text(poison + path.read_text())
    pipe = AnomalyScoringPipeline.from_pretrained(folder)
    assert not marker.exists()
    assert fingerprint(pipe, images) == expected
    pipe.save_pretrained(tmp_path / "clean")
    assert not any(poison in path.read_text() for path in (tmp_path / "clean").rglob("*.py"))
    load = f"DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    run_fresh(f"from diffusers import DiffusionPipeline\n{load}\nprint('ANSWER{{}}')", tmp_path)
    assert marker.exists(), "the poison should work where code is trusted"


# the folder


def test_weights_are_safetensors_and_nothing_is_hidden(tiny_checkpoint):
    suffixes = {path.suffix for path in tiny_checkpoint.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".py", ".md"}
    for component in ("unet", "feature_extractor", "calibration"):
        assert (tiny_checkpoint / component / WEIGHTS).is_file()
    assert not [path for path in tiny_checkpoint.iterdir() if path.name.startswith(".")]


def test_the_index_names_what_a_foreign_process_can_resolve(tiny_checkpoint):
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_anomaly_scoring", "AnomalyScoringPipeline"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert index["feature_extractor"] == ["feature_extractor_component", "TimmFeatureExtractor"]
    assert index["calibration"] == ["calibration_component", "ScoreCalibration"]
    assert (index["data_mean"], index["data_std"]) == (-0.1, 0.3)
    assert str(ROOT) not in json.dumps(index)


def test_half_precision_halves_the_weights_and_spares_calibration_and_statistics(tiny_checkpoint, half_checkpoint):
    for component in ("unet", "feature_extractor"):
        full, half = ((folder / component / WEIGHTS).stat().st_size for folder in (tiny_checkpoint, half_checkpoint))
        assert 0.45 < half / full < 0.6
    full, half = (load_file(folder / "calibration" / WEIGHTS) for folder in (tiny_checkpoint, half_checkpoint))
    assert all(torch.equal(full[name], half[name]) for name in full)
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}


def test_half_precision_leaves_the_normalisation_of_pixels_and_features_exact(tiny_pipeline, tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    extractor = TimmFeatureExtractor("tf_efficientnet_lite0", grid_size=16, image_mean=mean, image_std=std)
    extractor.feature_mean.copy_(torch.linspace(-1, 1, 192))
    pipe = AnomalyScoringPipeline(tiny_pipeline.unet, tiny_pipeline.scheduler, extractor)
    pipe.save_pretrained(tmp_path, half_precision=True)
    loaded = AnomalyScoringPipeline.from_pretrained(tmp_path).feature_extractor
    assert torch.equal(loaded.feature_mean, torch.linspace(-1, 1, 192))
    assert torch.equal(loaded.pixel_mean.flatten(), torch.tensor(mean))
    assert torch.equal(loaded.pixel_std.flatten(), torch.tensor(std))


@pytest.mark.parametrize(
    ("parts", "rule", "words"),
    [
        (
            [True, False, True, False, False],
            "max",
            "is the largest of what KL and the Gaussian of good features give it.",
        ),
        (
            [True, True, False, True, True],
            "mean",
            "is the mean of what KL, feature error, the memory of good features and the coarse Gaussian of good "
            "features give it.",
        ),
        ([False, True, False, False, False], "max", "is what feature error gives it."),
    ],
)
def test_the_model_card_says_what_decides_an_images_score(tiny_checkpoint, tmp_path, parts, rule, words):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    pipe.calibration.register_to_config(image_parts=parts, image_rule=rule)
    pipe.save_pretrained(tmp_path)
    assert f"An image's score {words}" in (tmp_path / "README.md").read_text()


def test_the_model_card_states_what_the_calibration_promises_and_survives_a_later_save(
    tiny_checkpoint, bare_checkpoint, tiny_pipeline, tmp_path
):
    card = (tiny_checkpoint / "README.md").read_text()
    assert "24 good images" in card
    assert "4 %" in card
    assert "cross-fitting" in card
    weight = tiny_pipeline.calibration.config.map_weights[1] * (1 - tiny_pipeline.alpha)
    assert f"Gaussian of good features {weight:.0%}" in card
    assert "not calibrated" in (bare_checkpoint / "README.md").read_text()
    folder = copy_of(tiny_checkpoint, tmp_path)
    (folder / "README.md").write_text("my own words")
    tiny_pipeline.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"


def test_settings_and_components_handed_over_replace_the_checkpoints(tiny_checkpoint, tiny_pipeline):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, alpha=0.2, unet=tiny_pipeline.unet)
    assert pipe.alpha == 0.2
    assert pipe.config.data_std == 0.3
    assert pipe.unet is tiny_pipeline.unet
    untouched = AnomalyScoringPipeline.from_pretrained(str(tiny_checkpoint), trust_remote_code=True)
    assert untouched.alpha == tiny_pipeline.calibration.config.alpha != 0.2
    cast = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)  # as diffusers names it now
    assert cast.unet.dtype == torch.bfloat16
    with refused(ValueError, "'alhpa'"):
        AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, alhpa=0.2)


# failures


def test_saving_below_a_regular_file_is_refused_and_leaves_nothing(tiny_pipeline, tmp_path):
    regular = tmp_path / "regular"
    regular.write_text("file")
    with refused(ValueError, str(regular / "checkpoint"), "cannot be written"):
        tiny_pipeline.save_pretrained(regular / "checkpoint")
    assert contents(tmp_path) == {"regular"}
    assert regular.read_text() == "file"


def test_pickled_weights_are_refused(tiny_pipeline, tmp_path):
    with refused(ValueError, "safetensors"):
        tiny_pipeline.save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not contents(tmp_path)


def test_a_save_that_fails_leaves_the_former_checkpoint_as_it_was(tiny_checkpoint, tiny_pipeline, tmp_path):
    folder = copy_of(tiny_checkpoint, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="much"):
        tiny_pipeline.save_pretrained(folder, max_shard_size="much")  # fails when the first model is written
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="much"):
        tiny_pipeline.save_pretrained(tmp_path / "new", max_shard_size="much")
    assert not contents(tmp_path / "new")


def test_saving_over_a_checkpoint_replaces_it_whole(tiny_checkpoint, tiny_pipeline, expected, images, tmp_path):
    folder = copy_of(tiny_checkpoint, tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"old")
    tiny_pipeline.save_pretrained(folder)
    assert contents(folder) == contents(tiny_checkpoint)
    assert fingerprint(AnomalyScoringPipeline.from_pretrained(folder), images) == expected


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with refused(ValueError, "missing"):
        AnomalyScoringPipeline.from_pretrained(tmp_path / "missing")
    with refused(ValueError, "./not-there"):
        AnomalyScoringPipeline.from_pretrained("./not-there")
    with refused(ValueError, "model_index.json"):
        AnomalyScoringPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"unet": ["diffusers"', b"[1, 2]", b"\xff\xfe\x00binary", b"null"])
def test_a_damaged_index_is_refused(tiny_checkpoint, tmp_path, content):
    folder = copy_of(tiny_checkpoint, tmp_path)
    (folder / "model_index.json").write_bytes(content)
    with refused(ValueError, "model_index.json", "damaged"):
        AnomalyScoringPipeline.from_pretrained(folder)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, "later"])
def test_a_checkpoint_of_a_later_format_is_refused(tiny_checkpoint, tmp_path, version):
    folder = copy_of(tiny_checkpoint, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_format_version"] == FORMAT_VERSION
    (folder / "model_index.json").write_text(json.dumps(index | {"_format_version": version}))
    with refused(ValueError, str(version)):
        AnomalyScoringPipeline.from_pretrained(folder)


def test_gaussians_of_an_earlier_format_are_refused(tiny_checkpoint, tmp_path):
    folder = copy_of(tiny_checkpoint, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_format_version": 3}))
    with refused(ValueError, "earlier version", "train it again"):
        AnomalyScoringPipeline.from_pretrained(folder)
    assert AnomalyScoringPipeline.from_pretrained(folder, gaussian=None).gaussian is None
    (folder / "categories").mkdir()  # those of a checkpoint for several categories lie in there
    with refused(ValueError, "earlier version", "train it again"):
        AnomalyScoringPipeline.from_pretrained(folder, gaussian=None)


def test_a_checkpoint_of_the_first_format_loads_without_its_calibration_and_asks_for_a_new_one(
    tiny_checkpoint, tmp_path
):
    folder = copy_of(tiny_checkpoint, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    for name in REFERENCES:
        shutil.rmtree(folder / name)
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index | {"_format_version": 1}))
    (folder / "calibration" / WEIGHTS).write_bytes(b"of another layout")
    pipe = AnomalyScoringPipeline.from_pretrained(folder)
    assert pipe.references == []
    with refused(ValueError, "training/calibration.py"):
        pipe(Image.new("L", (8, 8)))


@pytest.mark.parametrize("component", ["unet", "scheduler", "feature_extractor"])
def test_a_missing_component_is_refused_by_its_name(tiny_checkpoint, tmp_path, component):
    folder = copy_of(tiny_checkpoint, tmp_path)
    shutil.rmtree(folder / component)
    with refused(ValueError, component):
        AnomalyScoringPipeline.from_pretrained(folder)


@pytest.mark.parametrize("component", ["unet", "feature_extractor", "calibration"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "no config"])
def test_damaged_components_are_refused_by_their_name(tiny_checkpoint, tmp_path, component, damage):
    folder = copy_of(tiny_checkpoint, tmp_path)
    weights = folder / component / WEIGHTS
    if damage == "missing":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (folder / component / "config.json").unlink()
    with refused(ValueError, component):
        AnomalyScoringPipeline.from_pretrained(folder)
