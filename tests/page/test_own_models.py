"""Models that were made on the page are renamed and deleted, and nothing else is touched, whatever is asked for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sentences import refused

from page.models.model_shelf import ModelShelf
from page.server.gradio_internals import get_upload_folder
from page.server.settings import Settings
from page.server.uploads import Folder
from page.work.batch import Batch
from page.work.own_models import OwnModels, is_own
from page.work.trainings import Trainings, shelve_trained_models
from training.records.synthetic_record import SYNTHETIC_CHECK


@pytest.fixture
def settings(tiny_checkpoint, tmp_path):
    return Settings(models=(str(tiny_checkpoint),), trained_models=str(tmp_path / "models"))


@pytest.fixture
def shelf(settings, tiny_checkpoint):
    """The owner's model "tiny", and "mine", which was made here."""
    shutil.copytree(tiny_checkpoint, Path(settings.trained_models) / "mine")
    shelf = ModelShelf(settings.models)
    shelve_trained_models(settings.trained_models, shelf)
    assert shelf.names == ["tiny", "mine"]
    return shelf


@pytest.fixture
def own(settings, shelf):
    return OwnModels(settings, shelf, Trainings(settings, shelf))


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


def test_a_renamed_model_scores_as_before_and_whoever_has_it_chosen_is_told(own, shelf, settings, scratched):
    before = shelf.get("mine").scoring(scratched).anomaly_score
    files = listing(shelf.get("mine").folder)
    assert own.rename("mine", " steel-2 ") == "steel-2"
    assert shelf.names == ["tiny", "steel-2"]
    folder = Path(settings.trained_models) / "steel-2"
    assert (shelf.get("steel-2").folder, listing(folder)) == (folder, files)
    assert [path.name for path in folder.parent.iterdir()] == ["steel-2"]
    assert shelf.get("steel-2").scoring(scratched).anomaly_score == before
    with refused(ValueError, "mine is now called steel-2;"):
        shelf.get("mine")
    later = ModelShelf(settings.models)
    shelve_trained_models(settings.trained_models, later)
    assert later.names == ["tiny", "steel-2"]


