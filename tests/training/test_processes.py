"""Commands in two real processes on the CPU: the same split, losses, weights, calibration and figures as in one."""

import json
from functools import partial

import pytest
import torch
from launching import ROOT, TWELVE_STEPS, run_in_two_processes, run_script
from paths import TILES
from safetensors.torch import load_file

from training.records.progress import read_progress
from training.runtime.collectives import gather_rows, own_share

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def in_two(environment, tmp_path_factory):
    """The output folder of the training of `finished`, by two processes with half the images of a batch each."""
    output_dir = tmp_path_factory.mktemp("in_two") / "out"
    arguments = ["--train_data_dir", TILES, "--output_dir", output_dir, *TWELVE_STEPS, "--train_batch_size", 2]
    done = run_in_two_processes(environment, "training/train.py", *arguments)
    assert done.returncode == 0, done.stderr
    return output_dir


def test_two_processes_hold_out_the_same_images(finished, in_two):
    records = [json.loads((folder / "training.json").read_text()) for folder in (finished, in_two)]
    assert records[0]["held_out"] == records[1]["held_out"]
    runs = [json.loads((folder / "checkpoint-12" / "run.json").read_text()) for folder in (finished, in_two)]
    assert runs[0]["pictures"] == runs[1]["pictures"]
    assert runs[0]["pictures_per_step"] == runs[1]["pictures_per_step"] == 4


def test_two_processes_have_the_losses_of_one(finished, in_two):
    losses = [
        {entry["step"]: entry for entry in read_progress(folder) if "noise" in entry} for folder in (finished, in_two)
    ]
    common = losses[0].keys() & losses[1].keys()
    assert {1, 12} <= common
    for step in common:
        for name in ("noise", "bound", "features"):
            assert losses[0][step][name] == pytest.approx(losses[1][step][name], rel=2e-3, abs=2e-5), (step, name)


def test_two_processes_end_with_the_weights_and_the_calibration_of_one(finished, in_two):
    for component in ("unet", "feature_extractor", "gaussian", "memory", "coarse_gaussian", "calibration"):
        expected, weights = (load_file(folder / component / WEIGHTS) for folder in (finished, in_two))
        assert expected.keys() == weights.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                weights[name].float(),
                tensor.float(),
                atol=2e-3,
                rtol=2e-2,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_two_processes_measure_what_one_measures(environment, finished, tmp_path):
    arguments = ["--model", finished, "--data_dir", TILES, "--batch_size", 4, "--no_native"]
    run = partial(run_script, environment, "training/evaluate.py", *arguments)
    alone, shared = run("--output_dir", tmp_path / "one"), run("--output_dir", tmp_path / "two", num_processes=2)
    assert (alone.returncode, shared.returncode) == (0, 0), alone.stderr + shared.stderr
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    seconds = [report.pop("speed")["seconds_per_picture"] for report in reports]
    assert min(seconds) > 0
    assert reports[0] == reports[1]


REFERENCES = """
import sys
sys.path.insert(0, {root!r})
from safetensors.torch import save_file
from training.data.good_images import GoodImages
from training.data.layouts import find_good_images
from training.fitting.feature_references import fit_feature_reference
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.runtime.collectives import is_main_process, start_processes
start_processes()
extractor = load_pretrained_extractor("tf_efficientnet_lite0", 16)
found = fit_feature_reference(extractor, GoodImages(find_good_images({tiles!r}), 64), batch_size=2)
if is_main_process():
    scales = {{name: getattr(found, name).whitening_scale for name in ("gaussian", "coarse_gaussian")}}
    save_file({{"mean": found.gaussian.mean, "bank": found.memory.bank, **scales}}, sys.argv[1])
"""


def test_two_processes_remember_the_features_that_one_remembers(environment, tmp_path):
    script = tmp_path / "references.py"
    script.write_text(REFERENCES.format(root=str(ROOT), tiles=str(TILES)))
    alone, shared = (
        run_script(environment, str(script), tmp_path / name, num_processes=number)
        for name, number in (("one", 1), ("two", 2))
    )
    assert (alone.returncode, shared.returncode) == (0, 0), alone.stderr + shared.stderr
    expected, found = (load_file(tmp_path / name) for name in ("one", "two"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_shares_are_whole_batches_that_together_are_all_images(count, monkeypatch):
    class State:
        num_processes = 3

    shares = []
    for State.process_index in range(3):
        monkeypatch.setattr("training.runtime.collectives.PartialState", State)
        shares.append(own_share(count, 4))
    assert [place for share in shares for place in share] == list(range(count))
    assert all(len(share) % 4 == 0 for share in shares if share and share.stop < count)


def test_one_process_has_all_rows_already():
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(gather_rows(rows, 3, 2), rows)
