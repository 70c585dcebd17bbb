"""Scoring a folder on any number of processes, killed and resumed: always the very files of an undisturbed run."""

import csv
import os
import shutil
import signal
import sys
import time

import psutil
import pytest
from launching import run_in_two_processes, run_script, started, two_processes_command, wait_until
from paths import ROOT, TILES
from sentences import assert_sentence

from benchmarks.interrupted_runs import digests_of, kill_all
from training.data.image_folders import find_images
from training.score_folder import main

SCRIPT = "training/score_folder.py"
SMALL_PARTS = ["--part_size", 4, "--batch_size", 3]


def command(*arguments):
    return [sys.executable, SCRIPT, *map(str, arguments)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """All 30 tiles in their folders, and files that cannot be read or have odd names."""
    folder = tmp_path_factory.mktemp("pictures") / "tiles"
    shutil.copytree(TILES, folder, ignore=shutil.ignore_patterns("ground_truth"))
    tile = find_images(TILES)[0]
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "torn.jpg").write_bytes(tile.read_bytes()[:-300])
    for name in (b"=1+1.jpg", b"test-.jpg", b"\xff.jpg", b"n" * 250 + b".jpg"):
        shutil.copy(tile, os.fsencode(folder) + b"/" + name)
    return folder


@pytest.fixture(scope="module")
def options(tiny_checkpoint, images):
    return ["--model", tiny_checkpoint, "--input_dir", images, *SMALL_PARTS]


