"""Trainings that the page starts: real processes with tiny networks that finish, stop, resume, and are refused."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from launching import TINY
from paths import TILES
from PIL import Image
from sentences import assert_sentence, refused

from page.context import Page
from page.models.model_shelf import ModelShelf
from page.server.settings import Settings
from page.tabs.train_tab import _look
from page.tabs.training_html import NO_TRAINING
from page.work.trainings import Trainings, shelve_trained_models
from training.data.layouts import find_good_images
from training.records.progress import read_progress

OPTIONS = [*TINY, "--lr_warmup_steps", "0"]
PATIENCE = 300


@pytest.fixture(scope="module")
def uploaded():
    """24 good tiles as Gradio hands over what was uploaded: a ZIP with a tree in it, and two bad files beside it."""
    folder = Path(get_upload_folder()) / "test-trainings"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiles.zip", "w") as archive:
        for path in find_good_images(TILES):
            archive.write(path, f"../line 1/{path.name}")
    (folder / "torn.png").write_bytes(b"no image")
    shutil.copy(find_good_images(TILES)[0], folder / "again.jpg")
    yield [{"path": str(folder / name)} for name in ("tiles.zip", "torn.png", "again.jpg")]
    shutil.rmtree(folder)


@pytest.fixture
def settings(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Settings(models=(str(tiny_checkpoint),), trained_models=str(tmp_path / "models"))


@pytest.fixture
def trainings(settings):
    trainings = Trainings(settings, ModelShelf(settings.models), OPTIONS)
    yield trainings
    trainings.close()


def phases_until_the_end(run):
    """What its status said, without repetition."""
    seen = []
    while not run.wait(0.05):
        phase = run.status().phase
        if phase not in seen:
            seen.append(phase)
    return seen


def wait_for_steps(run, count):
    while run.status().step < count:
        assert not run.wait(0.05), run.status()


def test_a_training_is_watched_stopped_resumed_and_ends_as_a_model_that_scores(trainings, settings, uploaded):
    shelf, folder = trainings._shelf, Path(settings.trained_models)
    looked_at = []
    run = trainings.start("tiles-2", uploaded, "fast", 4000, lambda done, total: looked_at.append((done, total)))
    assert looked_at[-1] == (26, 26)
    assert len(run.left_out) == 2
    assert_sentence(run.left_out[0], "torn.png")
    assert_sentence(run.left_out[1], "again.jpg", "same image")
    images = sorted(path.name for path in (folder / "tiles-2.pictures" / "line 1").glob("*.jpg"))
    assert len(images) == 24
    assert {path.parent for path in folder.rglob("*.jpg")} == {folder / "tiles-2.pictures" / "line 1"}
    with refused(ValueError, "tiles-2", "running"):
        trainings.start("other", uploaded)
    with refused(ValueError, "tiles-2", "running"):
        trainings.resume("tiles-2")

    wait_for_steps(run, 4)
    status = run.status()
    assert (status.state, status.phase, status.max_steps) == ("running", "training", 4000)
    assert status.seconds_left > 0
    run.stop()
    assert run.wait(PATIENCE)
    assert run.status().state == "stopped"
    step = run.status().step
    assert (folder / "tiles-2" / f"checkpoint-{step}").is_dir()
    assert trainings.unfinished == ["tiles-2"]
    assert "tiles-2" not in shelf.names

    with refused(ValueError, "tiles-2", "unfinished"):
        trainings.start("tiles-2", uploaded)
    request = folder / "tiles-2.pictures" / "request.json"
    assert json.loads(request.read_text()) == {"preset": "fast", "steps": 4000}
    request.write_text(json.dumps({"preset": "fast", "steps": step + 3}))
    run = Trainings(settings, shelf, OPTIONS).resume("tiles-2")  # the server was started again
    assert run.status().phase == "preparing"
    assert phases_until_the_end(run)[:1] == ["preparing"]
    assert (run.status().state, run.status().message) == ("finished", "")
    assert run.curves()[0]["step"][-1] == step + 3
    assert shelf.names[-1] == "tiles-2"
    assert np.isfinite(shelf.get("tiles-2").scoring(Image.open(find_good_images(TILES)[0])).anomaly_score).all()
    assert not (folder / "tiles-2.pictures").exists()
    assert not list((folder / "tiles-2").glob("checkpoint-*"))
    assert trainings.unfinished == []
    with refused(ValueError, "there is a model tiles-2"):
        trainings.start("tiles-2", uploaded)

    (folder / "broken").mkdir()
    (folder / "broken" / "model_index.json").write_text("{}")
    later = ModelShelf(settings.models)
    shelve_trained_models(folder, later)
    assert later.names == [*later.names[:1], "tiles-2"]


def test_a_training_that_takes_too_long_is_stopped_and_can_be_discarded(settings, uploaded):
    limited = replace(settings, max_training_minutes=0)
    trainings = Trainings(limited, ModelShelf(settings.models), OPTIONS)
    run = trainings.start("slow", uploaded, steps=4000)
    assert run.wait(PATIENCE)
    assert run.status().state == "stopped"
    assert_sentence(run.status().message, "0 minutes")
    assert trainings.unfinished == ["slow"]
    page = Page(settings, trainings._shelf, None, trainings, None)
    said = _look(page, None)
    assert "Resume or delete it" in said[0]
    trainings.discard("slow")
    assert list(Path(settings.trained_models).iterdir()) == []
    words, left_out, plots, *_ = _look(page, said[-1])
    assert (words, left_out, plots) == (NO_TRAINING, "", "")


def test_a_training_that_is_refused_says_why_and_leaves_its_name_free(settings, uploaded):
    trainings = Trainings(settings, ModelShelf(settings.models), [*OPTIONS, "--resolution", "100"])
    run = trainings.start("odd", uploaded)
    assert run.wait(PATIENCE)
    assert run.status().state == "failed"
    assert_sentence(run.status().message, "resolution", "100")
    assert list(Path(settings.trained_models).iterdir()) == []


def test_closing_the_server_ends_the_training(trainings, uploaded):
    run = trainings.start("short", uploaded, steps=4000)
    wait_for_steps(run, 1)
    trainings.close()
    assert not run.is_running
    assert trainings.unfinished == ["short"]
    assert read_progress(run.output)[-1]["phase"] == "stopped"


@pytest.mark.parametrize(
    "name", ["", None, "   ", "..", "../../etc", "/etc/passwd", "a/b", "a.b", "-rf", "<b>x</b>", "x" * 41, "é", "a\nb"]
)
def test_names_that_are_no_names_are_refused_and_nothing_is_written(name, trainings, settings, uploaded):
    with refused(ValueError, "letters, digits and dashes"):
        trainings.start(name, uploaded)
    with refused(ValueError, "no unfinished training"):
        trainings.resume(name)
    with refused(ValueError, "no unfinished training"):
        trainings.discard(name)
    assert not Path(settings.trained_models).exists()


def test_the_name_of_a_model_on_the_shelf_is_refused(trainings, uploaded):
    with refused(ValueError, "there is a model tiny"):
        trainings.start("tiny", uploaded)


@pytest.mark.parametrize("steps", [0, -1, 1.5, 10**9, float("nan"), "many"])
def test_numbers_of_steps_that_make_no_sense_are_refused(steps, trainings, uploaded):
    with refused(ValueError, "steps"):
        trainings.start("steps", uploaded, "fast", steps)


def test_too_few_too_many_and_foreign_files_are_refused_and_nothing_is_left(settings, uploaded):
    shelf, folder = ModelShelf(settings.models), Path(settings.trained_models)
    trainings = Trainings(replace(settings, max_training_pictures=20), shelf, OPTIONS)
    with refused(ValueError, "more than 20 images"):
        trainings.start("many", uploaded)
    with refused(ValueError, "no uploaded file"):
        trainings.start("foreign", [{"path": str(find_good_images(TILES)[0])}])
    with refused(ValueError, "no images"):
        trainings.start("none", None)
    with refused(ValueError, "preset"):
        trainings.start("preset", uploaded, "slow")
    with refused(ValueError, "1 of 2 images", "8", "torn.png"):
        trainings.start("few", uploaded[1:])
    assert not list(folder.glob("*"))
    assert trainings.latest is None
