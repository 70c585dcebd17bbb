"""A checkpoint as one file to take along."""

import zipfile
from pathlib import Path

LEFT_OUT = ("checkpoint-*", "logs", "progress.jsonl", ".*")
"""What only the training itself needs."""


def pack_checkpoint(folder, target):
    """Write a checkpoint folder as a ZIP that unpacks to a folder of the target's name; returns the path as a string.

    Args:
        folder (`Path`): the checkpoint.
        target (`Path`): ends in .zip.
    """
    # Weights hardly shrink.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(Path(parts[0]).match(pattern) for pattern in LEFT_OUT):
                archive.write(path, Path(target.stem, *parts))
    return str(target)
