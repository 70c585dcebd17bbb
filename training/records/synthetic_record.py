"""What a finished model makes of synthetic defects, `synthetic_check.json`: numbers, and images of a few of them.

It holds images of parts, so that it stays with whoever trained: it is no part of what is shared of a checkpoint.
"""

import base64
import json
from pathlib import Path

from training.runtime.whole_files import whole_file

SYNTHETIC_CHECK = "synthetic_check.json"
MAX_BYTES = 16 << 20
MAX_COUNT = 1_000_000
MAX_NAME = 200
MAX_SHOWN = 24
WEBP = (b"RIFF", b"WEBP")


def write_check(folder, categories):
    """Leave the record in a checkpoint, in place of any before.

    Args:
        folder (`str` or `Path`): the checkpoint.
        categories (`list[dict]`): of each category `category` (its name, or None), `count` and `rejected` (synthetic
            defects), `false_alarm_rate` (share of good parts that may be rejected at the same threshold), `is_estimate`
            (whether the same good images served to calibrate and to check), `by_kind` (name to how many were rejected
            and how many there were) and `shown`: of each defect `kind`, `is_rejected`, `score`, and `image` and
            `heat_map` (bytes of a WebP image).
    """
    content = [
        category
        | {
            "shown": [
                one | {view: base64.b64encode(one[view]).decode() for view in ("image", "heat_map")}
                for one in category["shown"]
            ]
        }
        for category in categories
    ]
    with whole_file(Path(folder) / SYNTHETIC_CHECK) as stream:
        stream.write(json.dumps(content).encode())


def forget_check(folder):
    """Take the record away from a checkpoint whose model or calibration is another one now."""
    (Path(folder) / SYNTHETIC_CHECK).unlink(missing_ok=True)


def read_check(folder, category=None):
    """The record of a category as `write_check` takes it, but images are still base64, `str`; None without one.

    A record of another shape, or with images that are none, is taken for none.
    """
    path = Path(folder) / SYNTHETIC_CHECK
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        records = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    records = records if isinstance(records, list) else []
    return next((each for each in records if _is_record(each) and each["category"] == category), None)


def _is_record(record):
    if not isinstance(record, dict):
        return False
    category, by_kind, shown = record.get("category", 0), record.get("by_kind"), record.get("shown")
    rate = record.get("false_alarm_rate")
    return (
        (category is None or _is_name(category))
        and _is_pair([record.get("rejected"), record.get("count")])
        and record["count"] > 0
        and isinstance(rate, float)
        and 0 < rate <= 1
        and isinstance(record.get("is_estimate"), bool)
        and isinstance(by_kind, dict)
        and all(_is_name(kind) and _is_pair(counts) for kind, counts in by_kind.items())
        and isinstance(shown, list)
        and len(shown) <= MAX_SHOWN
        and all(map(_is_shown, shown))
    )


def _is_shown(one):
    return (
        isinstance(one, dict)
        and _is_name(one.get("kind"))
        and isinstance(one.get("is_rejected"), bool)
        and isinstance(one.get("score"), float)
        and _is_webp(one.get("image"))
        and _is_webp(one.get("heat_map"))
    )


def _is_pair(counts):
    """Whether it is how many of how many."""
    whole = isinstance(counts, list) and len(counts) == 2 and all(type(count) is int for count in counts)
    return whole and 0 <= counts[0] <= counts[1] <= MAX_COUNT


def _is_name(value):
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_webp(text):
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        return False
    return (content[:4], content[8:12]) == WEBP
