"""Archives as data sets come in, made of a few bytes."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def encoded(values, kind="PNG"):
    """The file of an image, uint8, (height, width) or (height, width, 3)."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(stream, kind)
    return stream.getvalue()


def write_archive(path, files):
    """Write `files`, a dict of name to bytes or to a `tarfile.TarInfo` without content, as the path's suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, TAR_MODES["".join(path.suffixes)]) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            entry.size = len(content) if isinstance(content, bytes) else entry.size
            archive.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path
