"""How many synthetic defects a calibrated model rejects: scored as a user's images, and none that it was chosen on."""

import copy

import pytest
import torch

from training.data.good_images import GoodImages
from training.data.synthetic_defects import KINDS, SyntheticDefects
from training.fitting.synthetic_check import SyntheticCheck, _choose_shown, check_synthetic_defects

COUNT = 12


@pytest.fixture(scope="module")
def check(tiny_pipeline, tile_files):
    seen = []
    found = check_synthetic_defects(
        tiny_pipeline, tile_files, count=COUNT, num_shown=4, false_alarm_rate=0.3, on_progress=lambda *n: seen.append(n)
    )
    assert seen == [(8, COUNT), (12, COUNT)]
    return found


def test_verdicts_are_those_that_a_user_gets(tiny_pipeline, check):
    assert len(check.shown) == 4
    for one in check.shown:
        answer = tiny_pipeline((one.sample + 1) / 2, false_alarm_rate=0.3, output_type="pt")
        assert answer.anomaly_score[0] == pytest.approx(one.score, abs=1e-4)
        assert answer.is_anomalous[0] == one.is_rejected
        torch.testing.assert_close(answer.anomaly_map[0], one.anomaly_map, atol=1e-3, rtol=0)
        assert bool(answer.pred_mask[0].any()) == bool(one.pred_mask.any())
        assert one.mask.any()
    assert check.false_alarm_rate == pytest.approx(0.3)
    assert (check.scores > check.image_threshold).tolist() == check.is_rejected.tolist()


def test_counts_agree(check):
    assert check.num_rejected == sum(check.is_rejected)
    assert check.share_rejected == check.num_rejected / COUNT
    by_kind = check.by_kind()
    assert list(by_kind) == list(KINDS)
    assert [total for _, total in by_kind.values()] == [2] * 6
    assert sum(found for found, _ in by_kind.values()) == check.num_rejected


def test_defects_are_the_same_every_time_and_none_that_the_calibration_was_chosen_on(tiny_pipeline, tile_files, check):
    again = check_synthetic_defects(tiny_pipeline, tile_files, count=COUNT, num_shown=4, false_alarm_rate=0.3)
    assert torch.equal(again.scores, check.scores)
    chosen_on = SyntheticDefects(GoodImages(tile_files, tiny_pipeline.resolution), COUNT)
    assert not any(torch.equal(one.sample, sample) for one in check.shown for sample, _ in chosen_on)


def test_a_model_that_has_seen_everything_finds_nothing(tiny_pipeline, tile_files):
    blind = copy.copy(tiny_pipeline)
    calibration = copy.deepcopy(tiny_pipeline.calibration)
    calibration.part_scores.fill_(1e6)
    calibration.map_maxima.fill_(1e6)
    blind.register_modules(calibration=calibration)
    check = check_synthetic_defects(blind, tile_files[:8], count=6, num_shown=4)
    assert check.num_rejected == 0
    assert check.share_rejected == 0
    assert [one.is_rejected for one in check.shown] == [False] * 4
    assert not any(one.pred_mask.any() for one in check.shown)


def test_what_is_told_of_its_progress_can_end_it(tiny_pipeline, tile_files):
    def stop(done, total):
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        check_synthetic_defects(tiny_pipeline, tile_files, count=COUNT, on_progress=stop)


@pytest.mark.parametrize(
    ("rejected", "count", "places"),
    [
        ([1, 0, 1, 0, 1, 0], 4, [0, 2, 1, 3]),
        ([1, 1, 1, 1, 1, 0], 4, [0, 1, 2, 5]),
        ([0, 0, 0, 0, 0, 1], 4, [5, 0, 1, 2]),
        ([1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0], 4, [0, 7, 1, 2]),  # 6 is of the same kind as 0
        ([1, 0], 6, [0, 1]),
        ([0, 0, 0], 0, []),
    ],
)
def test_found_ones_are_shown_first_of_all_kinds_and_the_rest_is_filled_up(rejected, count, places):
    assert _choose_shown(torch.tensor(rejected, dtype=bool).numpy(), count) == places


def test_a_share_needs_no_images():
    check = SyntheticCheck(["stain"] * 4, torch.zeros(4), torch.tensor([1, 0, 0, 0], dtype=bool).numpy(), 0.01, 2.0, [])
    assert check.share_rejected == 0.25
