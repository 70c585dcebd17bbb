"""Pushing a checkpoint with the real client to a real server: what is sent, what never is, and every failure."""

import os
import resource
import shutil
import subprocess
import sys

import httpx
import pytest
from fresh_process import FreshProcess
from hub_repositories import User
from hub_server import Hub, environment_of, read_folder
from huggingface_hub import SpaceCard
from paths import ROOT
from sentences import assert_sentence, refused

from page.server.settings import parse_settings
from pipelines.checkpoint_card import CARD_MARK
from pipelines.checkpoint_names import CARD, EVALUATION
from training.publish import main, prepare_shipment
from training.records.checkpoint_contents import list_contents

TOKEN, READER = "hf_secret_of_me", "hf_secret_of_a_reader"


@pytest.fixture(scope="module")
def hub():
    with Hub().running() as hub:
        yield hub


@pytest.fixture
def server(hub):
    """A Hub without any repository."""
    hub.reset({TOKEN: User("me", ("me", "team")), READER: User("reader")})
    return hub


@pytest.fixture(scope="module")
def process(hub, environment, tmp_path_factory):
    process = FreshProcess(hub, tmp_path_factory.mktemp("publisher"), environment)
    yield process
    process.close()


@pytest.fixture
def publish(process, server):
    """Runs `training/publish.py` against this test's Hub."""
    return process.publish


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "tile")


def tree(server, repo_id="team/tile", revision="main"):
    files = server.repositories.get("model", repo_id).tree(revision)
    return {path: blob.content for path, blob in files.items()}


def messages(server):
    return server.repositories.get("model", "team/tile").messages[1:]


def shipped(folder, repo_id="team/tile"):
    files = prepare_shipment(folder, repo_id).files
    return {name: source if isinstance(source, bytes) else source.read_bytes() for name, source in files.items()}


def assert_failed(outcome, *words):
    status, printed = outcome
    assert status == 1, printed
    assert TOKEN not in printed
    sentence = next(line for line in printed.splitlines() if line.startswith("error: "))
    assert_sentence(sentence, *words)
    assert "Traceback" not in printed


# What is sent


def test_a_push_is_one_commit_of_the_whole_checkpoint_and_a_second_one_sends_nothing(publish, server, checkpoint):
    status, printed = publish(checkpoint, "--private", "--commit_message", "Tiles, first model")
    assert status == 0, printed
    assert TOKEN not in printed
    assert tree(server) == shipped(checkpoint)
    assert messages(server) == ["Tiles, first model"]
    assert server.repositories.get("model", "team/tile").private
    uploads = server.count("PUT", "/lfs/")
    assert uploads == len({path.read_bytes() for path in checkpoint.rglob("*.safetensors")})

    status, printed = publish(checkpoint)
    assert status == 0
    assert "nothing to send" in printed
    assert len(messages(server)) == 1
    assert server.count("PUT", "/lfs/") == uploads


def test_leftovers_and_strangers_stay_and_are_named(checkpoint):
    (checkpoint / "checkpoint-7").mkdir()
    for name in (
        "checkpoint-7/optimizer.bin",
        "progress.jsonl",
        "report.html",
        ".saving-x",
        "notes.txt",
        "evil.py",
        "unet/secret.json",
    ):
        (checkpoint / name).write_text("x")
    (checkpoint / "examples").mkdir()
    (checkpoint / "examples" / "part.png").write_bytes(b"x")
    contents = list_contents(checkpoint)
    assert contents.left_out == [
        ".saving-x",
        "checkpoint-7/",
        "evil.py",
        "notes.txt",
        "progress.jsonl",
        "report.html",
        "unet/secret.json",
    ]
    assert "examples/part.png" in contents.shared
    whole = set(read_folder(checkpoint)) - {name for name in read_folder(checkpoint) if "checkpoint-7" in name}
    assert set(contents.shared) == whole - set(contents.left_out)


@pytest.mark.parametrize("name", ["unet/model.bin", "weights.PKL", "examples/a.pt", "x/y.pth", "memory/z.ckpt"])
def test_a_pickle_is_refused_by_name(name, checkpoint):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"x")
    with refused(ValueError, name, "pickle"):
        prepare_shipment(checkpoint, "team/tile")


def test_what_does_not_load_is_not_shared(checkpoint, tmp_path):
    with refused(ValueError, "model_index.json"):
        prepare_shipment(tmp_path / "none", "team/tile")
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with refused(ValueError, "unet", "damaged"):
        prepare_shipment(checkpoint, "team/tile")


def test_a_checkpoint_whose_code_cannot_do_what_the_card_shows_is_refused(checkpoint):
    code = checkpoint / "pipeline_anomaly_scoring.py"
    code.write_text(code.read_text().replace("AnomalyImageProcessor", "Another"))
    with refused(ValueError, "older version", "save it again"):
        prepare_shipment(checkpoint, "team/tile")
    (checkpoint / CARD).write_text("My own words.")
    assert prepare_shipment(checkpoint, "team/tile").has_own_card


