"""What adding a category to a finished checkpoint (`--init_from`) costs the one that it already knows.

    python benchmarks/adding.py OLD NEW --steps 500

Both are folders in MVTec-AD layout. A model is trained on OLD unless OUT/models has it, then further on both; the test
images of OLD are measured with both models, those of NEW with the second.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.category import DEFAULT_BACKBONE, Category, checkpoint_folder, standardized_components, train
from benchmarks.paper import format_rows, measure
from training.data.groups import HELP as GROUPS_HELP
from training.runtime.process import keep_large_buffers, use_all_cores


def compare(old, new, steps):
    """Rows of both categories (`Category`): the old one before and after, the new one after so many `steps`."""
    before = old.pipeline
    known = checkpoint_folder(old.output_dir, f"{old.folder.name}-{old.seed}", old.max_train_steps, old.rule)
    settings = old.seed, old.backbone, old.output_dir, steps, old.rule, ["--init_from", str(known)]
    after = train([old.folder, new.folder], f"{known.name}-with-{new.folder.name}", *settings)
    rows = []
    for data, pipe, when in (
        (old, before, "before"),
        (old, after.for_category(old.folder.name), "after"),
        (new, after.for_category(new.folder.name), "after"),
    ):
        components = standardized_components(pipe, data.test)
        rows.append(measure(data, pipe, components, f"{when}, with references"))
        rows.append(measure(data, pipe, components, f"{when}, Eq. 10 alone", 0.0, references=False))
    return rows


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("old", help="the category that is known")
    parser.add_argument("new", help="the one that is added")
    parser.add_argument("--steps", type=int, default=500, help="of the second training, on both")
    parser.add_argument("--max_train_steps", type=int, help="of the first; default that of training/train.py")
    parser.add_argument("--seed", type=int, default=0, help="of splits and training")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="of the features")
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--output_dir", default="outputs/adding", help="models")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    try:
        settings = args.seed, args.backbone, Path(args.output_dir), args.max_train_steps
        old, new = (Category(Path(folder), *settings, groups=args.groups) for folder in (args.old, args.new))
        print(format_rows(compare(old, new, args.steps)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
