"""Batches of a training: their loader, and what becomes of a picture that cannot be read any more."""

from torch.utils.data import DataLoader

from training.process import ignore_termination

OTHER_FAILURE = "Another process cannot read a picture."


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
        worker_init_fn=ignore_termination,
    )


def read_batches(batches, count):
    """The batches of a step, and None; or None, and the sentence of the picture that cannot be read any more."""
    try:
        return [next(batches) for _ in range(count)], None
    except ValueError as error:
        return None, sentence_of(error)


def sentence_of(error):
    """The sentence of a `ValueError`, also of one that a loader's process raised, which puts its traceback before."""
    return str(error).rpartition("ValueError: ")[2].strip()
