"""The tab Batch in a real browser: twenty files with a broken one, and a batch that has drifted."""

import csv
import shutil
import zipfile

import pytest
from images import a_tile, shaded, zipped
from paths import TILES
from serving import served

from page.tabs.batch_html import HEADERS
from training.data.image_folders import find_images
from training.data.image_reading import read_image


@pytest.fixture(scope="module")
def url(tiny_checkpoint, tmp_path_factory):
    """Address of a page whose users may recalibrate."""
    folder = tmp_path_factory.mktemp("page")
    with served(tiny_checkpoint, folder, trained_models=str(folder / "trained")) as (url, _):
        yield url


def test_twenty_files_with_a_broken_one_in_a_browser(url, browser, tiny_pipeline, tmp_path):
    page, files, alerts = browser.new_page(), [], []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    for number, source in enumerate(find_images(TILES / "train")[:18]):
        files.append(tmp_path / f"part {number}.jpg")
        shutil.copy(source, files[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    name = "<img src=x onerror=alert(1)>.jpg"
    (tmp_path / "more.zip").write_bytes(zipped([(name, a_tile())]))
    files += [tmp_path / "broken.png", tmp_path / "more.zip"]

    page.goto(url)
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#batch-files input[type=file]", [str(path) for path in files])
    page.wait_for_function("document.querySelectorAll('#batch-files tr').length == 20")
    page.click("#batch-start")
    page.locator("#batch-words h2").wait_for()
    assert "1 unreadable" in page.inner_text("#batch-words")
    assert "20 images" in page.inner_text("#batch-words")
    assert "p-value" not in page.inner_text("#drift")
    page.click("#drift summary")
    assert "p-value" in page.inner_text("#drift")
    assert page.locator("#histogram svg").count() == 1
    assert page.locator("#batch-table [role=grid]").get_attribute("aria-rowcount") == "21"

    table = _downloaded(page, 0, tmp_path / "table.csv")
    with open(table, newline="", encoding="utf-8-sig") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {path.name for path in files[:19]} | {name}
    expected = tiny_pipeline(read_image(files[0]))
    assert rows["part 0.jpg"]["anomaly_score"] == f"{expected.anomaly_score[0]:.4f}"
    with zipfile.ZipFile(_downloaded(page, 1, tmp_path / "results.zip")) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 2 * 19

    place = sum(row["verdict"] != "good" for row in rows.values())
    cell = page.locator(f"#batch-table [data-row='{place}'][data-col='{HEADERS.index('file')}']").last
    clicked = cell.inner_text().strip()
    cell.click()
    page.locator("#verdict h2").wait_for()
    score = float(rows[clicked]["anomaly_score"])
    page.locator("#verdict").get_by_text(f"Score {score:.2f}").wait_for()

    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch-percent input[type=number]").fill("20")
    page.locator("#batch-note").get_by_text("Now judged at 20 %").wait_for()
    assert "at 20 %" in page.inner_text("#batch-words")
    assert _downloaded(page, 0, tmp_path / "anew.csv").read_bytes()
    assert page.locator("#batch-results a[download]").count() == 1
    page.get_by_role("button", name="Draw overlays and masks at 20 %").click()
    page.locator("#batch-results a[download]").nth(1).wait_for()
    assert not alerts


def test_drifted_batch_is_recalibrated_in_a_browser(url, browser, tmp_path):
    page, files = browser.new_page(), []
    for source in find_images(TILES / "train")[:10]:
        files.append(tmp_path / f"{source.stem}.png")
        files[-1].write_bytes(shaded(source))
    page.goto(url)
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#batch-files input[type=file]", [str(path) for path in files])
    page.wait_for_function("document.querySelectorAll('#batch-files tr').length == 10")
    page.click("#batch-start")
    page.locator("#drift h3").wait_for()
    if not page.locator("#all-good").is_visible():
        page.get_by_text("Recalibrate on these images").click()
    assert page.locator("#recalibrate").is_disabled()
    page.locator("#all-good input").check()
    page.locator("#recalibrate:not([disabled])").click()
    page.locator("#recalibration-words h3").wait_for()
    name = page.inner_text("#recalibration-words h3")
    assert name.startswith("tiny, recalibrated")
    assert page.locator("#model input").input_value() == name
    page.wait_for_function("document.querySelector('#batch-percent input[type=number]').value > 9")  # 1 of 11
    page.click("#batch-start")
    page.locator("#batch-words").get_by_text(name).wait_for()
    assert not page.locator("#all-good input").is_checked()


def _downloaded(page, place, path):
    with page.expect_download() as download:
        page.locator("#batch-results a[download]").nth(place).click()
    download.value.save_as(path)
    return path
