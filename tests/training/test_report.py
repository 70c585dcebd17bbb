"""The report of a training: one page that opens anywhere, says what it must, and stays with who trained."""

import base64
import errno
import io
import logging
import os
import shutil
from html.parser import HTMLParser

import pytest
from launching import TWELVE_STEPS, train
from paths import TILES
from PIL import Image

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.cli.arguments import parse_args
from training.data.good_images import GoodImages
from training.engine.report import Making, build_report, components_table, leave_report
from training.publish import prepare_shipment
from training.records.checkpoint_contents import REPORT, list_contents
from training.records.synthetic_record import read_check

VOID = {"meta", "img"}
HOSTILE = "<img src=x onerror=alert(1)> & 'co' \"parts\""


class Page(HTMLParser):
    """Reads a page: its tags with their attributes, its text, and its images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            head, data = dict(attrs)["src"].split(",")
            assert head == "data:image/webp;base64"
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def assert_self_contained(page):
    """Check that nothing is loaded from anywhere and nothing runs."""
    assert not page.count("script")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")


@pytest.fixture(scope="module")
def report(finished):
    """The page that a training of 12 steps has left."""
    return Page((finished / REPORT).read_text(encoding="utf-8"))


def test_a_training_leaves_a_page_that_is_whole_in_itself(report):
    assert_self_contained(report)
    assert report.count("h1") == 1
    policy = [attributes for tag, attributes in report.tags if attributes.get("http-equiv")]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_it_says_what_was_trained_on_what_and_how_to_do_it_again(report, finished):
    for words in (
        "Training report: magnetic_tile",
        "18 good images",
        "12 steps",
        "calibrated on 6 good images",
        "accelerate launch training/train.py --preset balanced",
        str(TILES),
        f"--output_dir {finished}",
        "--max_train_steps 12",
        "peak memory",
        "calibration",
        "of these, validations",
    ):
        assert words in report.text, words


def test_it_draws_losses_separation_and_scores(report):
    labels = [attributes["aria-label"] for tag, attributes in report.tags if tag == "svg"]
    assert len(labels) == 6
    for words in ("features (Eq. 10)", "pixels (Eq. 4)", "bound", "image AUROC", "pixel AUROC", "Histogram of scores"):
        assert [label for label in labels if words in label], words
    assert "rejected above" in report.text
    assert "90 synthetic defects put into these images" in report.text


def test_what_it_says_of_synthetic_defects_is_what_the_checkpoint_keeps(report, finished):
    record = read_check(finished)
    assert record["count"] == 90
    assert f"{record['rejected']} are rejected" in report.text
    for kind, (found, count) in record["by_kind"].items():
        assert count == 15
        assert f"{kind}{found} of 15" in report.text


def test_it_shows_the_last_validation_and_samples_beside_real_images(report):
    synthetic, sheet, samples = report.images
    assert synthetic.width > 6 * 160
    assert sheet.width > 600
    assert sheet.height > 8 * 160
    assert samples.width > 4 * 160
    assert samples.height > 2 * 160
    lower = samples.convert("L").crop((0, samples.height - 100, samples.width - 20, samples.height - 20))
    assert len(lower.getcolors(256)) > 20  # something is drawn


def test_a_browser_shows_it_from_the_disk_and_asks_for_nothing(browser, finished):
    page = browser.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{finished / REPORT}")
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{finished / REPORT}"]
    assert said == []
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_is_never_published(finished):
    shipment = prepare_shipment(finished, "team/tile")
    assert REPORT in list_contents(finished).left_out
    assert REPORT in shipment.left_out
    assert not [name for name in shipment.files if name.endswith(".html")]


def test_a_run_that_is_resumed_at_its_end_makes_it_again(environment, finished, tmp_path):
    shutil.copytree(finished / "checkpoint-12", tmp_path / "checkpoint-12")
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TWELVE_STEPS]
    done = train(environment, *arguments, "--report", "--resume_from_checkpoint", "latest")
    assert done.returncode == 0, done.stderr
    assert len(Page((tmp_path / REPORT).read_text(encoding="utf-8")).images) == 3


# Several categories, strange names, failures


def making_of(output_dir, *more):
    options = vars(parse_args(["--train_data_dir", HOSTILE, "--output_dir", str(output_dir), *more]))
    return Making(options, 12.0, {"references": 3.0})


def test_names_from_elsewhere_are_shown_as_text(tiny_pipeline, tile_files, tmp_path):
    made = making_of(tmp_path / HOSTILE, "--logging_dir", HOSTILE, "--feature_extractor", HOSTILE)
    splits = {HOSTILE: (tile_files, tile_files)}
    page = Page(build_report(tiny_pipeline, made, [GoodImages(tile_files, 64)], splits))
    assert_self_contained(page)
    assert page.count("img") == 1  # that of the samples: no validation, no sheet
    assert page.text.count(HOSTILE) >= 3
    assert "validations" not in page.text


def test_every_category_has_a_section_of_its_own(unified, tile_files, negative_files, tmp_path):
    pipe = AnomalyScoringPipeline.from_pretrained(unified)
    splits = {"tile": (tile_files, tile_files[:6]), "negative": (negative_files, negative_files[:7])}
    images = [GoodImages(files, 64) for files, _ in splits.values()]
    page = Page(build_report(pipe, making_of(tmp_path), images, splits))
    for words in ("Category tile", "Category negative", "tile, negative", "48 good images", "13 others"):
        assert words in page.text, words
    tile, negative = (image.convert("L").resize((8, 8)) for image in page.images)
    assert tile.tobytes() != negative.tobytes()


@pytest.mark.parametrize("case", ["no room", "an image that cannot be read"])
def test_a_report_that_cannot_be_written_costs_a_warning_and_leaves_the_former(
    tiny_pipeline, tile_files, tmp_path, caplog, monkeypatch, case
):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / REPORT).write_text("former")
    images = GoodImages(tile_files, 64)
    if case == "no room":
        monkeypatch.setattr(os, "fsync", full)
    else:
        images = GoodImages([tmp_path / REPORT] * 4, 64)
    splits = {"tile": (tile_files, tile_files)}
    with caplog.at_level(logging.WARNING):
        leave_report(tiny_pipeline, making_of(tmp_path), [images], splits)
    assert "the model is saved, but its report could not be written" in caplog.text
    assert (tmp_path / REPORT).read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == [REPORT]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("parts", "rule", "words"),
    [
        ([True, False, True, False, False], "max", "the largest of these"),
        ([True, False, True, False, True], "mean", "the mean of these"),
        ([False, False, True, False, False], "max", "that component's"),
    ],
)
def test_the_table_of_components_says_what_each_counts_in_the_map_and_what_decides_the_score(parts, rule, words):
    config = {"alpha": 0.2, "map_weights": [0.5, 0.25, 0.125, 0.125], "image_parts": parts, "image_rule": rule}
    rows = components_table(ScoreCalibration(**config, planted_pro=0.75, planted_image_auroc=0.875))
    _, *table = rows.values()
    deciding = ["yes" if decides else "no" for decides in parts]
    shares = ["20%", "40%", "20%", "10%", "10%"]
    assert table[:5] == [f"{share} / {decides}" for share, decides in zip(shares, deciding, strict=True)]
    assert table[5:] == [words, "image AUROC 0.875, PRO 0.750"]
