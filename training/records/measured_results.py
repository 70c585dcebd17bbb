"""What was measured of a checkpoint, kept in its folder: figures in `evaluation.json`, and examples if asked for."""

import hashlib
import json
import math
import re
from pathlib import Path, PurePosixPath

from pipelines.checkpoint_names import EVALUATION
from training.records.error_rates import ALL, are_p_value_counts
from training.records.synthetic_record import forget_check

FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap", "pro", "detection_rate", "false_alarm_rate")
MAX_GROUPS = 200
"""A file with more kinds of defects than this is not one of ours."""

DIGITS = 6
"""Of figures: enough that rounding them again for a reader gives what rounding once does."""

MAX_BYTES = 4 << 20
MAX_NAME = 200
MAX_COUNT = 10**9

PAIR = r"\[\n +([\d.e-]+),\n +(\d+)\n +\]"
"""A list of two numbers, which stands in a line."""

SHEETS = "examples/sheet*.webp"
"""Test images with heat maps and repairs, one file for each category."""


def keep_results(folder, category, data, report):
    """Add the figures of an evaluation to a checkpoint; those of its other categories stay.

    Args:
        folder (`str` or `Path`): the checkpoint.
        category (`str`, *optional*): which of its categories was measured.
        data (`str`): name of the data set.
        report (`dict`): as `training.evaluate.evaluate` makes it.
    """
    groups = {
        name: {figure: round(float(metrics[figure]), DIGITS) for figure in FIGURES}
        for name, metrics in report["groups"].items()
    }
    result = {
        "category": category,
        "data": data,
        "pictures": report["pictures"],
        "promised_false_alarm_rate": round(float(report["promised_false_alarm_rate"]), DIGITS),
        "is_estimate": bool(report.get("is_estimate", False)),
        "speed": report.get("speed"),
        "groups": groups,
    }
    if "p_values" in report:
        result["p_values"] = report["p_values"]
    others = [other for other in _read(folder) if other["category"] != category]
    text = json.dumps([*others, result], indent=2)
    (Path(folder) / EVALUATION).write_text(re.sub(PAIR, r"[\1, \2]", text) + "\n")


def read_results(folder, category=None):
    """What was measured of one category of a checkpoint, `dict` as in `keep_results`; None if nothing was.

    The file may come from anywhere: what does not have that shape is left out. Older ones have no p_values.
    """
    return next((result for result in _read(folder) if result["category"] == category), None)


def forget_results(folder):
    """Take them away, and what synthetic defects have shown: they measured a model that is no more."""
    (Path(folder) / EVALUATION).unlink(missing_ok=True)
    for sheet in Path(folder).glob(SHEETS):
        sheet.unlink()
    forget_check(folder)


def sheet_path(folder, category=None):
    """Where the examples of a category are kept in a checkpoint; names that no file may have get a hash instead."""
    name = "sheet" if category is None else f"sheet-{category}"
    if not re.fullmatch(r"[\w-]{1,80}", name, re.ASCII):
        name = f"sheet-{hashlib.sha256(category.encode()).hexdigest()[:16]}"
    return Path(folder) / "examples" / f"{name}.webp"


def find_sheet(folder, category=None):
    """Path of a category's examples within its checkpoint, as a model card names it; None if there are none."""
    path = sheet_path(folder, category)
    return path.relative_to(folder).as_posix() if path.is_file() else None


def is_sheet(name):
    """Whether a file of a checkpoint, named by its path there, is one that `sheet_path` names."""
    return PurePosixPath(name).match(SHEETS) and name.count("/") == 1


def _read(folder):
    path = Path(folder) / EVALUATION
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return []
    try:
        results = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return []
    return [result for result in results if _is_result(result)] if isinstance(results, list) else []


def _is_result(result):
    """Whether every part of it is of the type it should be."""
    if not isinstance(result, dict):
        return False
    category, groups, images = result.get("category"), result.get("groups"), result.get("pictures")
    return (
        (category is None or _is_name(category))
        and _is_name(result.get("data"))
        and _is_share(result.get("promised_false_alarm_rate"))
        and isinstance(result.get("is_estimate", False), bool)
        and _is_speed(result.get("speed"))
        and isinstance(images, dict)
        and len(images) <= MAX_GROUPS
        and all(isinstance(count, int) and 0 <= count <= MAX_COUNT for count in images.values())
        and isinstance(groups, dict)
        and ALL in groups
        and len(groups) <= MAX_GROUPS
        and all(_is_name(name) for name in groups)
        and all(isinstance(metrics, dict) for metrics in groups.values())
        and all(_is_share(metrics.get(figure)) for metrics in groups.values() for figure in FIGURES)
        and (result.get("p_values") is None or are_p_value_counts(result["p_values"], images))
    )


def _is_name(value):
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_speed(speed):
    """As `training.evaluate` measures it; None in results that are older."""
    if not isinstance(speed, dict):
        return speed is None
    seconds = speed.get("seconds_per_picture")
    counts = speed.get("threads"), speed.get("batch_size")
    return (
        isinstance(seconds, int | float)
        and 0 < seconds < math.inf
        and all(isinstance(count, int) for count in counts)
        and all(isinstance(speed.get(name), str) for name in ("device", "precision"))
    )


def _is_share(value):
    """NaN is one: what was measured on images of one kind alone."""
    return isinstance(value, int | float) and (0 <= value <= 1 or (isinstance(value, float) and math.isnan(value)))
