"""From good images to a checkpoint on a Hub: the commands as printed, and training that pushes by itself."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_repositories import User
from hub_server import Hub, environment_of
from launching import TINY, launch, stay_on_one_core
from paths import ROOT, TILE, TILES
from printed import printed
from sentences import assert_sentence

TOKEN = "hf_secret_of_me"
TWO_STEPS = [*TINY, "--max_train_steps", "2"]


@pytest.fixture
def server():
    with Hub({TOKEN: User("me", ("me", "team"))}).running() as server:
        yield server


def filled_in(mark, language):
    """The code that is printed under a mark, with names filled in."""
    code = printed(mark, language)
    names = {"FOLDER_OF_GOOD_IMAGES": str(TILES), "YOUR_NAME/YOUR_MODEL": "team/tile", "part.jpg": str(TILE)}
    for name, value in names.items():
        code = code.replace(name, value)
    return code


def assert_kept_secret(folder):
    """No file that a training has left, be it in its output or in the Hub's cache, has the token in it."""
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_the_three_commands_and_the_example_work_as_printed(server, environment, tmp_path):
    install, train, publish = filled_in("share", "bash").splitlines()
    assert "pip install -r requirements.txt" in install  # a network is needed for this one
    variables = environment | environment_of(server, tmp_path / "home", TOKEN)
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    commands = f"{train} {shlex.join(TWO_STEPS)}\n{publish}".replace("OUT", str(tmp_path / "OUT"))
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=ROOT,
        env=variables,
        preexec_fn=stay_on_one_core,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stdout
    assert "checkpoint-2/" in done.stdout
    code = filled_in("pull", "python") + "print(result.p_value[0], result.anomaly_map[0].shape)\n"
    stranger = environment | environment_of(server, tmp_path / "other")
    stranger.pop("PYTHONPATH", None)
    pulled = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=stranger, capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    assert 0 < float(pulled.stdout.split()[0]) <= 1


def test_training_pushes_its_checkpoint_without_a_trace_of_the_token(server, environment, tmp_path):
    variables = environment | environment_of(server, tmp_path / "home")
    output_dir = tmp_path / "out"
    options = ["--push_to_hub", "--hub_model_id", "team/tile", "--hub_private_repo", "--hub_token", TOKEN]
    done = launch(variables, "--train_data_dir", TILES, "--output_dir", output_dir, *TWO_STEPS, *options)
    assert done.returncode == 0, done.stderr
    repository = server.repositories.get("model", "team/tile")
    assert repository.private
    assert repository.messages == ["initial commit", "Upload a checkpoint"]
    pushed = repository.tree("main")
    assert pushed["model_index.json"].content == (output_dir / "model_index.json").read_bytes()
    assert not [name for name in pushed if name.startswith("checkpoint-")]
    assert "hub_token" not in json.loads(pushed["training.json"].content)["settings"]
    names = {path.name for path in (TILES / "train" / "good").iterdir()}
    assert json.loads(pushed["training.json"].content)["held_out"][TILES.name]["pictures"] == 6
    assert not [name for blob in pushed.values() for name in names if name.encode() in blob.content]
    for content in (done.stdout, done.stderr, *(blob.content.decode(errors="replace") for blob in pushed.values())):
        assert TOKEN not in content
    assert_kept_secret(tmp_path)


def test_a_token_that_does_not_do_is_refused_before_anything_is_written(server, environment, tmp_path):
    variables = environment | environment_of(server, tmp_path / "home", "hf_wrong")
    arguments = ["--train_data_dir", TILES, "--output_dir", tmp_path / "out", *TWO_STEPS, "--push_to_hub"]
    done = launch(variables, *arguments, quiet=True)
    assert done.returncode == 1
    assert_sentence(next(line for line in done.stderr.splitlines() if line.startswith("error: ")), "this token")
    assert "hf_wrong" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_in_the_end_leaves_the_checkpoint_and_says_how_to_go_on(server, environment, tmp_path):
    server.fail("POST", "/commit/", status=500)
    variables = environment | environment_of(server, tmp_path / "home", TOKEN)
    output_dir = tmp_path / "out"
    done = launch(variables, "--train_data_dir", TILES, "--output_dir", output_dir, *TWO_STEPS, "--push_to_hub")
    assert done.returncode == 1
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert_sentence(sentence, "is saved", "status 500", f"--model {output_dir} --repo_id me/out")
    assert (output_dir / "model_index.json").is_file()
    assert TOKEN not in done.stderr + done.stdout
    assert_kept_secret(tmp_path)
