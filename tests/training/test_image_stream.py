"""Streams of images: what is held out, what comes when, and where a stream is taken up again."""

import hashlib
import multiprocessing
import os
import pickle
import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sentences import refused
from torch.utils.data import DataLoader

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

from training.data.good_images import GoodImages
from training.data.hub_images import GoodRows
from training.data.image_stream import SHUFFLE_BUFFER, HeldOutOfStream, ImageStream, StreamedRotatedImages, shuffled
from training.data.splits import hold_out

SIZE = 32


def stream_of(files, seed=0, shards=3, torn=False):
    """A stream of files as embedded images, perhaps with a torn one in their middle."""
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    if torn:
        cells.insert(len(cells) // 2, {"bytes": cells[0]["bytes"][:-300], "path": "torn.jpg"})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": cells}, features=features).to_iterable_dataset(num_shards=shards)
    return ImageStream(GoodRows(rows, "team/tile", "train", "image"), seed)


def fingerprints(samples):
    return [hashlib.sha256(sample.numpy().tobytes()).hexdigest() for sample in samples]


def sequence_of(stream, length, degrees=0, start=0):
    return StreamedRotatedImages(stream, SIZE, 65535, length, degrees, seed=0, start=start)


def shown_by(*arguments, **options):
    return fingerprints(sample for sample, _, _ in sequence_of(*arguments, **options))


def test_what_is_held_out_is_never_served_and_every_other_image_once_a_pass(tile_files, tmp_path):
    stream = stream_of(tile_files, torn=True)
    training, held_out = hold_out(stream.take_sample(tmp_path), 0.25, 0)
    assert (len(training), len(held_out)) == (18, 6)
    stream.held_out = HeldOutOfStream(frozenset(image.key for image in held_out))
    expected = fingerprints(GoodImages(training, SIZE))
    shown = shown_by(stream, 3 * 18)
    passes = [shown[start : start + 18] for start in (0, 18, 36)]
    for one in passes:
        assert sorted(one) == sorted(expected)
    assert len({tuple(one) for one in passes}) == 3


def test_a_sample_is_no_larger_than_asked_for_and_all_that_is_kept(tile_files, tmp_path):
    sample = stream_of(tile_files).take_sample(tmp_path, size=10)
    assert len(sample) == len(list(tmp_path.iterdir())) == 10
    contents = {path.name: path.read_bytes() for path in tile_files}
    assert all(image.read() == contents[image.name] for image in sample)
    assert [image.place for image in sample] == list(range(10))
    copies = stream_of([tile_files[0], *tile_files[:10]]).take_sample(tmp_path)
    assert len({image.key for image in copies}) == len(copies) == 10


def test_a_stream_taken_up_at_any_place_is_the_tail_of_the_whole(tile_files):
    stream = stream_of(tile_files[:9], torn=True)
    whole = shown_by(stream, 40, degrees=5)
    assert len(set(whole)) == 40  # rotated anew each time
    for start in (1, 8, 9, 10, 26, 27, 36):
        assert shown_by(stream, 40 - start, degrees=5, start=start) == whole[start:]


def test_order_and_rotations_follow_the_seed(tile_files):
    first, same, other = (shown_by(stream_of(tile_files[:8], seed), 8) for seed in (0, 0, 1))
    assert first == same
    assert first != other
    assert sorted(first) == sorted(other)


def test_a_worker_process_serves_the_same_sequence_and_any_process_can(tile_files):
    sequence = sequence_of(stream_of(tile_files[:8]), 12, degrees=5)
    expected = fingerprints(sample for sample, _, _ in sequence)
    loader = DataLoader(sequence, batch_size=4, num_workers=1)
    assert fingerprints(torch.cat([samples for samples, _, _ in loader])) == expected
    assert fingerprints(sample for sample, _, _ in pickle.loads(pickle.dumps(sequence))) == expected


def serve(process, port, sequence, results):
    """One of two processes that share the batches of a training."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(process), LOCAL_RANK=str(process), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    AcceleratorState._reset_state(reset_partial_state=True)  # what another test may have left
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(sequence, batch_size=3))
    results.put((process, [fingerprints(batch) for batch, _, _ in loader]))
    accelerator.end_training()


def test_each_of_two_processes_gets_its_own_images_by_turns(tile_files):
    sequence = sequence_of(stream_of(tile_files[:8]), 12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=serve, args=(number, port, sequence, results)) for number in (0, 1)]
    for process in processes:
        process.start()
    shown = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    whole = shown_by(stream_of(tile_files[:8]), 12)
    batches = [whole[start : start + 3] for start in range(0, 12, 3)]
    assert shown == {0: batches[::2], 1: batches[1::2]}


def test_rows_are_shuffled_through_the_buffer_and_each_comes_once():
    count = 10 * SHUFFLE_BUFFER
    rows = datasets.Dataset.from_dict({"number": list(range(count))})
    for shards in (1, 5):
        stream = rows.to_iterable_dataset(num_shards=shards)
        order, same, other = (
            [row["number"] for row in shuffled(stream, np.random.default_rng(seed))] for seed in (0, 0, 1)
        )
        assert order == same
        assert order != other
        assert sorted(order) == list(range(count))
        moved = sum(abs(number - place) for place, number in enumerate(order)) / count
        assert moved > SHUFFLE_BUFFER / 2
        if shards > 1:
            assert moved > 2 * SHUFFLE_BUFFER  # the files' order too


def test_a_stream_of_nothing_but_held_out_images_is_refused(tile_files):
    stream = stream_of(tile_files[:3])
    stream.held_out = HeldOutOfStream(frozenset(key for _, key, *_ in stream.images(1)))
    with refused(ValueError, "team/tile", "held out"):
        shown_by(stream, 3)
