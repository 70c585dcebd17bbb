"""Batches: what they score, keep and survive; drift; recalibration."""

import csv
import io
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from images import a_tile, shaded, zipped
from paths import TILE, TILES
from PIL import Image
from sentences import refused

from page.context import Page
from page.models.model_shelf import ModelShelf
from page.server.settings import Settings
from page.server.uploads import Folder
from page.tabs.batch_html import HEADERS, HINT, NUMBER_COLUMN, batch_verdict, drift_words, table_cells
from page.tabs.batch_results import judge_batch
from page.work.batch import Batch, _MemberNames
from page.work.outlines import PixelLevels
from page.work.recalibrating import Recalibration
from pipelines.image_preprocessing import to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.heat_map import outline, saturation_of
from rendering.heat_map import overlay as heat_of
from rendering.histogram import BINS, histogram_svg, score_bins
from rendering.words import escaped
from training.data.image_folders import find_images
from training.data.image_reading import read_image
from training.inference.drift import MIN_SCORES, drift_test
from training.inference.score_table import COLUMNS, ScoreRow, as_text_cell

PERCENT = 20


@pytest.fixture(scope="module")
def shelf(tiny_checkpoint):
    return ModelShelf([tiny_checkpoint])


@pytest.fixture(scope="module")
def model(shelf):
    return shelf.get("tiny")


@pytest.fixture
def upload(tmp_path):
    """Put files where uploads lie; returns what Gradio sends for them."""
    folder = Path(get_upload_folder()) / tmp_path.name
    folder.mkdir(exist_ok=True)

    def put(name, content):
        content = content if isinstance(content, bytes) else Path(content).read_bytes()
        (folder / name).write_bytes(content)
        return {"path": str(folder / name), "orig_name": name}

    yield put
    shutil.rmtree(folder)


def run(model, shelf, uploads):
    batch = Batch(model, shelf.turns, Folder(uploads, 100, 32), PERCENT)
    batch.wait()
    return batch


def read_table(batch):
    with open(batch.table, newline="", encoding="utf-8-sig") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


# The batch


def test_batch_gives_the_pipelines_own_results_and_a_broken_file_is_a_row(model, shelf, upload):
    files = find_images(TILES / "test")
    uploads = [upload(path.name, path) for path in files] + [upload("broken.png", b"no image")]
    batch = run(model, shelf, uploads)
    rows = read_table(batch)
    rejected = batch.count("defect")
    assert f"<h2>{rejected} rejected, {len(files) - rejected} accepted, 1 unreadable</h2>" in batch_verdict(batch)
    assert list(rows) == [path.name for path in files] + ["broken.png"]
    assert tuple(next(iter(rows.values()))) == COLUMNS
    for path in files:
        expected = model.scoring(read_image(path), false_alarm_rate=PERCENT / 100)
        row = rows[path.name]
        assert row["verdict"] == ("defect" if expected.is_anomalous[0] else "good")
        assert float(row["anomaly_score"]) == pytest.approx(
            expected.anomaly_score[0], abs=1.5e-4
        )  # rounded to 4 digits
        assert row["p_value"] == f"{expected.p_value[0]:.4f}"
        assert int(row["defect_pixels"]) == expected.pred_mask[0].sum()
    assert rows["broken.png"]["verdict"] == "unreadable"
    assert rows["broken.png"]["error"] == "broken.png is not an image in a known format."
    with zipfile.ZipFile(batch.archive) as archive:
        assert len(archive.namelist()) == 2 * len(files)
        for path in files:
            mask = np.asarray(Image.open(archive.open(f"masks/{path.name}.png"))) > 0
            assert mask.sum() == int(rows[path.name]["defect_pixels"])
            assert Image.open(archive.open(f"overlays/{path.name}.png")).size == Image.open(path).size


@pytest.fixture
def barred_files(scratched, tmp_path):
    """Tiles, one with a bar that is always rejected and one with a faint bar that is accepted at 4 %, not at 20 %."""
    faint = read_image(TILE).convert("L")
    faint.paste(faint.crop((40, 100, 80, 140)).point(lambda level: level + 20), (40, 100))
    Image.fromarray(scratched).save(tmp_path / "scratched.png")
    faint.convert("RGB").save(tmp_path / "faint.png")
    return [tmp_path / "scratched.png", tmp_path / "faint.png", *find_images(TILES / "test")[:4]]


