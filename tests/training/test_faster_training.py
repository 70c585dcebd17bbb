"""What may make training faster or smaller changes neither its result nor its checkpoints."""

import os
import sys

import pytest
import torch
from launching import TWELVE_STEPS, run
from paths import TILES
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from training import score_folder
from training.cli.arguments import parse_args
from training.runtime.process import MAX_READERS, READER_NICENESS, stand_back


def test_compiled_and_with_recomputed_activations_a_run_ends_the_same_and_leaves_ordinary_checkpoints(
    environment, finished, tmp_path
):
    command = [sys.executable, "training/train.py", "--train_data_dir", TILES, "--output_dir", tmp_path]
    options = [*TWELVE_STEPS, "--gradient_checkpointing"]
    done = run([*map(str, command), *options], environment | {"ACCELERATE_DYNAMO_BACKEND": "eager"})
    assert done.returncode == 0, done.stderr
    for name in ("unet/diffusion_pytorch_model.safetensors", "checkpoint-12/model.safetensors"):
        weights, expected = (load_file(folder / name) for folder in (tmp_path, finished))
        assert weights.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.allclose(weights[key].float(), tensor.float(), atol=2e-3), key


class Niceness:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return os.nice(0)


@pytest.mark.skipif(not hasattr(os, "nice"), reason="this system has no niceness")
def test_processes_that_read_images_stand_back_and_the_one_that_trains_does_not():
    before = os.nice(0)
    (found,) = next(iter(DataLoader(Niceness(), num_workers=1, worker_init_fn=stand_back))).tolist()
    assert found == min(before + READER_NICENESS, 19)
    assert os.nice(0) == before


def test_one_process_reads_beside_cores_that_compute_and_many_beside_a_gpu(monkeypatch):
    train = ["--train_data_dir", "a", "--output_dir", "b"]
    stream = ["--dataset_name", "a/b", "--streaming", "--output_dir", "b"]
    score = ["--model", "a", "--input_dir", "b", "--output_dir", "c"]

    def readers():
        parsed = parse_args(train), parse_args(stream), score_folder.parse_args(score)
        return [args.dataloader_num_workers for args in parsed]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert readers() == [1, 1, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cores, processes, expected in ((4, 1, 3), (4, 2, 1), (1, 1, 1), (64, 4, MAX_READERS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert readers() == [expected, 1, expected]
    assert parse_args([*train, "--dataloader_num_workers", "0"]).dataloader_num_workers == 0
