"""Features of images that come again unchanged are computed once, and a training does not notice."""

import pytest
import torch
from launching import TWELVE_STEPS
from paths import TILES
from safetensors.torch import load_file

from training.data.augmentation import ShuffledRotatedImages
from training.data.good_images import GoodImages
from training.engine import kept_features
from training.engine.kept_features import KeptFeatures, feature_source
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.train import main


@pytest.fixture
def extractor():
    return load_pretrained_extractor("tf_efficientnet_lite0", 16)


@pytest.fixture
def two_kinds(tile_files, negative_files):
    return [GoodImages(tile_files[:6], 64), GoodImages(negative_files[:2], 64)]


def batches(sequence, size=4):
    for start in range(0, len(sequence), size):
        samples, _, places = zip(*(sequence[index] for index in range(start, start + size)), strict=True)
        yield torch.stack(samples), list(places)


@torch.no_grad()
def test_each_image_goes_through_the_backbone_once_and_its_features_are_its_own(extractor, two_kinds):
    sequence = ShuffledRotatedImages(two_kinds, 48, rotation_degrees=0, seed=0, start=8)
    features_of = feature_source(extractor, sequence, 0)
    seen = []
    hook = extractor.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = [(sample, features_of(sample, places)) for sample, places in batches(sequence)]
    hook.remove()
    assert 8 <= sum(seen) < 48 / 2
    for sample, features in found:
        assert torch.equal(features, extractor(sample))


def test_rotated_streamed_and_too_many_images_are_computed_each_time(extractor, two_kinds, monkeypatch):
    sequence = ShuffledRotatedImages(two_kinds, 8, rotation_degrees=0, seed=0)
    assert isinstance(feature_source(extractor, sequence, 0), KeptFeatures)
    assert not isinstance(feature_source(extractor, sequence, 5), KeptFeatures)
    assert not isinstance(feature_source(extractor, object(), 0), KeptFeatures)
    monkeypatch.setattr(kept_features, "MAX_BYTES", 8 * 192 * 16 * 16 * 4 - 1)
    assert not isinstance(feature_source(extractor, sequence, 0), KeptFeatures)


def test_a_training_ends_with_the_same_weights_whether_features_are_kept_or_not(tmp_path, monkeypatch):
    options = ["--train_data_dir", str(TILES), *TWELVE_STEPS, "--rotation_degrees", "0"]
    main([*options, "--output_dir", str(tmp_path / "kept")])
    monkeypatch.setattr(kept_features, "MAX_BYTES", 0)
    main([*options, "--output_dir", str(tmp_path / "computed")])
    kept, computed = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("kept", "computed")
    )
    assert all(torch.equal(kept[name], computed[name]) for name in computed)
