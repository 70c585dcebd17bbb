"""Training never loses work: killed, asked to end, out of disk or images, it goes on from its last checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from launching import ROOT, TINY, TWELVE_STEPS, launch_command, started, train, two_processes_command, wait_until
from paths import TILES
from safetensors.torch import load_file
from sentences import assert_sentence, refused

from pipelines import checkpoint_saving
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.arguments import parse_args
from training.data.layouts import find_good_images
from training.data.run_record import describe_run, restore_splits
from training.data.splits import hold_out, split_key
from training.records.progress import SEPARATION, loss_curve, read_progress, separation_curve
from training.train import main

WEIGHTS = "diffusion_pytorch_model.safetensors"
RESUMED = ["--resume_from_checkpoint", "latest"]


def sentence_of(stderr):
    return next(line for line in stderr.splitlines() if line.startswith("error:"))


@pytest.fixture(scope="module")
def resumed(environment, tmp_path_factory):
    """The output folder of a run that was killed at its first checkpoint and taken up again; it validated often."""
    output_dir = tmp_path_factory.mktemp("resumed") / "out"
    arguments = ["--train_data_dir", TILES, "--output_dir", output_dir, *TWELVE_STEPS, "--validation_steps", 3]
    with started(environment, *arguments) as process:
        wait_until((output_dir / "checkpoint-2").exists, process)
    assert not (output_dir / "model_index.json").exists(), "the run was finished before it could be killed"
    last = max(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))
    # what saves that were cut off leave, and folders that only look like checkpoints
    for name in (f".checkpoint-{last + 2}.partial", ".checkpoint-1.partial-old", ".saving-torn"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
        (output_dir / name).mkdir()
        (output_dir / name / "model.safetensors").write_bytes(b"torn")
    (output_dir / "checkpoint-best").mkdir()
    done = train(environment, *arguments, *RESUMED)
    assert done.returncode == 0, done.stderr
    assert f"resumed from {output_dir / f'checkpoint-{last}'}" in done.stderr
    return output_dir


def test_a_killed_run_that_is_resumed_ends_with_the_very_weights_of_an_uninterrupted_one(finished, resumed):
    for component in ("unet", "feature_extractor", "gaussian", "memory", "coarse_gaussian", "calibration"):
        expected, weights = (load_file(folder / component / WEIGHTS) for folder in (finished, resumed))
        assert expected.keys() == weights.keys()
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), f"{component} {name}"


def test_a_killed_run_that_is_resumed_has_validated_at_every_step_it_was_to_and_found_the_same(finished, resumed):
    expected, found = (separation_curve(read_progress(folder)) for folder in (finished, resumed))
    assert expected["step"] == [12]
    assert found["step"] == [3, 6, 9, 12]
    assert [found[name][-1] for name in SEPARATION] == [expected[name][-1] for name in SEPARATION]


def test_a_resumed_run_counts_the_seconds_before_it_was_killed(finished, resumed):
    seconds = json.loads((resumed / "training.json").read_text())["training_seconds"]
    before = json.loads((resumed / "checkpoint-10" / "run.json").read_text())["seconds"]
    assert 0 < before <= seconds


def test_nothing_half_saved_is_left_by_a_run_that_was_killed_and_resumed(resumed):
    assert not list(resumed.glob(".*"))
    whole = [path.name for path in resumed.glob("checkpoint-*") if path.name != "checkpoint-best"]
    assert sorted(whole) == ["checkpoint-10", "checkpoint-12"]


@pytest.mark.parametrize("case", ["one process", "two processes"])
def test_a_run_that_is_asked_to_end_writes_a_checkpoint_and_is_resumed_from_it(environment, tmp_path, case):
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path, *TINY, "--max_train_steps", "5000"]
    arguments += ["--dataloader_num_workers", int(case == "one process")]

    def command(*arguments):
        if case == "two processes":
            return two_processes_command("training/train.py", *arguments, "--train_batch_size", 2)
        return launch_command(*arguments, quiet=True)

    with started(environment, *arguments, command=command) as process:
        wait_until(lambda: len(read_progress(tmp_path)) >= 2, process)
        os.killpg(process.pid, signal.SIGTERM)  # to all of its processes, as a job scheduler does
        process.wait()
        for _ in range(600):
            if read_progress(tmp_path)[-1]["phase"] == "stopped":
                break
            signal.sigtimedwait([], 0.1)
    step = read_progress(tmp_path)[-1]["step"]
    assert read_progress(tmp_path)[-1]["phase"] == "stopped"
    assert (tmp_path / f"checkpoint-{step}").is_dir()
    assert not (tmp_path / "model_index.json").exists()
    # one process takes up what two have begun: as many images a step
    arguments += ["--max_train_steps", step + 1, *RESUMED]
    done = train(environment, *arguments)
    assert done.returncode == 0, done.stderr
    phases = [entry["phase"] for entry in read_progress(tmp_path)]
    assert list(dict.fromkeys(phases))[-4:] == ["references", "calibration", "saving", "finished"]
    assert loss_curve(read_progress(tmp_path))["step"][-1] == step + 1
    AnomalyScoringPipeline.from_pretrained(tmp_path)


def test_images_that_disappear_end_the_run_with_a_sentence_and_cost_no_step(environment, tmp_path):
    images, output_dir = tmp_path / "tiles", tmp_path / "out"
    shutil.copytree(TILES / "train" / "good", images)
    arguments = ["--train_data_dir", images, "--output_dir", output_dir, *TINY, "--max_train_steps", "4000"]
    arguments += ["--dataloader_num_workers", 1]  # whose error comes with a traceback of its own
    with started(environment, *arguments, command=lambda *given: launch_command(*given, quiet=True)) as process:
        wait_until(lambda: len(read_progress(output_dir)) >= 2, process)
        for path in sorted(images.iterdir()):
            path.rename(tmp_path / path.name)
        stderr = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    assert "Traceback" not in stderr
    assert "another image stands in: " in stderr
    assert_sentence(sentence_of(stderr), "in a row", ".jpg", "--resume_from_checkpoint latest")
    last = read_progress(output_dir)[-1]["step"]
    checkpoint = max(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert int(checkpoint.name.split("-")[1]) >= last
    for path in sorted(tmp_path.glob("*.jpg"))[8:]:  # some come back
        path.rename(images / path.name)
    steps = int(checkpoint.name.split("-")[1]) + 1
    done = train(environment, *arguments, "--max_train_steps", steps, *RESUMED)
    assert done.returncode == 0, done.stderr
    assert "8 images are gone, 0 are new" in done.stderr
    former = json.loads((checkpoint / "run.json").read_text())["pictures"]["tiles"]
    held_out = json.loads((output_dir / "training.json").read_text())["held_out"]["tiles"]
    left = {path.name for path in images.iterdir()}
    assert held_out == [name for name in (key.split("/")[1] for key in former[1]) if name in left]


def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_the_last_checkpoint(environment, finished, tmp_path):
    output_dir = tmp_path / "out"
    shutil.copytree(finished / "checkpoint-10", output_dir / "checkpoint-10")
    # no file may grow beyond 100 kB: what a full disk does, for one process
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); import training.train"
    arguments = ["--train_data_dir", TILES, "--output_dir", output_dir, *TWELVE_STEPS, *RESUMED]
    done = subprocess.run(
        [sys.executable, "-c", f"{limited}; training.train.main()", *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_sentence(sentence_of(done.stderr), "checkpoint-12", "cannot be written", "--resume_from_checkpoint latest")
    assert [path.name for path in output_dir.glob("*checkpoint*")] == ["checkpoint-10"]
    names = {path.name for path in (output_dir / "checkpoint-10").iterdir()}
    assert names == {path.name for path in (finished / "checkpoint-10").iterdir()}


@pytest.mark.usefixtures("one_core")
def test_a_loss_that_is_not_a_number_ends_the_run_with_a_sentence(tmp_path):
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(tmp_path), *TWELVE_STEPS]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--learning_rate", "1e20", "--lr_warmup_steps", "0"])
    assert_sentence(ended.value.code, "the loss is", "--learning_rate", "--resume_from_checkpoint latest")
    assert not (tmp_path / "model_index.json").exists()


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], ["--seed 0", "1"]),
        (["--train_batch_size", "2"], ["4 images", "2"]),
        (["--block_out_channels", "32", "64"], ["--block_out_channels 32 32", "32 64"]),
    ],
)
def test_a_run_is_not_resumed_with_settings_that_its_weights_or_images_depend_on(finished, tmp_path, options, words):
    shutil.copytree(finished / "checkpoint-10", tmp_path / "checkpoint-10")
    with pytest.raises(SystemExit) as ended:
        main(["--train_data_dir", str(TILES), "--output_dir", str(tmp_path), *TWELVE_STEPS, *RESUMED, *options])
    assert_sentence(ended.value.code, "checkpoint-10", *words)


@pytest.mark.usefixtures("one_core")
def test_a_checkpoint_whose_images_are_gone_is_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoint-10", tmp_path / "out" / "checkpoint-10")
    others = tmp_path / "magnetic_tile"
    others.mkdir()
    for index, path in enumerate(find_good_images(TILES)[:12]):
        shutil.copy(path, others / f"{index}.jpg")
    with pytest.raises(SystemExit) as ended:
        main(["--train_data_dir", str(others), "--output_dir", str(tmp_path / "out"), *TWELVE_STEPS, *RESUMED])
    assert_sentence(ended.value.code, "magnetic_tile", "checkpoint-10", "0 + 0")


def test_a_save_that_is_cut_off_leaves_no_mixture_of_two_checkpoints(tiny_pipeline, tmp_path, monkeypatch):
    tiny_pipeline.save_pretrained(tmp_path)
    replaced = []

    def cut_off(source, target):
        if len(replaced) == 5:
            raise KeyboardInterrupt
        replaced.append(target)
        replace(source, target)

    replace = checkpoint_saving._replace
    monkeypatch.setattr(checkpoint_saving, "_replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tiny_pipeline.save_pretrained(tmp_path)
    with refused(ValueError, "model_index.json"):
        AnomalyScoringPipeline.from_pretrained(tmp_path)


def test_images_of_the_same_name_in_folders_of_the_same_name_stay_on_their_side_of_the_split(tmp_path):
    files = [tmp_path / line / "good" / f"{number}.png" for line in "abc" for number in range(12)]
    splits = {"part": hold_out(files, 17 / 36, 0)}
    assert {split_key(path) for path in splits["part"][0]} & {split_key(path) for path in splits["part"][1]}
    arguments = parse_args(["--train_data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    run = describe_run(vars(arguments), splits, {}, 8)
    assert restore_splits(tmp_path / "checkpoint-1", run, {"part": files}) == splits
