"""Results of `accuracy.py` that are kept: one CSV a category, a row for each method, seed and setting."""

import csv
import os
from pathlib import Path

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")

SETTINGS = ("backbone", "method", "seed", "resolution", "smoothing", "groups", "steps")
"""Everything that a result depends on; "" where it does not depend on one."""

COLUMNS = (*SETTINGS, "good", "test", *METRICS, *(f"{name}_error" for name in METRICS))


class KeptResults:
    """The results of one category.

    Args:
        folder (`Path`): where CSV files of all categories lie.
        category (`str`): its name.
    """

    def __init__(self, folder, category):
        self.path, self.category = Path(folder) / f"{category}.csv", category

    def find(self, settings):
        """The result of some settings (`dict` of `SETTINGS`) as `keep` was given it, or None."""
        row = self._rows().get(_key(settings))
        if row is None:
            return None
        numbers = {name: float(row[name]) for name in METRICS}
        errors = {name: float(row[f"{name}_error"]) for name in METRICS}
        about = {"category": self.category, "method": row["method"], "seed": int(row["seed"])}
        about |= {"backbone": row["backbone"], "good": int(row["good"]), "test": int(row["test"])}
        return about | numbers | {"standard_error": errors}

    def keep(self, settings, result):
        """Add a result, or replace the one of the same settings; a file is never left half written."""
        row = {name: str(settings[name]) for name in SETTINGS} | {name: result[name] for name in ("good", "test")}
        row |= {name: round(result[name], 6) for name in METRICS}
        row |= {f"{name}_error": round(result["standard_error"][name], 6) for name in METRICS}
        rows = self._rows() | {_key(settings): row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".partial-{os.getpid()}")
        with open(partial, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[key] for key in sorted(rows))
        partial.replace(self.path)

    def _rows(self):
        if not self.path.is_file():
            return {}
        with open(self.path, newline="", encoding="utf-8") as stream:
            return {_key(row): row for row in csv.DictReader(stream)}


def _key(settings):
    return tuple(str(settings[name]) for name in SETTINGS)
