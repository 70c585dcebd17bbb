"""A data set of the Hub: which commit of it is read, opening it, choosing its split, columns and label.

Image folders and Parquet files are read, by the library `datasets`. No code of a data set is run.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError

from pipelines.checkpoint_loading import is_hub_id
from pipelines.hub_errors import hub_sentences
from rendering.words import one_line
from training.data.hub_images import GoodRows

KINDS = ("imagefolder", "parquet")
"""Builders of `datasets` whose images are read."""

REVISION_RECORD = "dataset_revision.txt"
"""In the output folder: the commit that a run reads, for when it is resumed."""


@dataclass(frozen=True)
class HubSource:
    """Which data set of the Hub is read, and what of it; fields are named as the options that set them.

    Args:
        dataset_name (`str`), dataset_config_name (`str`, *optional*): the data set, and its configuration.
        dataset_split (`str`): its part that is read.
        dataset_revision (`str`, *optional*): branch, tag or commit; by default main.
        image_column (`str`): holds the images.
        label_column, good_label (`str`, *optional*): of the good ones alone.
        group_column (`str`, *optional*): says which part an image shows.
        streaming (`bool`): read it as it is needed instead of downloading it first.
        hub_token (`str`, *optional*): for what is private.
    """

    dataset_name: str
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    dataset_revision: str | None = None
    image_column: str = "image"
    label_column: str | None = None
    good_label: str | None = None
    group_column: str | None = None
    streaming: bool = False
    hub_token: str | None = None


def import_datasets():
    """The library `datasets`.

    Raises:
        ValueError: if it is not installed, or old enough to run code that comes with a data set.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("--dataset_name needs the package datasets: pip install datasets.") from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise ValueError(
            f"datasets {datasets.__version__} may run code of a data set; "
            "--dataset_name needs version 4 or newer: pip install --upgrade datasets."
        )
    return datasets


