"""`variant="fp16"`, as people type it: from the Hub and from a folder, to the same scores; casts and a device map."""

import pytest
from fresh_process import FreshProcess
from hub_loading import LOAD, LOCAL, quoted, run
from hub_server import Hub
from paths import ROOT
from sentences import refused

from pipelines.checkpoint_names import HALF_PRECISION_WEIGHTS
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.publish import describe_shipment, prepare_shipment

FP16 = {"variant": "'fp16'"}


@pytest.fixture(scope="module")
def half_checkpoint(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "tile"
    tiny_pipeline.save_pretrained(folder, variant="fp16")
    return folder


@pytest.fixture(scope="module")
def server(half_checkpoint):
    with Hub().running() as hub:
        files = prepare_shipment(half_checkpoint, "team/tile").files
        hub.repositories.create("model", "team/tile").put(
            {name: source if isinstance(source, bytes) else source.read_bytes() for name, source in files.items()}
        )
        yield hub


@pytest.fixture(scope="module")
def stranger(server, environment, tmp_path_factory):
    process = FreshProcess(server, tmp_path_factory.mktemp("stranger"), environment, sees_repository=False)
    yield process
    process.close()


@pytest.fixture(scope="module")
def images(tile_files):
    return [str(path) for path in tile_files[:2]]


@pytest.fixture(scope="module")
def without_variant(stranger, images):
    """What the checkpoint scores when nobody asks for a variant."""
    status, printed, answer = run(stranger, LOAD, images)
    assert status == 0, printed
    return answer


def test_both_pipelines_load_from_the_hub_in_half_precision_without_a_warning(
    server, stranger, images, without_variant
):
    asked = len(server.asked)
    status, printed, answer = run(stranger, LOAD, images, **FP16)
    assert status == 0, printed
    assert answer == without_variant
    assert "mixture" not in printed
    fetched = {path.rpartition("/")[2] for method, path in server.asked[asked:] if path.endswith(".safetensors")}
    assert fetched == {HALF_PRECISION_WEIGHTS}
    status, printed, answer = run(stranger, LOAD, custom_pipeline="'pipeline_gradient_denoise'", **FP16)
    assert status == 0, printed
    assert answer[2] == "GradientDenoisePipeline"


def test_a_folder_loads_by_either_name(stranger, half_checkpoint, images, without_variant):
    load = LOAD.replace("team/tile", str(half_checkpoint))
    for options in ({}, FP16):
        status, printed, answer = run(stranger, load, images, **options)
        assert status == 0, printed
        assert answer == without_variant


def test_what_a_stranger_saves_in_half_precision_loads_by_either_name(stranger, images, without_variant, tmp_path):
    save = LOAD.format(options="") + f"pipe.save_pretrained({quoted(tmp_path / 'again')}, variant='fp16')"
    status, printed, _ = stranger.run(save)
    assert status == 0, printed
    for options in ({}, FP16):
        status, printed, answer = run(stranger, LOAD.replace("team/tile", str(tmp_path / "again")), images, **options)
        assert status == 0, printed
        assert answer == without_variant


def test_our_own_class_takes_the_same_files_with_a_variant_as_without(server, stranger, images, without_variant):
    asked = len(server.asked)
    load = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{LOCAL}sys.path.pop(0)\n"
    for options in (FP16, {}):
        status, printed, answer = run(stranger, load, images, **options)
        assert status == 0, printed
        assert answer == without_variant
    assert not [path for _, path in server.asked[asked:] if path.endswith(HALF_PRECISION_WEIGHTS)]


CAST = """
import torch
from diffusers import DiffusionPipeline
from PIL import Image
casts = ({}, dict(dtype=torch.float16), dict(torch_dtype=torch.bfloat16), dict(device_map="cpu"))
answer = []
for cast in casts:
    pipe = DiffusionPipeline.from_pretrained("team/tile", trust_remote_code=True, variant="fp16", **cast)
    score = pipe(Image.open(IMAGE)).anomaly_score.item()
    answer.append([str(pipe.unet.dtype), str(pipe.calibration.dtype), score])
"""


def test_a_variant_can_be_cast_and_placed(stranger, images):
    status, printed, answer = stranger.run(CAST.replace("IMAGE", repr(images[0])))
    assert status == 0, printed
    dtypes, calibrations, scores = zip(*answer, strict=True)
    assert dtypes == ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float32")
    assert set(calibrations) == {"torch.float32"}
    assert scores[3] == scores[0]
    assert scores[1:3] == pytest.approx([scores[0]] * 2, abs=0.3)


def test_a_file_under_two_names_is_sent_once(half_checkpoint, tiny_checkpoint):
    shipment = prepare_shipment(half_checkpoint, "team/tile")
    doubled = [name for name in shipment.files if name.endswith(HALF_PRECISION_WEIGHTS)]
    assert [name.split("/")[0] for name in doubled] == [
        "calibration",
        "coarse_gaussian",
        "familiarity",
        "feature_extractor",
        "gaussian",
        "memory",
        "unet",
    ]
    plain = sum(size for name, size in shipment.sizes.items() if name not in doubled)
    assert f"{plain / 1000:12,.1f} kB  in {len(shipment.files)} files" in describe_shipment(shipment, "team/tile")
    in_float32 = prepare_shipment(tiny_checkpoint, "team/tile").files
    assert not [name for name in in_float32 if name.endswith(HALF_PRECISION_WEIGHTS)]


def test_a_variant_that_is_not_there_is_refused_with_a_sentence(tiny_pipeline, tiny_checkpoint, tmp_path):
    with refused(ValueError, "float32", "variant='fp16'"):
        AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, variant="fp16")
    for call in (
        lambda: AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, variant="bf16"),
        lambda: tiny_pipeline.save_pretrained(tmp_path / "new", variant="bf16"),
    ):
        with refused(ValueError, "'bf16'", "'fp16' is accepted"):
            call()
    assert not (tmp_path / "new").exists()
