"""What a rate costs, beside the slider: from the model's own evaluation, or not measured."""

import json
import shutil
from pathlib import Path

import pytest
from serving import served

from page.models.model_shelf import ModelShelf, known_shares
from page.tabs.rate_cost import rate_cost_html
from pipelines.checkpoint_names import EVALUATION
from training.records.measured_results import FIGURES, keep_results

REPORT = {
    "promised_false_alarm_rate": 0.04,
    "pictures": {"good": 200, "crack": 50, "<b>hole": 30},
    "groups": {"all": dict.fromkeys(FIGURES, 0.62)},
    "p_values": {
        "good": [[0.04, 3], [0.08, 7], [1.0, 190]],
        "crack": [[0.04, 16], [0.12, 34]],
        "<b>hole": [[0.04, 27], [0.2, 3]],
    },
}


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
    """Of a copy of the tiny checkpoint; it ranks 24 good images, so that 4 % is the smallest rate."""
    return ModelShelf([shutil.copytree(tiny_checkpoint, tmp_path / "tile")]).get("tile")


def test_the_cost_of_a_rate_is_said_with_the_worst_kind_first(model):
    keep_results(model.folder, None, "tiles", REPORT)
    words = rate_cost_html(model, 4.0)
    assert "<b>54 %</b> of 80 known defective images were rejected (crack 32 %, &lt;b&gt;hole 90 %)" in words
    assert "1.5 % of 200 good ones" in words
    assert "defective images accepted: 46 %" in words
    assert "<svg" in words
    more = rate_cost_html(model, 12.0)
    assert "<b>96 %</b> of 80" in more
    assert "5.0 % of 200 good ones" in more


def test_shares_at_the_default_rate_are_told_to_programs(model):
    keep_results(model.folder, None, "tiles", REPORT)
    shares = known_shares(model, model.default_percent / 100)
    assert shares == pytest.approx({"all": 43 / 80, "crack": 0.32, "<b>hole": 0.9, "good": 0.015})


def test_the_cost_follows_both_sliders_in_a_browser(browser, model, tmp_path):
    keep_results(model.folder, None, "tiles", REPORT)
    with served(model.folder, tmp_path / "served", training=False) as (url, _):
        page = browser.new_page()
        page.goto(url)
        for tab, slider, cost in (
            ("Inspect", "#percent", "#rate-cost"),
            ("Batch", "#batch-percent", "#batch-rate-cost"),
        ):
            page.get_by_role("tab", name=tab).click()
            page.locator(f"{cost} >> text=54 % of 80").wait_for(timeout=60_000)
            page.locator(f"{slider} input[type=number]").fill("12")
            page.locator(f"{slider} input[type=number]").press("Enter")
            page.locator(f"{cost} >> text=96 % of 80").wait_for(timeout=60_000)
            assert page.locator(f"{cost} b").count() == 1  # the share alone is bold: a kind's name is no markup
        page.close()


@pytest.mark.parametrize("outside", [None, 0.0, 0.1, -3, 4.0])
def test_a_rate_outside_of_the_slider_is_its_nearest_end(model, outside):
    keep_results(model.folder, None, "tiles", REPORT)
    assert rate_cost_html(model, outside) == rate_cost_html(model, 4.0)
    assert rate_cost_html(model, 500) == rate_cost_html(model, model.largest_percent)


def test_without_an_evaluation_it_is_not_measured(model):
    words = rate_cost_html(model, 4.0)
    assert "not measured" in words
    assert "<svg" not in words
    assert known_shares(model, 0.04) is None


def test_an_older_evaluation_says_what_it_measured_and_at_which_rate(model):
    keep_results(model.folder, None, "tiles", {key: value for key, value in REPORT.items() if key != "p_values"})
    words = rate_cost_html(model, 10.0)
    assert "not measured" in words
    assert "at 4.0 %, 62 % of the known defective images were" in words


def test_good_images_alone_tell_one_error(model):
    alone = {"pictures": {"good": 200}, "p_values": {"good": REPORT["p_values"]["good"]}}
    keep_results(
        model.folder, None, "tiles", REPORT | alone | {"groups": {"all": dict.fromkeys(FIGURES, float("nan"))}}
    )
    words = rate_cost_html(model, 4.0)
    assert "At this setting, 1.5 % of 200 good images were rejected." in words
    assert "defective" not in words


def test_a_hostile_evaluation_is_taken_for_none(model):
    keep_results(model.folder, None, "tiles", REPORT)
    path = Path(model.folder) / EVALUATION
    (result,) = json.loads(path.read_text())
    result["p_values"]["crack"] = [["<script>", 50]]
    path.write_text(json.dumps([result]))
    assert "<script>" not in rate_cost_html(model, 4.0)
    assert "not measured" in rate_cost_html(model, 4.0)
