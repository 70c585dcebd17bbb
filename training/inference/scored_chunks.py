"""What makes scoring restartable: finished chunks of the table, and a manifest of what they belong to.

OUT/manifest.json says which model, images and settings the scores in OUT are of; others are refused. Until the table
is whole, OUT/parts holds a file for each chunk that is finished, whose first line says how many images it has and
whether it is its run's last, and each other line is a row. Every file is there whole or not at all; its name follows
from its place, so that a chunk that is scored twice is written once.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from training.inference.score_table import ScoreRow
from training.runtime.output_folder import prepare_output_dir
from training.runtime.whole_files import clear_partial_files, whole_file

MANIFEST = "manifest.json"
CHUNKS = "parts"
MAPS = "maps"
PREFIX = "part-"


class ScoredChunks:
    """The finished chunks in an output folder.

    Args:
        output_dir (`Path`): the folder.
        table_format (`str`): ending of the table's file.
    """

    def __init__(self, output_dir, table_format="csv"):
        self.output_dir, self.table_format = Path(output_dir), table_format
        self.table = self.output_dir / f"scores.{table_format}"
        self.folder, self.maps = self.output_dir / CHUNKS, self.output_dir / MAPS
        self._held = None

    def __getstate__(self):
        return self.__dict__ | {"_held": None}  # a loader's process is not the one that holds

    def prepare(self):
        """Create the folder, and clear it of what killed processes have left half written; for the main process.

        Returns:
            `dict` or None: the manifest, if there is one.

        Raises:
            ValueError: if the main process of another run is at work there, or the manifest is not one of ours.
        """
        prepare_output_dir(self.folder)
        if not self.hold(0):
            raise ValueError(f"another run is writing to {self.output_dir}; wait for its end, or end it.")
        clear_partial_files(self.folder)
        return read_manifest(self.output_dir)

    def admit(self, manifest, described):
        """Begin scores, or go on with those of a manifest if they are of the same; for the main process.

        Args:
            manifest (`dict`, *optional*): as `prepare` returns it.
            described (`dict`): as `describe_scores` returns it.

        Returns:
            `tuple[dict, dict]`: `described`, and how many images have each verdict if the table is whole, else None.

        Raises:
            ValueError: if what the folder holds is of something else.
        """
        if manifest is None:
            for folder in (self.folder, self.maps):  # nobody knows what they are of
                for leftover in folder.glob(f"{PREFIX}*"):
                    leftover.unlink()
            _write_manifest(self, described, None)
            return described, None
        _check_manifest(self.output_dir, manifest, described)
        counts = manifest["counts"] if self.table.is_file() else None
        if counts is not None:
            self.remove()
        return described, counts

    def finish(self, described, counts):
        """Say that the table is whole, with how many images have each verdict, and delete the chunks."""
        _write_manifest(self, described, counts)
        self.remove()

    def hold(self, process):
        """Show the others that process number `process` is alive, until it ends, or is killed.

        Returns:
            `bool`: False if another process shows that of this number already.
        """
        held = self._lock(process)
        try:
            held.acquire(timeout=0)
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # a disk that cannot lock: nothing tells who is alive there
            Path(held.lock_file).touch()
        self._held = held
        return True

    def is_held(self, process):
        """Whether process number `process` is alive, as far as the system tells."""
        lock = self._lock(process)
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock.acquire(timeout=0):
                return False
        except (Timeout, OSError, NotImplementedError):  # where a disk cannot lock, it is taken to be alive
            return True

    def _lock(self, process):
        return FileLock(self.folder / f".process-{process}")

    def write(self, run, chunk, rows, is_last):
        """Keep the rows (`list[ScoreRow]`) of a chunk; `is_last` says that the run ends with it."""
        lines = [json.dumps({"pictures": len(rows), "is_last": is_last}), *(json.dumps(asdict(row)) for row in rows)]
        with whole_file(self._path(run, chunk)) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode())

    def finished(self, run):
        """How many chunks of a run are finished, from its first on, and whether they are all, `tuple[int, bool]`."""
        count = 0
        while self._path(run, count).exists():
            count += 1
        return count, count > 0 and self._head(run, count - 1)["is_last"]

    def count_images(self, num_runs):
        """Images in the finished chunks of the first `num_runs` runs."""
        return sum(
            self._head(run, chunk)["pictures"] for run in range(num_runs) for chunk in range(self.finished(run)[0])
        )

    def count(self):
        """How many chunks are finished, of all runs and processes."""
        return sum(1 for path in self.folder.iterdir() if path.name.startswith(PREFIX))

    def rows(self, run):
        """Yield the rows of a finished run, `ScoreRow`, in their order."""
        for chunk in range(self.finished(run)[0]):
            with open(self._path(run, chunk), encoding="utf-8") as stream:
                next(stream)
                for line in stream:
                    yield ScoreRow(**json.loads(line))

    def remove(self):
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def give_up(self):
        """After a refusal, leave nothing behind that was not there before."""
        if self._held is not None and not self.count():
            self.remove()
            with suppress(OSError):  # of an output folder that holds something
                self.output_dir.rmdir()

    def name(self, run, chunk):
        """Name of a chunk's files, without ending; in alphabetical order they are in that of the images."""
        return f"{PREFIX}{run:06}-{chunk:05}"

    def _path(self, run, chunk):
        return self.folder / f"{self.name(run, chunk)}.jsonl"

    def _head(self, run, chunk):
        with open(self._path(run, chunk), encoding="utf-8") as stream:
            return json.loads(next(stream))


def describe_scores(hashes, identity, settings):
    """What scores are of, as the manifest keeps it.

    Args:
        hashes (`dict[str, str]`): SHA-256 of each file of the model.
        identity (`dict`): of the images' source.
        settings (`dict`): whatever else the table depends on.
    """
    digests = (hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest() for each in (hashes, identity))
    return dict(zip(("model", "pictures"), digests, strict=True)) | {"settings": settings}


def read_manifest(output_dir):
    """The manifest in an output folder, None if there is none.

    Raises:
        ValueError: if it is not one of ours.
    """
    path = Path(output_dir) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if {"model", "pictures", "settings", "counts"} <= manifest.keys():
            return manifest
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is no record of scores; name another --output_dir, or delete that file.")


def _write_manifest(chunks, described, counts):
    with whole_file(chunks.output_dir / MANIFEST, chunks.folder) as stream:
        stream.write((json.dumps(described | {"counts": counts}, indent=2) + "\n").encode())


def _check_manifest(output_dir, manifest, described):
    remedy = "name another --output_dir, or delete that one"
    for key, other in (("model", "another model"), ("pictures", "other images")):
        if manifest[key] != described[key]:
            raise ValueError(f"{output_dir} holds the scores of {other}; {remedy}.")
    for name, value in described["settings"].items():
        former = manifest["settings"].get(name)
        if former != value:
            former, value = ("the default" if each is None else each for each in (former, value))
            raise ValueError(f"{output_dir} holds scores with --{name} {former}, not {value}; {remedy}.")
