"""The tab Train as a user meets it: a real server, a real browser, a real training of a tiny network."""

import re

import pytest
from launching import TINY
from paths import TILES

from page.build import build_page, launch_arguments
from page.models.model_shelf import ModelShelf
from page.server.settings import Settings
from page.tabs.training_html import describe_training, draw_curves, expectation, list_left_out
from page.work import training_run
from page.work.training_run import TrainingStatus
from rendering.words import duration
from training.data.layouts import find_good_images

PATIENCE = 600_000


@pytest.fixture
def url(tiny_checkpoint, tmp_path, monkeypatch):
    """Address of a page whose trainings are tiny."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(training_run, "NICENESS", 0)  # a browser draws on the same core, and would always go first
    settings = Settings(models=(str(tiny_checkpoint),), trained_models=str(tmp_path / "models"))
    demo = build_page(settings, ModelShelf(settings.models), [*TINY, "--lr_warmup_steps", "0", "--report"])
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
    page.wait_for_selector("text=left at this speed", timeout=PATIENCE)

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
    curves = page.locator("#training-curves svg")
    assert curves.count() == 3
    assert curves.last.locator("circle").count() >= 1  # one validation is a point, no empty plot
    assert re.search(r"\d+ of 90", page.locator("#quality").inner_text())
    assert page.locator("#quality figure img").count() == 12
    assert page.evaluate("[...document.querySelectorAll('#quality img')].every(image => image.naturalWidth > 0)")

    known = sorted((TILES / "test").glob("[!g]*/*.jpg"))[:2]
    page.locator("#known-files input[type=file]").set_input_files(known)
    page.wait_for_selector(f"#known-files >> text={known[-1].stem}")
    page.locator("#try-known").click()
    page.wait_for_selector("#known-words >> text=of 2 defective parts")
    assert page.locator("#known-words figure img").count() == 2

    page.locator("#pack-trained").click()
    page.wait_for_selector("#trained-zip a[href*='my-tiles.zip']")
    report = page.request.get(page.locator("#trained-zip a[href*='my-tiles-report.html']").get_attribute("href"))
    assert report.headers["content-disposition"].startswith("attachment")  # it never runs as a page of this server
    assert "Training report" in report.text()
    page.locator("#use-trained").click()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Inspect')")
    page.wait_for_function("document.querySelector('#model input').value == 'my-tiles'")
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector("#model-facts >> text=my-tiles")
    assert "90 synthetic defects" in page.locator("#model-facts").inner_text()
    rename_and_delete(page, tmp_path / "models")


def rename_and_delete(page, folder):
    page.locator("#new-name").locator("input, textarea").fill("../x")
    page.locator("#rename-model").click()
    page.wait_for_selector("text=letters, digits and dashes, such as")
    page.locator("#new-name").locator("input, textarea").fill("steel-2")
    page.locator("#rename-model").click()
    page.wait_for_selector("text=my-tiles is now called steel-2")
    page.wait_for_selector("#model-facts >> text=steel-2")
    assert [path.name for path in folder.iterdir()] == ["steel-2"]

    page.locator("#delete-model").click()
    page.wait_for_selector("text=Delete steel-2?")
    page.locator("#keep-model").click()
    page.locator("#confirm-deletion").wait_for(state="hidden")
    assert (folder / "steel-2").is_dir()
    page.locator("#delete-model").click()
    page.locator("#confirm-delete").click()
    page.wait_for_selector("text=steel-2 was deleted")
    page.wait_for_selector("#model-facts >> text=tiny")
    page.locator("#own-model").wait_for(state="hidden")
    assert list(folder.iterdir()) == []
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector("#train:enabled")


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
    words = describe_training("tiles", status(seconds_left=1800.0, seconds_after=600.0, images_per_second=3.94))
    for expected in (
        "Training tiles",
        "Step 250 of 1,000",
        "10 min so far",
        "About 40 min left",
        "30 min of steps, then 10 min",
        "3.9 images a second",
    ):
        assert expected in words
    assert 'value="250" max="1000"' in words
    assert "Stopping after this step" in describe_training("tiles", status(), is_stopping=True)


def test_before_the_first_steps_nothing_is_claimed_but_that_it_will_be_told():
    for phase in ("preparing", "training"):
        words = describe_training("tiles", status(phase=phase, step=0))
        assert "estimated from the first steps" in words
        assert "left" not in words
    assert "left" not in describe_training("tiles", status(phase="saving"))
    assert "About 80 s left" in describe_training("tiles", status(phase="calibration", seconds_left=80.0))
    assert "After 6 h it is stopped" in expectation(360)


def test_a_training_that_is_too_long_for_the_limit_says_so_and_what_would_fit():
    left = {"seconds_left": 3000.0, "seconds_after": 600.0}
    assert "longer than may be" not in describe_training("tiles", status(**left, seconds_to_limit=3600.0))
    words = describe_training("tiles", status(**left, seconds_to_limit=2600.0))
    assert "it will be stopped in 43 min" in words
    assert "about 750 steps" in words  # 250 are done, 750 are to come in 3,000 s, of which 2,000 are left
    assert "longer than may be" in describe_training("tiles", status(**left, seconds_to_limit=-1.0))


def test_curves_of_one_point_show_it():
    losses = {"step": [60.0], "features": [0.5], "noise": [0.25], "bound": [1.0]}
    separation = {"step": [60], "features_pixel_auroc": [0.75]}
    drawn = draw_curves(losses, separation)
    assert drawn.count("<svg") == drawn.count("<circle") == 3
    assert draw_curves({"step": []}, {"step": []}) == ""
    assert draw_curves(losses, {"step": []}).count("<svg") == 2


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
    ("seconds", "words"),
    [(0, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2 h"), (7260, "2 h 1 min")],
)
def test_durations_are_rounded_as_one_says_them(seconds, words):
    assert duration(seconds) == words
