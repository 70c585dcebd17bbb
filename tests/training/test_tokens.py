"""A token is read nowhere but in the header that it is for: no output, no message, no file, whatever becomes of it."""

import shutil

import pytest
from fresh_process import FreshProcess
from hub_repositories import User
from hub_server import Hub, read_folder
from sentences import assert_sentence

TOKEN, WRONG = "hf_secret_that_is_easily_found", "hf_wrong_but_secret_all_the_same"
SECRETS = (TOKEN, WRONG)

WAYS = {
    "--token": "options = ['--token', {token!r}]",
    "HF_TOKEN": "import os; options = []; os.environ['HF_TOKEN'] = {token!r}",
    "hf auth login": "import huggingface_hub; options = []; huggingface_hub.login({token!r}, skip_if_logged_in=False)",
}
PUBLISH = """
from training.publish import main
try:
    main(["--model", {folder!r}, "--repo_id", "team/tile", *options])
finally:
    import os, huggingface_hub
    os.environ.pop("HF_TOKEN", None)
    huggingface_hub.logout() if huggingface_hub.get_token() else None
"""
PULL = """
import os
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
token = options[1] if options else None
try:
    AnomalyScoringPipeline.from_pretrained("team/tile", token=token, cache_dir={folder!r})
finally:
    import huggingface_hub
    os.environ.pop("HF_TOKEN", None)
    huggingface_hub.logout() if huggingface_hub.get_token() else None
"""


@pytest.fixture(scope="module")
def hub():
    with Hub().running() as hub:
        yield hub


@pytest.fixture
def server(hub):
    hub.reset({TOKEN: User("me", ("me", "team"))})
    return hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def process(hub, environment, home):
    process = FreshProcess(hub, home, environment)
    yield process
    process.close()


def assert_kept_secret(*texts, folders=()):
    """No text, and no file below the folders but the Hub's own for tokens, has one of the secrets in it."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in ("token", "stored_tokens"):
                content = path.read_bytes()
                assert not [secret for secret in SECRETS if secret.encode() in content], path
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text], text


@pytest.mark.parametrize("way", WAYS)
def test_pushes_that_succeed_and_pushes_that_fail_keep_it_secret(way, server, process, home, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tile")
    publish = PUBLISH.format(folder=str(folder))
    outcomes = []
    for token, fault in (
        (WRONG, None),
        (TOKEN, ("PUT", "/lfs/", {"status": 403})),
        (TOKEN, ("POST", "/commit/", {"status": 500})),
        (TOKEN, None),
    ):
        if way == "hf auth login" and token == WRONG:
            continue  # logging in refuses it
        if fault is not None:
            method, path, what = fault
            server.fail(method, path, **what)
        outcomes.append(process.run(WAYS[way].format(token=token) + publish))
        server.faults.clear()
    assert [status for status, _, _ in outcomes] == [1] * (len(outcomes) - 1) + [0], outcomes
    for _, printed, _ in outcomes[:-1]:
        assert_sentence(next(line for line in printed.splitlines() if line.startswith("error: ")))
    pushed = server.repositories.get("model", "team/tile").tree("main").values()
    sent = (blob.content.decode(errors="replace") for blob in pushed)
    assert_kept_secret(*(printed for _, printed, _ in outcomes), process.stderr, *sent, folders=[folder, home])


@pytest.mark.parametrize("way", ["--token", "HF_TOKEN"])
def test_pulls_that_succeed_and_pulls_that_fail_keep_it_secret(way, server, process, home, tiny_checkpoint, tmp_path):
    server.repositories.create("model", "team/tile", private=True).put(read_folder(tiny_checkpoint))
    pull = PULL.format(folder=str(tmp_path))
    outcomes = [process.run(WAYS[way].format(token=WRONG) + pull)]
    server.fail("GET", "/cdn/", status=403)
    outcomes.append(process.run(WAYS[way].format(token=TOKEN) + pull))
    server.faults.clear()
    outcomes.append(process.run(WAYS[way].format(token=TOKEN) + pull))
    assert [status for status, _, _ in outcomes] == [2, 2, 0], outcomes
    for _, _, answer in outcomes[:-1]:
        assert_sentence(answer["message"])
        assert answer["raised"][0] == "ValueError"
    assert_kept_secret(*(printed for _, printed, _ in outcomes), process.stderr, folders=[tmp_path, home])
