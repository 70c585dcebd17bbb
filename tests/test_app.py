"""The page as a visitor meets it: a real server, a real client, a real browser; and what it draws and says."""

import shutil
import subprocess
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from conftest import TILES
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from sentences import assert_sentence

import app
from page.verdict import HINT, promise, verdict
from rendering.heat_map import MAX_OPACITY, OUTLINE_COLOR, PLASMA, SATURATION_FACTOR, legend, outline, overlay, shrink
from training.data import read_image

TILE = TILES / "test" / "blowhole" / "exp1_num_4944.jpg"
"""Accepted by the tiny pipeline at 4 % and at 20 %."""

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def url(tiny_pipeline):
    """Address of the page, launched with the options of `python app.py`."""
    demo = app.build_page(tiny_pipeline, "test tile", TILES / "test" / "crack")
    address = demo.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH)[1]
    yield address
    demo.close()


@pytest.fixture
def client(url, tmp_path):
    """A visitor's session."""
    return Client(url, verbose=False, download_files=tmp_path)


def inspect(client, path, percent=20):
    """Words, (picture, heat map) as RGB arrays, colour scale and numbers of an inspection."""
    return _read(client.predict(handle_file(str(path)), percent, api_name="/inspect"))


def judge_again(client, percent):
    """The same for the session's last picture at another rate."""
    return _read(client.predict(percent, api_name="/judge_again"))


def _read(answer):
    words, pictures, scale, numbers = answer
    return words, [np.asarray(Image.open(path).convert("RGB")) for path in pictures], scale, numbers


def post(url, picture, percent=20):
    """What the server answers to a hand-written request: its last event."""
    call = f"{url}gradio_api/call/inspect"
    event = httpx.post(call, json={"data": [picture, percent]}, timeout=30).json()["event_id"]
    return httpx.get(f"{call}/{event}", timeout=30).text


def visitors_error(client, path):
    with pytest.raises(AppError) as caught:
        inspect(client, path)
    return caught.value.message


def assert_same_verdict(numbers, output):
    assert numbers["is_anomalous"] == output.is_anomalous[0]
    assert numbers["p_value"] == output.p_value[0]
    assert numbers["anomaly_score"] == pytest.approx(output.anomaly_score[0], abs=1e-4)
    assert numbers["defect_share"] == pytest.approx(output.pred_mask[0].mean(), abs=1e-3)
    assert numbers["image_threshold"] == output.image_threshold
    assert numbers["pixel_threshold"] == output.pixel_threshold


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """A tile with a slightly brighter bar: accepted by the tiny pipeline at 4 %, rejected at 20 %."""
    pixels = np.array(Image.open(TILE).convert("L")).astype(int)
    pixels[100:140, 40:80] += 30
    path = tmp_path_factory.mktemp("faint") / "faint.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def scratched(tmp_path_factory):
    """A tile with a bright bar, which the tiny pipeline rejects and outlines at 4 %, and more of it at 20 %."""
    pixels = np.array(Image.open(TILE).convert("L"))
    pixels[100:140, 40:80] = pixels[100:140, 40:80].clip(min=130)
    path = tmp_path_factory.mktemp("scratched") / "scratched.png"
    Image.fromarray(pixels).save(path)
    return path


# The page


def test_page_says_and_draws_what_the_pipeline_finds(client, tiny_pipeline, scratched):
    output = tiny_pipeline(Image.open(scratched), false_alarm_rate=0.2)
    words, (picture, heat), scale, numbers = inspect(client, scratched)
    assert_same_verdict(numbers, output)
    assert "Rejected" in words
    assert f"Score {output.anomaly_score[0]:.2f}" in words
    assert f"outlined above {output.pixel_threshold:.1f}" in scale
    upright = np.asarray(Image.open(scratched).convert("RGB"))
    np.testing.assert_array_equal(picture, upright)
    threshold = tiny_pipeline.calibration.pixel_threshold(None, 0.5, [5, 50, 100])
    assert output.pred_mask[0].any()
    drawn = outline(overlay(upright, output.anomaly_map[0], SATURATION_FACTOR * threshold), output.pred_mask[0])
    assert np.abs(heat.astype(int) - drawn).mean() < 0.1
    np.testing.assert_array_equal((heat == OUTLINE_COLOR).all(axis=-1), (drawn == OUTLINE_COLOR).all(axis=-1))


