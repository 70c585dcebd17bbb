"""The record of synthetic defects that a checkpoint keeps: read as it was written, and taken for none if it is odd."""

import base64
import json

import pytest

from training.engine.synthetic_views import leave_check
from training.fitting.synthetic_check import check_synthetic_defects
from training.records.checkpoint_contents import list_contents
from training.records.measured_results import forget_results
from training.records.synthetic_record import SYNTHETIC_CHECK, read_check, write_check

WEBP = base64.b64encode(b"RIFF0000WEBP").decode()
SHOWN = {"kind": "stain", "is_rejected": True, "score": 3.0, "image": WEBP, "heat_map": WEBP}
RECORD = {
    "category": None,
    "count": 90,
    "rejected": 40,
    "false_alarm_rate": 0.05,
    "is_estimate": False,
    "by_kind": {"stain": [7, 15]},
    "shown": [SHOWN],
}


def test_a_check_is_read_as_it_was_left_and_is_not_shared(tiny_pipeline, tile_files, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    check = check_synthetic_defects(tiny_pipeline, tile_files, count=12, num_shown=2)
    leave_check(tiny_pipeline, {"tile": check}, tmp_path)
    record = read_check(tmp_path)
    assert (record["count"], record["rejected"]) == (12, check.num_rejected)
    assert record["is_estimate"]
    assert [one["kind"] for one in record["shown"]] == [one.kind for one in check.shown]
    assert record["by_kind"] == {kind: list(counts) for kind, counts in check.by_kind().items()}
    assert read_check(tmp_path, "tile") is None
    assert SYNTHETIC_CHECK in list_contents(tmp_path).left_out
    assert SYNTHETIC_CHECK not in list_contents(tmp_path).shared
    forget_results(tmp_path)  # another calibration takes its place
    assert read_check(tmp_path) is None


def test_categories_are_kept_apart(tmp_path):
    shown = [SHOWN | dict.fromkeys(("image", "heat_map"), b"RIFF0000WEBP")]
    for_both = [RECORD | {"category": name, "rejected": count, "shown": shown} for name, count in (("a", 1), ("b", 2))]
    write_check(tmp_path, for_both)
    assert [read_check(tmp_path, name)["rejected"] for name in ("a", "b")] == [1, 2]
    assert read_check(tmp_path, "a")["shown"] == [SHOWN]
    assert read_check(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0, "rejected": 0},
        {"rejected": 91},
        {"rejected": -1},
        {"rejected": "<b>"},
        {"rejected": True},
        {"false_alarm_rate": 0.0},
        {"false_alarm_rate": "<b>"},
        {"false_alarm_rate": float("nan")},
        {"is_estimate": "<b>"},
        {"by_kind": {"stain": [3, 2]}},
        {"by_kind": {"x" * 1000: [1, 2]}},
        {"by_kind": [1]},
        {"shown": [SHOWN | {"image": '"><script>'}]},
        {"shown": [SHOWN | {"image": base64.b64encode(b"<svg onload=alert(1)>").decode()}]},
        {"shown": [SHOWN | {"image": WEBP + '" onerror="x'}]},
        {"shown": [SHOWN | {"heat_map": None}]},
        {"shown": [SHOWN | {"score": "<b>"}]},
        {"shown": [SHOWN] * 100},
        {"category": ["x"]},
    ],
)
def test_a_record_of_another_shape_is_none(changes, tmp_path):
    (tmp_path / SYNTHETIC_CHECK).write_text(json.dumps([RECORD | changes]))
    assert read_check(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "null", "[1]", "[" * 10_000, "[" + " " * (17 << 20) + "]"])
def test_a_file_that_is_no_record_is_none(content, tmp_path):
    (tmp_path / SYNTHETIC_CHECK).write_text(content)
    assert read_check(tmp_path) is None


def test_the_record_above_is_one(tmp_path):
    (tmp_path / SYNTHETIC_CHECK).write_text(json.dumps([RECORD]))
    assert read_check(tmp_path) == RECORD
