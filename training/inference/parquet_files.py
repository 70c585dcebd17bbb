"""Parquet files: the package that reads and writes them, if it is there, and anomaly maps kept in them."""

import numpy as np


def import_parquet(option):
    """The module `pyarrow.parquet`.

    Raises:
        ValueError: if it is not installed, with what needs it.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{option} needs the package pyarrow, which comes with: pip install datasets.") from None
    return pyarrow.parquet


def write_maps(files, maps, stream):
    """Write anomaly maps to a binary stream as Parquet, with the columns `file` and `map`.

    A map is a list of rows, each a list of float32 that hold no more than float16 does (11 bits, 0.05 % of a value):
    what any reader of Parquet takes as numbers, in a third of the space of float32 or less, since the bytes are sorted
    by their place in a number before they are compressed.

    Args:
        files (`Sequence[str]`): as the table calls the images.
        maps (`Sequence[np.ndarray]`): float, (height, width) each.
    """
    parquet = import_parquet("--maps")
    import pyarrow

    rows = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    limit = np.finfo(np.float16).max
    rounded = [each.clip(-limit, limit).astype(np.float16).astype(np.float32) for each in maps]
    table = pyarrow.table({"file": list(files), "map": pyarrow.array([list(each) for each in rounded], rows)})
    leaf = "map.list.element.list.element"
    encoding = {"use_dictionary": ["file"], "column_encoding": {leaf: "BYTE_STREAM_SPLIT"}}
    parquet.write_table(table, stream, compression="zstd", **encoding)