def test_another_rate_judges_all_images_anew_as_the_pipeline_does_without_a_forward_pass(
    model, shelf, upload, barred_files
):
    files = barred_files
    uploads = [upload(path.name, path) for path in files] + [upload("broken.png", b"no image")]
    batch = run(model, shelf, uploads)
    first, calls = batch.archive, []
    images = [read_image(path) for path in files]
    strict = model.scoring(images, false_alarm_rate=0.04)
    assert batch.count("defect") > strict.is_anomalous.sum()  # the rate makes a difference
    hook = model.scoring.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        batch.judge_at(4)
        assert batch.archive is None
        rows, scores = read_table(batch), batch.scores
        list(batch.draw_anew())
    finally:
        hook.remove()
    assert calls == []
    assert batch.false_alarm_rate == 0.04
    assert batch.image_threshold == strict.image_threshold
    assert batch.count("defect") == strict.is_anomalous.sum()
    assert batch.drift() == drift_test(scores, batch.independent_scores, strict.image_threshold)
    assert batch.archive not in (None, first)
    with zipfile.ZipFile(batch.archive) as archive, zipfile.ZipFile(first) as before:
        assert archive.namelist() == before.namelist()
        for index, path in enumerate(files):
            row, mask = rows[path.name], strict.pred_mask[index]
            assert row["verdict"] == ("defect" if strict.is_anomalous[index] else "good")
            assert int(row["defect_pixels"]) == mask.sum()
            assert row["defect_share"] == f"{mask.mean():.6f}"
            np.testing.assert_array_equal(np.asarray(Image.open(archive.open(f"masks/{path.name}.png"))) > 0, mask)
            overlay = np.asarray(Image.open(archive.open(f"overlays/{path.name}.png")))
            heat = heat_of(to_rgb(images[index]), strict.anomaly_map[index], saturation_of(model.scoring))
            assert np.abs(overlay.astype(int) - outline(heat, mask)).mean() < 0.1
    assert rows["broken.png"]["verdict"] == "unreadable"
    batch.judge_at(PERCENT)
    assert batch.archive == first


def test_a_batch_keeps_its_rate_where_another_is_not_offered(model, shelf, upload):
    batch = run(model, shelf, [upload("a.jpg", a_tile())])
    for percent in (0.1, 50, None):
        with refused(ValueError, "false alarm rate"):
            batch.judge_at(percent)
    assert batch.false_alarm_rate == PERCENT / 100


def test_page_follows_the_rate_says_so_and_shows_no_verdict_at_one_that_is_not_offered(
    model, shelf, upload, barred_files
):
    page = Page(Settings(), shelf, None, None, None)
    batch = run(model, shelf, [upload(path.name, path) for path in barred_files])
    table, words, _, _, note, histogram, files, redraw = judge_batch(page, batch, "tiny", PERCENT)
    assert "at 20 %" in words
    assert (note, len(files["value"]), redraw["visible"]) == ("", 2, False)
    moved, words, _, _, note, other, files, redraw = judge_batch(page, batch, "tiny", 4)
    assert "at 4 %" in words
    assert "judged at 4 %, inspected at 20 %" in note
    assert "until they are drawn anew" in note
    assert [Path(name).name for name in files["value"]] == ["scores-at-4-percent.csv"]
    assert redraw["visible"]
    assert moved["value"] != table["value"]
    assert other != histogram
    table, words, drift, _, note, histogram, files, redraw = judge_batch(page, batch, "tiny", 50)
    assert "No verdict at this rate" in words
    assert (drift, note, histogram) == ("", "", "")
    assert not any(each["visible"] for each in (table, files, redraw))
    note = judge_batch(page, batch, "another", 10)[4]
    assert "another is chosen now; what stands here is of tiny at 4 % still" in note
    assert "No verdict" in judge_batch(page, None, "tiny", 0.1)[1]
    assert judge_batch(page, None, "tiny", 10)[1] == HINT


