"""A checkpoint as one file to take along."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from page.server.gradio_internals import get_upload_folder
from training.records.checkpoint_contents import REPORT, list_contents


def pack_for_download(folder, name):
    """Write a checkpoint as NAME.zip where the page may serve it, until Gradio's cleaning; returns the path."""
    return pack_checkpoint(folder, Path(tempfile.mkdtemp(dir=get_upload_folder())) / f"{name}.zip")


def report_for_download(folder, name):
    """Copy the report of a checkpoint's training to where the page may serve it, as a file to save; returns the path.

    None without a report. Gradio lets browsers save HTML, and never show it as a page of its own.
    """
    if not (folder / REPORT).is_file():
        return None
    target = Path(tempfile.mkdtemp(dir=get_upload_folder())) / f"{name}-report.html"
    return str(shutil.copyfile(folder / REPORT, target))


def pack_checkpoint(folder, target):
    """Write what belongs to a checkpoint as a ZIP that unpacks to a folder of the target's name.

    Args:
        folder (`Path`): the checkpoint.
        target (`Path`): ends in .zip.

    Returns:
        `str`: the target.

    Raises:
        ValueError: as `list_contents`.
    """
    # Weights hardly shrink.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for name in list_contents(folder).shared:
            archive.write(folder / name, Path(target.stem, name))
    return str(target)
