"""Files that are there whole or not at all, whenever the process that writes them is killed."""

import os
import uuid
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ends the name of what is not whole yet."""


@contextmanager
def whole_file(path, folder=None, durable=True):
    """Within the block a binary stream is written, which becomes the file `path` at its end.

    Args:
        path (`Path`): it replaces what is there.
        folder (`Path`, *optional*): where it lies until then, on the same disk; by default beside it.
        durable (`bool`): whether the system writes it to disk first, for a machine that loses power.
    """
    partial = Path(folder or path.parent, f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def clear_partial_files(folder):
    """Delete what processes that were killed have left half written in a folder."""
    for leftover in Path(folder).glob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)