def test_pixel_levels_are_counted_as_thresholds_are_exceeded():
    levels = PixelLevels([1.0, 2.0, 4.0])
    anomaly_map = np.array([[0.5, 1.0, 1.5], [2.0, 3.0, 9.0]], np.float32)
    counted = levels.of(anomaly_map)
    for threshold in (-np.inf, 1.0, 2.0, 4.0):
        place = levels.place(threshold)
        np.testing.assert_array_equal(counted >= place, anomaly_map > threshold)
        assert levels.areas(counted)[place] == (anomaly_map > threshold).sum()


def test_table_is_worst_first_and_knows_each_rows_image(model, shelf, upload):
    uploads = [upload("broken.png", b"no image")]
    uploads += [upload(path.name, path) for path in find_images(TILES / "test")]
    cells = table_cells(run(model, shelf, uploads).rows)
    names = [upload["orig_name"] for upload in uploads]
    for row in cells:
        assert row[HEADERS.index("file")].startswith(names[row[NUMBER_COLUMN] - 1])
    verdicts = [row[HEADERS.index("verdict")] for row in cells]
    assert verdicts == sorted(verdicts, key=["rejected", "unreadable", "accepted"].index)
    scores = [row[HEADERS.index("score")] for row in cells if row[HEADERS.index("verdict")] == "accepted"]
    assert scores == sorted(scores, reverse=True)


def test_zip_members_stay_inside_and_keep_their_names(model, shelf, upload):
    names = ["sub/a.jpg", "../../outside.jpg", "/etc/a.jpg", "C:\\b.jpg", "=1+1.jpg", "sub/a.JPG"]
    content = zipped([(name, a_tile()) for name in names] + [("notes.txt", "no image")])
    batch = run(model, shelf, [upload("parts.zip", content)])
    assert [row.result.file for row in batch.rows] == names
    assert all(row.result.verdict in ("good", "defect") for row in batch.rows)
    assert "'=1+1.jpg" in read_table(batch)
    with zipfile.ZipFile(batch.archive) as archive:
        members = archive.namelist()
    assert len({member.lower() for member in members}) == 2 * len(names)
    for member in members:
        assert not member.startswith("/")
        assert not {"..", "C:"} & set(member.split("/"))
    assert "overlays/outside.jpg.png" in members


def test_member_names_are_given_once():
    names = _MemberNames()
    claimed = [names.claim(name) for name in ("a.png", "A.png", "../a.png", "..", ".")]
    assert claimed == ["a.png", "A.png-2", "a.png-3", "image", "image-2"]


