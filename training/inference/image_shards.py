"""Images to be scored from shards: Parquet files with a column of images, WebDataset's tar archives.

A tar archive is one run, read from its start to its end; so is a group of a Parquet file's row groups. Their names come
with them and are never used as paths. See `image_sources.py` for what a source is.
"""

import os
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rendering.words import one_line
from training.data.hub_images import file_name
from training.data.image_reading import IMAGE_SUFFIXES
from training.inference.image_sources import image_of_bytes, numbered_target, refused_image
from training.inference.parquet_files import import_parquet

SUFFIXES = (".parquet", ".tar")
MAX_BYTES = 1 << 29
"""Of one encoded image: more than `MAX_PIXELS` of 16-bit RGB take, less than a sparse file may claim to hold."""

NO_END = "it has no end mark there, and may be cut short"

ROWS_AT_ONCE = 16
READ_BUFFER = 1 << 20


@dataclass(frozen=True)
class ShardRun:
    """Where a run is.

    Args:
        path (`str`): the shard.
        name (`str`): its path below the folder that all shards share, by which the table calls it.
        groups (`tuple[int, int]`, *optional*): of a Parquet file, its row groups from the first on to before the last.
        first_row (`int`): number of the first row in the file.
    """

    path: str
    name: str
    groups: tuple[int, int] | None = None
    first_row: int = 0


@dataclass(frozen=True)
class ShardImages:
    """The images of some shards, in their order.

    Args:
        runs (`list[ShardRun]`): of all shards.
        num_images (`int`, *optional*): of all, if there are only Parquet files.
        column (`str`): of the images in Parquet files.
        files (`list[list]`): name, size and time of change of each shard.
    """

    runs: list
    num_images: int | None
    column: str
    files: list

    @property
    def identity(self):
        """As `image_sources.py` says."""
        return {"shards": self.files, "column": self.column}

    @property
    def num_runs(self):
        """As `image_sources.py` says."""
        return len(self.runs)

    def images(self, run, start):
        """As `image_sources.py` says. A shard that is damaged ends with an image that says so."""
        run = self.runs[run]
        return _tar_images(run, start) if run.groups is None else _parquet_images(run, self.column, start)


def open_shards(paths, column, run_size):
    """Look at some shards, without reading their images.

    Args:
        paths (`list[str]`): Parquet files and tar archives.
        column (`str`): of the images in Parquet files.
        run_size (`int`): row groups of a Parquet file that hold fewer rows are read together.

    Returns:
        `ShardImages`

    Raises:
        ValueError: with the first shard that is none, is named twice, or has no such column.
    """
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("a shard is named twice; name each once.")
    runs, counts, files = [], [], []
    for path, name in zip(paths, names, strict=True):
        if not os.path.isfile(path):
            raise ValueError(f"shard {path} is no file; name Parquet files or tar archives.")
        state = os.stat(path)
        files.append([name, state.st_size, state.st_mtime_ns])
        if path.endswith(".parquet"):
            found, count = _parquet_runs(path, name, column, run_size)
            runs += found
            counts.append(count)
        elif path.endswith(".tar"):
            try:
                tarfile.open(path, "r:").close()
            except (tarfile.TarError, OSError) as error:
                raise ValueError(f"shard {path} is no tar archive that is not compressed ({error}).") from None
            runs.append(ShardRun(path, name))
            counts.append(None)
        else:
            raise ValueError(f"shard {path} does not end in {' or '.join(SUFFIXES)}; name shards that do.")
    return ShardImages(runs, None if None in counts else sum(counts), column, files)


def _parquet_runs(path, name, column, run_size):
    """The runs of a Parquet file, and its number of rows."""
    parquet = import_parquet("a shard that ends in .parquet")
    import pyarrow

    try:
        with parquet.ParquetFile(path) as shard:
            metadata, schema = shard.metadata, shard.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"shard {path} is no Parquet file that can be read ({one_line(error)[:300]}).") from None
    if column not in schema.names:
        listed = one_line(", ".join(schema.names))[:300]
        raise ValueError(f"shard {path} has no column {column}; name one with --image_column: {listed}.")
    kind = schema.field(column).type
    held = kind.field("bytes").type if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pyarrow.types.is_binary(held) or pyarrow.types.is_large_binary(held)):
        raise ValueError(f"column {column} of shard {path} holds no images; name another with --image_column.")
    runs, first, first_row, rows = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= run_size or group + 1 == metadata.num_row_groups:
            runs.append(ShardRun(path, name, (first, group + 1), first_row))
            first, first_row, rows = group + 1, first_row + rows, 0
    return runs, metadata.num_rows


def _parquet_images(run, column, start):
    import pyarrow

    parquet, row = import_parquet("a shard that ends in .parquet"), 0
    try:
        with parquet.ParquetFile(run.path, buffer_size=READ_BUFFER) as shard:
            batches = shard.iter_batches(ROWS_AT_ONCE, range(*run.groups), columns=[column], use_threads=False)
            for batch in batches:
                values = batch.column(0)
                for place in range(max(start - row, 0), len(values)):
                    yield _row_image(run, run.first_row + row + place, values[place].as_py())
                row += len(values)
    except (pyarrow.ArrowException, OSError) as error:
        number = run.first_row + row
        refusal = f"{run.name} is damaged from row {number} on and cannot be read ({one_line(error)[:300]})."
        yield refused_image(f"{run.name}/{number}", numbered_target(run.name, number, "damaged"), refusal)


def _row_image(run, number, value):
    value = value if isinstance(value, dict) else {"bytes": value}
    ending = file_name({"path": value.get("path")}, "-{}")
    name, target = f"{run.name}/{number}{ending}", numbered_target(run.name, number, ending.lstrip("-"))
    if value["bytes"] is None:
        return refused_image(name, target, f"{name} holds no image.")
    return image_of_bytes(name, target, lambda: value["bytes"])


def _tar_images(run, start):
    place, size = 0, os.path.getsize(run.path)
    try:
        with tarfile.open(run.path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # it would remember all of them
                if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                    if place >= start:
                        name = f"{run.name}/{member.name}".encode(errors="backslashreplace").decode()
                        target = numbered_target(run.name, place, member.name)
                        yield image_of_bytes(name, target, partial(_read_member, archive, member, name))
                    place += 1
            archive.fileobj.seek(archive.offset)
            # the library takes whatever is no head of a member for the end of the archive
            refusal = None if archive.fileobj.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE else NO_END
    except (tarfile.TarError, OSError, ValueError) as error:
        refusal = one_line(error)[:300]
    if refusal is not None and place >= start:
        refusal = f"{run.name}, {size} bytes, is damaged after {place} images ({refusal})."
        yield refused_image(f"{run.name}/{place}", numbered_target(run.name, place, "damaged"), refusal)


def _read_member(archive, member, name):
    if member.size > MAX_BYTES:
        raise ValueError(f"{name} holds {member.size} bytes; at most {MAX_BYTES >> 20} MB are accepted.")
    try:
        return archive.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{name} is damaged or cut short and cannot be read ({error}).") from error
