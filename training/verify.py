"""Print the SHA-256 of every file of a checkpoint that loading reads or runs, or compare them with such a list.

    python training/verify.py --model FOLDER_OR_HUB_ID > SUMS
    python training/verify.py --model FOLDER_OR_HUB_ID --check SUMS

The list has the form of sha256sum, with names as they are in the checkpoint: within its folder, `sha256sum -c` takes
it. Nothing of the checkpoint is loaded or run.
"""

import hashlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.checkpoint_loading import locate_checkpoint
from training.cli.command_parser import CommandParser
from training.records.checkpoint_contents import list_loaded


def hash_files(folder):
    """SHA-256 of each file of a checkpoint that is loaded, `dict` of name to hexadecimal digits, sorted by name.

    Raises:
        ValueError: if the folder is no checkpoint, or has a pickle or a link that leads out in it.
    """
    hashes = {}
    for name in sorted(list_loaded(folder)):
        with open(Path(folder) / name, "rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            hashes[name] = digest.hexdigest()
    return hashes


def compare(hashes, listed):
    """Compare the files of a checkpoint with a list of them.

    Args:
        hashes (`dict[str, str]`): as `hash_files` returns them.
        listed (`dict[str, str]`): the same, from somebody who is trusted.

    Raises:
        ValueError: with the first file that differs, is missing, or is not listed.
    """
    for name in sorted(hashes | listed):
        if name not in hashes:
            raise ValueError(f"{name} is listed, but not in the checkpoint.")
        if name not in listed:
            raise ValueError(f"{name} is loaded, but not listed.")
        if hashes[name] != listed[name]:
            raise ValueError(f"{name} has the SHA-256 {hashes[name]}, not the one that is listed.")


def read_list(path):
    """Read what this command, or sha256sum, has printed: `dict` of name to hexadecimal digits.

    Raises:
        ValueError: with the first line that has another form.
    """
    listed = {}
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise ValueError(f"line {number} of {path} is none that sha256sum prints; give the list as it was printed.")
        listed[match.group(2)] = match.group(1).lower()
    return listed


def main(argv=None):
    """Run the command; a mistake, or a file that differs, ends it with one sentence and exit status 1."""
    parser = CommandParser(__doc__, __file__, "--model CKPT")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; default main")
    parser.add_argument("--check", help="file with a list that was printed before")
    args = parser.parse_args(argv)
    try:
        folder = locate_checkpoint(args.model, with_code=True, revision=args.revision)
        hashes = hash_files(folder)
        if args.check is not None:
            compare(hashes, read_list(args.check))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if args.check is not None:
        print(f"all {len(hashes)} files are as listed.")
        return
    print("\n".join(f"{digest}  {name}" for name, digest in hashes.items()))
    print(f"{len(hashes)} files of {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
