"""The table of scored images: one row for each, as a record, as a line of CSV, as a row of Parquet."""

import csv
import io
import math
from dataclasses import dataclass
from itertools import islice

from rendering.words import escaped
from training.inference.parquet_files import import_parquet

COLUMNS = ("file", "verdict", "anomaly_score", "p_value", "defect_pixels", "defect_share", "error", "unfamiliarity")

VERDICTS = ("good", "defect", "unfamiliar", "unreadable")
"""Of an image that is unfamiliar neither of the first two can be said; its numbers are there all the same."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins with one of these for a formula."""

ROW_GROUP = 1 << 16
"""Rows that are read together from a table in Parquet."""


@dataclass(frozen=True)
class ScoreRow:
    """One image's result.

    Args:
        file (`str`): its name, or its path in the folder or ZIP.
        verdict (`str`): one of `VERDICTS`; for "unreadable" the numbers are None.
        anomaly_score, p_value (`float`, *optional*): as in `AnomalyScoringOutput`.
        defect_pixels (`int`, *optional*): area of the mask.
        defect_share (`float`, *optional*): the same as a share of the image, in [0, 1].
        error (`str`): why it could not be read, or what makes its result doubtful; "" if nothing does.
        unfamiliarity (`float`, *optional*): as in `AnomalyScoringOutput`; None where the model cannot tell.
    """

    file: str
    verdict: str
    anomaly_score: float | None = None
    p_value: float | None = None
    defect_pixels: int | None = None
    defect_share: float | None = None
    error: str = ""
    unfamiliarity: float | None = None

    def cells(self):
        """The row as it is written, `dict[str, str]`: numbers rounded, no cell a spreadsheet's formula."""
        formats = {"anomaly_score": ".4f", "p_value": ".4f", "defect_pixels": "d", "defect_share": ".6f"}
        formats["unfamiliarity"] = ".3f"
        values = {name: getattr(self, name) for name in COLUMNS}
        return {
            name: "" if value is None else format(value, formats[name]) if name in formats else as_text_cell(value)
            for name, value in values.items()
        }


def scored_row(file, output, index, misfit=None):
    """The row of one image of an `AnomalyScoringOutput`, which holds arrays; `misfit` is that of `misfit_of`."""
    mask = output.pred_mask[index]
    verdict = "defect" if output.is_anomalous[index] else "good"
    return ScoreRow(
        file,
        "unfamiliar" if output.is_unfamiliar[index] else verdict,
        float(output.anomaly_score[index]),
        float(output.p_value[index]),
        int(mask.sum()),
        float(mask.mean()),
        f"{file} {misfit}" if misfit else "",
        known_number(output.unfamiliarity[index]),
    )


def known_number(value):
    """A number as `float`, or None where it is NaN: neither JSON nor a table has that."""
    return None if math.isnan(value) else float(value)


def unreadable_row(file, error):
    """The row of an image that could not be read, with the reason."""
    return ScoreRow(file, "unreadable", error=str(error))


def as_text_cell(text):
    """Text that a spreadsheet shows as it is, on one line: an apostrophe goes before what it took for a formula."""
    return "'" + escaped(text) if text.startswith(FORMULA_STARTS) else escaped(text)


def table_writer(stream):
    """Write the head of the table to a text stream. Returns the `csv.DictWriter` for the rows' cells."""
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    return writer


def write_csv(rows, stream):
    """Write rows (an iterable of `ScoreRow`) to a binary stream as CSV, UTF-8."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = table_writer(text)
    for row in rows:
        writer.writerow(row.cells())
    text.detach()


def write_parquet(rows, stream):
    """Write rows (an iterable of `ScoreRow`) to a binary stream as Parquet: numbers as they are, not rounded."""
    parquet = import_parquet("--format parquet")
    import pyarrow

    kinds = {"anomaly_score": pyarrow.float64(), "p_value": pyarrow.float64()}
    kinds |= {"defect_pixels": pyarrow.int64(), "defect_share": pyarrow.float64(), "unfamiliarity": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    rows = iter(rows)
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP)):
            columns = {name: [getattr(row, name) for row in group] for name in COLUMNS}
            writer.write_table(pyarrow.table(columns, schema))


FORMATS = {"csv": write_csv, "parquet": write_parquet}
"""How the table is written, by the ending of its file."""
