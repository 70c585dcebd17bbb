"""Good images of an opened data set: choosing its rows, reading what they hold, checking it as files are checked.

They are decoded by `data.read_image`, so that the same ones are refused as in a folder.
"""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath

from huggingface_hub import constants
from tqdm.auto import tqdm

from rendering.words import one_line
from training.data.image_reading import read_image

READ_AHEAD = 8
"""Files that are fetched at the same time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class HubImage:
    """An image of a data set; `hold_out`, `GoodImages` and `fit_calibration` take it where they take a `Path`.

    Args:
        place (`int`): images are sorted by it: the row, or the place in a stream's sample.
        name (`str`): what messages and records call it.
        key (`str`): SHA-256 of its content, hexadecimal; what splits go by.
        read (`Callable[[], bytes]`): its content, encoded.
        group (`str`, *optional*): the part that it shows, where the data set has a column for it; "" where the row
            has none.
        file (`str`): name of its file in the data set; "" if it has none.
    """

    place: int
    name: str = field(compare=False)
    key: str = field(compare=False)
    read: Callable = field(compare=False, repr=False)
    group: str | None = field(default=None, compare=False)
    file: str = field(default="", compare=False)


@dataclass(frozen=True)
class GoodRows:
    """The good rows of one split of a data set, whose images are not decoded yet.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`): of columns `column` and perhaps `label_column`.
        name (`str`): Hub id of the data set.
        split (`str`): its part.
        column (`str`): where the images are.
        label_column (`str`, *optional*): where it says what is good; without it every row is.
        good_label (*optional*): value of the good ones there.
        token (`str`, *optional*): for files that are read while training.
        group_column (`str`, *optional*): where it says which part an image shows.
    """

    rows: object
    name: str
    split: str
    column: str
    label_column: str | None = None
    good_label: object = None
    token: str | None = field(default=None, repr=False)
    group_column: str | None = None

    def group_of(self, row):
        """The part that a row's image shows, as text; None if the data set has no column for it."""
        if self.group_column is None:
            return None
        value = row[self.group_column]
        return "" if value is None else str(value)

    def is_good(self, row):
        """Whether a row's label, if labels are asked for, is the good one."""
        return self.label_column is None or row[self.label_column] == self.good_label

    def find_good(self):
        """Numbers of the good rows; not of a stream."""
        if self.label_column is None:
            return list(range(len(self.rows)))
        return [number for number, label in enumerate(self.rows[self.label_column][:]) if label == self.good_label]

    def read(self, number):
        """The encoded image of a row; not of a stream. Errors are those of `content_of`."""
        return self.content_of(self.rows[number][self.column], f"row {number} of {self.split}")

    def content_of(self, value, name):
        """The encoded image of a cell, `bytes`.

        Raises:
            ValueError: with the name, if there is none, or it lies in a file that is not the data set's.
        """
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise ValueError(f"{name} holds no image.")
        if value["bytes"] is not None:
            return value["bytes"]
        if not self._owns(value["path"]):
            raise ValueError(f"{name} names {one_line(value['path'])}, which is no file of {self.name}.")
        from datasets import DownloadConfig
        from datasets.utils.file_utils import xopen

        with xopen(value["path"], "rb", download_config=DownloadConfig(token=self.token)) as stream:
            return stream.read()

    def fetch(self, rows):
        """Yield name, content, refusal (`ValueError`) and part of rows, in their order; several are fetched at once.

        A row that cannot be read has no content, and one that can no refusal.
        """
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            fetched = deque()
            for row in rows:
                fetched.append(pool.submit(self._fetch_row, row))
                if len(fetched) == READ_AHEAD:
                    yield fetched.popleft().result()
            while fetched:
                yield fetched.popleft().result()

    def _fetch_row(self, row):
        value = row[self.column]
        name = (file_name(value) if value else "") or f"a row of {self.split}"
        try:
            return name, self.content_of(value, name), None, self.group_of(row)
        except ValueError as refusal:
            return name, None, refusal, None

    def _owns(self, path):
        """Whether a file is the data set's: there on the Hub, here in the cache, or inside a ZIP archive of either."""
        from datasets.config import HF_DATASETS_CACHE

        *members, file = path.split("::")
        if not all(member.startswith("zip://") for member in members):
            return False
        if file.startswith(f"hf://datasets/{self.name}@"):
            return True
        cached = Path(constants.HF_HUB_CACHE, f"datasets--{self.name.replace('/', '--')}")
        path = os.path.abspath(file)
        return any(Path(path).is_relative_to(os.path.abspath(folder)) for folder in (cached, HF_DATASETS_CACHE))


def find_good_rows(source):
    """The good images of a data set that can be read, `list[HubImage]`; those that cannot are warned of."""
    images = []
    for number in tqdm(source.find_good(), desc="checking images", unit="image"):
        name = f"row {number} of {source.split}"
        try:
            row = source.rows[number]
            value = row[source.column]
            content = source.content_of(value, name)
            name = f"{name}{file_name(value, ' ({})')}"
            read_image(BytesIO(content), name)
        except ValueError as error:
            logger.warning("left out: %s", error)
            continue
        images.append(
            HubImage(
                number, name, key_of(content), partial(source.read, number), source.group_of(row), file_name(value)
            )
        )
    return images


def file_name(value, form="{}"):
    """The file's name of a cell, put into a form; "" where it has none."""
    name = PurePosixPath((value["path"] or "").split("::")[0]).name
    return form.format(one_line(name)) if name else ""


def key_of(content):
    """What an image of a data set is known by: the SHA-256 of its encoded content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
