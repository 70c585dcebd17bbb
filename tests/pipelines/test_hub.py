"""Pulling a checkpoint from a real server, as strangers do: revisions, casts, both pipelines, offline, every fault."""

import copy
import hashlib
import json
from functools import partial

import pytest
import torch
from fingerprints import fingerprint
from fresh_process import FreshProcess
from hub_loading import LOAD, LOCAL, quoted, run
from hub_repositories import User
from hub_server import Hub, read_folder
from paths import TILES
from sentences import assert_sentence

from pipelines.category_bank import CategoryBank
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.networks.unet import build_unet
from training.publish import prepare_shipment

TOKEN = "hf_secret_of_me"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def images(tile_files):
    """Three real tiles of different sizes."""
    return [str(path) for path in tile_files[:3]]


@pytest.fixture(scope="module")
def expected(tiny_pipeline, images):
    """Computed by one thread, as in the other processes: with more, sums round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fingerprint(tiny_pipeline, images)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tiny_checkpoint):
    """What publishing sends, `dict` of path to content."""
    shipment = prepare_shipment(tiny_checkpoint, "team/tile").files
    return {name: source if isinstance(source, bytes) else source.read_bytes() for name, source in shipment.items()}


@pytest.fixture(scope="module")
def hub():
    with Hub().running() as hub:
        yield hub


@pytest.fixture
def server(hub, files):
    """A Hub with the tiny checkpoint in main, and one with other settings in the branch wide."""
    hub.reset({TOKEN: User("me", ("me", "team"))})
    repository = hub.repositories.create("model", "team/tile")
    repository.put(files | {"model_index.json": _with(files["model_index.json"], alpha=0.75)})
    repository.branch("wide")
    repository.put(files)
    return hub


@pytest.fixture(scope="module")
def stranger(hub, environment, tmp_path_factory):
    """A process without this repository."""
    process = FreshProcess(hub, tmp_path_factory.mktemp("stranger"), environment, sees_repository=False)
    yield process
    process.close()


@pytest.fixture(scope="module")
def local(hub, environment, tmp_path_factory):
    """A process with this repository."""
    process = FreshProcess(hub, tmp_path_factory.mktemp("local"), environment)
    yield process
    process.close()


def _with(index, **settings):
    return json.dumps(json.loads(index) | settings).encode()


# Loading


def test_a_stranger_loads_main_a_branch_a_cast_and_both_pipelines(server, stranger, images, expected, tiny_pipeline):
    pull = partial(run, stranger, LOAD)
    status, printed, answer = pull(images)
    assert status == 0, printed
    assert answer == expected
    assert pull(revision="'wide'")[2][0] == 0.75
    commit = server.repositories.get("model", "team/tile").resolve("wide")
    assert pull(revision=repr(commit))[2][0] == 0.75
    assert pull()[2][0] == tiny_pipeline.alpha != 0.75
    assert pull(torch_dtype="torch.bfloat16")[2][1] == "torch.bfloat16"
    status, printed, answer = pull(custom_pipeline="'pipeline_gradient_denoise'")
    assert status == 0, printed
    assert answer[2] == "GradientDenoisePipeline"


def test_without_trust_diffusers_refuses_in_its_own_words(server, stranger):
    status, _, answer = stranger.run(LOAD.replace("trust_remote_code=True, ", "").format(options=""))
    assert status == 2
    assert answer["raised"][0] == "ValueError"
    assert "contains custom code in pipeline_anomaly_scoring.py" in answer["message"]
    assert "trust_remote_code=True" in answer["message"]


def test_our_own_class_loads_without_fetching_code(server, local, images, expected, tiny_pipeline):
    pull = partial(run, local, LOCAL)
    status, printed, answer = pull(images)
    assert status == 0, printed
    assert answer == expected
    assert pull(revision="'wide'")[2][0] == 0.75
    assert pull(torch_dtype="torch.bfloat16")[2][1] == "torch.bfloat16"
    assert server.count("GET", r"\.safetensors|/cdn/") > 0
    assert server.count("GET", r"\.py$") == server.count("HEAD", r"\.py$") == 0
    asked = len(server.asked)
    assert pull(images, local_files_only=True)[2] == expected
    assert len(server.asked) == asked


def test_a_private_checkpoint_needs_its_token(server, local, images, expected, tmp_path):
    server.repositories.get("model", "team/tile").private = True
    pull = partial(run, local, LOCAL, cache_dir=quoted(tmp_path))
    assert_sentence(pull()[2]["message"], "team/tile", "does not exist", "may not see it")
    assert_sentence(pull(token="'hf_secret_of_nobody'")[2]["message"], "does not know this token", "right to read")
    status, printed, answer = pull(images, token=repr(TOKEN))
    assert status == 0, printed
    assert answer == expected
    assert TOKEN not in printed


def test_what_is_pulled_is_what_was_pushed_byte_for_byte(server, tiny_checkpoint, local, files, tmp_path):
    server.repositories = type(server.repositories)(server.repositories.users)
    status, printed = local.publish(tiny_checkpoint, token=TOKEN)
    assert status == 0, printed
    status, printed, _ = local.run(
        "from huggingface_hub import snapshot_download\n"
        f"answer = snapshot_download('team/tile', local_dir={quoted(tmp_path)})"
    )
    assert status == 0, printed
    pulled = read_folder(tmp_path)
    assert {name: pulled[name] for name in pulled if not name.startswith(".cache")} == files


def test_offline_a_checkpoint_that_was_fetched_whole_loads_from_its_folder(
    server, environment, images, expected, tmp_path
):
    home = tmp_path / "home"
    online = FreshProcess(server, home, environment, sees_repository=False)
    fetch = "from huggingface_hub import snapshot_download\nanswer = snapshot_download('team/tile')"
    assert online.run(fetch)[0] == 0
    online.close()
    asked = len(server.asked)
    offline = FreshProcess(server, home, environment, sees_repository=False, HF_HUB_OFFLINE="1")
    _, _, folder = offline.run(fetch)
    status, printed, answer = run(offline, LOAD.replace("team/tile", folder), images)
    assert status == 0, printed
    assert answer == expected
    # By its Hub id it does not, yet: diffusers 0.42 asks the Hub for the commit of remote code.
    status, _, answer = run(offline, LOAD)
    assert status == 2
    assert "OfflineModeIsEnabled" in answer["raised"]
    offline.close()
    assert len(server.asked) == asked


def test_a_checkpoint_for_several_categories_loads_from_the_hub(server, stranger, tiny_pipeline, tmp_path):
    bank = CategoryBank.from_pipelines({"tile": tiny_pipeline, "nut": copy.deepcopy(tiny_pipeline)})
    unet = build_unet(64, 4, 192, [32, 32], 1, num_classes=2)
    shared = (unet, tiny_pipeline.scheduler, tiny_pipeline.feature_extractor)
    AnomalyScoringPipeline(*shared, categories=bank).save_pretrained(tmp_path / "both")
    shipment = prepare_shipment(tmp_path / "both", "team/both")
    assert b"category='tile'" in shipment.files["README.md"]
    server.repositories.create("model", "team/both").put(
        {name: source if isinstance(source, bytes) else source.read_bytes() for name, source in shipment.files.items()}
    )
    load = LOAD.replace("team/tile", "team/both").format(options="") + "answer = list(pipe.categories.config.names)"
    status, printed, answer = stranger.run(load)
    assert status == 0, printed
    assert answer == ["tile", "nut"]


# Faults

LASTING = [
    ("/api/models/", {"status": 401}, ["asks for a token"]),
    ("/api/models/", {"status": 403}, ["may not read team/tile"]),
    ("/api/models/", {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, ["team/tile", "ask for access"]),
    ("/api/models/", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, ["team/tile", "does not exist"]),
    ("/api/models/", {"status": 429, "headers": {"Retry-After": "1"}}, ["too many requests", "1 seconds"]),
    ("/api/models/", {"status": 500}, ["status 500", "run it again"]),
    ("/cdn/", {"status": 403}, ["may not read team/tile"]),
    ("/cdn/", {"status": 500}, ["status 500", "run it again"]),
    ("/cdn/", {"cut_after": 100}, ["cannot be reached", "run it again"]),
]


@pytest.mark.parametrize(("path", "fault", "words"), LASTING)
def test_a_lasting_fault_is_one_sentence_leaves_nothing_that_loads_and_the_next_try_is_whole(
    server, local, images, expected, tmp_path, path, fault, words
):
    pull = partial(run, local, LOCAL, cache_dir=quoted(tmp_path))
    server.fail("GET", path, **fault)
    status, printed, answer = pull(token=repr(TOKEN))
    assert status == 2, printed
    assert answer["raised"][0] == "ValueError"
    assert_sentence(answer["message"], *words)
    assert TOKEN not in printed
    assert_sentence(pull(local_files_only=True)[2]["message"], "team/tile", "not in the cache")
    server.faults.clear()
    status, printed, answer = pull(images)
    assert status == 0, printed
    assert answer == expected


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/cdn/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("/api/models/.*/tree/", {"status": 500}),
        ("/cdn/", {"cut_after": 1000}),
        ("/cdn/", {"cut_after": 0}),
    ],
)
def test_a_passing_fault_is_ridden_out(server, local, images, expected, tmp_path, path, fault):
    pull = partial(run, local, LOCAL, images, cache_dir=quoted(tmp_path))
    server.fail("GET", path, **fault, times=1)
    status, printed, answer = pull()
    assert status == 0, printed
    assert answer == expected
    assert server.faults[0].times == 0


@pytest.mark.parametrize("command", ["score_folder", "repair_folder", "evaluate", "calibration", "verify", "app"])
def test_every_command_says_in_a_sentence_why_a_model_cannot_be_fetched(server, local, tmp_path, command):
    arguments = {
        "verify": ["--model", "team/none"],
        "app": ["--models", "team/none"],
        "evaluate": ["--model", "team/none", "--data_dir", str(TILES)],
        "calibration": ["--model", "team/none", "--data_dir", str(TILES), "--output_dir", str(tmp_path / "out")],
    }.get(command, ["--model", "team/none", "--input_dir", str(TILES), "--output_dir", str(tmp_path / "out")])
    module = "app" if command == "app" else f"training.{command}"
    status, printed, _ = local.run(f"from {module} import main\nmain({arguments!r})")
    assert status == 1, printed
    assert_sentence(printed.splitlines()[-1], "error: ", "team/none", "does not exist")
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("team/tile", {"revision": "'none'"}, ["team/tile", "no such revision"]),
        ("team", {}, ["team is neither", "organisation/name"]),
        ("a/b/c", {}, ["a/b/c is neither", "organisation/name"]),
        ("../tile", {}, ["../tile is neither", "organisation/name"]),
        ("team/..", {}, ["team/.. is neither", "organisation/name"]),
        ("te am/\x1b[2J", {}, ["organisation/name"]),
        ("team/tile", {"token": "'hf_secret\\u20ac'"}, ["letters"]),
    ],
)
def test_what_cannot_be_asked_for_is_a_sentence(server, local, name, options, words):
    answer = run(local, LOCAL.replace('"team/tile"', repr(name)), **options)[2]
    assert answer["raised"][0] == "ValueError", answer
    assert_sentence(answer["message"], *words)
    assert answer["message"].isprintable()
    assert "hf_secret" not in answer["message"]


def test_without_a_network_what_is_cached_loads_and_the_rest_is_a_sentence(
    files, environment, expected, images, tmp_path
):
    with Hub().running() as gone:
        gone.repositories.create("model", "team/tile").put(files)
        process = FreshProcess(gone, tmp_path / "home", environment)
        assert process.run("from huggingface_hub import snapshot_download\nsnapshot_download('team/tile')")[0] == 0
        process.close()
    process = FreshProcess(gone, tmp_path / "home", environment)
    assert run(process, LOCAL, images)[2] == expected
    answer = run(process, LOCAL.replace("team/tile", "team/other"))[2]
    assert_sentence(answer["message"], gone.url, "cannot be reached")
    process.close()


def test_nothing_but_what_is_read_is_fetched_and_nothing_of_absurd_size(server, local, files, tmp_path):
    repository = server.repositories.get("model", "team/tile")
    repository.put(
        {"junk.safetensors": b"x", "a/b/config.json": b"{}", "unet/vocab.json": b"{}", "unet/notes.txt": b"x"}
    )
    status, printed, _ = run(local, LOCAL, cache_dir=quoted(tmp_path))
    assert status == 0, printed
    assert server.count("GET", r"junk|/a/b/|vocab|notes|\.py$") == 0
    asked = server.count("GET", "/resolve/")
    repository.put({"training.json": b"x" * (5 << 20)})
    answer = run(local, LOCAL, cache_dir=quoted(tmp_path))[2]
    assert_sentence(answer["message"], "team/tile", "training.json", "5 MB")
    repository.put({"training.json": b"{}", "memory/pytorch_model.bin": b"x"})
    answer = run(local, LOCAL, cache_dir=quoted(tmp_path))[2]
    assert_sentence(answer["message"], "team/tile", "memory/pytorch_model.bin", "pickle")
    assert server.count("GET", "/resolve/") == asked


def test_a_stranger_is_told_too_and_succeeds_later(server, stranger, images, expected, tmp_path):
    pull = partial(run, stranger, LOAD, images, cache_dir=quoted(tmp_path))
    server.fail("GET", "/cdn/", cut_after=100)
    status, printed, answer = pull()
    assert status == 2, printed
    server.faults.clear()
    status, printed, answer = pull()
    assert status == 0, printed
    assert answer == expected


def test_a_long_download_goes_on_where_it_was_cut(server, local, tmp_path):
    content = bytes(range(256)) * 100_000
    server.repositories.get("model", "team/tile").put({"long.zip": content})
    server.fail("GET", "/cdn/", cut_after=12_000_000, times=1)
    status, printed, _ = local.run(
        "from huggingface_hub import hf_hub_download\n"
        f"answer = hf_hub_download('team/tile', 'long.zip', local_dir={quoted(tmp_path)})"
    )
    assert status == 0, printed
    assert len(server.ranges) == 1
    assert hashlib.sha256((tmp_path / "long.zip").read_bytes()).digest() == hashlib.sha256(content).digest()
