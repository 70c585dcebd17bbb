"""What the page opens with: an example that has been inspected already; for a model without any, an invitation."""

import copy
import threading
from pathlib import Path

import pytest
from paths import ROOT, TILE
from serving import served

from page.server.gradio_internals import get_upload_folder
from page.tabs.examples import EXAMPLES_OF, examples_of, is_example
from page.work.inspection import Inspector


@pytest.fixture(scope="module")
def two_models(tiny_checkpoint, tmp_path_factory):
    """Address of a page with the embedded model and a tiny one, and its shelf."""
    with served(EXAMPLES_OF, tmp_path_factory.mktemp("page"), training=False) as (url, shelf):
        shelf.add(tiny_checkpoint)
        for thread in threading.enumerate():
            if thread.name == "examples":
                thread.join()
        yield url, shelf


@pytest.fixture
def opened(browser, two_models):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(two_models[0])
    return page


def choose_model(page, name):
    page.locator("#model input").click()
    page.get_by_role("option", name=name).click()


def test_page_opens_with_a_finished_result_above_the_fold_and_no_network_runs_for_it(opened, two_models, monkeypatch):
    shelf = two_models[1]
    monkeypatch.setattr(shelf.turns, "take", lambda: pytest.fail("a network was asked for"))
    opened.reload()
    opened.wait_for_selector("#verdict >> text=Rejected")
    opened.wait_for_selector("#comparison img")
    for selector in ("#verdict", "#percent", "#examples"):
        box = opened.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 900
    opened.locator("#percent input[type=number]").fill("20")  # the session knows the inspection
    opened.locator("#percent input[type=number]").press("Enter")
    opened.wait_for_selector("#verdict >> text=at most 20 are rejected")


def test_labels_cover_no_image(opened):
    opened.wait_for_selector("#comparison img")
    for selector in ("#part", "#comparison", "#examples"):
        block = opened.locator(selector)
        label = block.locator("[data-testid=block-label]").first.bounding_box()
        image = block.locator("img").first.bounding_box()
        assert label["y"] + label["height"] <= image["y"]


def test_examples_go_with_the_model_that_they_belong_to_and_a_users_own_image_stays(opened):
    opened.wait_for_selector("#examples img")
    choose_model(opened, "tiny")
    opened.wait_for_selector("#verdict >> text=Show it a part")
    assert not opened.locator("#examples").count()
    choose_model(opened, "magnetic-tile")
    opened.wait_for_selector("#examples img")
    opened.wait_for_selector("#verdict >> text=Rejected")
    opened.locator("#part").get_by_label("Remove Image").click()
    opened.wait_for_selector("#verdict >> text=click one of the examples")
    opened.locator("input[type=file]").first.set_input_files(str(TILE))
    opened.wait_for_selector("#verdict >> text=Score")
    choose_model(opened, "tiny")
    opened.wait_for_selector("#examples", state="detached")
    opened.wait_for_selector("#verdict >> text=Score")
    assert opened.locator("#part img").count()


def test_an_example_is_known_by_what_it_holds(two_models):
    model = two_models[1].get("magnetic-tile")
    example = examples_of(model)[0]
    file = Path(get_upload_folder()) / example.name
    file.write_bytes(example.read_bytes())
    upload = {"path": str(file), "orig_name": example.name}
    assert is_example(upload)
    file.write_bytes(TILE.read_bytes())
    assert not is_example(upload)
    file.unlink()
    assert not is_example(upload)
    assert not is_example({"path": str(ROOT / "README.md"), "orig_name": "../README.md"})


def test_sessions_share_what_they_begin_with(shelf, scratched):
    inspection = Inspector(shelf).inspect("tiny", scratched, "scratched.png")
    assert copy.deepcopy(inspection) is inspection
