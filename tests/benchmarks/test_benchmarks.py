"""The accuracy benchmark: rivals against their definitions, standard errors against the exact metrics, kept results."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from paths import TILES
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.distance import mahalanobis
from sentences import refused
from sklearn.metrics import roc_auc_score

from benchmarks import accuracy, category
from benchmarks.bootstrap import _histograms as histograms
from benchmarks.bootstrap import pixel_metrics_of_histograms, standard_errors
from benchmarks.category import checkpoint_folder
from benchmarks.kept_results import KeptResults
from benchmarks.rivals import PADIM_REGULARIZATION, padim, patchcore, spade
from training.data.image_folders import find_images
from training.evaluation.metrics import pixel_metrics


class PlainFeatures(torch.nn.Module):
    """An extractor whose only feature map, of stride 8, is the image averaged over 8×8 pixels, 3 channels."""

    config = SimpleNamespace(feature_strides=[8])
    num_features = 3
    pixel_mean, pixel_std = torch.zeros(1), torch.ones(1)

    class Backbone:
        feature_info = SimpleNamespace(channels=lambda: [3])

        def __call__(self, image):
            return [torch.nn.functional.avg_pool2d(image, 8)]

    backbone = Backbone()

    def raw_features(self, sample):
        return torch.nn.functional.avg_pool2d(sample, 8)


class FineAndPlainFeatures(PlainFeatures):
    """The same after two channels of stride 4, here on the same grid."""

    config = SimpleNamespace(feature_strides=[4, 8])
    num_features = 5
    backbone = SimpleNamespace(feature_info=SimpleNamespace(channels=lambda: [2, 3]))

    def raw_features(self, sample):
        return torch.cat([sample[:, :2, ::8, ::8], super().raw_features(sample)], dim=1)


def images(count, size, seed):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_padim_is_the_mahalanobis_distance_to_the_good_features_of_the_same_place():
    good, new = images(30, 32, 0), images(3, 32, 1)
    extractor = PlainFeatures()
    maps = padim(extractor, good.split(7), new.split(2), None)
    assert maps.shape == (3, 4, 4)
    features = extractor.raw_features(good)[:, :, 1, 2].double().numpy()
    covariance = np.cov(features.T) + PADIM_REGULARIZATION * np.eye(3)
    place = extractor.raw_features(new)[2, :, 1, 2].double().numpy()
    expected = mahalanobis(place, features.mean(axis=0), np.linalg.inv(covariance))
    assert maps[2, 1, 2].item() == pytest.approx(expected, rel=0.02)  # features are kept in half precision


def test_reduced_padim_draws_its_channels_with_the_generator():
    good, new = images(10, 32, 0), images(2, 32, 1)
    drawn = [
        padim(PlainFeatures(), [good], [new], torch.Generator().manual_seed(seed), num_channels=1) for seed in range(6)
    ]
    again = padim(PlainFeatures(), [good], [new], torch.Generator().manual_seed(0), num_channels=1)
    assert torch.equal(drawn[0], again)
    assert 1 < len({maps.sum().item() for maps in drawn}) <= 3


def test_padim_keeps_the_features_of_the_strides_that_are_named():
    good, new = images(10, 32, 0), images(2, 32, 1)
    coarse = padim(FineAndPlainFeatures(), [good], [new], None, strides=(8,))
    assert torch.equal(coarse, padim(PlainFeatures(), [good], [new], None))
    assert not torch.allclose(coarse, padim(FineAndPlainFeatures(), [good], [new], None), rtol=0.01)


def test_patchcore_and_spade_know_good_images_again_and_find_a_foreign_patch():
    good = images(1, 256, 0).expand(5, -1, -1, -1)
    new = good[:1].clone()
    new[:, :, 64:96, 128:160] = 5.0
    for rival in (partial(patchcore, strides=(8,)), spade):
        generator = torch.Generator().manual_seed(0)
        known, foreign = rival(PlainFeatures(), [good], [good[:1], new], generator)
        assert known.shape == foreign.shape == (32, 32)
        assert foreign[8:12, 16:20].min() > 5 * foreign[20:, :10].max()
        if rival is spade:  # PatchCore keeps a hundredth of the patches only
            assert known.max() < 1e-2


def test_spade_averages_the_nearest_five_features_of_the_gallery():
    good, new = images(4, 256, 0), images(1, 256, 1)
    extractor = PlainFeatures()
    gallery = extractor.raw_features(good).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    place = extractor.raw_features(new)[0, :, 7, 9].numpy()
    expected = cKDTree(gallery).query(place, k=5)[0].mean()
    assert spade(extractor, [good], [new], None)[0, 7, 9].item() == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def judged():
    """Maps of 24 images, half of them with one or two defects that the map sees dimly."""
    rng = np.random.default_rng(0)
    masks, maps = [], []
    for index in range(24):
        mask = np.zeros((40, 40), bool)
        if index % 2:
            mask[5:12, 6:20] = True
            mask[30:34, 20 : 20 + index % 7] = True
        masks.append(mask)
        maps.append((rng.normal(size=mask.shape) + 1.2 * mask).astype(np.float32))
    is_defective = np.array([mask.any() for mask in masks])
    scores = np.array([anomaly_map.max() for anomaly_map in maps]) + rng.normal(size=24)
    return is_defective, scores, masks, maps


def test_metrics_from_histograms_are_the_exact_ones(judged):
    _, _, masks, maps = judged
    binned = pixel_metrics_of_histograms(*(table.sum(axis=0) for table in histograms(masks, maps)))
    exact = pixel_metrics(masks, maps)
    assert binned.keys() == exact.keys()
    for name, value in exact.items():
        assert binned[name] == pytest.approx(value, abs=0.01), name


def test_standard_errors_are_those_of_the_exact_metrics_over_resampled_images(judged):
    is_defective, scores, masks, maps = judged
    errors = standard_errors(is_defective, scores, masks, maps)
    rng = np.random.default_rng(1)
    groups = [np.flatnonzero(is_defective), np.flatnonzero(~is_defective)]
    samples = []
    for _ in range(100):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        exact = pixel_metrics([masks[i] for i in drawn], [maps[i] for i in drawn])
        samples.append({"image_auroc": roc_auc_score(is_defective[drawn], scores[drawn])} | exact)
    for name, error in errors.items():
        assert error == pytest.approx(np.std([sample[name] for sample in samples]), rel=0.4), name


def result(name, method, seed, value, error):
    metrics = dict.fromkeys(accuracy.METRICS, value)
    errors = dict.fromkeys(accuracy.METRICS, error)
    about = {"category": name, "method": method, "seed": seed, "good": 8, "test": 9}
    return about | metrics | {"standard_error": errors}


def test_table_holds_means_over_seeds_with_the_error_of_images_and_seeds():
    results = [
        result("nut", "ours", 0, 0.8, 0.03),
        result("nut", "ours", 1, 0.9, 0.03),
        result("nut", "PaDiM", 0, 0.7, 0.04),
        result("nut", "PaDiM", 1, 0.7, 0.04),
    ]
    summary = accuracy.summarize(results)
    mean, error = summary["nut", "ours"]["pro"]
    assert mean == pytest.approx(0.85)
    assert error == pytest.approx((0.03**2 + 0.1**2 / 2 / 2) ** 0.5)  # variance of 0.8 and 0.9 over two seeds
    table = accuracy.format_table(results)
    assert "| ours | **0.850 ± 0.058** |" in table
    assert "| PaDiM | 0.700 ± 0.040 |" in table


def test_average_over_categories_adds_their_errors_in_quadrature():
    results = [result("nut", "ours", 0, 0.8, 0.03), result("bolt", "ours", 0, 0.6, 0.04)]
    assert "| ours | **0.700 ± 0.025** |" in accuracy.format_table(results).split("| average")[1]


def keep(folder, kept, **settings):
    """Keep a result as a run with some settings would."""
    settings = {"resolution": 256, "smoothing": "", "groups": "", "steps": ""} | settings
    settings |= {"backbone": "tf_efficientnet_lite0", "method": kept["method"], "seed": kept["seed"]}
    KeptResults(folder / "results", kept["category"]).keep(settings, kept)


def test_results_of_other_settings_stand_beside_each_other_and_one_of_the_same_replaces_the_former(tmp_path):
    for seed, auroc in ((0, 0.5), (1, 0.75), (0, 0.625)):
        keep(tmp_path, result("nut", "PaDiM", seed, auroc, 0.01), smoothing=4)
    keep(tmp_path, result("nut", "PaDiM", 0, 0.25, 0.01), smoothing=2)
    lines = (tmp_path / "results" / "nut.csv").read_text().splitlines()
    assert len(lines) == 4
    assert sum("0.625" in line for line in lines) == 1
    assert not any("0.5," in line for line in lines)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["nut.csv"]


def test_a_kept_result_is_read_and_not_measured_again(tmp_path, capsys):
    keep(tmp_path, result("nut", "PaDiM", 3, 0.123, 0.01), smoothing=4)
    arguments = [str(tmp_path / "nut"), "--methods", "PaDiM", "--seeds", "3", "--output_dir", str(tmp_path)]
    accuracy.main(arguments)  # there is no such category: measuring it would end the command
    assert "0.123" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "0.123" in (tmp_path / "table.md").read_text()
    accuracy.main([*arguments, "--groups", "nut(.)"])  # a rival holds nothing out
    for other in (["--seeds", "4"], ["--rivals_sigma", "2"], ["--resolution", "512"]):
        with pytest.raises(SystemExit) as ended:
            accuracy.main([*arguments, *other])
        assert "nut" in str(ended.value.code)


def test_a_kept_result_of_ours_is_that_of_its_steps_and_resolution(tmp_path, capsys):
    keep(tmp_path, result("nut", "ours", 0, 0.123, 0.01), steps=4000)
    arguments = [str(tmp_path / "nut"), "--methods", "ours", "--groups", "none", "--output_dir", str(tmp_path)]
    for same in ([], ["--max_train_steps", "4000"], ["--resolution", "256"]):  # the default's own
        accuracy.main([*arguments, *same])
        assert "0.123" in capsys.readouterr().out
    for other in (["--max_train_steps", "1000"], ["--resolution", "512"], ["--groups", "nut(.)"]):
        with pytest.raises(SystemExit) as ended:
            accuracy.main([*arguments, *other])
        assert "nut" in str(ended.value.code)


@pytest.mark.usefixtures("one_core")
def test_our_model_and_its_parts_are_measured_on_a_category(tiny_pipeline, tmp_path, monkeypatch):
    """The tiny pipeline stands where a trained model would, so that nothing is trained."""
    tiny_pipeline.save_pretrained(checkpoint_folder(tmp_path, f"{TILES.name}-0"))
    monkeypatch.setattr(category, "RESOLUTION", 64)
    monkeypatch.setattr(category, "FEATURE_GRID", 16)
    methods = list(accuracy.OURS)
    accuracy.main([str(TILES), "--methods", *methods, "--output_dir", str(tmp_path)])
    measured = json.loads((tmp_path / "results.json").read_text())
    assert [each["method"] for each in measured] == methods
    assert len({each["pixel_auroc"] for each in measured}) == 3
    for each in measured:
        assert 0 <= each["image_auroc"] <= 1
        assert each["standard_error"].keys() == set(accuracy.METRICS)


def test_a_category_of_deep_images_is_measured_by_its_own_white(tmp_path, monkeypatch):
    monkeypatch.setattr(category, "NUM_SYNTHETIC", 8)
    for path in find_images(TILES):
        saved = tmp_path / path.relative_to(TILES).with_suffix(".png")
        saved.parent.mkdir(parents=True, exist_ok=True)
        grey = np.asarray(Image.open(path))
        Image.fromarray(grey if "ground_truth" in path.parts else grey.astype(np.uint16) * 16).save(saved)
    data, deep = (category.Category(folder, 0, "tf_efficientnet_lite0", tmp_path) for folder in (TILES, tmp_path))
    assert deep.white_level == 4095
    for first, second in zip(data.batches(data.files), deep.batches(deep.files), strict=True):
        torch.testing.assert_close(first, second, atol=0.02, rtol=0)
    for (first, _), (second, _) in zip(data.synthetic, deep.synthetic, strict=True):
        assert (first.mean() - second.mean()).abs() < 0.15  # other draws; read as 16 bits all would be black


def test_a_kept_model_serves_only_the_backbone_and_the_steps_it_was_trained_for(tiny_pipeline, tmp_path, monkeypatch):
    tiny_pipeline.save_pretrained(checkpoint_folder(tmp_path, f"{TILES.name}-0"))
    commands = []
    monkeypatch.setattr(
        category.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=1)
    )
    data = category.Category(TILES, 0, "tf_efficientnet_lite0", tmp_path)
    assert data.pipeline.unet.config.sample_size == 16
    assert commands == []
    with refused(ValueError, "tf_efficientnet_lite0", "resnet18"):
        category.Category(TILES, 0, "resnet18", tmp_path).trained()
    with refused(ValueError, f"{TILES.name}-0-groups-found-7-steps"):
        category.Category(TILES, 0, "tf_efficientnet_lite0", tmp_path, max_train_steps=7).trained()
    assert commands[0][-2:] == ["--max_train_steps", "7"]
    zoomed = category.Category(TILES, 0, "tf_efficientnet_lite0", tmp_path, resolution=512)
    with refused(ValueError, f"{TILES.name}-0-512-pixels-groups-found-4000-steps"):
        zoomed.trained()
    assert commands[1][-4:] == ["--resolution", "512", "--patch_size", "16"]
    assert zoomed.masks[0].shape == (256, 256)
    assert commands[0][commands[0].index("--feature_extractor") + 1] == "tf_efficientnet_lite0"
    with refused(ValueError, f"{TILES.name}-0-4000-steps"):  # by the name of what was kept before parts were found
        category.Category(TILES, 0, "tf_efficientnet_lite0", tmp_path, groups="none").trained()
    assert commands[2][-2:] == ["--groups", "none"]
