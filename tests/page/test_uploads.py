"""What is made of uploaded files: a ZIP of a whole data set is read by its layout, and its masks are no images."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from paths import TILES
from PIL import Image
from sentences import refused

from page.models.model_shelf import ModelShelf
from page.server.uploads import Folder
from page.tabs.batch_html import batch_verdict
from page.tabs.verdict import verdict
from page.work.batch import Batch
from page.work.inspection import Inspector
from page.work.training_images import unpack_images
from training.data.image_folders import find_images


@pytest.fixture(scope="module")
def shelf(tiny_checkpoint):
    return ModelShelf([tiny_checkpoint])


@pytest.fixture
def upload(tmp_path):
    """Put a ZIP of files where uploads lie, `dict` of member to path or bytes; returns what Gradio sends for it."""
    folder = Path(get_upload_folder()) / tmp_path.name
    folder.mkdir()

    def put(members):
        path = folder / "upload.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
        return {"path": str(path), "orig_name": path.name}

    yield put
    shutil.rmtree(folder)


def as_12_bits(path):
    """The content of a 16-bit PNG of an image, as a camera of 12 bits would store it."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("root", ["", "tiles/", "customers/put 2/tiles/"])
def test_a_zip_of_a_data_set_gives_its_good_training_images_whatever_folder_was_packed(upload, tmp_path, root):
    files = find_images(TILES)
    given = Folder([upload({f"{root}{path.relative_to(TILES).as_posix()}": path for path in files})], 100, 32)
    left_out = unpack_images(given, tmp_path / "unpacked")
    good = sorted(path.read_bytes() for path in find_images(tmp_path / "unpacked"))
    assert good == sorted(path.read_bytes() for path in files if "train" in path.parts)
    assert len(left_out) == len(files) - len(good)
    assert all("is not among the good images" in line for line in left_out)


@pytest.mark.parametrize("folder", ["NG", "defects", "test", "ground_truth", "bad parts"])
def test_a_zip_of_one_folder_whose_name_says_that_it_holds_no_good_images_is_refused(upload, tmp_path, folder):
    given = Folder([upload({f"{folder}/{path.name}": path for path in find_images(TILES / "train")})], 100, 32)
    with refused(ValueError, "may not hold good images alone", "24 images"):
        unpack_images(given, tmp_path / "unpacked")


def test_a_batch_leaves_the_masks_of_a_data_set_out_and_says_so(shelf, upload):
    files = find_images(TILES)
    uploads = [upload({f"tiles/{path.relative_to(TILES).as_posix()}": path for path in files})]
    folder = Folder(uploads, 100, 32, with_masks=False)
    masks = [path for path in files if "ground_truth" in path.parts]
    assert len(Folder(uploads, 100, 32)) == len(files)
    assert (len(folder), folder.num_masks) == (len(files) - len(masks), len(masks)) == (30, 3)
    batch = Batch(shelf.get("tiny"), shelf.turns, folder, 20)
    batch.wait()
    assert "Left out: 3 masks" in batch_verdict(batch)
    assert len(batch.rows) == 30


def test_images_of_a_depth_that_the_model_does_not_know_are_marked_as_doubtful(shelf, upload):
    tile = find_images(TILES)[0]
    batch = Batch(
        shelf.get("tiny"), shelf.turns, Folder([upload({"a.jpg": tile, "b.png": as_12_bits(tile)})], 9, 32), 20
    )
    batch.wait()
    errors = [row.result.error for row in batch.rows]
    assert errors[0] == ""
    assert errors[1].startswith("b.png has values up to")
    assert "Of 1 image the depth does not fit" in batch_verdict(batch)

    inspector, model = Inspector(shelf), shelf.get("tiny")
    deep = np.repeat(np.asarray(Image.open(io.BytesIO(as_12_bits(tile))))[..., None], 3, axis=-1)
    for pixels, is_doubtful in ((deep, True), ((deep // 16).astype(np.uint8), False)):
        numbers, _ = inspector.judge(inspector.inspect("tiny", pixels, "<b>.png"), 20)
        assert bool(numbers["warning"]) == is_doubtful
        said = verdict(numbers, model.scoring.calibration.config)
        assert ("<b>Doubtful:</b> &lt;b&gt;.png has values up to" in said) == is_doubtful