def test_slider_changes_the_verdict_without_a_forward_pass(client, tiny_pipeline, faint):
    calls = []
    hook = tiny_pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        words, _, _, numbers = inspect(client, faint, 4)
        assert "Accepted" in words
        assert_same_verdict(numbers, tiny_pipeline(Image.open(faint), false_alarm_rate=0.04))
        expected = tiny_pipeline(Image.open(faint), false_alarm_rate=0.2)
        assert len(calls) == 3
        words, _, scale, moved = judge_again(client, 20)
        assert len(calls) == 3
    finally:
        hook.remove()
    assert "Rejected" in words
    assert f"outlined above {expected.pixel_threshold:.1f}" in scale
    assert_same_verdict(moved, expected)


def test_slider_moves_the_outline_and_no_colour(client, scratched):
    _, (_, heat), _, numbers = inspect(client, scratched, 4)
    _, (_, moved), _, moved_numbers = judge_again(client, 20)
    assert moved_numbers["defect_share"] > numbers["defect_share"] > 0
    unlined = (heat != OUTLINE_COLOR).any(axis=-1) & (moved != OUTLINE_COLOR).any(axis=-1)
    np.testing.assert_array_equal(heat[unlined], moved[unlined])
    assert (heat != moved).any()


def test_slider_before_any_picture_asks_for_one(client):
    assert client.predict(20, api_name="/judge_again")[0] == HINT


def _save(name, path):
    """One picture in the formats that come from cameras and image editors."""
    tile = Image.open(TILE).convert("L")
    if name.startswith("16-bit"):
        Image.fromarray(np.asarray(tile).astype(np.uint16) * 257).save(path)
    elif name == "alpha.png":
        alpha = Image.linear_gradient("L").resize(tile.size)
        Image.merge("RGBA", [tile, tile, tile, alpha]).save(path)
    elif name == "cmyk.jpg":
        tile.convert("CMYK").save(path)
    elif name == "rotated.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to see it upright
        tile.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    elif name == "one-pixel.png":
        Image.new("RGB", (1, 1), "red").save(path)


@pytest.mark.parametrize("name", ["16-bit.png", "16-bit.tif", "alpha.png", "cmyk.jpg", "rotated.jpg", "one-pixel.png"])
def test_pictures_are_inspected_as_they_were_uploaded(client, tiny_pipeline, tmp_path, name):
    _save(name, tmp_path / name)
    output = tiny_pipeline(read_image(tmp_path / name), false_alarm_rate=0.2)
    _, (picture, heat), _, numbers = inspect(client, tmp_path / name)
    assert_same_verdict(numbers, output)
    assert picture.shape == heat.shape == (*output.anomaly_map[0].shape, 3)
    if name == "rotated.jpg":
        upright = np.asarray(Image.open(TILE).convert("RGB")).astype(int)
        assert np.abs(picture - upright).mean() < 5


def test_large_picture_is_inspected_whole_and_drawn_smaller(client, tiny_pipeline, tmp_path):
    Image.open(TILE).resize((1500, 3000)).save(tmp_path / "large.png")
    _, (picture, heat), _, numbers = inspect(client, tmp_path / "large.png")
    assert_same_verdict(numbers, tiny_pipeline(Image.open(tmp_path / "large.png"), false_alarm_rate=0.2))
    assert picture.shape == heat.shape == (1024, 512, 3)


# What the page refuses