@pytest.fixture(scope="module")
def undisturbed(environment, options, tmp_path_factory):
    """The output folder of one process that nothing interrupted, with maps, and what it printed."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run_script(environment, SCRIPT, *options, "--output_dir", output_dir, "--maps")
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout


def rows_of(output_dir):
    with open(output_dir / "scores.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def refusal(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_the_table_has_a_row_for_each_image_in_their_order(undisturbed, images):
    output_dir, printed = undisturbed
    files = [os.fsencode(path.relative_to(images)).decode(errors="backslashreplace") for path in find_images(images)]
    files = ["'" + name if name.startswith("=") else name for name in files]
    assert [row["file"] for row in rows_of(output_dir)] == files
    unreadable = {row["file"]: row["error"] for row in rows_of(output_dir) if row["verdict"] == "unreadable"}
    assert unreadable.keys() == {"broken.png", "torn.jpg"}
    assert "not an image" in unreadable["broken.png"]
    overlays = [path for path in (output_dir / "overlays").rglob("*") if path.is_file()]
    assert len(overlays) == len(files) - 2
    assert " 2 unreadable; see " in printed.splitlines()[-1]
    assert "images a second" in printed
    assert {path.name for path in output_dir.iterdir()} == {"scores.csv", "manifest.json", "overlays", "maps"}


def test_two_processes_write_the_very_files_of_one(environment, options, undisturbed, tmp_path):
    done = run_script(environment, SCRIPT, *options, "--output_dir", tmp_path / "out", "--maps", num_processes=2)
    assert done.returncode == 0, done.stderr
    assert digests_of(tmp_path / "out") == digests_of(undisturbed[0])


@pytest.mark.usefixtures("one_core")
def test_a_killed_run_goes_on_and_ends_with_the_very_files_of_an_undisturbed_one(
    environment, options, undisturbed, tmp_path
):
    arguments = [*options, "--output_dir", tmp_path, "--maps"]
    with started(environment, *arguments, command=command) as process:
        wait_until((tmp_path / "parts" / "part-000002-00000.jsonl").exists, process)
        process.send_signal(signal.SIGSTOP)  # or it ends while the second run still loads its model
        assert_sentence(refusal(*arguments), "error: ", "another run is writing", str(tmp_path))
        assert process.poll() is None
        kill_all(process)
    assert not (tmp_path / "scores.csv").exists()
    (tmp_path / "parts" / ".torn.partial").write_bytes(b"half")
    first = tmp_path / "maps" / "part-000000-00000.parquet"
    written = first.stat().st_mtime_ns
    # the very same number of threads: two processes share one core as one does
    done = run_in_two_processes(environment, SCRIPT, *arguments)
    assert done.returncode == 0, done.stderr
    assert digests_of(tmp_path) == digests_of(undisturbed[0])
    assert first.stat().st_mtime_ns == written, "a finished part was scored again"


def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_run_goes_on(
    environment, options, undisturbed, tmp_path
):
    arguments = [*options, "--output_dir", tmp_path, "--maps"]

    def in_two(*arguments):
        return two_processes_command(SCRIPT, *arguments)

    with started(environment, *arguments, command=in_two) as process:
        wait_until(lambda: len(list((tmp_path / "parts").glob("part-*"))) >= 2, process)
        children = psutil.Process(process.pid).children()
        workers = [worker for child in children for worker in child.children()]
        max(children, key=lambda child: int(child.environ()["RANK"])).kill()
        process.communicate(timeout=120)
        assert process.returncode != 0
        deadline = time.monotonic() + 60
        while any(child.is_running() for child in (*children, *workers)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert not (tmp_path / "scores.csv").exists()
    done = run_script(environment, SCRIPT, *arguments)
    assert done.returncode == 0, done.stderr
    assert digests_of(tmp_path) == digests_of(undisturbed[0])


@pytest.mark.usefixtures("one_core")
def test_sigterm_ends_a_run_cleanly_and_it_goes_on_with_another_batch_size(
    environment, options, undisturbed, tmp_path, capsys
):
    arguments = [*options, "--output_dir", tmp_path]
    with started(environment, *arguments, command=command) as process:
        wait_until((tmp_path / "parts" / "part-000001-00000.jsonl").exists, process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "stopped" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "scores.csv").exists()
    main([str(argument) for argument in [*arguments, "--batch_size", 4, "--dataloader_num_workers", 0]])
    assert "unreadable; see" in capsys.readouterr().out
    found, expected = rows_of(tmp_path), rows_of(undisturbed[0])
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["verdict"] == theirs["verdict"]
        if ours["anomaly_score"]:
            assert float(ours["anomaly_score"]) == pytest.approx(float(theirs["anomaly_score"]), abs=1e-3)


@pytest.mark.usefixtures("one_core")
def test_a_finished_run_is_not_scored_again(options, undisturbed, capsys):
    before = digests_of(undisturbed[0]), (undisturbed[0] / "scores.csv").stat().st_mtime_ns
    main([str(argument) for argument in [*options, "--output_dir", undisturbed[0], "--maps"]])
    assert (digests_of(undisturbed[0]), (undisturbed[0] / "scores.csv").stat().st_mtime_ns) == before
    assert capsys.readouterr().out.splitlines()[-1] == undisturbed[1].splitlines()[-1]


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--alpha", "0.5"], ["--alpha the default", "0.5"]),
        (["--false_alarm_rate", "0.2"], ["--false_alarm_rate the default", "0.2"]),
        (["--part_size", "8"], ["part_size 4", "8"]),
        (["--no_overlays"], ["no_overlays False", "True"]),
        (["--format", "parquet"], ["format csv", "parquet"]),
        (["--input_dir", TILES / "test"], ["other images"]),
    ],
)
def test_scores_of_other_settings_or_images_are_refused(options, undisturbed, changed, words):
    before = digests_of(undisturbed[0])
    sentence = refusal(*options, "--output_dir", undisturbed[0], "--maps", *changed)
    assert_sentence(sentence, "error: ", *words, "--output_dir")
    assert digests_of(undisturbed[0]) == before


@pytest.mark.usefixtures("one_core")
def test_scores_of_another_model_and_of_images_that_have_changed_are_refused(tiny_checkpoint, tmp_path):
    model, folder, output_dir = tmp_path / "model", tmp_path / "pictures", tmp_path / "pictures" / "out"
    shutil.copytree(tiny_checkpoint, model)
    shutil.copytree(TILES / "test" / "blowhole", folder)
    arguments = ["--model", model, "--input_dir", folder, "--output_dir", output_dir, "--dataloader_num_workers", 0]
    main([str(argument) for argument in arguments])
    main([str(argument) for argument in arguments])  # the overlays below the folder are no images of it
    before = digests_of(output_dir)
    image = find_images(folder)[0]
    seen = image.stat()
    os.utime(image, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert_sentence(refusal(*arguments), "other images", str(output_dir))
    os.utime(image, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with open(model / "calibration" / "config.json", "a") as stream:
        stream.write("\n")
    assert_sentence(refusal(*arguments), "another model", str(output_dir))
    (output_dir / "manifest.json").write_text("{}")
    assert_sentence(refusal(*arguments), "manifest.json", "--output_dir")
    (output_dir / "manifest.json").unlink()
    (output_dir / "parts").mkdir()  # of nobody knows what
    (output_dir / "parts" / "part-000000-00000.jsonl").write_text('{"images": 0, "is_last": true}\n')
    main([str(argument) for argument in arguments])
    after = digests_of(output_dir)
    assert after.pop("manifest.json") != before.pop("manifest.json")
    assert after == before


def test_what_is_read_is_named_once(tmp_path, capsys):
    for options, words in (
        ([], "none was given"),
        (["--input_dir", "a", "--shards", "b.tar"], "input_dir and shards"),
        (["--input_dir", "a", "--image_column", "picture"], "--image_column belongs to --dataset_name"),
        (["--shards", "b.tar", "--dataset_split", "test"], "--dataset_split belongs to --dataset_name"),
        (["--input_dir", "a", "--part_size", "0"], "--part_size is 0"),
    ):
        assert refusal("--model", ROOT, "--output_dir", tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
