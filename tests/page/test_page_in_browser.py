"""The tabs Inspect and Repair as a user meets them: a real browser, real files in and out."""

import json
import zipfile

import numpy as np
import pytest
from paths import TILE
from PIL import Image

from page.work.repairing import Repair


@pytest.fixture
def scratched_file(scratched, tmp_path):
    path = tmp_path / "scratched tile.png"
    Image.fromarray(scratched).save(path)
    return path


def choose(page, path):
    """Choose a file on the tab Inspect and wait for the verdict."""
    page.locator("input[type=file]").first.set_input_files(str(path))
    page.wait_for_selector("#verdict >> text=Score")


@pytest.mark.parametrize("name", ["phone.HEIC", "scan.jp2", "frame.tga", "camera.tif"])
def test_formats_that_a_browser_does_not_know_are_inspected_too(browser_page, scratched, tmp_path, name):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    Image.fromarray(scratched).save(tmp_path / name, format="HEIF" if name.endswith("HEIC") else None)
    choose(browser_page, tmp_path / name)
    assert "Accepted" in (said := browser_page.locator("#verdict").inner_text()) or "Rejected" in said


def set_percent(page, percent):
    page.locator("#percent input[type=number]").fill(str(percent))
    page.locator("#percent input[type=number]").press("Enter")


def saved(page, link, folder):
    """The file behind a download link."""
    with page.expect_download() as download:
        link.click()
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def test_slider_moves_verdict_and_files_hold_what_is_shown(browser_page, shelf, scratched, scratched_file, tmp_path):
    choose(browser_page, scratched_file)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    assert "Rejected" in browser_page.locator("#verdict").inner_text()
    output = shelf.get("tiny").scoring(scratched, false_alarm_rate=0.2)
    assert f"{output.pred_mask[0].sum():,} pixels" in browser_page.locator("#verdict").inner_text()
    browser_page.locator("#prepare").click()
    links = browser_page.locator("#files a[download]")
    links.first.wait_for()
    files = {path.name: path for path in (saved(browser_page, link, tmp_path) for link in links.all())}
    assert sorted(files) == [
        f"scratched tile-{content}"
        for content in (
            "anomaly-map-16-bit.png",
            "anomaly-map.npy",
            "defect-mask.png",
            "heat-map.png",
            "inspection.zip",
            "verdict.json",
        )
    ]
    with zipfile.ZipFile(files.pop("scratched tile-inspection.zip")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: path.read_bytes() for name, path in files.items()
        }
    mask = np.asarray(Image.open(files["scratched tile-defect-mask.png"]))
    np.testing.assert_array_equal(mask > 0, output.pred_mask[0])
    anomaly_map = np.load(files["scratched tile-anomaly-map.npy"])
    np.testing.assert_allclose(anomaly_map, output.anomaly_map[0], atol=1e-5)
    numbers = json.loads(files["scratched tile-verdict.json"].read_text())
    assert numbers["anomaly_score"] == pytest.approx(output.anomaly_score[0], abs=1e-5)
    deep = np.asarray(Image.open(files["scratched tile-anomaly-map-16-bit.png"])).astype(float)
    restored = deep / 65535 * numbers["map_16_bit_maximum"]
    inside = (anomaly_map > 0) & (anomaly_map < numbers["map_16_bit_maximum"])
    np.testing.assert_allclose(restored[inside], anomaly_map[inside], atol=1e-3)


def test_good_part_is_accepted_and_nothing_is_offered_before_an_image(browser_page):
    assert "Show it a part" in browser_page.locator("#verdict").inner_text()
    assert not browser_page.locator("#to-repair, #comparison, #view").count()
    choose(browser_page, TILE)
    assert "Accepted" in browser_page.locator("#verdict").inner_text()
    assert browser_page.locator("#to-repair").is_enabled()


