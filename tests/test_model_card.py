"""The model card: every measured figure, what was not measured, the Hub's own reading of it, and hostile names."""

import json
import shlex
import shutil

import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard, ModelCardData

from pipelines.checkpoint_files import CARD, CARD_MARK
from training.arguments import parse_args
from training.card_front_matter import front_matter, hub_id_of_backbone
from training.card_sections import as_text, results_section, training_section, use_section
from training.measured_results import FIGURES, keep_results, read_results
from training.model_card import build_model_card, has_edited_card, is_edited
from training.training_record import settings_to_record

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
    for figure in ("0.500", "0.710", "54.0%"):
        assert figure in card.text
    assert "@article{huang2020surface" in card.text


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
    settings = settings_to_record(
        parse_args(["--train_data_dir", "X", "--output_dir", "X", "--max_train_steps", "7", "--no-normalize_contrast"])
    )
    record = {"settings": settings, "training_seconds": 120, "peak_memory_gb": 2.3, "held_out": {"my tiles": ["a.jpg"]}}
    (checkpoint / "training.json").write_text(json.dumps(record))
    text = card_of(tiny_pipeline, checkpoint).text
    assert "24 good pictures by cross-fitting" in text
    command = text.split("accelerate launch training/train.py ")[1].split("\n````")[0]
    again = parse_args(shlex.split(command.replace("\\\n", " ")))
    assert settings_to_record(again) == settings
    assert again.train_data_dir == ["my tiles"]
    assert "Time: 2 minutes" in text
    assert "2.3 GB" in text
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
    record = {"settings": {"preset": EVIL, "feature_extractor": EVIL, "evil": EVIL}, "held_out": {EVIL: []}}
    (checkpoint / "training.json").write_text(json.dumps(record | {"training_seconds": EVIL, "peak_memory_gb": [1]}))
    card = card_of(tiny_pipeline, checkpoint)
    again = ModelCard(card.content)
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.license == "apache-2.0"
    outside = "".join(again.text.split("````")[::2])
    assert "<script>" not in outside
    assert "[x](http" not in outside
    assert not [line for line in again.text.splitlines() if line.startswith(("# <", "```\n", "--- #"))]
    assert again.text.count("````") % 2 == 0
    assert "Time: not measured" in again.text
    assert len([line for line in again.text.splitlines() if line.startswith("# ")]) == 1


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
    text = results_section([read_results(folder)])
    assert "| all defects | 392 | 0.950 | 0.765 | 0.256 | 0.769 | 58.9% | 0.5% |" in text
    record = json.loads((folder / "training.json").read_text())
    assert "Time: not measured" in training_section(record, "tf_efficientnet_lite0")


def test_text_is_one_line_without_markup():
    assert "\n" not in as_text(EVIL)
    assert as_text("a_b*c") == "a\\_b\\*c"
    assert as_text("<b>&") == "&lt;b&gt;&amp;"
