"""What the page says: verdict, promise, places, what a repair has come to."""

from types import SimpleNamespace

import numpy as np
import pytest

from page.tabs.verdict import (
    invitation,
    list_regions,
    no_verdict,
    promise,
    repair_progress,
    repair_verdict,
    verdict,
)
from page.work.inspection import MAX_REGIONS
from page.work.rates import RateRefused
from page.work.repairing import Progress

CALIBRATION = SimpleNamespace(cross_fitted=False, num_ranked=99, num_groups=None)
NUMBERS = {
    "is_anomalous": True,
    "anomaly_score": 5.0,
    "p_value": 0.01,
    "false_alarm_rate": 0.01,
    "image_threshold": 4.0,
    "defect_pixels": 0,
    "defect_share": 0.0,
    "regions": [],
    "warning": "",
    "width": 20,
    "height": 10,
    "is_unfamiliar": False,
    "unfamiliarity": 0.5,
    "fitting_models": [],
}
REGION = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 6.25}


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.01, "of 100 good parts, at most 1 is rejected"),
        (0.2, "of 100 good parts, at most 20 are rejected"),
        (1 / 458, "of 1000 good parts, at most 2.2 are rejected"),
        (0.0301, "of 100 good parts, at most 3.1 are rejected"),
    ],
)
def test_promise_counts_good_parts_and_never_understates(rate, words):
    assert words in promise(rate, SimpleNamespace(cross_fitted=False, num_ranked=457, num_groups=None))


def test_cross_fitted_calibration_promises_nothing():
    words = promise(0.04, SimpleNamespace(cross_fitted=True, num_ranked=24, num_groups=None))
    assert "about 4 are rejected" in words
    assert "Estimate" in words
    assert "at most" not in words


def test_verdict_counts_the_good_parts_that_scored_as_high():
    accepted = verdict(NUMBERS | {"is_anomalous": False, "p_value": 0.08}, CALIBRATION)
    assert "Accepted" in accepted
    assert "Of 99 good parts measured for comparison, 7 scored at least as high" in accepted
    rejected = verdict(NUMBERS, CALIBRATION)
    assert "none scored at least as high" in rejected
    assert "No single place stands out" in rejected


def test_an_unfamiliar_image_is_neither_accepted_nor_rejected_and_nothing_is_promised():
    for is_anomalous in (True, False):
        unlike = NUMBERS | {"is_anomalous": is_anomalous, "is_unfamiliar": True, "unfamiliarity": 3.2}
        words = verdict(unlike, CALIBRATION)
        assert "unlike anything this model knows" in words
        assert not any(word in words for word in ("Accepted", "Rejected", "Promise", "outlined"))
        assert "Unfamiliarity 3.2" in words.split("<details>")[1]
    one, two = (verdict(unlike | {"fitting_models": names}, CALIBRATION) for names in (["nuts"], ["nuts", "<b>"]))
    assert "<b>nuts</b> knows such images" in one
    assert "<b>nuts</b>, <b>&lt;b&gt;</b> know such images" in two


def test_what_a_statistician_asks_for_is_folded_away():
    first_level, details = verdict(NUMBERS, CALIBRATION).split("<details>")
    assert "p-value" not in first_level
    assert "p-value 0.01" in details


def test_invitation_shows_a_models_name_as_it_is_and_offers_examples_only_where_there_are_some():
    assert "&lt;b&gt;screws" in invitation("<b>screws", has_examples=False)
    assert "example" not in invitation("screws", has_examples=False)
    assert "examples" in invitation("magnetic-tile", has_examples=True)


def test_verdict_names_what_is_outlined():
    words = verdict(NUMBERS | {"defect_pixels": 5, "defect_share": 0.025, "regions": [REGION]}, CALIBRATION)
    assert "outlined area, 5 pixels or 2.5% of the image, in 1 place," in words
    many = verdict(
        NUMBERS | {"defect_pixels": 1, "defect_share": 0.0004, "regions": [REGION] * MAX_REGIONS}, CALIBRATION
    )
    assert "1 pixel or 0.040% of the image, in at least 20 places," in many


def test_regions_are_listed_up_to_five_with_their_share():
    assert list_regions(NUMBERS) == ""
    table = list_regions(NUMBERS | {"regions": [REGION] * 7})
    assert table.count("</b></td><td>1, 2</td><td>3 × 4</td><td>5</td><td>2.50%</td><td>6.2</td>") == 5
    assert "and 2 smaller" in table


@pytest.mark.parametrize(
    ("accepted", "stopped", "changed", "words"),
    [
        (True, False, True, "Accepted: the model takes the result for a good part"),
        (True, True, True, "Accepted: the model takes the result for a good part"),
        (False, False, True, "Not accepted"),
        (False, True, True, "Stopped before it was done"),
        (True, False, False, "Nothing to repair"),
        (False, False, False, "Nothing is marked"),
        (False, True, False, "Stopped"),
    ],
)
def test_repair_says_accepted_not_accepted_or_stopped(accepted, stopped, changed, words):
    output = SimpleNamespace(anomaly_score=[5.0], repaired_score=[1.0], is_accepted=[accepted], false_alarm_rate=1 / 19)
    mask = np.zeros((10, 20), bool)
    mask[0, :2] = changed
    said = repair_verdict(output, mask, stopped)
    assert f"<h2>{words}" in said
    assert ("2 pixels, 1.0% of the image" in said) == changed
    assert ("at 5.263 % accepted false alarms" in said) == (changed or accepted or not stopped)
    assert "epaired" not in said
    assert ("does not prove that the defect is gone" in said) == (accepted and changed)


def test_repair_says_how_many_steps_there_are_at_most_and_draws_a_bar():
    words = repair_progress(Progress(30, 98, 250, 6.0, np.zeros((2, 2, 3), np.uint8)))
    assert "Step 30 of at most 98: drawing anew" in words
    assert "6 s so far, 14 s more at most" in words
    assert 'value="30" max="98"' in words
    assert "<progress></progress>" in repair_progress(None)


def test_where_a_rate_is_not_offered_its_sentence_stands_in_the_verdicts_place():
    words = no_verdict(RateRefused("the rate of <b>x</b> is 50 %."))
    assert "The rate of &lt;b&gt;x&lt;/b&gt; is 50 %." in words
    assert "accepted" not in words