def test_file_that_is_no_image_gets_a_sentence_and_the_page_goes_on(browser_page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    browser_page.locator("input[type=file]").first.set_input_files(str(tmp_path / "notes.png"))
    browser_page.wait_for_selector("text=notes.png is not an image in a known format.")
    browser_page.get_by_label("Remove Image").first.click()
    choose(browser_page, TILE)


def test_no_verdict_stands_beside_a_rate_that_is_not_offered_and_no_traceback_is_logged(
    browser_page, scratched_file, capfd
):
    choose(browser_page, scratched_file)
    field = browser_page.locator("#percent input[type=number]")
    for percent in (0.1, 50):
        field.fill(str(percent))
        browser_page.wait_for_selector(f"#verdict >> text=The accepted false alarm rate is {percent} %; rates from 4 %")
        assert "Rejected" not in browser_page.locator("#verdict").inner_text()
        assert not browser_page.locator("#to-repair").is_visible()
    field.press("Tab")  # Gradio takes the nearest rate that there is
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    browser_page.get_by_role("tab", name="Batch").click()
    browser_page.locator("#batch-percent input[type=number]").fill("0.1")
    browser_page.wait_for_selector("#batch-words >> text=The accepted false alarm rate is 0.1 %; rates from 4 %")
    assert browser_page.locator(".toast-body").count() == 0
    assert "Traceback" not in capfd.readouterr().err


def test_another_part_has_no_verdict_and_its_numbers_say_so(browser_page, negative_files):
    browser_page.locator("input[type=file]").first.set_input_files(str(negative_files[0]))
    browser_page.wait_for_selector("#verdict >> text=unlike anything this model knows")
    words = browser_page.locator("#verdict").inner_text()
    assert not any(word in words for word in ("Accepted", "Rejected", "Promise", "outlined"))
    set_percent(browser_page, 20)
    browser_page.wait_for_timeout(500)
    assert "unlike anything" in browser_page.locator("#verdict").inner_text()


def test_defect_is_repaired_at_one_click_and_the_mask_can_be_emptied(browser_page, scratched_file):
    choose(browser_page, scratched_file)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    browser_page.locator("#to-repair").click()
    browser_page.wait_for_selector("#repair-words >> text=were drawn anew")
    browser_page.locator("#stop-repair:disabled").wait_for()
    browser_page.locator("#mask").get_by_label("Clear canvas").click()
    browser_page.locator("#repair:enabled").click()
    browser_page.wait_for_selector("#repair-words >> text=Nothing is marked")


def test_nothing_of_a_repair_is_left_beside_another_part(browser_page, scratched_file, monkeypatch):
    after_step = Repair._after_step

    def stop_after_the_first(repair, *args):
        after_step(repair, *args)
        repair.stop()

    monkeypatch.setattr(Repair, "_after_step", stop_after_the_first)  # what is drawn does not matter here
    choose(browser_page, scratched_file)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    browser_page.locator("#to-repair").click()
    browser_page.wait_for_selector("#repair-words >> text=were drawn anew")
    links = browser_page.locator("#repair-files a[download]")
    links.first.wait_for()
    browser_page.get_by_role("tab", name="Inspect").click()
    browser_page.get_by_label("Remove Image").first.click()
    choose(browser_page, TILE)
    browser_page.wait_for_timeout(2000)  # no user opens the tab in the instant in which it is cleared
    browser_page.get_by_role("tab", name="Repair").click()
    browser_page.wait_for_selector("#repair-words >> text=/nothing is marked|The coloured area/")
    assert links.count() == 0
    assert browser_page.locator("#repaired img").count() == 0


def test_repair_is_compared_in_inspect_until_another_image_comes(browser_page, scratched_file):
    choose(browser_page, scratched_file)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    assert not browser_page.get_by_role("radio", name="Repair").count()
    browser_page.locator("#to-repair").click()
    browser_page.wait_for_selector("#repair-words >> text=were drawn anew")
    browser_page.get_by_role("tab", name="Inspect").click()
    browser_page.get_by_role("radio", name="Repair").check()
    browser_page.wait_for_selector("#comparison a[download='scratched tile-repaired.png']")
    choose(browser_page, TILE)
    browser_page.wait_for_selector(f"#comparison a[download='{TILE.stem}-heat-map.png']")
    browser_page.get_by_role("radio", name="Repair").wait_for(state="detached")


def test_repair_shows_its_steps_and_stops_when_asked(browser_page, scratched_file, monkeypatch):
    after_step = Repair._after_step

    def wait_after_the_third(repair, pipe, step, *args):
        if step == 3:
            repair._stopped.wait(60)
        after_step(repair, pipe, step, *args)

    monkeypatch.setattr(Repair, "_after_step", wait_after_the_third)
    choose(browser_page, scratched_file)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    browser_page.locator("#to-repair").click()
    browser_page.wait_for_selector("#repair-words >> text=Step 3 of at most 272")
    assert browser_page.locator("#repair-words progress").get_attribute("max") == "272"
    browser_page.locator("#stop-repair:enabled").click()
    browser_page.wait_for_selector("#repair-words >> text=Stopped before it was done")
    browser_page.locator("#repair:enabled").wait_for()


def test_page_fits_a_dark_phone_and_scrolls_to_the_verdict(browser_page, page_url, scratched_file):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.goto(f"{page_url}?__theme=dark")
    choose(browser_page, scratched_file)
    browser_page.wait_for_function("document.querySelector('#verdict').getBoundingClientRect().top < 400")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390
    background = browser_page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
    assert max(int(level) for level in background.removeprefix("rgb(").rstrip(")").split(",")) < 60


def test_page_is_used_by_keyboard(browser_page, scratched_file):
    choose(browser_page, scratched_file)
    slider = browser_page.locator("#percent input[type=range]")
    before = slider.input_value()
    slider.focus()
    browser_page.keyboard.press("End")
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    assert float(slider.input_value()) > float(before)
    browser_page.get_by_role("tab", name="Inspect").focus()
    browser_page.keyboard.press("Tab")
    browser_page.keyboard.press("Enter")
    browser_page.wait_for_selector("#mask")


def test_whatever_is_new_is_shown_whole_and_another_rate_leaves_the_slider_alone(browser_page, scratched_file):
    choose(browser_page, scratched_file)
    wait_until_uncovered(browser_page)
    drag_slider(browser_page)
    set_percent(browser_page, 20)
    browser_page.wait_for_selector("#verdict >> text=about 20 are rejected")
    assert browser_page.evaluate(COVERED) > 0.1
    for view, name in [("Pixel component (KL)", "pixel-component"), ("Feature component", "feature-component")]:
        browser_page.get_by_label(view).check()
        browser_page.wait_for_selector(f"#comparison a[download='scratched tile-{name}.png']")
        wait_until_uncovered(browser_page)
        drag_slider(browser_page)
    choose(browser_page, TILE)
    browser_page.wait_for_selector(f"#comparison a[download='{TILE.stem}-feature-component.png']")
    wait_until_uncovered(browser_page)


def test_use_via_api_speaks_of_no_components(browser_page):
    browser_page.get_by_role("button", name="Use via API").click()
    browser_page.locator("text=good parts that may be rejected, in the range that models lists").first.wait_for()
    described = browser_page.locator(".api-docs p.desc").all_inner_texts()
    assert len(described) > 8
    assert not any("component" in words for words in described)
    assert "handle_file('part.png')" in browser_page.locator(".api-docs").inner_text()


COVERED = """() => {
  const image = [...document.querySelectorAll("#comparison img")].at(-1)
  const slider = document.querySelector("#comparison .outer")?.getBoundingClientRect()
  if (!slider || !image.naturalWidth) return null
  const box = image.getBoundingClientRect()
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight)
  const left = box.x + (box.width - scale * image.naturalWidth) / 2
  return (slider.x + slider.width / 2 - left) / scale / image.naturalWidth
}"""
"""The share of what the image is compared with that the slider hides."""


def wait_until_uncovered(page):
    page.wait_for_function(f"Math.abs(({COVERED})() ?? 1) < 0.02")


def drag_slider(page):
    """Drag the slider by 60 pixels to the right."""
    slider = page.locator("#comparison .outer").bounding_box()
    x, y = slider["x"] + slider["width"] / 2, slider["y"] + slider["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    page.wait_for_function(f"({COVERED})() > 0.1")
