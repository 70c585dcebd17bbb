"""What a rate costs follows from p-values that were counted."""

import numpy as np
import pytest

from training.records.error_rates import COARSE, are_p_value_counts, count_p_values, rejected_shares

KINDS = ["crack", "good", "hole", "good", "crack", "crack", "good"]
P_VALUES = np.array([1 / 19, 0.2, 0.5, 1 / 19 + 1e-16, 0.3, 1.0, 1.0])


def test_shares_are_those_of_verdicts_at_every_rate():
    counted = count_p_values(KINDS, P_VALUES)
    assert counted["good"] == [[0.0526315789, 1], [0.2, 1], [1.0, 1]]
    assert list(counted) == ["good", "crack", "hole"]
    kinds = np.array(KINDS)
    for rate in (0.01, 1 / 19, 0.2, 0.3, 0.4, 0.5, 1.0):
        rejected = rate + 1e-12 >= P_VALUES
        expected = {kind: rejected[kinds == kind].mean() for kind in ("good", "crack", "hole")}
        assert rejected_shares(counted, rate) == pytest.approx(expected | {"all": rejected[kinds != "good"].mean()})


def test_one_kind_of_images_alone_has_no_share_of_the_other():
    assert rejected_shares(count_p_values(["good"], [0.5]), 0.5) == {"good": 1}
    assert rejected_shares(count_p_values(["hole"], [0.5]), 0.1) == {"hole": 0, "all": 0}


def test_many_distinct_values_are_counted_as_finely_as_rates_are_chosen():
    p_values = np.random.default_rng(0).permutation(np.arange(1, 20_001) / 20_000)
    counted = count_p_values(["good"] * len(p_values), p_values)
    assert len(counted["good"]) <= len(COARSE)
    assert are_p_value_counts(counted, {"good": len(p_values)})
    for rate in (0.0001, 0.001, 0.0123, 0.05, 0.2, 0.5, 1.0):
        assert rejected_shares(counted, rate)["good"] == pytest.approx(rate)
