"""A training that starts from a checkpoint: the same network, its categories kept, others added."""

import json
import shutil

import pytest
import torch
from launching import TINY, train
from paths import TILES
from PIL import Image
from sentences import assert_sentence

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.layouts import find_good_images
from training.engine.initial_weights import copy_weights
from training.networks.unet import build_unet
from training.train import main


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """Another category: the tiles turned by a quarter."""
    folder = tmp_path_factory.mktemp("data") / "turned"
    folder.mkdir()
    for path in find_good_images(TILES):
        with Image.open(path) as tile:
            tile.rotate(90, expand=True).save(folder / path.name)
    return folder


@pytest.fixture(scope="module")
def both(environment, finished, turned, tmp_path_factory):
    """The checkpoint of `finished` after a step, of hardly any length, on its own tiles and on turned ones."""
    output_dir = tmp_path_factory.mktemp("both") / "out"
    arguments = ["--train_data_dir", TILES, turned, "--output_dir", output_dir, *TINY, "--init_from", finished]
    done = train(environment, *arguments, "--max_train_steps", "1", "--learning_rate", "1e-9")
    assert done.returncode == 0, done.stderr
    return output_dir


def test_a_category_is_added_to_the_network_and_the_features_of_a_checkpoint(finished, both):
    first, second = (AnomalyScoringPipeline.from_pretrained(folder) for folder in (finished, both))
    assert second.categories.config.names == [TILES.name, "turned"]
    weights = second.unet.state_dict()
    torch.testing.assert_close(weights.pop("class_embedding.weight"), torch.zeros(2, 128), atol=1e-6, rtol=0)
    for name, tensor in first.unet.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3)
    for name, tensor in first.feature_extractor.state_dict().items():
        assert torch.equal(second.feature_extractor.state_dict()[name], tensor), name
    tiles = [Image.open(path) for path in find_good_images(TILES)[:3]]
    noise = first.calibration.noise_fields([5, 50, 100])
    samples = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64) * 0.3])
    measured = second.for_category(TILES.name).measure(samples, [5, 50, 100], noise, "no")
    expected = first.measure(samples, [5, 50, 100], noise, "no")
    torch.testing.assert_close(measured.feature_error, expected.feature_error, atol=1e-2, rtol=1e-2)
    assert len(second(tiles, category="turned").anomaly_score) == 3


def test_categories_keep_their_embeddings_wherever_they_stand_and_a_new_one_starts_between_them(tiny_pipeline):
    class Several:
        def __init__(self, unet, names):
            self.unet = unet
            self.categories = type("Bank", (), {"config": type("Config", (), {"names": names})})

    torch.manual_seed(0)
    former = build_unet(64, 4, 192, [32, 32], 1, num_classes=2)
    rows = former.class_embedding.weight
    unet = build_unet(64, 4, 192, [32, 32], 1, num_classes=3)
    copy_weights(Several(former, ["a", "b"]), unet, ["b", "new", "a"])
    assert torch.equal(unet.class_embedding.weight, torch.stack([rows[1], rows.mean(dim=0), rows[0]]))

    alone = build_unet(64, 4, 192, [32, 32], 1)
    copy_weights(Several(former, ["a", "b"]), alone, ["b"])
    sample, timesteps = torch.randn(1, 48, 16, 16), torch.tensor([7])
    with torch.no_grad():
        expected = former(sample, timesteps, class_labels=torch.tensor([1])).sample
        torch.testing.assert_close(alone(sample, timesteps).sample, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block_out_channels", "32", "64"], ["block_out_channels 32 32", "32 64"]),
        (["--patch_size", "8"], ["patch_size 4", "8"]),
        (["--init_from", "nowhere"], ["nowhere"]),
    ],
)
def test_a_network_of_another_kind_is_refused_in_a_sentence(finished, tmp_path, options, words):
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path / "out"), *TINY]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--max_train_steps", "1", "--init_from", str(finished), *options])
    assert_sentence(ended.value.code, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_core")
def test_a_run_that_started_from_a_checkpoint_is_resumed_from_the_same(both, tmp_path):
    shutil.copytree(both / "checkpoint-1", tmp_path / "out" / "checkpoint-1")
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path / "out"), *TINY]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--max_train_steps", "2", "--resume_from_checkpoint", "latest"])
    assert_sentence(ended.value.code, "checkpoint-1", "--init_from", str(both.parent)[:5])


@pytest.mark.usefixtures("one_core")
def test_with_another_seed_nothing_is_held_out_that_the_first_checkpoint_was_trained_on(finished, tmp_path):
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path), *TINY]
    arguments += ["--max_train_steps", "1", "--validation_steps", "0"]
    main([*arguments, "--init_from", str(finished), "--seed", "5"])
    first, second = (
        set(json.loads((folder / "training.json").read_text())["held_out"][TILES.name])
        for folder in (finished, tmp_path)
    )
    assert second
    assert second <= first


@pytest.mark.usefixtures("one_core")
def test_a_first_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(finished, tmp_path):
    first = shutil.copytree(finished, tmp_path / "first")
    (first / "training_images.safetensors").unlink()
    (first / "training.json").unlink()
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path / "out"), *TINY]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--max_train_steps", "1", "--init_from", str(first)])
    assert_sentence(ended.value.code, "first does not say which images it was trained on")
    assert not (tmp_path / "out").exists()