def test_a_dry_run_lists_sizes_and_asks_nobody(publish, server, checkpoint):
    (checkpoint / "notes.txt").write_text("x")
    status, printed = publish(checkpoint, "--dry_run")
    assert status == 0
    for name, content in shipped(checkpoint).items():
        assert f"{len(content) / 1000:,.1f} kB  {name}" in printed
    assert "left out: notes.txt" in printed
    assert server.asked == []
    status, printed = publish(checkpoint, "--card_only")
    assert printed.encode() == shipped(checkpoint)[CARD]
    assert server.asked == []


def test_a_card_is_printed_for_a_checkpoint_without_a_place_on_the_hub(checkpoint, capsys):
    main(["--model", str(checkpoint), "--card_only"])
    printed = capsys.readouterr().out
    assert printed.count("ORGANISATION/tile") >= 3
    assert "# tile: finds defects" in printed
    with pytest.raises(SystemExit):
        main(["--model", str(checkpoint), "--dry_run"])
    assert "--repo_id" in capsys.readouterr().err


def test_branches_and_pull_requests(publish, server, checkpoint):
    assert publish(checkpoint)[0] == 0
    (checkpoint / CARD).write_text("My own words.")
    status, printed = publish(checkpoint, "--revision", "next/one")
    assert status == 0, printed
    assert tree(server, revision="next/one")[CARD] == b"My own words."
    assert CARD_MARK.encode() in tree(server)[CARD]
    status, printed = publish(checkpoint, "--create_pr", token=READER)
    assert status == 0, printed
    assert "/discussions/1" in printed
    assert tree(server, revision="refs/pr/1")[CARD] == b"My own words."
    assert CARD_MARK.encode() in tree(server)[CARD]


def test_what_a_checkpoint_has_no_more_goes_and_what_others_put_there_stays(publish, server, checkpoint):
    (checkpoint / EVALUATION).write_text("[]\n")
    assert publish(checkpoint)[0] == 0
    repository = server.repositories.get("model", "team/tile")
    repository.put({CARD: b"---\nlicense: mit\n---\nEdited there.", "docs/note.md": b"note", "memory/old.py": b"1"})
    (checkpoint / EVALUATION).unlink()
    status, printed = publish(checkpoint)
    assert status == 0, printed
    assert "edited and stays" in printed
    now = tree(server)
    assert now[CARD].endswith(b"Edited there.")
    assert "docs/note.md" in now
    assert EVALUATION not in now
    assert "memory/old.py" not in now


# The Space


@pytest.fixture
def clone(tmp_path):
    """A git clone with a few of this repository's files, one that is not sent, and one that git does not know."""
    clone = tmp_path / "clone"
    for name in ("app.py", "README.md", "docs/page.png", "tests/page/test_app.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    (clone / "checkpoints" / "own").mkdir(parents=True)
    (clone / "checkpoints" / "own" / "model_index.json").write_text("{}")
    (clone / "checkpoints" / "own" / "large").write_bytes(bytes(10 * 2**20 + 1))
    git = ["git", "-C", clone, "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "page"]):
        subprocess.run([*git, *arguments], check=True)
    (clone / "untracked.txt").write_text("x")
    return clone


@pytest.fixture
def push_space(process, server, clone):
    """Pushes the clone to team/page: exit status, what was printed, and the answer."""

    def push(*models):
        options = f"token={TOKEN!r}, root={str(clone)!r}, models={models!r}"
        return process.run(f"from training.hub.space import push_space\nanswer = push_space('team/page', {options})")

    return push


def space_card(server):
    content = server.repositories.get("space", "team/page").tree("main")["README.md"].content.decode()
    return SpaceCard(content)


def test_this_repository_becomes_a_space_in_one_commit(push_space, server, clone):
    status, printed, answer = push_space()
    assert status == 0, printed
    assert "has all 5 files" in answer
    space = server.repositories.get("space", "team/page")
    files = {name: blob.content for name, blob in space.tree("main").items()}
    sent = ("README.md", "app.py", "checkpoints/own/large", "checkpoints/own/model_index.json", "docs/page.png")
    assert sorted(files) == sorted(sent)
    assert all(files[name] == (clone / name).read_bytes() for name in sent[1:])
    assert space.tree("main")["checkpoints/own/large"].is_large
    assert "nothing to send" in push_space()[2]
    assert len(space.messages) == 2
    (clone / "app.py").write_text("changed")
    status, _, answer = push_space()
    assert status == 2
    assert_sentence(answer["message"], "app.py", "not committed")


def test_the_front_matter_of_a_space_names_what_exists_only_there(push_space, server, clone):
    assert push_space()[0] == 0
    ours, sent = SpaceCard((clone / "README.md").read_text()), space_card(server)
    assert sent.text == ours.text
    thumbnail = f"{server.url}/spaces/team/page/resolve/main/docs/page.png"
    assert sent.data.to_dict() == ours.data.to_dict() | {"thumbnail": thumbnail}
    assert httpx.get(thumbnail, follow_redirects=True).content == (clone / "docs" / "page.png").read_bytes()
    assert server.repositories.get("space", "team/page").variables == {}


def test_a_space_opens_the_models_that_were_named_and_keeps_them(push_space, publish, server, checkpoint):
    assert publish(checkpoint)[0] == 0
    status, printed, answer = push_space("checkpoints/own", "team/tile")
    assert status == 0, printed
    assert answer.endswith("Its page opens checkpoints/own, team/tile.")
    space = server.repositories.get("space", "team/page")
    assert space.variables == {"MODELS": "checkpoints/own,team/tile"}
    assert space_card(server).data.models == ["team/tile"]
    assert parse_settings([], space.variables).models == ("checkpoints/own", "team/tile")
    assert "nothing to send" in push_space()[2]
    assert space_card(server).data.models == ["team/tile"]
    server.repositories.get("model", "team/tile").private = True
    assert "team/tile is private: give the Space a secret HF_TOKEN" in push_space("team/tile")[2]
    assert space.variables == {"MODELS": "team/tile"}
    assert push_space("checkpoints/own")[0] == 0
    assert space_card(server).data.models is None


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["team/none"], ["team/none does not exist"]),
        (["team/empty"], ["team/empty holds no model_index.json"]),
        (["a/b/c"], ["'a/b/c'", "organisation/name"]),
        (["team/own", "checkpoints/own"], ["two models are named own"]),
    ],
)
def test_a_space_names_no_model_that_is_not_there(push_space, server, models, words):
    server.repositories.create("model", "team/empty")
    status, _, answer = push_space(*models)
    assert status == 2
    assert_sentence(answer["message"], *words)
    assert server.repositories.get("space", "team/page") is None


