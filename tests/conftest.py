"""A real tiny pipeline, built and calibrated once per session on real images of magnetic tiles."""

import os
import shutil
from unittest import mock

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None and hasattr(
    os, "sched_setaffinity"
):  # each of several test processes, and what it starts, has a core of its own
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})

import numpy as np
import pytest
import torch
from launching import TWELVE_STEPS, launch
from paths import TILE, TILES
from PIL import Image
from serving import served
from tiny_pipeline import CATEGORY_TIMESTEPS, MirroredImages, NegativeImages, build_tiny_pipeline

from page.models.model_shelf import ModelShelf
from pipelines.category_bank import CategoryBank
from pipelines.feature_extraction import TimmFeatureExtractor
from pipelines.image_preprocessing import to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.image_reading import read_image
from training.data.layouts import find_good_images
from training.fitting.calibration_fit import fit_calibration
from training.fitting.feature_references import fit_feature_reference
from training.networks.unet import build_scheduler, build_unet, round_to_half


def pytest_collection_modifyitems(items):
    """Mark what needs a browser, and what starts commands in processes of their own; skip what needs a GPU here."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
        if "environment" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def upload_folder(tmp_path_factory):
    """Where Gradio puts uploads and answers: of these tests alone, so that none meets what an interrupted run left."""
    folder = tmp_path_factory.mktemp("gradio")
    with mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(folder)}):
        yield folder


@pytest.fixture(scope="session")
def tile_files():
    """24 real images of good tiles."""
    return find_good_images(TILES)


@pytest.fixture(scope="session")
def tiny_pipeline(tile_files):
    """A calibrated pipeline; tests that change it must take a copy."""
    pipe = build_tiny_pipeline()
    references = fit_feature_reference(pipe.feature_extractor, MirroredImages(tile_files, 64))
    pipe.register_modules(**references._asdict())
    pipe.register_modules(calibration=fit_calibration(pipe, tile_files, [5, 50, 100], ranks_bfloat16=True))
    return pipe


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_pipeline, tmp_path_factory):
    """The tiny pipeline saved as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def negative_files(tile_files, tmp_path_factory):
    """The good tiles in negative."""
    folder = tmp_path_factory.mktemp("negatives")
    for path in tile_files:
        with Image.open(path) as tile:
            Image.fromarray(255 - np.asarray(tile.convert("L"))).save(folder / f"{path.stem}.png")
    return find_good_images(folder)


@pytest.fixture(scope="session")
def category_pipelines(tile_files, negative_files):
    """One pipeline for each category, with a common UNet and extractor."""
    torch.manual_seed(0)
    shared = {
        # 2 channels a group: of 32 channels each is normalised alone, which takes out what the class label adds
        "unet": build_unet(64, 4, 192, [64, 64], 1, num_classes=2).eval(),
        "scheduler": build_scheduler(),
        "feature_extractor": TimmFeatureExtractor(grid_size=16),
        "timesteps": CATEGORY_TIMESTEPS,
    }
    for network in ("unet", "feature_extractor"):
        round_to_half(shared[network])
    found = {}
    for label, (name, files, kind) in enumerate(
        [("tile", tile_files, MirroredImages), ("negative", negative_files, NegativeImages)]
    ):
        references = fit_feature_reference(shared["feature_extractor"], kind(tile_files, 64))
        pipe = AnomalyScoringPipeline(
            **shared, **references._asdict(), data_mean=-0.1 + 0.2 * label, data_std=0.3, class_label=label
        )
        pipe.register_modules(calibration=fit_calibration(pipe, files, CATEGORY_TIMESTEPS, alpha=0.3))
        found[name] = pipe
    return found


@pytest.fixture(scope="session")
def unified(category_pipelines, tmp_path_factory):
    """Both categories in one checkpoint folder."""
    folder = tmp_path_factory.mktemp("unified") / "both"
    tile = category_pipelines["tile"]
    bank = CategoryBank.from_pipelines(category_pipelines)
    pipe = AnomalyScoringPipeline(
        tile.unet, tile.scheduler, tile.feature_extractor, categories=bank, timesteps=CATEGORY_TIMESTEPS
    )
    pipe.save_pretrained(folder, half_precision=True)
    return folder


@pytest.fixture(scope="session")
def shelf(tiny_checkpoint):
    """The models of a page: the tiny pipeline, as "tiny"."""
    return ModelShelf([tiny_checkpoint])


@pytest.fixture(scope="session")
def scratched():
    """A tile with a bright bar, which the tiny pipeline rejects and outlines: uint8, (height, width, 3)."""
    image = to_rgb(read_image(TILE)).copy()
    image[100:140, 40:80] = image[100:140, 40:80].clip(min=130)
    return image


@pytest.fixture(scope="session")
def page_url(tiny_checkpoint, tmp_path_factory):
    """Address of the page, launched as `python app.py` does."""
    with served(tiny_checkpoint, tmp_path_factory.mktemp("page"), training=False) as (url, _):
        yield url


@pytest.fixture
def browser():
    """A real browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser, page_url):
    """The page in it, wide and light."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(page_url)
    return page


@pytest.fixture
def one_core():
    """For commands that take all cores: let there be one, and give the other tests their setting back.

    Networks this small gain nothing from a second thread, and wait long for it where the machine is busy.
    """
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores is not None:
        os.sched_setaffinity(0, {max(cores)})
    yield
    if cores is not None:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """No network, no GPU, no configuration of the user's own."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
    }


@pytest.fixture(scope="session")
def finished(environment, tmp_path_factory):
    """The output folder of a training of twelve steps that nothing interrupted."""
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    done = launch(environment, "--train_data_dir", TILES, "--output_dir", output_dir, *TWELVE_STEPS, "--report")
    assert done.returncode == 0, done.stderr
    return output_dir