def test_a_bomb_and_an_encrypted_member_are_rows_with_their_reason(model, shelf, upload):
    bomb = zipped([("bomb.png", bytes(30 << 20)), ("good.jpg", a_tile())])
    encrypted = bytearray(zipped([("secret.jpg", a_tile())]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = encrypted.index(signature) + offset
        encrypted[place : place + 2] = struct.pack("<H", 1)
    batch = run(model, shelf, [upload("bomb.zip", bomb), upload("secret.zip", bytes(encrypted))])
    rows = {row.result.file: row.result for row in batch.rows}
    assert rows["good.jpg"].verdict in ("good", "defect")
    assert "unpacks to 30 MB" in rows["bomb.png"].error
    assert "encrypted" in rows["secret.jpg"].error


def test_stop_keeps_what_is_done(model, shelf, upload):
    content = zipped([(f"{number}.jpg", a_tile()) for number in range(40)])
    with shelf.turns.take():
        batch = Batch(model, shelf.turns, Folder([upload("parts.zip", content)], 100, 32), PERCENT)
        while len(shelf.turns._waiting) < 2:  # the first images are read and wait for their turn
            time.sleep(0.01)
        batch.stop()
    batch.wait()
    assert 1 <= len(batch.rows) < 40
    assert list(read_table(batch)) == [row.result.file for row in batch.rows]
    with zipfile.ZipFile(batch.archive) as archive:
        assert len(archive.namelist()) == 2 * len(batch.rows)
        assert archive.testzip() is None


def test_batch_refuses_too_many_none_and_a_rate_out_of_range(model, shelf, upload):
    tile = upload("a.jpg", a_tile())
    with refused(ValueError, "more than 2 images"):
        Folder([tile] * 3, 2, 32)
    with refused(ValueError, "more than 2 images"):  # the fourth is not even looked at
        Folder([*[tile] * 3, {"path": "/missing"}], 2, 32)
    with refused(ValueError, "no images"):
        Folder([], 2, 32)
    for percent in (0, 101, "much", None, True):
        with refused(ValueError, "false alarm rate"):
            Batch(model, shelf.turns, Folder([tile], 2, 32), percent)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1.png", "@a", "\t=1"])
def test_no_cell_is_a_formula(text):
    assert as_text_cell(text) == "'" + escaped(text)
    cells = ScoreRow(text, "unreadable", error=f"{text} is damaged.").cells()
    assert cells["file"][0] == cells["error"][0] == "'"


def test_plain_text_and_negative_scores_are_written_as_they_are():
    cells = ScoreRow("a-1=2.png", "good", -0.25, 0.5, 3, 0.125).cells()
    assert cells == dict(zip(COLUMNS, ["a-1=2.png", "good", "-0.2500", "0.5000", "3", "0.125000", "", ""], strict=True))


# Drift


def test_p_values_are_uniform_without_a_shift_though_defects_are_among_the_scores():
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        ranked = random.normal(size=200)
        threshold = np.sort(ranked)[-10]
        scores = np.concatenate([random.normal(size=100), random.normal(8, 1, size=40)])
        p_values.append(drift_test(scores, ranked, threshold))
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.06)


def test_a_shift_has_a_small_p_value():
    random = np.random.default_rng(1)
    ranked = random.normal(size=200)
    threshold = np.sort(ranked)[-4]
    assert drift_test(random.normal(0.8, 1, size=80), ranked, threshold) < 1e-3
    assert drift_test(random.normal(-0.8, 1, size=80), ranked, threshold) < 1e-3


def test_too_few_accepted_scores_have_no_p_value():
    ranked = np.linspace(-1, 1, 50)
    few = np.concatenate([np.zeros(MIN_SCORES - 1), np.full(50, 9.0)])
    assert drift_test(few, ranked, 1.0) is None
    assert drift_test(np.append(few, 0.0), ranked, 1.0) is not None
    assert drift_test([], ranked, 1.0) is None


class _EndedBatch:
    def __init__(self, scores, defects, unfamiliar=0):
        self.scores, self._defects, self._unfamiliar = np.array(scores), defects, unfamiliar

    def count(self, verdict):
        return {"defect": self._defects, "unfamiliar": self._unfamiliar}[verdict]


def test_drift_is_said_in_plain_words_with_its_p_value():
    batch = _EndedBatch(np.zeros(30), 2)
    assert "Warning" in drift_words(batch, 0.002)
    assert "p-value 0.002" in drift_words(batch, 0.002)
    assert "No sign" in drift_words(batch, 0.3)
    assert "p-value 0.3" in drift_words(batch, 0.3)
    for p_value in (0.002, 0.3):
        first_level, details = drift_words(batch, p_value).split("<details>")
        assert "p-value" not in first_level
        assert "Kolmogorov" not in first_level
        assert f"p-value {p_value}" in details
    assert "Too few" in drift_words(_EndedBatch(np.zeros(5), 0), None)
    assert "Most images are rejected" in drift_words(_EndedBatch(np.zeros(30), 28), None)
    assert "unlike anything" in drift_words(_EndedBatch(np.zeros(9), 0, 30), 0.5)


def test_nothing_is_reassuring_near_the_tests_own_threshold():
    words = drift_words(_EndedBatch(np.zeros(30), 2), 0.033)
    assert "Not clear" in words
    assert "No sign" not in words


def test_images_of_another_part_have_no_verdict_and_neither_areas_nor_outlines(
    model, shelf, upload, tile_files, negative_files
):
    uploads = [upload(f"tile-{path.name}", path) for path in tile_files[:3]]
    uploads += [upload(f"negative-{path.name}", path) for path in negative_files[:4]]
    batch = run(model, shelf, uploads)
    assert (batch.count("unfamiliar"), len(batch.scores)) == (4, 3)
    cells = [row for row in table_cells(batch.rows) if row[1] == "unfamiliar"]
    assert len(cells) == 4
    assert "4 unfamiliar" in batch_verdict(batch)
    for row in read_table(batch).values():
        assert (row["verdict"] == "unfamiliar") == row["file"].startswith("negative")
        assert (float(row["unfamiliarity"]) > 1) == row["file"].startswith("negative")
        if row["verdict"] == "unfamiliar":
            assert row["defect_pixels"] == "0"
    with zipfile.ZipFile(batch.archive) as archive:
        for name in archive.namelist():
            if name.startswith("masks/negative"):
                assert not np.asarray(Image.open(archive.open(name))).any()
    batch.judge_at(20)  # unfamiliar they stay
    assert batch.count("unfamiliar") == 4


def test_recalibrating_on_another_part_is_refused_and_leaves_no_model(shelf, model, upload, negative_files, tmp_path):
    uploads = [upload(path.name, path) for path in negative_files[:10]]
    recalibration = Recalibration(model, shelf, Folder(uploads, 100, 32), list(range(10)), tmp_path)
    with pytest.raises(ValueError, match="10 of 10 images are unlike"):
        recalibration.result()
    assert not list(tmp_path.iterdir())
    assert shelf.names == ["tiny"]


def test_histogram_counts_every_score_once_and_splits_at_the_threshold():
    good, batch = np.linspace(-1, 1, 101), np.array([-3.0, 0.0, 0.9, 0.95, 500.0])
    edges, expected, found = score_bins(good, batch, 0.9)
    assert len(expected) == len(found) == BINS
    assert expected.sum() == pytest.approx(1)
    assert found.sum() == pytest.approx(1)
    assert found[edges[:-1] >= 0.9 - 1e-9].sum() == pytest.approx(2 / 5)
    assert found[-1] == pytest.approx(1 / 5)
    assert "rejected above 0.90" in histogram_svg(good, batch, 0.9)


# The remedy


def test_recalibration_is_a_new_model_that_loads_again_and_leaves_the_old_one(shelf, model, upload, tmp_path):
    files = find_images(TILES / "train")[:10]
    darker = [upload(path.stem + ".png", shaded(path)) for path in files[:2]]
    members = zipped([(f"sub/{path.stem}.png", shaded(path)) for path in files[2:]])
    folder = Folder([*darker, upload("more.zip", members)], 100, 32)
    before = model.scoring(read_image(files[0])).anomaly_score[0]
    recalibration = Recalibration(model, shelf, folder, list(range(10)), tmp_path)
    seen = list(recalibration.watch())
    name = recalibration.result()
    assert name == "tiny, recalibrated"
    assert name in shelf.names
    assert any(total and 0 < measured <= total for measured, total, _ in seen)
    assert "10 good images" in recalibration.promise
    assert model.scoring(read_image(files[0])).anomaly_score[0] == before
    new = shelf.get(name)
    assert new.scoring.calibration.config.num_ranked == 10
    dark = Image.open(io.BytesIO(shaded(files[0])))
    assert abs(new.scoring(dark).anomaly_score[0]) < abs(model.scoring(dark).anomaly_score[0])
    loaded = AnomalyScoringPipeline.from_pretrained(tmp_path / "tiny-recalibrated")
    np.testing.assert_array_equal(loaded(dark).anomaly_score, new.scoring(dark).anomaly_score)


def test_stopped_recalibration_leaves_nothing_and_too_few_images_are_refused(shelf, model, upload, tmp_path):
    folder = Folder([upload("parts.zip", zipped([(f"{n}.jpg", a_tile()) for n in range(8)]))], 100, 32)
    names = shelf.names
    with shelf.turns.take():
        recalibration = Recalibration(model, shelf, folder, list(range(8)), tmp_path / "models")
        recalibration.stop()
    assert recalibration.result() is None
    assert shelf.names == names
    assert not (tmp_path / "models").exists()
    with refused(ValueError, "7 readable images", "at least 8"):
        Recalibration(model, shelf, folder, list(range(7)), tmp_path / "models")


def test_recalibration_that_fails_at_its_end_leaves_no_folder(shelf, model, upload, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("the disk is full.")

    monkeypatch.setattr(shelf, "add", fail)
    files = find_images(TILES / "train")[:8]
    folder = Folder([upload(path.name, path) for path in files], 100, 32)
    with refused(ValueError, "full"):
        Recalibration(model, shelf, folder, list(range(8)), tmp_path / "models").result()
    assert list((tmp_path / "models").iterdir()) == []
