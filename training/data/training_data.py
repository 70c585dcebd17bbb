"""What a training reads, folders of this machine or a data set of the Hub, with whole parts of it held out."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.utils.data import DataLoader

from pipelines.checkpoint_loading import locate_checkpoint
from training.data.augmentation import ShuffledRotatedImages
from training.data.good_images import find_categories, find_white_level
from training.data.groups import find_groups
from training.data.hub_dataset import HubSource, import_datasets, keep_revision, open_rows, pin_revision
from training.data.hub_images import find_good_rows
from training.data.image_stream import HeldOutOfStream, ImageStream, StreamedRotatedImages
from training.data.layouts import CHECKED_WHOLE, MIN_IMAGES, readable
from training.data.run_record import restore_groups, restore_splits, under_present_names
from training.data.splits import MIN_HELD_OUT, count_parts, hold_out
from training.records.image_record import not_trained_on
from training.runtime.collectives import on_main_process
from training.runtime.process import stand_back
from training.runtime.settings import settings_of

MAX_HELD_OUT = 2000
"""Their scores are ranked: more would promise rates below 1 in 1,000, and take hours to measure."""


@dataclass(frozen=True)
class DataSettings:
    """What a training reads, and in which batches; fields are named as the options of `training/train.py`.

    Args:
        train_data_dir (`list[str]`, *optional*): folders of good images, one for each category.
        source (`HubSource`, *optional*): instead, a data set of the Hub.
        all_good (`bool`): every image of the folders shows a good part.
        groups (`str`, *optional*): which images show the same part (`groups.HELP`).
        init_from (`str`, *optional*): a checkpoint; nothing that it was trained on is held out.
        calibration_fraction (`float`): share of the images that is held out.
        seed (`int`): of the split, of the order of images and of their rotation.
        rotation_degrees (`float`): largest rotation either way.
        train_batch_size, dataloader_num_workers (`int`): images of a batch, and processes that read them.
    """

    train_data_dir: list | None
    source: HubSource | None
    all_good: bool
    groups: str | None
    init_from: str | None
    calibration_fraction: float
    seed: int
    rotation_degrees: float
    train_batch_size: int
    dataloader_num_workers: int

    @classmethod
    def of(cls, options):
        """From the options of `training/train.py`, a `dict`."""
        source = settings_of(HubSource, options) if options["dataset_name"] is not None else None
        return settings_of(cls, options, source=source)


@dataclass
class TrainingData:
    """Images, and where more of them come from.

    Args:
        splits (`dict[str, tuple]`): name of each category, with its training and its held-out images.
        groups (`dict[str, dict | None]`): the part that each image of a category shows; None where each is of its own.
        white_level (`int`): the value of white in 16-bit images.
        revision (`str`, *optional*): commit of the data set.
        stream (`ImageStream`, *optional*): what is trained on, if `splits` holds but a sample of it.
        folder (`TemporaryDirectory`, *optional*): where the sample lies; it goes with this object.
    """

    splits: dict
    groups: dict = field(default_factory=dict)
    white_level: int = 65535
    revision: str | None = None
    stream: ImageStream | None = None
    folder: TemporaryDirectory | None = None

    def sequence(self, categories, **options):
        """The endless sequence that is trained on.

        Args:
            categories (`list[GoodImages]`): the training images of `splits`.
            **options: `length`, `rotation_degrees`, `seed` and `start` of `ShuffledRotatedImages`.
        """
        if self.stream is None:
            return ShuffledRotatedImages(categories, **options)
        return StreamedRotatedImages(self.stream, categories[0].resolution, self.white_level, **options)

    def keep_revision(self, output_dir):
        """Leave the commit for a run that is resumed, so that nothing it has held out is trained on then."""
        keep_revision(output_dir, self.revision)


def find_training_data(settings, output_dir, checkpoint=None, former=None):
    """Find the images, and hold whole parts of them out.

    Every process has to call this; the main one compares images, so that all agree on what shows the same part.

    Args:
        settings (`DataSettings`): what is read.
        output_dir (`Path`): where a resumed run has left the commit it reads.
        checkpoint (`Path`, *optional*), former (`dict`, *optional*): what a resumed run goes on from, and its record,
            whose splits are kept.

    Returns:
        `TrainingData`

    Raises:
        ValueError: if there are too few images or parts, or none can be found.
    """
    stream = folder = revision = None
    if settings.source is None:
        found = find_categories(settings.train_data_dir, settings.all_good, output_dir)
    else:
        found, revision, stream, folder = _open_source(settings, output_dir, is_resumed=checkpoint is not None)
    if former is not None:
        former = under_present_names(former, found)
        splits = restore_splits(checkpoint, former, found)
        groups = restore_groups(former, splits)
    else:
        groups = {
            name: on_main_process(partial(find_groups, images, settings.groups, name)) for name, images in found.items()
        }
        splits = {name: split_images(images, settings, groups[name]) for name, images in found.items()}
    white_level = find_white_level([image for split in splits.values() for images in split for image in images])
    if stream is not None:
        (training, held_out) = next(iter(splits.values()))
        sample = [*training, *held_out]
        stream.held_out = HeldOutOfStream.of(held_out, sample, groups[next(iter(splits))], settings.groups)
    return TrainingData(splits, groups, white_level, revision, stream, folder)


def _open_source(settings, output_dir, is_resumed):
    """Images of a data set by its name, its commit, and, if it is streamed, the stream and the folder of its sample."""
    import_datasets()
    source, stream, folder = settings.source, None, None
    rows, revision = open_rows(source, pin_revision(source, output_dir, is_resumed))
    name = source.dataset_config_name or source.dataset_name.split("/")[1]
    if source.streaming:
        stream, folder = ImageStream(rows, settings.seed), TemporaryDirectory(prefix="sample-")
        images = stream.take_sample(folder.name)
    else:
        images = find_good_rows(rows)
    if len(images) < MIN_IMAGES:
        good = "" if rows.label_column is None else f" with {rows.label_column} {source.good_label}"
        raise ValueError(
            f"split {rows.split} of {rows.name} holds {len(images)} readable images{good}; "
            f"at least {MIN_IMAGES} are needed."
        )
    if source.streaming and settings.groups is not None and Path(settings.groups).is_file():
        raise ValueError(
            "--groups names a file, which cannot tell the parts of images that are streamed; give --group_column or "
            "a regular expression, or leave --streaming out."
        )
    return {name: images}, revision, stream, folder


def split_images(images, settings, groups=None):
    """Hold whole parts out: `hold_out` of at most `MAX_HELD_OUT`, none that the first checkpoint was trained on.

    Where images were looked at by their head alone, those held out are decoded.

    Args:
        images (`list[Path]` or `list[HubImage]`): of a category.
        settings (`DataSettings`): share, seed, and the first checkpoint, if there is one.
        groups (`dict`, *optional*): the part that each shows.

    Returns:
        `tuple[list, list]`: training and held-out images.

    Raises:
        ValueError: if the first checkpoint was trained on too many of them, or cannot tell on which.
    """
    candidates = None if settings.init_from is None else _unknown_to(settings.init_from, images, groups)
    fraction = min(settings.calibration_fraction, MAX_HELD_OUT / len(images))
    training, held_out = hold_out(images, fraction, settings.seed, groups, candidates)
    if len(images) > CHECKED_WHOLE and isinstance(images[0], Path):
        held_out = readable(held_out)
    return training, held_out


def build_dataloader(settings, data, categories, steps, images_per_step):
    """Batches of the remaining steps; accelerate deals them out to the processes in turn.

    Args:
        settings (`DataSettings`): rotation, seed, batches and processes.
        data (`TrainingData`): where images come from.
        categories (`list[GoodImages]`): training images of each.
        steps (`range`): optimizer steps that are to be done.
        images_per_step (`int`): of all processes together.
    """
    dataset = data.sequence(
        categories,
        length=len(steps) * images_per_step,
        rotation_degrees=settings.rotation_degrees,
        seed=settings.seed,
        start=steps.start * images_per_step,
    )
    return DataLoader(
        dataset,
        batch_size=settings.train_batch_size,
        num_workers=settings.dataloader_num_workers,
        prefetch_factor=4 if settings.dataloader_num_workers else None,
        worker_init_fn=stand_back,
    )


def _unknown_to(init_from, images, groups):
    """The images that the first checkpoint was not trained on, nor on others of their parts."""
    candidates = not_trained_on(locate_checkpoint(init_from), images, groups)
    if candidates is None:
        raise ValueError(
            f"{init_from} does not say which images it was trained on, so that none can be held out safely; start "
            "from a checkpoint of this version, or train afresh."
        )
    if count_parts(candidates, groups) < MIN_HELD_OUT:
        raise ValueError(
            f"{init_from} was trained on all but {count_parts(candidates, groups)} of the parts given; at least "
            f"{MIN_HELD_OUT} new ones are needed to calibrate on: add good images of others."
        )
    return candidates
