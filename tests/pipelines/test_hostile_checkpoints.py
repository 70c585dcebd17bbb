"""Strangers' checkpoints: each hostile or damaged one costs one sentence, no time, no memory, and runs nothing."""

import copy
import json
import os
import pickle
import resource
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from fingerprints import run_fresh
from paths import TILES
from pickle_bomb import write_bomb
from safetensors.torch import load_file, save
from sentences import assert_sentence, refused

from page.models.model_shelf import ModelShelf
from pipelines.category_bank import CategoryBank
from pipelines.checkpoint_names import COMPONENTS, WEIGHTS
from pipelines.feature_extraction import TimmFeatureExtractor
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.networks.unet import build_unet
from training.repair_folder import main as repair_folder
from training.score_folder import main as score_folder

INDEX = "model_index.json"
UNET, SCHEDULER, EXTRACTOR = "unet/config.json", "scheduler/scheduler_config.json", "feature_extractor/config.json"
GAUSSIAN, MEMORY, CALIBRATION = "gaussian/config.json", "memory/config.json", "calibration/config.json"
NAN, HUGE = float("nan"), 10**9


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, whose files may be replaced, but not written to: they are hard links."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "stranger", copy_function=os.link))


@pytest.fixture(scope="module")
def several_categories(tiny_pipeline, tmp_path_factory):
    """A checkpoint of two categories."""
    unet = build_unet(64, 4, 192, [32, 32], 1, num_classes=2)
    bank = CategoryBank.from_pipelines({"tile": tiny_pipeline, "nut": copy.deepcopy(tiny_pipeline)})
    folder = tmp_path_factory.mktemp("several") / "several"
    shared = (unet, tiny_pipeline.scheduler, tiny_pipeline.feature_extractor)
    AnomalyScoringPipeline(*shared, categories=bank).save_pretrained(folder)
    return folder


def put(path, content):
    """Replace a file, or make one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Pickles


@pytest.mark.parametrize("keeps_safetensors", [True, False])
@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.bin", "gaussian/x.PKL", "feature_extractor/model.pth", "scheduler/a.ckpt"]
)
def test_a_pickle_is_refused_by_name_however_it_is_loaded(name, keeps_safetensors, checkpoint, tmp_path):
    marker, component = tmp_path / "marker", name.split("/")[0]
    write_bomb(checkpoint / name, marker)
    if not keeps_safetensors:
        (checkpoint / component / WEIGHTS).unlink(missing_ok=True)
    for load in (
        AnomalyScoringPipeline.from_pretrained,
        GradientDenoisePipeline.from_pretrained,
        lambda folder: AnomalyScoringPipeline.from_pretrained(folder, use_safetensors=False),
        lambda folder: ModelShelf([folder]),
    ):
        with refused(ValueError, name, "pickle"):
            load(checkpoint)
    if component == "feature_extractor":
        for load in (TimmFeatureExtractor.from_pretrained, lambda path: load_pretrained_extractor(path, 16)):
            with refused(ValueError, name, "pickle"):
                load(checkpoint / component)
    assert not marker.exists()
    with open(checkpoint / name, "rb") as stream:
        pickle.load(stream).close()
    assert marker.exists(), "the bomb should work where it is unpickled"


def test_diffusers_unpickles_none_of_our_components_either(checkpoint, tmp_path):
    """With code that is trusted, but weights that are not: stock UNet and our own components alike."""
    marker = tmp_path / "marker"
    script = f"""