def test_bad_files_are_refused_in_one_sentence(client, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.open(TILE).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    assert visitors_error(client, tmp_path / "text.png") == "text.png is not a picture in a known format."
    assert_sentence(visitors_error(client, tmp_path / "cut.png"), "cut.png is damaged or cut short")
    assert_sentence(visitors_error(client, tmp_path / "huge.png"), "9000×8000 pixels", "at most 64 million")


def test_refused_picture_leaves_the_page_working(client, tiny_pipeline, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    visitors_error(client, tmp_path / "text.png")
    assert_same_verdict(inspect(client, TILE)[3], tiny_pipeline(Image.open(TILE), false_alarm_rate=0.2))


def test_uploads_of_more_than_32_megabytes_are_refused(url):
    sizes = {32 << 20: 200, 33 << 20: 413}
    for size, status in sizes.items():
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("big.png", bytes(size))}, timeout=30)
        assert answer.status_code == status


@pytest.mark.parametrize("percent", [0, -3, 101, "much", None])
def test_rates_out_of_range_are_refused_in_one_sentence(client, percent):
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(str(TILE)), percent, api_name="/inspect")
    assert_sentence(caught.value.message, "rate")


def test_web_addresses_are_not_fetched(url):
    file = {"path": f"{url}favicon.ico", "meta": FILE}
    assert "Web addresses are not fetched" in post(url, file)
    assert "Web addresses are not fetched" in post(url, None, percent=file)


def test_files_that_were_not_uploaded_are_not_read(url):
    refusal = post(url, {"path": str(TILE), "meta": FILE})
    assert "event: error" in refusal
    assert TILE.name not in refusal
    for picture in ({"path": str(TILE)}, {"path": "../" + TILE.name}, {"url": "data:image/png;base64,AAAA"}):
        assert "the request names no uploaded file; upload a picture first." in post(url, picture)


def test_unexpected_error_is_logged_and_not_shown(client, tiny_pipeline, caplog):
    def fail(*_):
        raise RuntimeError("a secret of the server")

    hook = tiny_pipeline.unet.register_forward_hook(fail)
    try:
        message = visitors_error(client, TILE)
    finally:
        hook.remove()
    assert_sentence(message, "Something went wrong")
    assert "secret" not in message
    assert "a secret of the server" in caplog.text


def test_missing_checkpoint_ends_the_command_with_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as caught:
        app.main(["--model", str(tmp_path / "missing")])
    assert_sentence(caught.value.code, "missing is neither a folder nor a Hub id")


def test_only_the_inspection_is_documented(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/inspect"]
    assert not api["unnamed_endpoints"]


def test_page_renders_in_a_browser(url, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom"
    )
    command = [chromium, *options.split(), f"--user-data-dir={tmp_path}", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>Defect inspection</title>" in page
    assert "Is this part good?</h1>" in page
    assert "<strong>test tile</strong>" in page
    assert "Exp1_num_32128" in page
    assert "Choose a picture, or click an example." in page


# What it draws


def test_average_good_map_leaves_the_picture_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, np.zeros((5, 7), np.float32), 3.0), image)
    np.testing.assert_array_equal(overlay(image, np.full((5, 7), -2.0), 3.0), image)


def test_colour_is_fixed_by_the_value_and_ends_at_saturation():
    black = np.zeros((1, 4, 3), np.uint8)
    colours = overlay(black, np.array([[1.5, 3.0, 4.5, 300.0]]), 3.0)[0]
    np.testing.assert_array_equal(colours[1], np.rint(MAX_OPACITY * PLASMA[-1]))
    np.testing.assert_array_equal(colours[2:], colours[[1, 1]])
    np.testing.assert_array_equal(colours[0], np.rint(MAX_OPACITY / 2 * (PLASMA[4] + PLASMA[5]) / 2))
    alone = overlay(black[:, :1], np.array([[1.5]]), 3.0)[0, 0]
    np.testing.assert_array_equal(colours[0], alone)


