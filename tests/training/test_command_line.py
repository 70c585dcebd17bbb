"""What the commands say: help, one sentence where nothing was asked for, messages beside progress bars."""

import io
import logging
import runpy
import sys

import pytest
from image_folders import write_images
from paths import ROOT
from sentences import assert_sentence
from tqdm.auto import tqdm

from training.cli.presets import PRESETS
from training.data.good_images import find_categories
from training.data.layouts import MIN_IMAGES, category_name
from training.data.run_record import under_present_names
from training.runtime.process import show_messages

COMMANDS = sorted(path.stem for path in (ROOT / "training").glob("*.py") if path.stem != "__init__")


def run(command, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"training/{command}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"training.{command}", run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_says_nothing_of_none_and_no_arguments_are_answered_with_a_command(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert run(command, "--help", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "None" not in text
    assert "==SUPPRESS==" not in text
    assert run(command, monkeypatch=monkeypatch) == 2
    sentence = capsys.readouterr().err.strip()
    assert_sentence(sentence, f"python training/{command}.py --", "--help")
    named = [word for word in sentence.split(" is python ")[1].split(";")[0].split() if word.startswith("--")]
    assert all(f"{option} " in text for option in named)


def test_the_help_of_training_states_what_each_preset_chooses(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    run("train", "--help", monkeypatch=monkeypatch)
    text = " ".join(capsys.readouterr().out.split())
    assert "squashed to this square (default: 256; 512 with --preset fine)" in text
    assert "noise is added (default: on; off with --preset paper)" in text
    assert "(default: 20.0; none with --preset paper)" in text
    assert "T of Eq. 11 (default: 5 50 100)" in text
    assert text.count("with --preset paper") >= len(PRESETS["paper"]) - 1


def test_messages_stand_on_lines_of_their_own_above_a_progress_bar(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    show_messages()
    with tqdm(total=3, desc="training", file=sys.stderr) as progress:
        progress.update()
        logging.getLogger("anything").info("left out: one image")
        progress.update()
    lines = sys.stderr.getvalue().split("\n")
    assert [line for line in lines if line.endswith("left out: one image")] == [lines[0]]
    before, _, message = lines[0].rpartition("\r")
    assert message == "left out: one image"
    assert before.endswith(" ")  # the bar was wiped out
    assert "training" in lines[1]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("screw", "screw"),
        ("screw/train/good", "screw"),
        ("folder/good", "folder"),
        ("pcb1/Data/Images/Normal", "pcb1"),
        ("tile/train", "tile"),
        ("tile/batch 7", "batch 7"),
    ],
)
def test_a_category_is_named_after_its_folder_and_not_after_what_its_images_show(folder, name, tmp_path, monkeypatch):
    write_images(tmp_path / folder, MIN_IMAGES)
    assert list(find_categories([tmp_path / folder])) == [name]
    monkeypatch.chdir(tmp_path / folder)
    assert category_name(".") == name


def test_two_folders_of_good_images_are_two_categories(tmp_path):
    for part in ("screw", "nut"):
        write_images(tmp_path / part / "good", MIN_IMAGES)
    assert list(find_categories([tmp_path / "screw" / "good", tmp_path / "nut" / "good"])) == ["screw", "nut"]


def test_a_run_that_called_its_category_good_goes_on_under_the_present_name():
    run = {"pictures": {"good": [["a"], ["b"]]}, "groups": {"good": None}, "seconds": 1.0}
    assert under_present_names(run, {"screw": []}) == {
        "pictures": {"screw": [["a"], ["b"]]},
        "groups": {"screw": None},
        "seconds": 1.0,
    }
    other = {"pictures": {"nut": [["a"], ["b"]]}}
    assert under_present_names(other, {"screw": []}) is other