def test_a_deleted_model_is_gone_and_nothing_beside_it(own, shelf, settings, tmp_path):
    (tmp_path / "models" / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("kept")
    (shelf.get("mine").folder / "link").symlink_to(tmp_path / "elsewhere")
    own.delete("mine")
    assert shelf.names == ["tiny"]
    assert listing(tmp_path / "models") == ["notes.txt"]
    assert (tmp_path / "elsewhere" / "kept.txt").read_text() == "kept"
    with refused(ValueError, "mine was deleted;"):
        shelf.get("mine")
    assert shelf.get("tiny").scoring is not None


def test_a_name_that_is_given_again_is_no_longer_gone(own, shelf, tiny_checkpoint, settings):
    own.delete("mine")
    shutil.copytree(tiny_checkpoint, Path(settings.trained_models) / "mine")
    shelf.add(Path(settings.trained_models) / "mine")
    assert shelf.get("mine").name == "mine"


@pytest.mark.parametrize("name", ["", "..", "../tiny", "a/b", "a.b", "/tmp/x", "<b>x</b>", "x" * 41, ".deleted-x"])
def test_names_that_are_no_names_are_refused(own, shelf, settings, name):
    before = listing(settings.trained_models)
    with refused(ValueError, "letters, digits and dashes"):
        own.rename("mine", name)
    assert listing(settings.trained_models) == before
    assert shelf.names == ["tiny", "mine"]


def test_names_that_are_taken_are_refused(own, settings):
    (Path(settings.trained_models) / "begun.pictures").mkdir()
    (Path(settings.trained_models) / "folder").mkdir()
    for name, word in (("tiny", "already"), ("mine", "already"), ("folder", "already"), ("begun", "unfinished")):
        with refused(ValueError, name, word):
            own.rename("mine", name)
    assert (Path(settings.trained_models) / "mine" / "model_index.json").is_file()


def test_the_owners_models_stay_wherever_they_lie(settings, shelf, tiny_checkpoint, tmp_path):
    home = Path(settings.trained_models)
    owners = replace(settings, models=(*settings.models, str(home / "mine")))
    (home / "linked").symlink_to(tiny_checkpoint)
    shelf.add(home / "linked", "linked")
    outside = Path(shutil.copytree(tiny_checkpoint, tmp_path / "outside"))
    shelf.add(home / ".." / "outside", "outside")
    own, restricted = (OwnModels(each, shelf, Trainings(each, shelf)) for each in (settings, owners))
    for who, name in ((own, "tiny"), (restricted, "mine"), (own, "linked"), (own, "outside")):
        for refusal in (lambda who=who, name=name: who.delete(name), lambda who=who, name=name: who.rename(name, "x")):
            with refused(ValueError, name, "not made on this page"):
                refusal()
    for folder in (tiny_checkpoint, home / "mine", outside):
        assert (folder / "model_index.json").is_file()


def test_who_may_not_train_may_not_rename_or_delete(settings, shelf):
    off = replace(settings, training=False)
    assert is_own(settings, shelf.get("mine"))
    assert not is_own(off, shelf.get("mine"))
    with refused(ValueError, "mine", "not made on this page"):
        OwnModels(off, shelf, Trainings(off, shelf)).delete("mine")


def test_a_model_that_a_batch_uses_stays_until_its_end(own, shelf, tile_files):
    upload_folder = Path(get_upload_folder())
    upload_folder.mkdir(exist_ok=True)
    shutil.copy(tile_files[0], upload_folder / "tile.jpg")
    folder = Folder([{"path": str(upload_folder / "tile.jpg")}], 10, 10)
    with shelf.turns.take():
        batch = Batch(shelf.get("mine"), shelf.turns, folder, 5)
        while not shelf._loaded._holders[shelf.get("mine").folder]:
            assert batch.is_running
        for refusal in (lambda: own.delete("mine"), lambda: own.rename("mine", "x")):
            with refused(ValueError, "is being used", "wait for its end"):
                refusal()
    batch.wait()
    assert len(batch.rows) == 1
    own.delete("mine")
    assert shelf.names == ["tiny"]


def test_categories_of_a_checkpoint_go_together(settings, shelf, unified):
    folder = Path(settings.trained_models) / "both"
    shutil.copytree(unified, folder)
    shelf.add(folder)
    own = OwnModels(settings, shelf, Trainings(settings, shelf))
    assert own.rename("both: tile", "parts") == "parts: tile"
    assert shelf.names[2:] == ["parts: tile", "parts: negative"]
    with refused(ValueError, "parts", "already"):
        own.rename("mine", "parts")
    own.delete("parts: negative")
    assert shelf.names == ["tiny", "mine"]
    assert not (Path(settings.trained_models) / "parts").exists()


def test_what_a_killed_server_left_of_a_deletion_goes_at_the_next_start(settings, shelf, tiny_checkpoint):
    left = Path(settings.trained_models) / ".deleted-x"
    shutil.copytree(tiny_checkpoint, left)
    later = ModelShelf(settings.models)
    shelve_trained_models(settings.trained_models, later)
    assert later.names == ["tiny", "mine"]
    assert not left.exists()


def test_the_training_that_made_it_follows(settings, shelf):
    class Run:
        """Stands where the last training would: only its place counts."""

        is_running = False
        output = Path(settings.trained_models).absolute() / "mine"
        name = "mine"

        def moved(self, output):
            self.output, self.name = output, output.name

    trainings = Trainings(settings, shelf)
    trainings.latest = run = Run()
    own = OwnModels(settings, shelf, trainings)
    (run.output / SYNTHETIC_CHECK).write_text("[]")
    own.rename("mine", "other")
    assert run.name == "other"
    assert (run.output / SYNTHETIC_CHECK).is_file()
    own.delete("other")
    assert trainings.latest is None
