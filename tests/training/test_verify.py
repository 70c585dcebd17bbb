"""The list of a checkpoint's files: sha256sum takes it, every change is noticed, and the Hub gives the same one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fresh_process import FreshProcess
from hub_server import Hub, read_folder
from paths import ROOT
from sentences import assert_sentence

from pipelines.checkpoint_names import CARD
from training.records.checkpoint_contents import list_contents
from training.verify import hash_files, main

SCORING = "pipeline_anomaly_scoring.py"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy whose files may be replaced, with some that are not loaded."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy", copy_function=os.link))
    (folder / "notes.txt").write_text("x")
    (folder / "evil.py").write_text("x")
    (folder / "examples").mkdir()
    (folder / "examples" / "part.png").write_bytes(b"x")
    return folder


@pytest.fixture
def printed(checkpoint, capsys, tmp_path):
    """The list that the command prints, as a file."""
    main(["--model", str(checkpoint)])
    (tmp_path / "SUMS").write_text(capsys.readouterr().out)
    return tmp_path / "SUMS"


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def test_sha256sum_takes_the_list_and_notices_a_change(checkpoint, printed):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")

    def check():
        command = ["sha256sum", "--check", "--strict", "--quiet", printed]
        return subprocess.run(command, cwd=checkpoint, capture_output=True).returncode

    assert check() == 0
    replace(checkpoint / "memory" / "config.json", b"{}")
    assert check() == 1


def test_all_that_is_loaded_is_listed_and_nothing_else(checkpoint, tiny_checkpoint):
    names = set(hash_files(checkpoint))
    assert names == {name for name in read_folder(tiny_checkpoint) if name != CARD}
    assert {"model_index.json", "pipeline_anomaly_scoring.py", "scheduler/scheduler_config.json"} <= names
    assert "evil.py" in list_contents(checkpoint).left_out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: replace(folder / "unet" / "config.json", b"{}"), ["unet/config.json", "not the one"]),
        (lambda folder: (folder / "memory" / "config.json").unlink(), ["memory/config.json", "not in the checkpoint"]),
        (lambda folder: replace(folder / SCORING, b"import os\n"), [SCORING, "not the one"]),
        (lambda folder: replace(folder / SCORING, b"from .evil import x\n"), ["evil.py", "not listed"]),
        (lambda folder: (folder / "unet" / "model.bin").write_bytes(b"x"), ["unet/model.bin", "pickle"]),
        (lambda folder: (folder / "LICENSE").symlink_to("/etc/passwd"), ["LICENSE", "link"]),
    ],
)
def test_every_change_of_what_is_loaded_is_named(change, words, checkpoint, printed, capsys):
    main(["--model", str(checkpoint), "--check", str(printed)])
    assert "as listed" in capsys.readouterr().out
    change(checkpoint)
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(checkpoint), "--check", str(printed)])
    assert_sentence(ended.value.code, "error: ", *words)


def test_code_that_is_added_is_named(checkpoint, printed):
    entry = checkpoint / SCORING
    listed = "".join(line for line in printed.read_text().splitlines(True) if not line.endswith(f"  {entry.name}\n"))
    printed.write_text(listed)
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(checkpoint), "--check", str(printed)])
    assert_sentence(ended.value.code, entry.name, "not listed")
    printed.write_text("no list")
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(checkpoint), "--check", str(printed)])
    assert_sentence(ended.value.code, "line 1", "sha256sum")


def test_a_checkpoint_on_the_hub_has_the_same_list(checkpoint, printed, environment, tmp_path):
    with Hub().running() as server:
        server.repositories.create("model", "team/tile").put(read_folder(checkpoint))
        process = FreshProcess(server, tmp_path / "home", environment)
        status, listed, _ = process.run("from training.verify import main\nmain(['--model', 'team/tile'])")
        process.close()
    assert status == 0, listed
    lines = listed.splitlines()  # the progress of fetching among them
    assert [line for line in lines if re.match("[0-9a-f]{64}  ", line)] == printed.read_text().splitlines()
    assert str(tmp_path / "home") in lines[-1]
    assert server.count("GET", r"notes\.txt|part\.png") == 0


def test_the_embedded_checkpoint_is_listed_whole():
    folder = ROOT / "checkpoints" / "magnetic-tile"
    notes = ("README.md", "training.json", "training_images.safetensors", "evaluation.json")
    loaded = {name for name in read_folder(folder) if name not in notes and not name.startswith("examples")}
    assert set(hash_files(folder)) == loaded