import json
from pathlib import Path
from diffusers import DiffusionPipeline
folder, answer = Path({str(checkpoint)!r}), {{}}
for component in ("unet", "feature_extractor", "memory"):
    weights, pickled = folder / component / {WEIGHTS!r}, folder / component / "diffusion_pytorch_model.bin"
    pickled.write_bytes(Path({str(tmp_path / "bomb")!r}).read_bytes())
    for hidden in (False, True):
        for options in ({{}}, {{"use_safetensors": False}}, {{"custom_pipeline": "pipeline_gradient_denoise"}}):
            if hidden and weights.exists():
                weights.rename(folder / "aside")
            try:
                DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)
                answer[component, hidden, str(options)] = "loaded"
            except ValueError as error:
                answer[component, hidden, str(options)] = str(error)
    pickled.unlink()
    (folder / "aside").rename(weights)
pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
answer = [[*key[:2], text] for key, text in answer.items()] + [["whole", type(pipe.unet).__name__, ""]]
print("ANSWER" + json.dumps(answer))
"""
    write_bomb(tmp_path / "bomb", marker)
    *answers, whole = run_fresh(script, tmp_path)[0]
    assert len(answers) == 18
    for component, _, sentence in answers:
        assert_sentence(sentence, f"{component}/diffusion_pytorch_model.bin", "pickle")
    assert not marker.exists()
    assert whole == ["whole", "UNet2DModel", ""]


# Configs


def changed(file, **settings):
    def change(folder):
        put(folder / file, json.dumps(json.loads((folder / file).read_text()) | settings))

    return change


def written(file, content):
    return lambda folder: put(folder / file, content)


CONFIGS = {
    # the index: names of classes and modules, settings
    "a function as a class": (changed(INDEX, unet=["os", "system"]), [INDEX, "system", "UNet2DModel"]),
    "a module outside": (changed(INDEX, unet=["../evil", "UNet2DModel"]), [INDEX, "../evil"]),
    "an absolute module": (changed(INDEX, memory=["/tmp/evil", "FeatureMemory"]), [INDEX, "/tmp/evil"]),
    "a pipeline of others": (changed(INDEX, _class_name=["evil", "Evil"]), [INDEX, "Evil"]),
    "a pipeline outside": (changed(INDEX, _class_name=["../x", "AnomalyScoringPipeline"]), [INDEX, "../x"]),
    "a component of others": (changed(INDEX, safety=["os", "system"]), [INDEX, "safety"]),
    "a component's name that climbs": (changed(INDEX, **{"../../x": ["a", "B"]}), [INDEX, "../../x"]),
    "a component as an object": (changed(INDEX, unet={"a": 1}), [INDEX, "unet"]),
    "markup for a class": (changed(INDEX, unet=["<script>", "UNet2DModel"]), [INDEX, "<script>"]),
    "a huge patch": (changed(INDEX, patch_size=HUGE), ["patch_size", "1000000000"]),
    "a patch of text": (changed(INDEX, patch_size="4"), ["patch_size", "'4'"]),
    "another patch": (changed(INDEX, patch_size=8), ["in_channels", "patch_size 8"]),
    "contrast 0": (changed(INDEX, data_std=0), ["data_std", "0"]),
    "NaN": (changed(INDEX, data_std=NAN), [INDEX, "NaN"]),
    "infinity": (written(INDEX, '{"data_mean": 1e999}'), [INDEX, "1e999"]),
    "no timesteps": (changed(INDEX, timesteps=[]), ["timesteps", "[]"]),
    "timesteps beyond": (changed(INDEX, timesteps=[5, 5000]), ["timesteps", "5000"]),
    "timesteps of text": (changed(INDEX, timesteps="555"), ["timesteps", "'555'"]),
    "many timesteps": (changed(INDEX, timesteps=list(range(100_000))), ["timesteps"]),
    "alpha 7": (changed(INDEX, alpha=7), ["alpha", "7"]),
    "endless smoothing": (changed(INDEX, smoothing_sigma=HUGE), ["smoothing_sigma"]),
    "precision as an object": (changed(INDEX, mixed_precision={}), ["mixed_precision", "{}"]),
    "control characters": (changed(INDEX, mixed_precision="\x1b[2J\u202e"), ["mixed_precision"]),
    "a huge format": (changed(INDEX, _format_version=HUGE), ["format 1000000000"]),
    "deep nesting": (written(INDEX, '{"a":' * 100_000), [INDEX, "damaged"]),
    "deep nesting that is whole": (written(INDEX, '{"a":' + "[" * 400 + "]" * 400 + "}"), [INDEX, "levels"]),
    "a number of 5000 digits": (written(INDEX, '{"alpha": ' + "9" * 5000 + "}"), [INDEX, "damaged"]),
    "8 MB": (written(INDEX, '{"a": "' + "x" * (8 << 20) + '"}'), [INDEX, "8 MB"]),
    # stock components
    "a million channels": (changed(UNET, block_out_channels=[10**6, 32]), ["unet", "block_out_channels"]),
    "wide channels": (changed(UNET, block_out_channels=[8192, 8192]), ["unet", "GB"]),
    "a thousand levels": (changed(UNET, block_out_channels=[32] * 1000), ["unet", "block_out_channels"]),
    "many layers": (changed(UNET, layers_per_block=10**6), ["unet", "layers_per_block"]),
    "other layers": (changed(UNET, layers_per_block=2), ["unet", WEIGHTS, "lacks"]),
    "levels that do not match": (changed(UNET, down_block_types=["DownBlock2D"]), ["unet", "down_block_types"]),
    "an unknown block": (changed(UNET, down_block_types=["Evil", "Evil"]), ["unet", "Evil"]),
    "no groups": (changed(UNET, norm_num_groups=0), ["unet", "UNet2DModel"]),
    "a huge square": (changed(UNET, sample_size=HUGE), ["unet", "sample_size"]),
    "another square": (changed(UNET, sample_size=32), ["calibration", "resolution"]),
    "channels of text": (changed(UNET, in_channels="48"), ["unet", "in_channels", "'48'"]),
    "a quantised unet": (changed(UNET, quantization_config={"quant_method": "x"}), ["unet", "quantization_config"]),
    "a setting of others": (changed(UNET, evil=1), ["unet", "'evil'"]),
    "a private setting": (changed(UNET, _use_default_values=5), ["unet", "_use_default_values"]),
    "another class": (changed(UNET, _class_name="AutoencoderKL"), ["unet", "AutoencoderKL"]),
    "an endless schedule": (changed(SCHEDULER, num_train_timesteps=HUGE), ["scheduler", "num_train_timesteps"]),
    "a schedule of 2": (changed(SCHEDULER, num_train_timesteps=2), ["timesteps", "5"]),
    "beta as text": (changed(SCHEDULER, beta_start="x"), ["scheduler", "beta_start"]),
    "beta NaN": (changed(SCHEDULER, beta_start=NAN), ["scheduler", "NaN"]),
    "beta beyond 1": (changed(SCHEDULER, beta_end=7.0), ["scheduler", "betas"]),
    "an unknown schedule": (changed(SCHEDULER, beta_schedule="evil"), ["scheduler", "evil"]),
    "fixed variance": (changed(SCHEDULER, variance_type="fixed_small"), ["scheduler", "fixed_small"]),
    "a list for a scheduler": (written(SCHEDULER, "[]"), ["scheduler", "object"]),
    # our own
    "an unknown backbone": (changed(EXTRACTOR, backbone_name="<b>evil"), ["feature_extractor", "<b>evil"]),
    "a backbone outside": (changed(EXTRACTOR, backbone_name="../evil"), ["feature_extractor", "../evil"]),
    "a backbone on the Hub": (changed(EXTRACTOR, backbone_name="hf-hub:evil/x"), ["feature_extractor", "hf-hub"]),
    "a giant backbone": (changed(EXTRACTOR, backbone_name="convnext_xxlarge"), ["feature_extractor"]),
    "a backbone as a list": (changed(EXTRACTOR, backbone_name=["a"]), ["feature_extractor", "['a']"]),
    "a stride that is none": (changed(EXTRACTOR, feature_strides=["x"]), ["feature_extractor", "feature_strides"]),
    "deviation 0 of pixels": (changed(EXTRACTOR, image_std=[0, 1, 1]), ["feature_extractor", "image_std"]),
    "a huge grid": (changed(EXTRACTOR, grid_size=HUGE), ["feature_extractor", "grid_size"]),
    "a familiarity of more axes than it has directions": (
        changed("familiarity/config.json", num_axes=1000),
        ["familiarity", "num_axes"],
    ),
    "a bank without rows": (changed(MEMORY, size=0), ["memory", "size"]),
    "a bank of 10**9 rows": (changed(MEMORY, size=HUGE), ["memory", "size"]),
    "a bank of 10**6 rows": (changed(MEMORY, size=10**6), ["memory", "bank", "1000000"]),
    "features of others": (changed(GAUSSIAN, num_features=8000), ["gaussian", "GB"]),
    "cells that do not divide": (changed(GAUSSIAN, num_cells=3), ["gaussian", "num_cells"]),
    "coarse cells that do not divide": (
        changed("coarse_gaussian/config.json", num_cells=3),
        ["coarse_gaussian", "num_cells"],
    ),
    "a calibration of 10**9": (changed(CALIBRATION, resolution=HUGE), ["calibration", "resolution"]),
    "a calibration of 4096": (changed(CALIBRATION, resolution=4096), ["calibration", "noise"]),
    "ranks of none": (changed(CALIBRATION, num_ranked=0), ["calibration", "num_ranked"]),
    "ranks of 10**9": (changed(CALIBRATION, num_ranked=HUGE), ["calibration", "num_ranked"]),
    "2**30 subsets": (changed(CALIBRATION, timesteps=list(range(30))), ["calibration", "timesteps"]),
    "timesteps twice": (changed(CALIBRATION, timesteps=[5, 5, 100]), ["calibration", "once"]),
    "no part that decides": (changed(CALIBRATION, image_parts=[False] * 5), ["calibration", "image_parts"]),
    "parts that are no list": (changed(CALIBRATION, image_parts="all"), ["calibration", "image_parts"]),
    "parts that are lists": (changed(CALIBRATION, image_parts=[[True]] * 5), ["calibration", "image_parts"]),
    "a rule that is a list": (changed(CALIBRATION, image_rule=["max"]), ["calibration", "image_rule"]),
    "weights beyond 1": (changed(CALIBRATION, map_weights=[HUGE, 0, 0, 0]), ["calibration", "map_weights"]),
    "fitted as text": (changed(CALIBRATION, cross_fitted="yes"), ["calibration", "cross_fitted"]),
    "no JSON": (written(CALIBRATION, b"\xff\xfe\x00"), ["calibration", "config.json"]),
}


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_right_is_one_sentence_in_no_time(name, checkpoint):
    change, words = CONFIGS[name]
    change(checkpoint)
    assert_refused_cheaply(checkpoint, words)


def assert_refused_cheaply(checkpoint, words):
    before, started = peak_memory(), time.process_time()
    with refused(ValueError, str(checkpoint), *words) as caught:
        AnomalyScoringPipeline.from_pretrained(checkpoint)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert peak_memory() - before < 0.3
    assert time.process_time() - started < 10


# Files


def tensors(component, **changes):
    """Rewrite a component's weights: each name, with two underscores for a dot, to a function of the tensor."""

    def change(folder):
        path = folder / component / WEIGHTS
        content = load_file(path)
        for name, function in changes.items():
            name = name.replace("__", ".")
            content[name] = function(content.get(name)).contiguous()
        put(path, save(content))

    return change


