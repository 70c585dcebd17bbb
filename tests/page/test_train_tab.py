"""The tab Train as a user meets it: a real server, a real browser, a real training of a tiny network."""

import re

import pytest
from launching import TINY
from paths import TILES

from page.build import build_page, launch_arguments
from page.models.model_shelf import ModelShelf
from page.server.settings import Settings
from page.tabs.training_html import describe_training, list_left_out
from page.work import training_run
from page.work.training_run import TrainingStatus
from rendering.words import duration
from training.data.layouts import find_good_images

PATIENCE = 240_000


@pytest.fixture
def url(tiny_checkpoint, tmp_path, monkeypatch):
    """Address of a page whose trainings are tiny."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(training_run, "NICENESS", 0)  # a browser draws on the same core, and would always go first
    settings = Settings(models=(str(tiny_checkpoint),), trained_models=str(tmp_path / "models"))
    demo = build_page(settings, ModelShelf(settings.models), [*TINY, "--lr_warmup_steps", "0"])
    yield demo.launch(prevent_thread_lock=True, quiet=True, **launch_arguments(settings))[1]
    demo.close()


def open_tab(browser, url, name="Train"):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(90_000)
    page.goto(url)
    page.get_by_role("tab", name=name).click()
    return page


def start_training(page, name, steps, torn):
    torn.write_bytes(b"torn")
    page.locator("#training-files input[type=file]").set_input_files([torn, *find_good_images(TILES)])
    page.wait_for_selector("#training-files >> text=torn")
    page.locator("#training-name").locator("input, textarea").fill(name)
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    page.locator("#training-steps input").fill(str(steps))
    page.locator("#train").click()


def test_a_user_trains_stops_comes_back_resumes_and_inspects_with_the_model(browser, url, tmp_path):
    page = open_tab(browser, url)
    start_training(page, "../../etc", 150, tmp_path / "torn.png")
    page.wait_for_selector("text=letters, digits and dashes, such as")
    page.locator("#training-name").locator("input, textarea").fill("my-tiles")
    page.locator("#train").click()
    page.wait_for_selector("text=Training my-tiles")
    page.wait_for_selector("text=1 file left out")
    page.wait_for_selector("text=left, and then", timeout=PATIENCE)

    other = open_tab(browser, url)  # someone else, or the same user after a reload
    other.wait_for_selector("text=Training my-tiles")
    assert not other.locator("#train").is_enabled()
    other.locator("#stop-training").click()
    for user in (page, other):
        user.wait_for_selector("text=my-tiles was stopped", timeout=PATIENCE)
    assert re.search(r"in \d+ steps? is kept", other.locator("#training-words").inner_text())
    other.close()

    page.locator("#resume-training").click()
    page.wait_for_selector("text=my-tiles is trained", timeout=PATIENCE)
    page.wait_for_selector("text=Error in features")
    page.wait_for_selector("text=Synthetic defects found")
    page.locator("#pack-trained").click()
    page.wait_for_selector("#trained-zip a[href*='my-tiles.zip']")
    page.locator("#use-trained").click()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Inspect')")
    page.wait_for_function("document.querySelector('#model input').value == 'my-tiles'")
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector("#model-facts >> text=my-tiles")


def test_without_training_there_is_no_such_tab(tiny_checkpoint):
    settings = Settings(models=(str(tiny_checkpoint),), training=False)
    config = build_page(settings, ModelShelf(settings.models)).get_config_file()
    tabs = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
    assert "Models" in tabs
    assert "Train" not in tabs


def test_what_is_done_with_trainings_is_no_service(tiny_checkpoint):
    settings = Settings(models=(str(tiny_checkpoint),))
    endpoints = build_page(settings, ModelShelf(settings.models)).get_api_info()["named_endpoints"]
    assert not [name for name in endpoints if "train" in name or "start" in name or "pack" in name]


# What it says


def status(**changes):
    values = {"state": "running", "phase": "training", "step": 250, "max_steps": 1000, "seconds": 600.0}
    return TrainingStatus(**values | changes)


def test_a_running_training_says_how_far_it_is_and_how_long_it_takes():
    words = describe_training("tiles", status(seconds_left=1800.0, images_per_second=3.94))
    for expected in (
        "Training tiles",
        "Step 250 of 1,000",
        "10 min so far",
        "about 30 min left",
        "3.9 images a second",
    ):
        assert expected in words
    assert 'value="250" max="1000"' in words
    assert "Stopping after this step" in describe_training("tiles", status(), is_stopping=True)


def test_an_ended_training_says_what_became_of_it():
    assert "is trained" in describe_training("tiles", status(state="finished"))
    assert "250 steps is kept" in describe_training("tiles", status(state="stopped"))
    assert "limit of" in describe_training(
        "tiles", status(state="stopped", message="The limit of 3 minutes was reached.")
    )
    failed = describe_training("tiles", status(state="failed", message="it holds <b>3</b> images."))
    assert "it holds &lt;b&gt;3&lt;/b&gt; images." in failed


def test_left_out_files_are_named_as_text():
    assert list_left_out([]) == ""
    assert "1 file left out" in list_left_out(["<img src=x> is no image."])
    assert "<img" not in list_left_out(["<img src=x> is no image."])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7260, "2 h 1 min")]
)
def test_durations_are_rounded_as_one_says_them(seconds, words):
    assert duration(seconds) == words