def test_overlay_refuses_a_map_of_another_size_and_a_scale_without_length():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="must agree"):
        overlay(image, np.zeros((3, 2)), 1.0)
    with pytest.raises(ValueError, match="above 0"):
        overlay(image, np.zeros((2, 3)), 0.0)


def test_outline_is_the_border_of_the_mask_and_nothing_else():
    image = np.full((7, 9, 3), 50, np.uint8)
    mask = np.zeros((7, 9), bool)
    mask[1:6, 2:7] = True
    drawn = outline(image, mask, (1, 2, 3))
    border = mask.copy()
    border[2:5, 3:6] = False
    assert (drawn[border] == (1, 2, 3)).all()
    assert (drawn[~border] == 50).all()
    assert (image == 50).all()
    np.testing.assert_array_equal(outline(image, np.zeros_like(mask)), image)


def test_outline_is_closed_at_the_pictures_edge_and_as_wide_as_asked():
    drawn = outline(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), width=2)
    lined = (drawn == OUTLINE_COLOR).all(axis=-1)
    assert lined.sum() == 64 - 16
    assert not lined[2:6, 2:6].any()


def test_legend_runs_from_grey_to_the_saturated_colour_and_marks_the_threshold():
    bar = legend(saturation=8.0, threshold=2.0, height=4, width=101)
    assert bar.shape == (4, 101, 3)
    assert (bar[:, 0] == 128).all()
    np.testing.assert_array_equal(bar[0, -1], np.rint(128 + MAX_OPACITY * (PLASMA[-1] - 128)))
    marked = (bar == OUTLINE_COLOR).all(axis=(0, 2))
    assert np.flatnonzero(marked).tolist() == [23, 24, 25, 26, 27]


def test_shrink_keeps_small_pictures_and_halves_large_ones_with_their_maps():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 200
    anomaly_map = np.arange(32, dtype=np.float32).reshape(4, 8)
    for kept, given in zip(shrink(image, anomaly_map, 8), (image, anomaly_map), strict=True):
        np.testing.assert_array_equal(kept, given)
    half, half_map = shrink(image, anomaly_map, 4)
    np.testing.assert_array_equal(half[..., 0], [[0, 0, 200, 200]] * 2)
    np.testing.assert_allclose(half_map, anomaly_map.reshape(2, 2, 4, 2).mean(axis=(1, 3)))


# What it says


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.01, "of 100 good parts, at most 1 is rejected"),
        (0.2, "of 100 good parts, at most 20 are rejected"),
        (1 / 458, "of 1000 good parts, at most 2.2 are rejected"),
        (0.0301, "of 100 good parts, at most 3.1 are rejected"),
    ],
)
def test_promise_counts_good_parts_and_never_understates(rate, words):
    assert words in promise(rate, SimpleNamespace(cross_fitted=False, num_ranked=457))


def test_cross_fitted_calibration_promises_nothing():
    words = promise(0.04, SimpleNamespace(cross_fitted=True, num_ranked=24))
    assert "about 4 are rejected" in words
    assert "Estimate" in words
    assert "at most" not in words


def test_verdict_counts_the_good_parts_that_scored_as_high():
    calibration = SimpleNamespace(cross_fitted=False, num_ranked=99)
    numbers = {"anomaly_score": 5.0, "false_alarm_rate": 0.01, "image_threshold": 4.0, "defect_share": 0.0}
    accepted = verdict(numbers | {"is_anomalous": False, "p_value": 0.08}, calibration)
    assert "Accepted" in accepted
    assert "Of 99 good parts measured for comparison, 7 scored as high" in accepted
    rejected = verdict(numbers | {"is_anomalous": True, "p_value": 0.01}, calibration)
    assert "none scored as high" in rejected
    assert "No single place stands out" in rejected
    assert "outlined area, 2.5% of" in verdict(
        numbers | {"is_anomalous": True, "p_value": 0.01, "defect_share": 0.025}, calibration
    )
