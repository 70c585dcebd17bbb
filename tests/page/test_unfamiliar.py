"""Images that a model does not know, through the page's own doors: the verdict in numbers, and models that do know."""

import shutil

import pytest

from page.models.model_shelf import ModelShelf
from page.work.inspection import Inspector
from pipelines.image_preprocessing import to_rgb
from training.data.image_reading import read_image


@pytest.fixture(scope="module")
def shelf(tiny_checkpoint, unified, tmp_path_factory):
    """A model of tiles, and a checkpoint of tiles and of their negatives."""
    folder = tmp_path_factory.mktemp("shelf") / "both"
    shutil.copytree(unified, folder)
    return ModelShelf([tiny_checkpoint, folder])


def test_the_models_that_know_an_unfamiliar_image_are_named(shelf, negative_files, tile_files):
    inspector = Inspector(shelf)
    image = to_rgb(read_image(negative_files[0]), "negative")
    unlike = inspector.inspect("tiny", image, "negative.png")
    numbers, mask = inspector.judge(unlike, 20)
    assert numbers["is_unfamiliar"]
    assert numbers["unfamiliarity"] > 1
    assert numbers["fitting_models"] == ["both: negative"]
    assert (numbers["regions"], numbers["defect_pixels"], mask.any()) == ([], 0, False)
    known = inspector.inspect("both: negative", image, "negative.png")
    assert not known.is_unfamiliar
    assert known.fitting_models == ()
    tile = to_rgb(read_image(tile_files[0]), "tile")
    first, second = inspector.inspect_together("both: tile", [tile, image], ["tile", "negative"])
    assert not first.is_unfamiliar
    assert first.fitting_models == ()
    assert second.is_unfamiliar
    assert second.fitting_models == ("both: negative",)


def test_a_checkpoint_of_several_categories_says_which_fits(shelf, negative_files, tile_files):
    pipe = shelf.get("both: tile").scoring
    bank = type(pipe).from_pretrained(shelf.get("both: tile").folder)
    images = [read_image(path) for path in (tile_files[0], negative_files[0])]
    found = bank.unfamiliarity(images)
    assert found["tile"][0] < found["negative"][0]
    assert found["negative"][1] < 1 < found["tile"][1]
    assert found["tile"] == pytest.approx(pipe.unfamiliarity(images))
    assert pipe(images).unfamiliarity == pytest.approx(found["tile"], rel=1e-4)
