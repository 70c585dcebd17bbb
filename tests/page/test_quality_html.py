"""What is said of a model's quality: never more than was measured, a warning below the bar, names as text."""

import base64
from pathlib import Path

import numpy as np
import pytest

from page.server.gradio_internals import get_upload_folder
from page.server.settings import Settings
from page.server.uploads import Folder
from page.tabs.quality_html import NOT_CHECKED, known_words, synthetic_sentence, synthetic_words
from page.work.inspection import Inspector
from page.work.known_parts import try_known_parts
from training.fitting.synthetic_check import ENOUGH_FOUND

WEBP = base64.b64encode(b"RIFF0000WEBP").decode()
HEAT = np.zeros((8, 8, 3), np.uint8)
EVIL = "<img src=x onerror=alert(1)>"


def record(rejected, **changes):
    shown = {"kind": "stain", "is_rejected": False, "score": 1.0, "image": WEBP, "heat_map": WEBP}
    values = {
        "category": None,
        "count": 90,
        "rejected": rejected,
        "false_alarm_rate": 0.05263,
        "is_estimate": False,
        "by_kind": {"stain": [3, 15]},
        "shown": [shown, shown | {"kind": EVIL, "is_rejected": True}],
    }
    return values | changes


def test_a_model_below_the_bar_is_warned_of_and_one_at_it_is_not():
    bar = int(np.ceil(90 * ENOUGH_FOUND))
    for words in (synthetic_words(record(bar - 1)), synthetic_sentence(record(bar - 1))):
        assert "Do not rely on it" in words
    assert 'class="verdict rejected"' in synthetic_words(record(bar - 1))
    for words in (synthetic_words(record(bar)), synthetic_sentence(record(bar))):
        assert "rely" not in words
    assert 'class="verdict accepted"' in synthetic_words(record(bar))


def test_the_share_stands_beside_what_it_costs_and_the_images():
    words = synthetic_words(record(45))
    for expected in ("45 of 90", "50%", "at most 5.3 %", "stain 3 of 15", "Missed", "Rejected", "green", "cyan"):
        assert expected in words
    assert words.count("<img") == 4
    assert EVIL not in words
    assert "a little too good" not in words
    assert "a little too good" in synthetic_words(record(45, is_estimate=True))
    assert "about 5.3 %" in synthetic_words(record(45, is_estimate=True))
    assert "50%" in synthetic_sentence(record(45))


def test_without_a_check_nothing_is_claimed():
    assert synthetic_words(None) == NOT_CHECKED
    assert "not known" in NOT_CHECKED
    assert synthetic_sentence(None) == ""


def judged(*rejected):
    numbers = {"false_alarm_rate": 0.01, "is_unfamiliar": False}
    return [(f"{EVIL}{place}", (numbers | {"is_anomalous": each}, HEAT)) for place, each in rejected]


@pytest.mark.parametrize(
    ("rejected", "are_defective", "title", "css"),
    [
        ((True, True), True, "2 of 2 defective parts are rejected", "accepted"),
        ((True, False), True, "1 of 2 defective parts is rejected", "rejected"),
        ((False, False), True, "0 of 2 defective parts are rejected", "rejected"),
        ((False, True), False, "1 of 2 good parts is accepted", "rejected"),
        ((False,), False, "1 of 1 good part is accepted", "accepted"),
    ],
)
def test_known_parts_are_counted_as_the_user_calls_them(rejected, are_defective, title, css):
    words = known_words(judged(*enumerate(rejected)), are_defective)
    assert title in words
    assert f'class="verdict {css}"' in words
    assert words.count("<b>Rejected</b>") == sum(rejected)
    assert words.count("<b>Accepted</b>") == len(rejected) - sum(rejected)
    wrong = sum(each != are_defective for each in rejected)
    assert words.count('class="wrong"') == wrong
    assert EVIL not in words


def test_an_image_that_cannot_be_read_is_named_and_not_counted():
    words = known_words([("a", f"{EVIL} is no image."), *judged((0, True))], True)
    assert "1 of 1 defective part is rejected" in words
    assert "is no image." in words
    assert EVIL not in words
    assert "None of the images could be read" in known_words([("a", "a is no image.")], True)


def test_known_parts_are_inspected_at_the_default_rate_and_not_remembered(shelf, tile_files):
    uploads, upload_folder = [], Path(get_upload_folder())
    upload_folder.mkdir(exist_ok=True)
    for name, content in (("good.jpg", tile_files[0].read_bytes()), ("torn.png", b"no image")):
        (upload_folder / name).write_bytes(content)
        uploads.append({"path": str(upload_folder / name)})
    inspector, model, heard = Inspector(shelf), shelf.get("tiny"), []
    folder = Folder(uploads, 24, Settings.max_upload_mb)
    (good, torn) = try_known_parts(inspector, model, folder, lambda *told: heard.append(told))
    numbers, heat_map = good[1]
    assert good[0] == "good.jpg"
    assert numbers["false_alarm_rate"] == pytest.approx(model.default_percent / 100)
    assert heat_map.shape[:2] == (numbers["height"], numbers["width"])
    assert torn == ("torn.png", "torn.png is not an image in a known format.")
    assert heard == [(1, 2), (2, 2)]
    assert not inspector._kept
