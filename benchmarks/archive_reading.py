"""Reading chosen files out of a zip or tar archive that may be damaged or hostile.

Nothing is unpacked under a name from the archive: what is wanted is handed on as bytes, one file after the other, from
one pass over the archive.
"""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath

from rendering.words import one_line

MAX_FILES = 200_000
"""Entries of an archive; the largest of the official ones has a few thousand."""

MAX_FILE_BYTES = 2**25
"""Of one wanted file; the largest official image has less than a tenth of it."""

MAX_BYTES = 2**34
"""Of an archive when unpacked; MVTec-AD has less than a third of it."""

ZIP_START = b"PK\x03\x04"
OPENERS = {b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
"""First bytes of a compressed tar, and what opens it."""

ENCRYPTED = 1

UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


class RefusedArchiveError(ValueError):
    """An archive that is not read any further, with one sentence that says why."""


def read_files(path, choose, progress):
    """Read the wanted files of an archive in its own order.

    Args:
        path (`Path`): a zip file, or a tar, plain or compressed by gzip, bzip2 or xz.
        choose (`Callable`): what a file is wanted for by its name, such as "screw/train/good/000.png", None if it is
            not wanted.
        progress (`tqdm`): is set to the bytes of the archive that are read.

    Yields:
        `tuple[object, bytes]`: what `choose` returned, and the file's content.

    Raises:
        RefusedArchiveError: if it is damaged or no such archive; if a wanted file is a link, leads out of the archive,
            is encrypted or larger than `MAX_FILE_BYTES`; if there are more files or bytes than in any data set.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
            stream.seek(0)
            read = _read_zip if start.startswith(ZIP_START) else _read_tar
            for count, (purpose, content) in enumerate(read(stream, start, choose, progress)):
                _refuse(count >= MAX_FILES, path, f"holds more than {MAX_FILES:,} entries")
                if purpose is not None:
                    yield purpose, content
        progress.update(progress.total - progress.n)
    except RefusedArchiveError:
        raise
    except UNREADABLE as error:
        reason = one_line(error).rstrip(".")
        raise RefusedArchiveError(
            f"{path} is damaged, cut short or no zip or tar archive ({reason}); download it again."
        ) from error


def _read_zip(stream, start, choose, progress):
    """What each entry is wanted for and its content, both None where it is not wanted."""
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            purpose, content = None if entry.is_dir() else choose(entry.filename), None
            if purpose is not None:
                is_link = stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG)
                _check_entry(stream.name, entry.filename, is_link, entry.file_size)
                _refuse(entry.flag_bits & ENCRYPTED, stream.name, f"is encrypted at {one_line(entry.filename)}")
                with archive.open(entry) as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            progress.update(max(0, entry.header_offset + entry.compress_size - progress.n))
            yield purpose, content


def _read_tar(stream, start, choose, progress):
    """As `_read_zip`, for a tar."""
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    plain = _Bounded(stream if opener is None else opener(stream), stream.name)
    with tarfile.TarFile(fileobj=plain) as archive:
        for entry in archive:
            purpose, content = None if entry.isdir() else choose(entry.name), None
            if purpose is not None:
                _check_entry(stream.name, entry.name, not entry.isreg() or entry.issparse(), entry.size)
                content = archive.extractfile(entry).read()
            archive.members.clear()  # it would keep every entry of gigabytes
            progress.update(stream.tell() - progress.n)
            yield purpose, content


def _check_entry(path, name, is_link, size):
    """Refuse a wanted entry that is no plain file inside of the archive, or too large."""
    parts = PurePosixPath(name)
    shown = one_line(name)
    _refuse(parts.is_absolute() or ".." in parts.parts, path, f"holds {shown}, which leads out of it")
    _refuse(is_link, path, f"holds {shown}, which is a link or no plain file")
    _refuse(size > MAX_FILE_BYTES, path, f"holds {shown} of {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")


def _refuse(is_refused, path, what):
    if is_refused:
        raise RefusedArchiveError(f"{path} {what}; use the archive from the data set's own page.")


class _Bounded(io.RawIOBase):
    """A stream that refuses to go past `MAX_BYTES`, or to read more than `MAX_FILE_BYTES` at once."""

    def __init__(self, stream, path):
        self._stream, self._path = stream, path

    def read(self, size=-1):
        _refuse(not 0 <= size <= MAX_FILE_BYTES, self._path, f"has a header of {size:,} bytes")
        return self._stream.read(size)

    def seek(self, offset, whence=io.SEEK_SET):
        _refuse(offset > MAX_BYTES, self._path, f"unpacks to more than {MAX_BYTES:,} bytes")
        return self._stream.seek(offset, whence)

    def tell(self):
        return self._stream.tell()

    def readable(self):
        return True

    def seekable(self):
        return True
