"""Lay out the data sets of docs/results.md from their official archives, in the sizes and splits that were measured.

    python benchmarks/lay_out_data.py --archive mvtec_anomaly_detection.tar.xz --output_dir data
    python benchmarks/lay_out_data.py --archive Magnetic-tile-defect-datasets.-master.zip DeepPCB-master.zip

Each category becomes a folder in MVTec-AD layout. It appears when it is whole; one that is there already is left as it
is. Where the archives come from, and on which terms: docs/results.md.
"""

import argparse
import signal
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm.auto import tqdm

from benchmarks.archive_reading import read_files
from benchmarks.data_sets import CATEGORIES
from rendering.words import count_of
from training.runtime.output_folder import check_output_dir, prepare_output_dir
from training.runtime.process import TERMINATED

STAGING = ".laying-out-"
"""Starts the name of the folder in which categories lie until they are whole."""


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    names = [category.name for category in CATEGORIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--archive", nargs="+", required=True, type=Path, help="official archives: zip, or tar plain, gz, bz2 or xz"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("data"), help="a folder for each category comes here; data by default"
    )
    parser.add_argument(
        "--categories", nargs="+", choices=names, default=names, metavar="NAME", help=f"only some of {', '.join(names)}"
    )
    args = parser.parse_args(argv)
    categories = [category for category in CATEGORIES if category.name in args.categories]
    try:
        for archive in args.archive:
            if not archive.is_file():
                raise ValueError(f"{archive} is no file.")
        check_output_dir(args.output_dir)
        for archive in args.archive:
            for name, folders in lay_out(archive, args.output_dir, categories).items():
                print(f"{args.output_dir / name}: {folders}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {args.output_dir} cannot be written ({error.strerror}); make room, or choose another folder.")


def lay_out(archive, output_dir, categories=CATEGORIES):
    """Lay out the categories that an archive holds; all of them appear in the output folder, or none.

    Args:
        archive (`Path`): official archive.
        output_dir (`Path`): is created.
        categories (sequence of `benchmarks.data_sets.Category`): that are looked for.

    Returns:
        `dict[str, str]`: name of each category that is in the archive, and what its folder holds in words.

    Raises:
        ValueError: if the archive holds none of them, is not whole, or is refused by `read_files`.
    """
    was_there = output_dir.exists()
    prepare_output_dir(output_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=output_dir) as staging:
            return _lay_out(archive, output_dir, categories, Path(staging))
    except BaseException:
        if not was_there:
            with suppress(OSError):
                output_dir.rmdir()
        raise


def _lay_out(archive, output_dir, categories, staging):
    old = {category.name for category in categories if (output_dir / category.name).exists()}
    found = {}

    def choose(name):
        for category in categories:
            match = category.pattern.fullmatch(name)
            if match:
                found[category.name] = category
                return None if category.name in old else (category, match)
        return None

    size = archive.stat().st_size
    with tqdm(total=size, desc=archive.name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        for (category, match), content in read_files(archive, choose, progress):
            with _names(archive):
                category.place(match, content, staging / category.name)
    if not found:
        names = ", ".join(category.name for category in categories)
        raise ValueError(f"{archive} holds none of these: {names}; use the archive from the data set's own page.")
    new = [category for category in found.values() if category.name not in old]
    with _names(archive):
        for category in new:
            category.finish(staging / category.name)
            category.check(staging / category.name)
    for category in new:
        (staging / category.name).rename(output_dir / category.name)
    return {name: "there already, left as it is" if name in old else _in_words(found[name]) for name in found}


@contextmanager
def _names(archive):
    """Let a refusal begin with the archive's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{archive} is not the official archive, or not whole: {error}") from error


def _in_words(category):
    train, good = category.counts["train/good"], category.counts["test/good"]
    defective = sum(category.counts.values()) - train - good
    return f"{count_of(train, 'image')} to train on, {good} good and {defective} defective ones to test on"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # leaves nothing half written
    main()
