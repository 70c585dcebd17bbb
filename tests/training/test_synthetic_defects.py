"""Synthetic defects: visible, where their masks say, reproducible; and what is chosen on them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, uniform_filter
from sklearn.metrics import roc_auc_score

from pipelines.anomaly_maps import worst_mean
from pipelines.calibration_checks import IMAGE_RULES
from pipelines.score_calibration import combine
from training.data.good_images import GoodImages
from training.data.synthetic_defects import KINDS, MIN_VISIBLE_PIXELS, VISIBLE, SyntheticDefects, add_defect
from training.fitting.blend_weights import (
    ALPHAS,
    _is_as_good,
    choose_image_components,
    choose_map_weights,
    choose_weights,
)

SIZE = 128


@pytest.fixture(scope="module")
def images(tile_files):
    return GoodImages(tile_files, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_image_visibly_where_its_mask_says_and_nowhere_else(images, kind):
    shares = []
    for index in range(12):
        good, donor = images[index].numpy(), images[index + 1].numpy()
        sample, mask = add_defect(good, donor, kind, np.random.default_rng(index))
        assert sample.dtype == np.float32
        assert np.abs(sample).max() <= 1
        change = np.abs(sample - good).max(axis=0)
        if mask.sum() >= MIN_VISIBLE_PIXELS:
            assert change[mask].mean() > VISIBLE / 3
        assert uniform_filter(change, 5)[~binary_dilation(mask, iterations=2)].max(initial=0) < 1.2 * VISIBLE
        shares.append(mask.mean())
    assert np.mean(np.array(shares) * SIZE**2 >= MIN_VISIBLE_PIXELS) > 0.7
    assert max(shares) < 0.5
    assert len(set(shares)) > 6


def test_a_synthetic_defect_follows_seed_and_place_and_kinds_take_turns(images, monkeypatch):
    synthetic = SyntheticDefects(images, 40, seed=1)
    assert len(synthetic) == len(list(synthetic)) == 40
    for index in (0, 7, 39):
        (sample, mask), (again, mask_again) = synthetic[index], SyntheticDefects(images, 100, seed=1)[index]
        assert torch.equal(sample, again)
        assert torch.equal(mask, mask_again)
    assert not torch.equal(synthetic[3][0], SyntheticDefects(images, 40, seed=2)[3][0])
    assert not torch.equal(synthetic[0][0], synthetic[len(images)][0])  # the same image with another defect
    drawn = []
    for kind in KINDS:
        monkeypatch.setitem(KINDS, kind, lambda sample, *_, kind=kind: drawn.append(kind) or sample + 0.5)
    list(synthetic)
    assert drawn[: len(KINDS)] == list(KINDS)
    assert max(drawn.count(kind) for kind in KINDS) - min(drawn.count(kind) for kind in KINDS) <= 1


def components_of(count, informative, masks=None, strength=2.0):
    """Standard normal components (KL, feature error, two references); the informative ones rise where the masks are."""
    components = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(count))
    if masks is not None:
        rise = strength * torch.nn.functional.avg_pool2d(masks[:, None].float(), 8)
        for part in informative:
            components[:, part : part + 1] += rise
    return components


@pytest.fixture
def masks():
    masks = torch.zeros(40, 64, 64, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[8 * (index % 6) :, :][:16, 16:32] = True
    return masks


@pytest.mark.parametrize("informative", [1, 2, 3])
def test_the_part_that_separates_synthetic_defects_gets_most_of_the_weight(masks, informative):
    weights = choose_weights(components_of(60, []), components_of(40, [informative], masks), masks, 64, 1.0)
    share = weights.map_weights
    assert sum(share) == pytest.approx(1)
    assert share[informative - 1] == max(share) >= 0.5
    assert weights.alpha <= 0.1
    assert weights.image_parts[informative]
    assert weights.planted_image_auroc > 0.75
    assert weights.planted_pro > 0.7


def test_the_best_is_clearly_ahead_beyond_so_many_standard_errors():
    ahead = np.array([1.0, 2.0, 3.0, 4.0]) - 1.5  # mean 1, standard error 0.645
    assert _is_as_good(2, ahead)
    assert not _is_as_good(1, ahead)
    assert _is_as_good(1, ahead, np.array([0.0, 3.0]))  # the other units' error counts too
    assert _is_as_good(1, np.zeros(4))


def test_where_no_share_is_clearly_better_half_is_the_networks_and_references_share_the_rest(masks):
    synthetic = torch.cat([components_of(40, []), components_of(41, [])[:40, 3:]], dim=1)
    assert choose_map_weights(synthetic, masks, 64, 1.0)[1] == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    thirds = [1 / 3] * 3
    assert choose_map_weights(synthetic[:, :4], masks, 64, 1.0, even=thirds)[1] == pytest.approx(thirds)


def test_of_shares_that_are_as_even_the_one_with_the_larger_overlap_is_taken(masks):
    synthetic = components_of(40, [1, 2, 3], masks, strength=1.5)
    synthetic[:, [1, 3]] += 0.75 * torch.nn.functional.avg_pool2d(masks[:, None].float(), 8)
    alpha, shares, overlap = choose_map_weights(synthetic, masks, 64, 1.0, alpha=0.0)
    assert alpha == 0
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    mirrored = choose_map_weights(synthetic[:, [0, 1, 3, 2]], masks, 64, 1.0, alpha=0.0)
    assert mirrored[1] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert mirrored[2] == pytest.approx(overlap)


def test_alpha_rises_with_what_the_pixel_part_knows_and_is_kept_if_given(masks):
    good, synthetic = components_of(60, []), components_of(40, [0], masks)
    chosen = choose_weights(good, synthetic, masks, 64, 1.0)
    assert chosen.alpha == max(ALPHAS)
    kept = choose_weights(good, synthetic, masks, 64, 1.0, alpha=0.15)
    assert kept.alpha == 0.15
    assert kept.planted_pro < chosen.planted_pro


def test_without_references_all_of_the_feature_part_is_the_feature_error(masks):
    weights = choose_weights(components_of(60, [])[:, :2], components_of(40, [1], masks)[:, :2], masks, 64, 1.0)
    assert weights.map_weights == [1.0]
    assert weights.image_parts[1]
    assert len(weights.image_parts) == 2


def image_auroc(components, good, synthetic, rule="max"):
    std, mean = torch.std_mean(worst_mean(good), dim=0)
    scores = [combine(((worst_mean(each) - mean) / std)[:, components], rule) for each in (good, synthetic)]
    return roc_auc_score(np.repeat([0, 1], [len(good), len(synthetic)]), torch.cat(scores))


def test_a_part_that_knows_nothing_may_not_decide_where_it_hides_what_others_know(masks):
    good, synthetic = components_of(400, []), components_of(40, [2], masks)
    chosen, rule, auroc = choose_image_components(good, synthetic)
    assert chosen[2]
    assert auroc == pytest.approx(image_auroc(chosen, good, synthetic, rule))
    assert auroc > max(image_auroc([True] * 4, good, synthetic, rule) for rule in IMAGE_RULES)


def test_every_part_may_decide_where_each_sees_defects_of_its_own(masks):
    good, synthetic = components_of(60, []), components_of(40, [], masks)
    rises = 6.0 * torch.nn.functional.avg_pool2d(masks[:, None].float(), 8)
    for part in range(4):
        synthetic[part::4, part : part + 1] += rises[part::4]
    chosen, rule, auroc = choose_image_components(good, synthetic)
    assert chosen == [True] * 4
    assert rule == "max"
    assert auroc > 0.95 > max(image_auroc([part], good, synthetic) for part in range(4)) + 0.1


def test_the_mean_decides_where_all_components_see_the_same_faintly(masks):
    good, synthetic = components_of(400, []), components_of(40, range(4), masks, strength=1.5)
    chosen, rule, auroc = choose_image_components(good, synthetic)
    assert (chosen, rule) == ([True] * 4, "mean")
    assert auroc == pytest.approx(image_auroc(chosen, good, synthetic, "mean"))
    assert auroc > image_auroc(chosen, good, synthetic, "max")


def test_of_choices_that_are_as_good_the_one_with_most_components_is_taken(masks):
    nothing_known = choose_image_components(components_of(60, []), components_of(40, []))
    assert nothing_known[0] == [True] * 4
