"""What a training reads, folders of this machine or a data set of the Hub, with a part of it held out."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.utils.data import DataLoader

from training.pictures.augmentation import ShuffledRotatedImages
from training.pictures.data import CHECKED_WHOLE, MIN_IMAGES, find_categories, hold_out, readable
from training.pictures.hub_dataset import import_datasets, keep_revision, open_rows, pin_revision
from training.pictures.hub_pictures import find_good_rows
from training.pictures.picture_stream import PictureStream, StreamedRotatedImages
from training.process import stand_back

MAX_HELD_OUT = 2000
"""Their scores are ranked: more would promise rates below 1 in 1,000, and take hours to measure."""


@dataclass
class TrainingData:
    """Pictures, and where more of them come from.

    Args:
        splits (`dict[str, tuple]`): name of each category, with its training and its held-out pictures.
        revision (`str`, *optional*): commit of the data set.
        stream (`PictureStream`, *optional*): what is trained on, if `splits` holds but a sample of it.
        folder (`TemporaryDirectory`, *optional*): where the sample lies; it goes with this object.
    """

    splits: dict
    revision: str | None = None
    stream: PictureStream | None = None
    folder: TemporaryDirectory | None = None

    def sequence(self, categories, **options):
        """The endless sequence that is trained on.

        Args:
            categories (`list[GoodImages]`): the training pictures of `splits`.
            **options: `length`, `rotation_degrees`, `seed` and `start` of `ShuffledRotatedImages`.
        """
        if self.stream is None:
            return ShuffledRotatedImages(categories, **options)
        return StreamedRotatedImages(self.stream, categories[0].resolution, **options)

    def keep_revision(self, output_dir):
        """Leave the commit for a run that is resumed, so that nothing it has held out is trained on then."""
        keep_revision(output_dir, self.revision)


def find_training_data(args, output_dir, resumed=False):
    """Find what the settings of `training/train.py` name, and hold a part of it out, `TrainingData`.

    Of a data set, `args.dataset_revision` is set to its commit, by which records and cards name it.

    Args:
        args: the settings.
        output_dir (`Path`): where a resumed run has left the commit it reads.
        resumed (`bool`): whether there is one.

    Raises:
        ValueError: if there are too few pictures, or none can be found.
    """
    if args.dataset_name is None:
        found = find_categories(args.train_data_dir)
        return TrainingData(
            {name: _split(files, args.calibration_fraction, args.seed) for name, files in found.items()}
        )
    import_datasets()
    source, args.dataset_revision = open_rows(args, pin_revision(args, output_dir, resumed))
    stream = folder = None
    if args.streaming:
        stream, folder = PictureStream(source, args.seed), TemporaryDirectory(prefix="sample-")
        pictures = stream.take_sample(folder.name)
    else:
        pictures = find_good_rows(source)
    if len(pictures) < MIN_IMAGES:
        good = "" if source.label_column is None else f" with {source.label_column} {args.good_label}"
        raise ValueError(
            f"split {source.split} of {source.name} holds {len(pictures)} readable pictures{good}; "
            f"at least {MIN_IMAGES} are needed."
        )
    training, held_out = _split(pictures, args.calibration_fraction, args.seed)
    if stream is not None:
        stream.held_out = frozenset(picture.key for picture in held_out)
    name = args.dataset_config_name or args.dataset_name.split("/")[1]
    return TrainingData({name: (training, held_out)}, args.dataset_revision, stream, folder)


def build_dataloader(args, data, categories, start_step, pictures_per_step):
    """Batches of the remaining steps; accelerate deals them out to the processes in turn.

    Args:
        args: settings of `training/train.py`.
        data (`TrainingData`): where pictures come from.
        categories (`list[GoodImages]`): training pictures of each.
        start_step (`int`): optimizer steps done.
        pictures_per_step (`int`): of all processes together.
    """
    dataset = data.sequence(
        categories,
        length=(args.max_train_steps - start_step) * pictures_per_step,
        rotation_degrees=args.rotation_degrees,
        seed=args.seed,
        start=start_step * pictures_per_step,
    )
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=4 if args.dataloader_num_workers else None,
        worker_init_fn=stand_back,
    )


def _split(pictures, fraction, seed):
    """`hold_out` of at most `MAX_HELD_OUT`; where pictures were looked at by their head alone, these are decoded."""
    training, held_out = hold_out(pictures, min(fraction, MAX_HELD_OUT / len(pictures)), seed)
    if len(pictures) > CHECKED_WHOLE and isinstance(pictures[0], Path):
        held_out = readable(held_out)
    return training, held_out