def left_out(component, name):
    def change(folder):
        content = load_file(folder / component / WEIGHTS)
        del content[name]
        put(folder / component / WEIGHTS, save(content))

    return change


def declared(component, size):
    """A header that says 10 GB, over a file of `size` bytes, sparse."""

    def change(folder):
        header = json.dumps({"x": {"dtype": "F32", "shape": [10 * 2**28], "data_offsets": [0, 10 * 2**30]}}).encode()
        path = folder / component / WEIGHTS
        put(path, struct.pack("<Q", len(header)) + header)
        os.truncate(path, 8 + len(header) + size)

    return change


def cut(component, size):
    return lambda folder: put(folder / component / WEIGHTS, (folder / component / WEIGHTS).read_bytes()[:size])


def linked(name, target=None):
    """Replace a file or folder by a link to `target`, or to where it is moved to."""

    def change(folder):
        aside = folder.parent / "elsewhere"
        (folder / name).rename(aside)
        (folder / name).symlink_to(target or aside)

    return change


def fifo(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


LIST = {"metadata": {}, "weight_map": {"conv_in.weight": "evil.bin"}}
FILES = {
    "a header that lies": (declared("unet", 100), ["unet", "damaged"]),
    "10 GB of nothing": (declared("memory", 10 * 2**30), ["memory", WEIGHTS, "lacks bank"]),
    "a header of 10 GB": (written(f"unet/{WEIGHTS}", struct.pack("<Q", 10 * 2**30) + b"{}"), ["unet", "damaged"]),
    "an empty file": (cut("unet", 0), ["unet", "damaged"]),
    "cut in the header": (cut("calibration", 100), ["calibration", "damaged"]),
    "cut in the weights": (cut("gaussian", 100_000), ["gaussian", "damaged"]),
    "a pickle under another name": (
        written(f"unet/{WEIGHTS}", pickle.dumps({"a": 1})),
        ["unet", "damaged"],
    ),
    "a tensor is missing": (left_out("unet", "conv_in.bias"), ["unet", WEIGHTS, "lacks conv_in.bias"]),
    "a tensor too many": (tensors("unet", evil=lambda _: torch.zeros(1)), ["unet", WEIGHTS, "evil"]),
    "another shape": (tensors("unet", conv_in__bias=lambda t: t[:-1]), ["unet", "conv_in.bias", "31"]),
    "whole numbers for weights": (tensors("unet", conv_in__bias=lambda t: t.long()), ["unet", "conv_in.bias", "I64"]),
    "complex weights": (tensors("unet", conv_in__bias=lambda t: t.to(torch.complex64)), ["unet", "C64"]),
    "NaN in the unet": (tensors("unet", conv_in__bias=lambda t: t * NAN), ["unet", "conv_in.bias", "finite"]),
    "NaN in the ranks": (tensors("calibration", part_scores=lambda t: t * NAN), ["calibration", "part_scores"]),
    "infinite maxima": (tensors("calibration", map_maxima=lambda t: t / 0), ["calibration", "map_maxima"]),
    "deviation 0 of maps": (tensors("calibration", kl_std=lambda t: t * 0), ["calibration", "kl_std"]),
    "deviation below 0": (tensors("calibration", part_score_std=lambda t: -t), ["calibration", "part_score_std"]),
    "deviation 0 of features": (
        tensors("feature_extractor", feature_std=lambda t: t * 0),
        ["feature_extractor", "feature_std"],
    ),
    "a familiarity without variance": (
        tensors("familiarity", ridge=lambda t: 0 * t),
        ["familiarity", "not above 0"],
    ),
    "an empty bank": (tensors("memory", bank=lambda t: t[:0]), ["memory", "bank", "0×192"]),
    "a list of weights": (
        written("unet/diffusion_pytorch_model.safetensors.index.json", json.dumps(LIST)),
        ["unet/diffusion_pytorch_model.safetensors.index.json"],
    ),
    "weights elsewhere": (linked(f"unet/{WEIGHTS}"), [f"unet/{WEIGHTS}", "link"]),
    "a component elsewhere": (linked("calibration"), ["calibration", "link"]),
    "an index elsewhere": (linked(INDEX), [INDEX, "link"]),
    "a card that is a file of yours": (linked("README.md", "/etc/passwd"), ["README.md", "link"]),
    "a config that never ends": (linked(UNET, "/dev/zero"), [UNET, "link"]),
    "a link in a circle": (linked(f"memory/{WEIGHTS}", f"{WEIGHTS}"), ["memory"]),
    "a config that waits": (fifo(UNET), ["unet", "config.json"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_right_is_one_sentence_in_no_time(name, checkpoint):
    change, words = FILES[name]
    change(checkpoint)
    assert_refused_cheaply(checkpoint, words)


def test_ranks_in_any_order_give_the_same_verdicts(checkpoint, tiny_pipeline, tile_files):
    """The order of good images' scores is none that anything relies on."""
    tensors("calibration", part_scores=lambda t: t.flip(1), map_maxima=lambda t: t.flip(2))(checkpoint)
    pipe = AnomalyScoringPipeline.from_pretrained(checkpoint)
    scores = torch.linspace(-3, 3, 50)
    for each in (0.04, 0.2):
        found, expected = (
            (
                pipe.calibration.p_value(scores, [5]).tolist(),
                pipe.calibration.pixel_threshold(each, 0.5, [5]),
                pipe.calibration.image_threshold(each, [5]),
            )
            for pipe in (pipe, tiny_pipeline)
        )
        assert found == expected


def test_links_within_the_cache_of_the_hub_are_followed(tiny_checkpoint, tmp_path):
    """As `huggingface_hub` lays it out: a snapshot of links to blobs beside it."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in tiny_checkpoint.rglob("*") if path.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(tiny_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert AnomalyScoringPipeline.from_pretrained(snapshot).resolution == 64


# Several categories


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"names": "nuts"}, ["categories", "names"]),
        ({"names": ["a", 7]}, ["categories", "7"]),
        ({"names": ["a", "\u202egnp.exe"]}, ["categories", "visible"]),
        ({"names": ["a", "x" * 10**5]}, ["categories", "visible"]),
        ({"names": ["a", "a"]}, ["categories", "once"]),
        ({"names": ["a"]}, ["categories", "data_mean"]),
        ({"data_std": [0.5, 0]}, ["categories", "data_std"]),
        ({"memory_configs": [{"size": HUGE}] * 2}, ["categories", "size"]),
        ({"memory_configs": [{"evil": 1}] * 2}, ["categories", "memory_configs", "evil"]),
        ({"memory_configs": 3}, ["categories", "memory_configs"]),
    ],
)
def test_a_bank_of_categories_that_cannot_be_right(settings, words, several_categories, tmp_path):
    folder = Path(shutil.copytree(several_categories, tmp_path / "several", copy_function=os.link))
    changed("categories/config.json", **settings)(folder)
    assert_refused_cheaply(folder, words)


# Commands and page


SAMPLE = ("a function as a class", "a million channels", "a bank without rows")


@pytest.mark.parametrize("name", [*SAMPLE, "10 GB of nothing", "a component elsewhere"])
def test_commands_and_page_end_in_that_sentence(name, checkpoint, tmp_path):
    change, words = (CONFIGS | FILES)[name]
    change(checkpoint)
    arguments = ["--model", str(checkpoint), "--input_dir", str(TILES), "--output_dir", str(tmp_path / "out")]
    for command in (score_folder, repair_folder):
        with pytest.raises(SystemExit) as ended:
            command(arguments)
        assert_sentence(ended.value.code, "error: ", *words)
    assert not (tmp_path / "out").exists()
    with refused(ValueError, *words):
        ModelShelf([checkpoint])


def test_the_table_names_every_component():
    assert set(COMPONENTS) - {"categories"} <= {words[0] for _, words in (CONFIGS | FILES).values()}