@contextmanager
def data_set_sentences(name, token=None):
    """`hub_sentences` that also explain in a sentence which file of a data set the library cannot read."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        with hub_sentences(name, token):
            yield
    except (DatasetsError, ArrowException) as error:
        raise ValueError(_unreadable(name, error.__cause__ or error)) from None


def pin_revision(source, output_dir, resumed):
    """The commit that a run reads, which is that of `--dataset_revision`, or of a resumed run, or of today's main.

    Args:
        source (`HubSource`): the data set.
        output_dir (`Path`): where a resumed run has left its commit.
        resumed (`bool`): whether there is one.

    Returns:
        `str` or None: its hash; None without a network (`HF_HUB_OFFLINE`) where nothing else names one.

    Raises:
        ValueError: if there is no such data set or revision, or it needs code of its own to be read.
    """
    name, revision, record = source.dataset_name, source.dataset_revision, Path(output_dir) / REVISION_RECORD
    if revision is None and resumed and record.is_file():
        revision = record.read_text().strip()
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder of this machine; give it as --train_data_dir, or rename it.")
    with hub_sentences(name, source.hub_token):
        if not is_hub_id(name):
            raise HFValidationError
        try:
            info = HfApi(token=source.hub_token).dataset_info(name, revision=revision)
        except OfflineModeIsEnabled:
            return revision
        except RevisionNotFoundError:
            raise ValueError(f"{name} has no revision {revision}; check --dataset_revision.") from None
    script = f"{name.split('/')[1]}.py"
    if script in {file.rfilename for file in info.siblings or ()}:
        raise ValueError(f"{name} needs code of its own ({script}), which is never run; convert it to Parquet files.")
    return info.sha


def keep_revision(output_dir, revision):
    """Leave the commit for `pin_revision` of a run that is resumed; nothing if it is None."""
    if revision is not None:
        Path(output_dir, REVISION_RECORD).write_text(f"{revision}\n")


def open_rows(source, revision):
    """Open a data set at a commit; without `--streaming` it is downloaded first.

    Args:
        source (`HubSource`): the data set.
        revision (`str` or None): as `pin_revision` says.

    Returns:
        `tuple[GoodRows, str]`: its good rows, and the commit that was opened.

    Raises:
        ValueError: if it cannot be read, or has no such configuration, split, column or label.
    """
    datasets = import_datasets()
    name, where = source.dataset_name, {"revision": revision, "token": source.hub_token}
    with data_set_sentences(name, source.hub_token):
        try:
            builder = datasets.load_dataset_builder(name, source.dataset_config_name, **where)
        except FileNotFoundError as error:
            raise ValueError(f"{name} holds nothing that datasets can read ({one_line(error)}).") from None
        except ConnectionError:
            if constants.HF_HUB_OFFLINE:
                raise ValueError(f"HF_HUB_OFFLINE is set, and {name} is not in the cache; unset it.") from None
            raise
        except ValueError as error:
            raise ValueError(_explain_config(datasets, source, where) or _unreadable(name, error)) from None
        kind = builder.__module__.rpartition(".")[2]
        if kind not in KINDS and not (kind == "cache" and constants.HF_HUB_OFFLINE):
            raise ValueError(f"{name} is kept as {kind}; {' and '.join(KINDS)} are read.")
        if revision is not None and builder.hash != revision:  # the library falls back on what it has cached
            raise ValueError(f"{name} could not be opened at {revision}, only at {builder.hash} from the cache.")
        rows = _open_split(builder, name, source.dataset_split, source.streaming)
    return _choose_columns(datasets, rows, source), builder.hash


def _open_split(builder, name, split, streaming):
    builder.config.decode_num_threads = 0  # a stream's images are decoded here, not by the library
    if streaming:
        parts = builder.as_streaming_dataset()
        if split in parts:
            return parts[split]
    else:
        builder.download_and_prepare()
        parts = builder.info.splits
        if split in parts:
            return builder.as_dataset(split=split)
    raise ValueError(f"{name} has no split {split}; name one with --dataset_split: {_listed(parts)}.")


def _choose_columns(datasets, rows, source):
    name, column, label_column = source.dataset_name, source.image_column, source.label_column
    group_column = source.group_column
    features = rows.features
    if features is None:
        raise ValueError(f"the columns of {name} are not known before it is read; leave --streaming out.")
    options = (("image_column", column), ("label_column", label_column), ("group_column", group_column))
    for option, chosen in options:
        if chosen is not None and chosen not in features:
            raise ValueError(f"{name} has no column {chosen}; name one with --{option}: {_listed(features)}.")
    if not isinstance(features[column], datasets.Image) and getattr(features[column], "dtype", None) != "binary":
        raise ValueError(f"column {column} of {name} holds no images; name another with --image_column.")
    good_label = None if label_column is None else _good_value(features[label_column], label_column, source.good_label)
    kept = list(dict.fromkeys(each for each in (column, label_column, group_column) if each))
    rows = rows.select_columns(kept).cast_column(column, datasets.Image(decode=False))
    return GoodRows(rows, name, source.dataset_split, column, label_column, good_label, source.hub_token, group_column)


def _good_value(feature, column, label):
    """The value that a column has where `--good_label` is meant."""
    names, dtype = getattr(feature, "names", None), str(getattr(feature, "dtype", "no labels"))
    if names is not None:
        known = dict(enumerate(names))
        number = next((number for number, name in known.items() if name == label), None)
        number = int(label) if number is None and label.isdecimal() and int(label) in known else number
        if number is None:
            raise ValueError(f"column {column} has no label {label}; name one with --good_label: {_listed(names)}.")
        return number
    if dtype in ("string", "large_string"):
        return label
    try:
        if dtype == "bool":
            return {"true": True, "false": False, "1": True, "0": False}[label.lower()]
        if dtype.startswith(("int", "uint", "float")):
            return float(label)
    except (KeyError, ValueError):
        raise ValueError(f"--good_label is {label}, but column {column} holds {dtype}.") from None
    raise ValueError(f"column {column} holds {dtype}; labels are names, text, numbers or true and false.")


def _explain_config(datasets, source, where):
    """A sentence if `--dataset_config_name` is missing or wrong, else None."""
    configs = datasets.get_dataset_config_names(source.dataset_name, **where)
    if source.dataset_config_name in configs:
        return None
    asked = source.dataset_config_name
    said = "has several configurations" if asked is None else f"has no configuration {asked}"
    return f"{source.dataset_name} {said}; name one with --dataset_config_name: {_listed(configs)}."


def _listed(names):
    """Names that a data set gives, which may be many and hold anything, on one line."""
    return one_line(", ".join(names))[:300]


def _unreadable(name, error):
    return f"{name} cannot be read by datasets ({one_line(error)[:300]})."
