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
from training.data.hub_dataset import import_datasets, keep_revision, open_rows, pin_revision
from training.data.hub_images import find_good_rows
from training.data.image_stream import HeldOutOfStream, ImageStream, StreamedRotatedImages
from training.data.layouts import CHECKED_WHOLE, MIN_IMAGES, readable
from training.data.run_record import restore_groups, restore_splits
from training.data.splits import MIN_HELD_OUT, count_parts, hold_out
from training.records.image_record import not_trained_on
from training.runtime.collectives import on_main_process
from training.runtime.process import stand_back

MAX_HELD_OUT = 2000
"""Their scores are ranked: more would promise rates below 1 in 1,000, and take hours to measure."""


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


def find_training_data(args, output_dir, checkpoint=None, former=None):
    """Find what the settings of `training/train.py` name, and hold whole parts of it out, `TrainingData`.

    Of a data set, `args.dataset_revision` is set to its commit, by which records and cards name it. Every process has
    to call this; the main one compares images, so that all agree on what shows the same part.

    Args:
        args: the settings.
        output_dir (`Path`): where a resumed run has left the commit it reads.
        checkpoint (`Path`, *optional*), former (`dict`, *optional*): what a resumed run goes on from, and its record,
            whose splits are kept.

    Raises:
        ValueError: if there are too few images or parts, or none can be found.
    """
    source = stream = folder = None
    if args.dataset_name is None:
        found = find_categories(args.train_data_dir, args.all_good, output_dir)
    else:
        import_datasets()
        source, args.dataset_revision = open_rows(args, pin_revision(args, output_dir, checkpoint is not None))
        name = args.dataset_config_name or args.dataset_name.split("/")[1]
        if args.streaming:
            stream, folder = ImageStream(source, args.seed), TemporaryDirectory(prefix="sample-")
            found = {name: stream.take_sample(folder.name)}
        else:
            found = {name: find_good_rows(source)}
        _check_rows(found[name], source, args)
    if args.streaming and args.groups is not None and Path(args.groups).is_file():
        raise ValueError(
            "--groups names a file, which cannot tell the parts of images that are streamed; give --group_column or "
            "a regular expression, or leave --streaming out."
        )
    if former is not None:
        splits = restore_splits(checkpoint, former, found)
        groups = restore_groups(former, splits)
    else:
        groups = {
            name: on_main_process(partial(find_groups, images, args.groups, name)) for name, images in found.items()
        }
        splits = {name: split_images(images, args, groups[name]) for name, images in found.items()}
    white_level = find_white_level([image for split in splits.values() for images in split for image in images])
    if stream is not None:
        (training, held_out) = next(iter(splits.values()))
        sample = [*training, *held_out]
        stream.held_out = HeldOutOfStream.of(held_out, sample, groups[next(iter(splits))], args.groups)
    return TrainingData(splits, groups, white_level, args.dataset_revision, stream, folder)


def split_images(images, args, groups=None):
    """Hold whole parts out: `hold_out` of at most `MAX_HELD_OUT`, none that `--init_from` was trained on.

    Where images were looked at by their head alone, those held out are decoded.

    Args:
        images (`list[Path]` or `list[HubImage]`): of a category.
        args: settings of `training/train.py`.
        groups (`dict`, *optional*): the part that each shows.

    Returns:
        `tuple[list, list]`: training and held-out images.

    Raises:
        ValueError: if the first checkpoint was trained on too many of them, or cannot tell on which.
    """
    candidates = None if args.init_from is None else _unknown_to(args.init_from, images, groups)
    fraction = min(args.calibration_fraction, MAX_HELD_OUT / len(images))
    training, held_out = hold_out(images, fraction, args.seed, groups, candidates)
    if len(images) > CHECKED_WHOLE and isinstance(images[0], Path):
        held_out = readable(held_out)
    return training, held_out


def build_dataloader(args, data, categories, start_step, images_per_step):
    """Batches of the remaining steps; accelerate deals them out to the processes in turn.

    Args:
        args: settings of `training/train.py`.
        data (`TrainingData`): where images come from.
        categories (`list[GoodImages]`): training images of each.
        start_step (`int`): optimizer steps done.
        images_per_step (`int`): of all processes together.
    """
    dataset = data.sequence(
        categories,
        length=(args.max_train_steps - start_step) * images_per_step,
        rotation_degrees=args.rotation_degrees,
        seed=args.seed,
        start=start_step * images_per_step,
    )
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=4 if args.dataloader_num_workers else None,
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


def _check_rows(images, source, args):
    if len(images) < MIN_IMAGES:
        good = "" if source.label_column is None else f" with {source.label_column} {args.good_label}"
        raise ValueError(
            f"split {source.split} of {source.name} holds {len(images)} readable images{good}; "
            f"at least {MIN_IMAGES} are needed."
        )
