"""Decoded images of a source in batches, for the processes of a `DataLoader`.

The runs of a source are dealt out to the processes of a launch, and those of a process to its loader's workers. Each
run is cut into chunks, which are what is written at once (`scored_chunks.py`), and each chunk into batches; the images
of a batch depend on the batch size alone, not on how many processes there are or where one was killed.
"""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipelines.image_preprocessing import to_rgb
from training.runtime.process import stand_back

PREFETCHED = 2
"""Batches that wait for each worker's process: images come at their own size."""


@dataclass(frozen=True)
class DecodedImage:
    """An image of a source after it was read.

    Args:
        name, target (`str`): of its `SourceImage`.
        rgb (`np.ndarray`, *optional*): as `to_rgb` returns it; None if it cannot be read.
        refusal (`str`): why.
    """

    name: str
    target: str
    rgb: np.ndarray | None
    refusal: str = ""


@dataclass(frozen=True)
class ImageBatch:
    """Images that are scored together.

    Args:
        run, chunk (`int`): where they are.
        images (`list[DecodedImage]`): in their order.
        ends_chunk, ends_run (`bool`): whether they are the last ones there.
        failure (`str`): why the source cannot be read on; the batch then is nothing else.
    """

    run: int
    chunk: int
    images: list
    ends_chunk: bool = False
    ends_run: bool = False
    failure: str = ""


class ImageBatches(IterableDataset):
    """The batches of some runs, from where their finished chunks end.

    Args:
        source: see `image_sources.py`.
        runs (`range`): the runs.
        finished (`Callable[[int], tuple[int, bool]]`): number of a run's finished chunks, and whether they are all.
        chunk_size (`int`): images of a chunk, the last one of a run perhaps smaller.
        batch_size (`int`): images of a batch, the last one of a chunk perhaps smaller.
    """

    def __init__(self, source, runs, finished, chunk_size, batch_size):
        self.source, self.runs, self.finished = source, runs, finished
        self.chunk_size, self.batch_size = chunk_size, batch_size

    def __iter__(self):
        worker = get_worker_info()
        for run in self.runs if worker is None else self.runs[worker.id :: worker.num_workers]:
            chunk, is_whole = self.finished(run)
            if is_whole:
                continue
            try:
                yield from self._batches(run, chunk)
            except (ValueError, OSError) as error:  # a worker's exception would bring its traceback
                yield ImageBatch(run, chunk, [], failure=str(error))
                return

    def _batches(self, run, chunk):
        images = self.source.images(run, chunk * self.chunk_size)
        image, size, decoded = next(images, None), 0, []
        while True:
            if image is not None:
                decoded.append(_decode(image))
                size += 1
                image = next(images, None)  # the one before was read: a stream may be closed after its last
            ends_run = image is None
            ends_chunk = ends_run or size == self.chunk_size
            if ends_chunk or len(decoded) == self.batch_size:
                yield ImageBatch(run, chunk, decoded, ends_chunk, ends_run)
                decoded = []
            if ends_run:
                return
            if ends_chunk:
                chunk, size = chunk + 1, 0


def load_batches(batches, num_workers):
    """A `DataLoader` of `ImageBatches`, whose `num_workers` processes leave SIGTERM to this one and end with it."""
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED if num_workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=stand_back,
    )


def _decode(image):
    try:
        return DecodedImage(image.name, image.target, to_rgb(image.decode(), image.name))
    except ValueError as error:
        return DecodedImage(image.name, image.target, None, str(error))


def _as_it_is(batch):
    return batch
