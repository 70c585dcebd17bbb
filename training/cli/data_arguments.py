"""Options that several commands have for what they read: a data set of the Hub, and the processes that read images.

Each command adds them to its own parser; `hub_dataset.open_rows` takes the settings.
"""

from training.runtime.process import num_readers

HUB_OPTIONS = ("dataset_config_name", "dataset_split", "dataset_revision", "image_column", "label_column")
HUB_OPTIONS += ("good_label", "streaming")
"""Of `--dataset_name` alone."""


def add_hub_options(group, streaming_help):
    """Add `--dataset_name` and its `HUB_OPTIONS` to a parser or to a group of its options.

    Args:
        group: where they go.
        streaming_help (`str`): what `--streaming` means to the command.
    """
    group.add_argument(
        "--dataset_name",
        help="instead: a data set of the Hub, organisation/name, of image folders or Parquet files (needs the package "
        "datasets)",
    )
    group.add_argument("--dataset_config_name", help="its configuration, if it has several")
    group.add_argument("--dataset_split", default="train", help="its part that is read")
    group.add_argument(
        "--dataset_revision",
        help="its branch, tag or commit; default main. The commit is recorded, and a resumed run keeps to it unless "
        "this option names another",
    )
    group.add_argument("--image_column", default="image", help="its column of images")
    group.add_argument("--label_column", help="its column that says which images are good, for --good_label")
    group.add_argument(
        "--good_label", help="only rows with this label are used: the name of a class, or a plain value of the column"
    )
    group.add_argument("--streaming", action="store_true", help=streaming_help)


def add_hub_token(group):
    """Add `--hub_token`, for what is private on the Hub."""
    group.add_argument(
        "--hub_token",
        help="better: hf auth login or HF_TOKEN; accelerate prints the whole command line when a run fails",
    )


def add_num_workers(group):
    """Add `--dataloader_num_workers`, which `settle_num_workers` completes."""
    group.add_argument(
        "--dataloader_num_workers",
        type=int,
        help="processes that read images, for each that computes; default 1, beside a GPU as many as there are cores "
        "to spare",
    )


def settle_num_workers(args):
    """Set `args.dataloader_num_workers` where it was not given; a stream is read by one process."""
    if args.dataloader_num_workers is None:
        args.dataloader_num_workers = 1 if args.streaming else num_readers()


def check_hub_options(parser, args, instead, shared=()):
    """Refuse, as a parser does, options of a data set that contradict each other or belong to none.

    Args:
        parser (`argparse.ArgumentParser`), args: its settings.
        instead (`str`): the option that was given, if `--dataset_name` was not.
        shared (`tuple[str]`): of `HUB_OPTIONS`, those that mean something there too.
    """
    for name in HUB_OPTIONS:
        if args.dataset_name is None and name not in shared and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} belongs to --dataset_name; it does nothing for --{instead}")
    if (args.label_column is None) != (args.good_label is None):
        parser.error("--label_column and --good_label are given together or not at all")
    if args.streaming and (args.dataloader_num_workers or 0) > 1:
        parser.error(f"--dataloader_num_workers is {args.dataloader_num_workers}; a stream is read by 1 at most")
