"""A training that stays correct: its schedule whatever the number of processes, and nothing that is not finite kept."""

import json
import logging
import shutil
import threading

import numpy as np
import pytest
import torch
from launching import TINY, train
from paths import TILES
from PIL import Image
from safetensors.torch import load_file
from sentences import assert_sentence

from pipelines.denoising_network import without_tf32
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.layouts import find_good_images
from training.engine.kept_features import KeptFeatures
from training.engine.losses import DenoisingLoss, LossTerms
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.train import main

SIX_STEPS = [*TINY, "--max_train_steps", "6", "--checkpointing_steps", "3", "--validation_steps", "0"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_run_that_goes_on_with_another_number_of_processes_keeps_its_schedule(environment, tmp_path):
    """Cosine over six steps: three by one process, three by two. A rate that ran ahead or back gives other weights."""
    arguments = ["--train_data_dir", TILES, *SIX_STEPS]
    done = train(environment, *arguments, "--output_dir", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "one" / "checkpoint-3", tmp_path / "two" / "checkpoint-3")
    resumed = ["--output_dir", tmp_path / "two", "--resume_from_checkpoint", "latest", "--train_batch_size", "2"]
    done = train(environment, *arguments, *resumed, num_processes=2)
    assert done.returncode == 0, done.stderr
    start = load_file(tmp_path / "one" / "checkpoint-3" / "model.safetensors")
    ends = [load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("one", "two")]
    moved = torch.cat([(ends[0][name] - start[name]).flatten() for name in start])
    apart = torch.cat([(ends[0][name] - ends[1][name]).flatten() for name in start])
    assert apart.norm() < 0.02 * moved.norm()


def losses_that_fail(monkeypatch, step, micro_batch, per_step=2):
    """Let the loss of one batch of one step be NaN."""
    calls, real = [], DenoisingLoss.__call__

    def call(self, *arguments):
        terms = real(self, *arguments)
        calls.append(None)
        if len(calls) - 1 == step * per_step + micro_batch:
            return LossTerms(terms.total * torch.nan, terms.noise, terms.bound, terms.features)
        return terms

    monkeypatch.setattr(DenoisingLoss, "__call__", call)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_loss_that_is_not_finite_ends_the_run_before_any_weight_has_moved_by_it(tmp_path, monkeypatch, micro_batch):
    losses_that_fail(monkeypatch, step=2, micro_batch=micro_batch)
    options = [*TINY, "--max_train_steps", "4", "--checkpointing_steps", "1", "--validation_steps", "0"]
    options += ["--gradient_accumulation_steps", "2", "--train_batch_size", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["--train_data_dir", str(TILES), "--output_dir", str(tmp_path), *options])
    assert_sentence(ended.value.code, "the loss is nan at step 2", "--learning_rate", "--resume_from_checkpoint latest")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    for name in ("model", "ema", "optimizer"):
        for tensor in load_file(tmp_path / "checkpoint-2" / f"{name}.safetensors").values():
            assert tensor.isfinite().all()


@pytest.mark.usefixtures("one_core")
def test_what_a_step_has_made_not_finite_is_never_saved(tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def overflowing(self, *arguments, **options):
        result = step(self, *arguments, **options)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.inf)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", overflowing)
    options = [*TINY, "--max_train_steps", "3", "--checkpointing_steps", "1", "--validation_steps", "0"]
    with pytest.raises(SystemExit) as ended:
        main(["--train_data_dir", str(TILES), "--output_dir", str(tmp_path), *options])
    assert_sentence(ended.value.code, "no longer finite")
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.usefixtures("one_core")
def test_a_resumed_run_takes_its_statistics_from_the_checkpoint(finished, tmp_path):
    """Also where the images that they were measured on look different by now."""
    folder = shutil.copytree(TILES, tmp_path / TILES.name)
    for path in find_good_images(folder):
        with Image.open(path) as tile:
            darker = Image.fromarray((np.asarray(tile.convert("L")) // 2).astype(np.uint8))
        darker.save(path, quality=95)
    shutil.copytree(finished / "checkpoint-12", tmp_path / "out" / "checkpoint-12")
    options = [*TINY, "--max_train_steps", "12", "--resume_from_checkpoint", "latest"]
    main(["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "out"), *options])
    before, after = (AnomalyScoringPipeline.from_pretrained(path) for path in (finished, tmp_path / "out"))
    for name in ("data_mean", "data_std", "white_level"):
        assert after.config[name] == before.config[name], name
    for name in ("feature_mean", "feature_std"):
        assert torch.equal(getattr(after.feature_extractor, name), getattr(before.feature_extractor, name)), name


def test_features_of_a_stand_in_are_not_those_of_the_image_it_stood_in_for():
    extractor = load_pretrained_extractor("tf_efficientnet_lite0", 8)
    features_of = KeptFeatures(extractor, lambda place: place)
    stand_in, image = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with torch.no_grad():
        features_of(stand_in, [0])
        assert torch.equal(features_of(image, [0]), extractor(image))
        assert torch.equal(features_of(stand_in, [0]), extractor(stand_in))


def test_threads_that_score_at_the_same_time_leave_the_setting_as_they_found_it():
    """The one that came first leaves last, or the other way round."""
    torch.backends.cudnn.allow_tf32 = True
    inside, may_leave, seen = threading.Event(), threading.Event(), []

    def score():
        with without_tf32():
            inside.set()
            may_leave.wait(30)
            seen.append(torch.backends.cudnn.allow_tf32)

    other = threading.Thread(target=score)
    with without_tf32():
        other.start()
        inside.wait(30)
    assert not torch.backends.cudnn.allow_tf32  # the other is still inside
    may_leave.set()
    other.join()
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_weights_of_a_checkpoint_can_be_read_by_whoever_can_read_its_index(tiny_checkpoint):
    mode = (tiny_checkpoint / "model_index.json").stat().st_mode
    assert all(path.stat().st_mode == mode for path in tiny_checkpoint.glob(f"*/{WEIGHTS}"))


@pytest.mark.usefixtures("one_core")
def test_a_training_on_a_data_set_with_twins_says_so_and_trains_on_no_part_that_it_holds_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "tiles" / "train" / "good"
    folder.mkdir(parents=True)
    for path in find_good_images(TILES):
        shutil.copy(path, folder)
        shutil.copy(path, folder / f"{path.stem} (copy){path.suffix}")
    options = [*TINY, "--max_train_steps", "1", "--validation_steps", "0"]
    options = [word for word in options if word not in ("--groups", "none")]
    main(["--train_data_dir", str(tmp_path / "tiles"), "--output_dir", str(tmp_path / "out"), *options])
    assert any("tiles: 48 images are of about" in message for message in caplog.messages)
    held_out = set(json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]["tiles"])
    assert {name.replace(" (copy)", "") for name in held_out} <= held_out
    pipe = AnomalyScoringPipeline.from_pretrained(tmp_path / "out")
    assert pipe.calibration.num_ranked_groups <= len(held_out) / 2
    assert pipe.calibration.effective_rate(0) >= 2 / (len(held_out) + 2)
