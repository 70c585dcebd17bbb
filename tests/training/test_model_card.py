"""The model card: every measured figure, what was not measured, the Hub's own reading of it, and hostile names."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from paths import ROOT, TILES
from PIL import Image

from pipelines.checkpoint_card import CARD_MARK
from pipelines.checkpoint_names import CARD
from training.cli.arguments import parse_args
from training.data.labelled_images import LabelledImage, find_labelled_images
from training.evaluation.example_sheet import CELL, MAX_BYTES, MAX_ROWS, choose_examples, example_sheet, save_sheet
from training.hub.card_front_matter import front_matter, hub_id_of_backbone
from training.hub.card_sections import as_text, results_section, training_section, use_section
from training.hub.model_card import build_model_card, has_edited_card, is_edited
from training.publish import prepare_shipment
from training.records.checkpoint_contents import is_ours
from training.records.measured_results import (
    FIGURES,
    find_sheet,
    forget_results,
    is_sheet,
    keep_results,
    read_results,
    sheet_path,
)
from training.records.training_record import publishable_record, settings_to_record, write_record

EVIL = "a\n---\n# <script>alert(1)</script> [x](http://evil) `b` | c\r\n```"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "tile")


def report_of(**groups):
    """A report with other figures for each group and each figure."""
    figures = {group: {figure: start + i / 100 for i, figure in enumerate(FIGURES)} for group, start in groups.items()}
    return {"promised_false_alarm_rate": 0.04, "pictures": {"good": 10, "crack": 5}, "groups": figures}


def card_of(pipe, folder, repo_id="team/tile", **options):
    return build_model_card(pipe, folder, repo_id, **options)


def test_the_hubs_reading_of_the_front_matter_has_every_figure(tiny_pipeline, checkpoint):
    report = report_of(all=0.5, crack=0.7)
    keep_results(checkpoint, None, "magnetic_tile", report)
    card = ModelCard(card_of(tiny_pipeline, checkpoint, license="mit", datasets=["team/tiles"]).content)
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "image-segmentation")
    assert (card.data.license, card.data.datasets) == ("mit", ["team/tiles"])
    assert card.data.base_model == "timm/tf_efficientnet_lite0.in1k"
    assert "anomaly-detection" in card.data.tags
    read = {(item.dataset_config, item.metric_type): item.metric_value for item in card.data.eval_results}
    for group, name in (("all", "all defects"), ("crack", "crack")):
        for figure in FIGURES:
            assert read[name, figure] == pytest.approx(report["groups"][group][figure])
    assert len(read) == 2 * len(FIGURES)
    assert {(item.dataset_type, item.dataset_split) for item in card.data.eval_results} == {("magnetic_tile", "test")}
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.to_dict() == card.data.to_dict()
    for figure in ("0.500", "0.710", "54 %"):
        assert figure in card.text
    assert "@article{huang2020surface" in card.text


def test_every_entry_of_the_model_index_is_well_formed(tiny_pipeline, checkpoint):
    keep_results(checkpoint, None, "my tiles", report_of(all=0.5, crack=0.7))
    content = card_of(tiny_pipeline, checkpoint).content
    data = yaml.safe_load(content.split("---\n")[1])
    assert data["pipeline_tag"] in ("image-segmentation",)  # one of the Hub's tasks: regions of an image
    (model,) = data["model-index"]
    assert model["name"] == "tile"
    for result in model["results"]:
        assert set(result) == {"task", "dataset", "metrics"}
        assert result["task"]["type"] == data["pipeline_tag"]
        assert set(result["dataset"]) == {"name", "type", "config", "split"}
        assert re.fullmatch(r"[a-z0-9_.-]+", result["dataset"]["type"])
        for metric in result["metrics"]:
            assert set(metric) == {"type", "value", "name"}
            assert metric["type"] in FIGURES
            assert 0 <= metric["value"] <= 1
    assert sorted(len(result["metrics"]) for result in model["results"]) == [len(FIGURES)] * 2


def test_a_card_shows_the_speed_and_the_examples_of_a_checkpoint(tiny_pipeline, checkpoint):
    speed = {"seconds_per_picture": 0.2134, "device": "CPU (X)", "threads": 2, "batch_size": 8, "precision": "float32"}
    keep_results(checkpoint, None, "d", report_of(all=0.5) | {"speed": speed})
    text = card_of(tiny_pipeline, checkpoint).text
    assert "0.21 s an image on CPU \\(X\\), 2 threads, in batches of 8, float32" in text
    assert "](examples/" not in text
    keep_results(checkpoint, None, "d", report_of(all=0.5))
    labelled = find_labelled_images(TILES)
    sheet = example_sheet(tiny_pipeline, labelled, np.arange(float(len(labelled))), 0.04)
    save_sheet(sheet, sheet_path(checkpoint))
    text = card_of(tiny_pipeline, checkpoint).text
    assert "Speed: not measured" in text
    (shown,) = re.findall(r"!\[[^\]]+\]\((.+?)\)", text)
    assert shown in prepare_shipment(checkpoint, "team/tile").files
    with Image.open(checkpoint / shown) as sheet:
        assert sheet.width > 4 * CELL
        assert sheet.height > 5 * CELL / 2  # five images of tiles, none of them more than twice as wide as high
        colors = {color for _, color in sheet.convert("RGB").getcolors(2**24)}
        assert len(colors) > 1000
    assert (checkpoint / shown).stat().st_size <= MAX_BYTES
    forget_results(checkpoint)
    assert find_sheet(checkpoint) is None
    assert is_ours(shown, {})
    assert not is_ours("examples/part.webp", {})


def test_examples_are_those_in_the_middle_of_each_kind_and_bounded_in_size(tmp_path):
    kinds = ["scratch"] * 9 + ["good"] * 9
    labelled = [LabelledImage(Path(f"{i}.png"), kind) for i, kind in enumerate(kinds)]
    scores = np.array([*range(9), *range(9)], float)[::-1]
    chosen = choose_examples(labelled, scores)
    assert [kinds[place] for place in chosen] == ["good"] * 4 + ["scratch"] * 4
    assert scores[chosen].tolist() == [1, 3, 5, 7] * 2
    many = [LabelledImage(Path("x.png"), f"kind {i}") for i in range(20)]
    assert len(choose_examples([*many, labelled[-1]], np.zeros(21))) == MAX_ROWS
    noise = np.random.default_rng(0).integers(0, 256, (1728, 798, 3), "uint8")
    save_sheet(Image.fromarray(noise), tmp_path / "examples" / "sheet.webp")
    assert (tmp_path / "examples" / "sheet.webp").stat().st_size <= MAX_BYTES


@pytest.mark.parametrize("category", ["nut", "a/b", "../x", "Mutter ß", "x" * 200, "a\n", ""])
def test_examples_of_any_category_have_a_file_of_their_own(category, tmp_path):
    path = sheet_path(tmp_path, category)
    assert path.parent == tmp_path / "examples"
    assert path != sheet_path(tmp_path)
    assert is_sheet(path.relative_to(tmp_path).as_posix())
    assert re.fullmatch(r"sheet-[\w-]*\.webp", path.name, re.ASCII)


def test_a_published_record_names_no_image(checkpoint):
    settings = {"seed": 3, "resume_from_checkpoint": "/home/me/out/checkpoint-7"}
    write_record(checkpoint, settings, 1.5, 2.0, {"tile": [Path("part-4711.png"), Path("part-4712.png")]}, "bfloat16")
    shipment = prepare_shipment(checkpoint, "team/tile").files
    assert json.loads(shipment["training.json"]) == {
        "settings": {"seed": 3},
        "training_seconds": 1.5,
        "peak_memory_gb": 2.0,
        "precision": "bfloat16",
        "held_out": {"tile": {"pictures": 2, "sha256": hashlib.sha256(b"part-4711.png\npart-4712.png").hexdigest()}},
    }
    assert b"part-47" not in b"".join(source for source in shipment.values() if isinstance(source, bytes))
    assert "part-4711.png" in (checkpoint / "training.json").read_text()
    assert publishable_record({"held_out": ["part-4711.png"], "more": "part-4711.png"}) == {}


def test_a_card_says_what_was_not_measured(tiny_pipeline, checkpoint):
    card = card_of(tiny_pipeline, checkpoint)
    assert card.data.eval_results is None
    assert "model-index" not in card.data.to_dict()
    assert "## Results\n\nNot measured." in card.text
    assert "huang2020" not in card.text
    report = report_of(all=0.5)
    report["groups"]["all"]["image_auroc"] = float("nan")
    keep_results(checkpoint, None, "d", report)
    card = card_of(tiny_pipeline, checkpoint)
    assert [item.metric_type for item in card.data.eval_results] == list(FIGURES[1:])
    assert "| all defects | 5 | not measured | 0.510 |" in card.text


def test_the_promise_and_the_settings_are_those_of_the_checkpoint(tiny_pipeline, checkpoint):
    args = parse_args(
        ["--train_data_dir", "X", "--output_dir", "X", "--max_train_steps", "7", "--no-normalize_contrast"]
    )
    settings = settings_to_record(vars(args))
    record = {"settings": settings, "training_seconds": 120, "peak_memory_gb": 2.3, "held_out": {"my tiles": ["a.jpg"]}}
    record["precision"] = "bfloat16"
    (checkpoint / "training.json").write_text(json.dumps(record))
    text = card_of(tiny_pipeline, checkpoint).text
    assert "24 good images by cross-fitting" in text
    command = text.split("accelerate launch training/train.py ")[1].split("\n````")[0]
    again = parse_args(shlex.split(command.replace("\\\n", " ")))
    assert settings_to_record(vars(again)) == settings
    assert again.train_data_dir == ["my tiles"]
    assert "Time: 2 minutes" in text
    assert "2.3 GB" in text
    assert "Precision: bfloat16." in text
    assert "a.jpg" not in text


def test_the_examples_of_a_card_are_code(tiny_pipeline, checkpoint):
    text = card_of(tiny_pipeline, checkpoint, "team/tile").text
    examples = [part.split("````")[0] for part in text.split("````python\n")[1:]]
    assert len(examples) == 3
    for code in examples:
        compile(code, "card", "exec")
    assert 'from_pretrained("team/tile", trust_remote_code=True)' in text
    assert "python app.py --models team/tile" in text


def test_hostile_names_and_settings_are_text(tiny_pipeline, checkpoint):
    keep_results(
        checkpoint, None, EVIL, report_of(all=0.5) | {"groups": report_of(**{"all": 0.5, EVIL: 0.6})["groups"]}
    )
    settings = {"preset": EVIL, "feature_extractor": EVIL, "evil": EVIL, "dataset_name": EVIL, "good_label": EVIL}
    record = {"settings": settings, "held_out": {EVIL: []}, "precision": EVIL}
    (checkpoint / "training.json").write_text(json.dumps(record | {"training_seconds": EVIL, "peak_memory_gb": [1]}))
    card = card_of(tiny_pipeline, checkpoint)
    again = ModelCard(card.content)
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.license == "apache-2.0"
    assert again.data.datasets is None
    outside = "".join(again.text.split("````")[::2])
    assert "<script>" not in outside
    assert "[x](http" not in outside
    assert not [line for line in again.text.splitlines() if line.startswith(("# <", "```\n", "--- #"))]
    assert again.text.count("````") % 2 == 0
    assert "Time: not measured" in again.text
    assert len([line for line in again.text.splitlines() if line.startswith("# ")]) == 1


BIDI = "\u202egnp\u2066.exe\u200b\x1b[2J\x00"


def test_letters_that_cannot_be_seen_and_strings_without_end_stay_out_of_a_card(tiny_pipeline, checkpoint):
    names = [f"{number}{BIDI}{'x' * 5000}" for number in range(300)]
    settings = {"preset": "fast", "feature_extractor": BIDI + "x" * 10**6, "timesteps": names, "seed": 10**300}
    record = {"settings": settings, "held_out": {name: [] for name in names[:100]}, "training_seconds": 1e308}
    (checkpoint / "training.json").write_text(json.dumps(record | {"peak_memory_gb": -1}))
    keep_results(
        checkpoint, None, BIDI, report_of(all=0.5) | {"groups": report_of(**{"all": 0.5, BIDI: 0.6})["groups"]}
    )
    content = card_of(tiny_pipeline, checkpoint).content
    assert not [letter for letter in content if not letter.isprintable() and letter != "\n"]
    assert len(content) < 150_000
    assert "Time: not measured" in content
    assert "Peak memory: not measured" in content
    assert yaml.safe_load(content.split("---\n")[1])["license"] == "apache-2.0"


def test_categories_are_named_and_escaped():
    text = use_section("team/tile", [EVIL, "nuts"])
    code = text.split("````python\n")[1].split("````")[0]
    compile(code, "card", "exec")
    assert "category='a --- # <script>" in code
    assert "<script>" not in text.split("````")[0]
    results = [{"category": "nuts", "data": "d", **report_of(all=0.1)}]
    assert "Measured (nuts) on" in results_section(results)
    data = front_matter("m", "unknown", results)
    assert {item.dataset_config for item in data.eval_results} == {"nuts: all defects"}
    assert data.base_model is None
    assert hub_id_of_backbone("tf_efficientnet_b4").startswith("timm/tf_efficientnet_b4")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 10_000, '{"settings": 3}', '{"settings": {"seed": {"a": 1}}}']
)
def test_a_training_record_of_another_shape_does_no_harm(content, tiny_pipeline, checkpoint):
    (checkpoint / "training.json").write_text(content)
    assert "## Training" in card_of(tiny_pipeline, checkpoint).text


def test_a_card_that_was_edited_is_known_by_its_missing_mark(checkpoint):
    assert not has_edited_card(checkpoint)
    written = (checkpoint / CARD).read_text()
    (checkpoint / CARD).write_text(written.replace(CARD_MARK, ""))
    assert has_edited_card(checkpoint)
    assert not is_edited("---\nlicense: mit\n---\n")  # what the Hub itself puts into a new repository
    assert is_edited("my own words")


def test_the_embedded_checkpoints_card_has_the_figures_of_its_evaluation():
    folder = ROOT / "checkpoints" / "magnetic-tile"
    text = results_section([read_results(folder)], {None: find_sheet(folder)})
    assert "| all defects | 392 | 0.862 | 0.754 | 0.236 | 0.769 | 51 % | 1.9 % |" in text
    assert "](examples/sheet.webp)" in text
    assert "Speed: 0.21 s an image on CPU" in text
    record = json.loads((folder / "training.json").read_text())
    section = training_section(record, "tf_efficientnet_lite0")
    assert "Time: 37 minutes" in section
    assert "training/train.py --preset fast --train_data_dir magnetic_tile --output_dir OUT" in section
    assert "--groups tiles.csv\n````" in section


def test_text_is_one_line_without_markup():
    assert "\n" not in as_text(EVIL)
    assert as_text("a_b*c") == "a\\_b\\*c"
    assert as_text("<b>&") == "&lt;b&gt;&amp;"