# Failures


def test_wrong_and_missing_tokens_and_rights(publish, server, checkpoint):
    assert_failed(publish(checkpoint, token="hf_wrong"), "does not know this token")
    assert_failed(publish(checkpoint, token=None), "no token", "HF_TOKEN")
    assert_failed(publish(checkpoint, token=READER), "may not write to team/tile")
    assert_failed(publish(checkpoint, repo_id="a/b/c"), "'a/b/c'", "organisation/name")
    assert server.repositories.get("model", "team/tile") is None
    server.repositories.create("model", "team/tile")
    assert_failed(publish(checkpoint, token=READER), "may not write to team/tile")
    assert_failed(publish(checkpoint, "--revision", "none", "--create_pr"), "no such revision")


@pytest.mark.parametrize(
    ("method", "path", "fault", "words"),
    [
        ("POST", "/repos/create", {"status": 401}, ["asks for a token"]),
        ("POST", "/preupload/", {"status": 403}, ["may not write to team/tile"]),
        ("GET", "/tree/", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, ["does not exist"]),
        ("POST", "/repos/create", {"status": 429, "headers": {"Retry-After": "7"}}, ["7 seconds"]),
        ("POST", "/commit/", {"status": 500}, ["status 500", "run it again"]),
        ("POST", "/commit/", {"status": 412}, ["somebody else"]),
    ],
)
def test_a_lasting_fault_is_one_sentence_and_the_same_command_finishes_later(
    publish, server, checkpoint, method, path, fault, words
):
    server.fail(method, path, **fault)
    assert_failed(publish(checkpoint), *words)
    assert server.repositories.get("model", "team/tile") is None or messages(server) == []
    uploads = server.count("PUT", "/lfs/")
    server.faults.clear()
    status, printed = publish(checkpoint)
    assert status == 0, printed
    assert tree(server) == shipped(checkpoint)
    assert len(messages(server)) == 1
    if uploads:  # what had arrived is not sent twice
        assert server.count("PUT", "/lfs/") == uploads


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", "/preupload/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST", "/preupload/", {"status": 500}),
        ("PUT", "/lfs/", {"status": 500}),
        ("PUT", "/lfs/", {"cut_after": 0}),
    ],
)
def test_a_passing_fault_is_ridden_out(publish, server, checkpoint, method, path, fault):
    server.fail(method, path, **fault, times=1)
    status, printed = publish(checkpoint)
    assert status == 0, printed
    assert server.faults[0].times == 0
    assert tree(server) == shipped(checkpoint)


def run_command(server, checkpoint, environment, home, **options):
    command = [sys.executable, "training/publish.py", "--model", checkpoint, "--repo_id", "team/tile"]
    variables = os.environ | environment | environment_of(server, home, TOKEN)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr


def test_without_a_network(checkpoint, environment, tmp_path):
    with Hub().running() as gone:
        pass
    assert_failed(run_command(gone, checkpoint, environment, tmp_path), gone.url, "cannot be reached")


def test_on_a_full_disk(server, checkpoint, environment, tmp_path):
    server.repositories.create("model", "team/tile").put({CARD: CARD_MARK.encode() + b"x" * 100_000})

    def leave_no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    outcome = run_command(server, checkpoint, environment, tmp_path, preexec_fn=leave_no_room)
    assert_failed(outcome, "disk is full")
