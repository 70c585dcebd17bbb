"""Images to be scored, however many: a folder tree, the rows of a data set of the Hub; shards: `image_shards.py`.

A source cuts its images into runs. A run is read from its start by one process, so that it may be a stream; images
are numbered by their run and their place in it. Nothing in memory grows with the number of images. A source has

    num_runs            how many runs there are
    num_images        how many images at most, None if that is not known before they are read
    identity            a `dict` of what makes the images others than those of another source
    images(run, start)    yields the `SourceImage`s of a run from place `start` on, always in the same order
"""

import hashlib
import os
import re
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath

from training.data.hub_dataset import data_set_sentences
from training.data.hub_images import GoodRows, file_name
from training.data.image_folders import MAX_NAME, short_enough, walk_images
from training.data.image_reading import read_image
from training.data.image_stream import MAX_RUNS
from training.runtime.whole_files import PARTIAL


@dataclass(frozen=True)
class SourceImage:
    """An image that is not decoded yet.

    Args:
        name (`str`): what the table calls it; it can be printed and encoded.
        target (`str`): path, within a folder, of files that belong to it; no other image of the source has the same.
        decode (`Callable[[], PIL.Image.Image]`): reads it; errors are those of `data.read_image`.
    """

    name: str
    target: str
    decode: Callable = field(repr=False)


def image_of_bytes(name, target, read):
    """The `SourceImage` whose encoded content `read()` returns, or refuses with a `ValueError`."""
    return SourceImage(name, target, lambda: read_image(BytesIO(read()), name))


def refused_image(name, target, refusal):
    """A `SourceImage` that cannot be read, with the reason."""

    def refuse():
        raise ValueError(str(refusal))

    return SourceImage(name, target, refuse)


def numbered_target(folder, place, name):
    """A `SourceImage.target` for a name that somebody else has given, which may be hostile or not the only one."""
    return f"{folder}/{place:07}-{re.sub(r'[^A-Za-z0-9._-]+', '_', PurePosixPath(name).name)[-MAX_NAME // 2 :]}"


@dataclass(frozen=True)
class FolderImages:
    """The images below a folder, sorted by path, from a listing on the disk.

    Args:
        folder (`str`): where they are.
        listing (`str`): file of the listing.
        num_images (`int`): how many it lists.
        run_size (`int`): images of a run, the last one perhaps shorter.
        digest (`str`): SHA-256 of their paths, sizes and times of change.
    """

    folder: str
    listing: str
    num_images: int
    run_size: int
    digest: str

    @property
    def identity(self):
        """As the module says."""
        return {"folder": self.digest}

    @property
    def num_runs(self):
        """As the module says."""
        return -(-self.num_images // self.run_size)

    def images(self, run, start):
        """As the module says."""
        first = run * self.run_size
        with closing(sqlite3.connect(_uri(self.listing, "immutable=1"), uri=True)) as listing:
            rows = listing.execute(
                "SELECT file FROM listing WHERE rowid > ? AND rowid <= ? ORDER BY rowid",
                (first + start, first + self.run_size),
            ).fetchall()
        for (key,) in rows:
            encoded = key.replace(b"\0", os.sep.encode())
            path = Path(self.folder, os.fsdecode(encoded))
            name = encoded.decode(errors="backslashreplace")
            yield SourceImage(name, short_enough(os.fsdecode(encoded)), partial(read_image, path))


def list_folder(folder, listings, run_size, left_out):
    """List a folder, sorted on the disk, and return its `FolderImages`.

    Args:
        folder, left_out: as in `data.walk_images`, with its errors.
        listings (`Path`): the folder where the listing goes, under a name that its content determines.
        run_size (`int`): of `FolderImages`.
    """
    listing = listings / f".listing{PARTIAL}"
    listing.unlink(missing_ok=True)
    digest, count = hashlib.sha256(), 0

    def found():
        for name, entry in walk_images(folder, left_out, with_masks=False):
            state = entry.stat()
            # names sort like the parts of paths: a folder comes before what merely begins with its name
            yield os.fsencode(name).replace(os.sep.encode(), b"\0"), state.st_size, state.st_mtime_ns

    def sorted_files():
        nonlocal count
        for row in database.execute("SELECT file, size, changed FROM found ORDER BY file"):
            digest.update(repr(row).encode())
            count += 1
            yield row[:1]

    try:
        with closing(sqlite3.connect(_uri(listing, "nolock=1"), uri=True)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE found (file BLOB, size INTEGER, changed INTEGER)")
            database.execute("CREATE TABLE listing (file BLOB)")
            database.executemany("INSERT INTO found VALUES (?, ?, ?)", found())
            database.executemany("INSERT INTO listing VALUES (?)", sorted_files())
            database.execute("DROP TABLE found")
            database.commit()
    except sqlite3.Error as error:
        raise ValueError(f"the list of {folder} cannot be written to {listing} ({error}); make room for it.") from error
    named = listing.replace(listings / f"listing-{digest.hexdigest()[:16]}.sqlite")
    return FolderImages(str(folder), str(named), count, run_size, digest.hexdigest())


@dataclass(frozen=True)
class HubRows:
    """The images of a data set's rows, downloaded or streamed.

    Args:
        source (`GoodRows`): the rows.
        revision (`str`): their commit.
        run_size (`int`): rows of a run; a stream's runs are runs of its files instead, at most `MAX_RUNS`.
        config (`str`, *optional*): the data set's configuration.
    """

    source: GoodRows
    revision: str
    run_size: int
    config: str | None = None

    @property
    def is_stream(self):
        """Whether the rows can be read in their order only."""
        return not hasattr(self.source.rows, "__len__")

    @property
    def identity(self):
        """As the module says."""
        names = ("name", "split", "column", "label_column", "good_label")
        chosen = {name: getattr(self.source, name) for name in names}
        return chosen | {"config": self.config, "revision": self.revision, "streaming": self.is_stream}

    @property
    def num_images(self):
        """As the module says."""
        return None if self.is_stream else len(self.source.rows)

    @property
    def num_runs(self):
        """As the module says."""
        rows = self.source.rows
        return min(rows.num_shards, MAX_RUNS) if self.is_stream else -(-len(rows) // self.run_size)

    def images(self, run, start):
        """As the module says; a stream's row is named after its run and its place there."""
        table, folder = self.source.rows, self.source.split
        if self.is_stream:
            rows, first, folder = table.shard(self.num_runs, run), 0, f"{folder}/{run}"
        else:
            first = run * self.run_size
            rows = (table[number] for number in range(first, min(first + self.run_size, len(table))))
        numbered = ((number, row) for number, row in enumerate(rows, first) if self.source.is_good(row))
        numbers = deque()

        def noted():
            for number, row in islice(numbered, start, None):
                numbers.append((number, file_name(row[self.source.column] or {"path": None}, "-{}")))
                yield row

        with data_set_sentences(self.source.name, self.source.token):
            for _, content, refusal, _ in self.source.fetch(noted()):
                number, ending = numbers.popleft()
                name, target = f"{folder}/{number}{ending}", numbered_target(folder, number, ending.lstrip("-"))
                if refusal is not None:
                    yield refused_image(name, target, refusal)
                else:
                    yield image_of_bytes(name, target, lambda content=content: content)


def _uri(path, options):
    return f"{Path(path).absolute().as_uri()}?{options}"
