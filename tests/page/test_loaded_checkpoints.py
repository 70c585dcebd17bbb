"""Few checkpoints are in memory, however many are open: the others are read again, and answer as before."""

import gc
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import ROOT
from sentences import refused

from page.models import model_shelf
from page.models.model_shelf import ModelShelf
from page.work.inspection import Inspector
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline

NAMES = ["nuts", "bolts", "pins"]


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    return [shutil.copytree(tiny_checkpoint, tmp_path / name) for name in NAMES]


@pytest.fixture(autouse=True)
def nobody_else_collects_garbage():
    gc.disable()
    yield
    gc.enable()


def networks_in_memory(networks):
    return [name for name, network in networks.items() if network() is not None]


def test_the_ones_used_last_are_in_memory_and_the_others_answer_as_before(folders, scratched):
    shelf = ModelShelf(folders[:2], max_loaded=2)
    networks = {name: weakref.ref(shelf.get(name).scoring.unet) for name in NAMES[:2]}
    before = shelf.get("nuts").score(scratched)  # used after the bolts, so these go first
    shelf.add(folders[2])
    assert networks_in_memory(networks) == ["nuts"]
    assert shelf.names == NAMES

    assert (shelf.get("bolts").score(scratched).anomaly_map[0] == before.anomaly_map[0]).all()
    assert shelf.get("bolts").repairing.unet is shelf.get("bolts").scoring.unet
    assert networks_in_memory(networks) == []


def test_a_remembered_inspection_keeps_no_network_and_is_judged_without_reading_it_again(
    folders, scratched, monkeypatch
):
    shelf = ModelShelf(folders[:1], max_loaded=1)
    inspector = Inspector(shelf)
    network = weakref.ref(shelf.get("nuts").scoring.unet)
    inspection = inspector.inspect("nuts", scratched, "scratched.png")
    before = inspector.judge(inspection, 20)
    shelf.add(folders[1])
    assert network() is None

    def read(*_):
        raise AssertionError("a verdict at another rate takes no checkpoint")

    monkeypatch.setattr(AnomalyScoringPipeline, "from_pretrained", read)
    assert inspector.inspect("nuts", scratched, "scratched.png") is inspection
    after = inspector.judge(inspection, 20)
    assert after[0] == before[0]
    assert (after[1] == before[1]).all()
    assert inspector.judge(inspection, 90)[0]["false_alarm_rate"] == 0.9


def test_it_is_read_once_for_all_who_wait_and_also_by_whoever_has_the_turn(folders, scratched, monkeypatch):
    shelf = ModelShelf(folders[:2], max_loaded=1)
    read, read_checkpoint = [], AnomalyScoringPipeline.from_pretrained

    def count(folder):
        read.append(folder.name)
        return read_checkpoint(folder)

    monkeypatch.setattr(AnomalyScoringPipeline, "from_pretrained", count)
    with shelf.turns.take(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shelf.get("nuts").scoring, range(4)))
        assert len(set(map(id, found))) == 1
        shelf.get("nuts").score(scratched)
    assert read == ["nuts"]


def test_what_an_open_model_promises_needs_no_network(folders, scratched):
    shelf = ModelShelf(folders, max_loaded=1)
    shutil.rmtree(folders[0])
    assert shelf.get("nuts").smallest_percent == shelf.get("pins").smallest_percent
    with pytest.raises(ValueError, match=r"nuts.* is neither a folder nor a Hub id"):
        shelf.get("nuts").score(scratched)


def test_memory_that_lies_free_between_what_is_used_goes_back_to_the_kernel():
    code = """
from training.runtime.process import give_back_free_memory, keep_large_buffers
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
keep_large_buffers()
blocks = [bytearray(b"x" * 1_000_000) for _ in range(200)]
del blocks[:-1]  # the last one, above all others, stays
before = resident_mb()
give_back_free_memory()
print(before - resident_mb())
"""
    freed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert float(freed) > 150


def test_what_is_kept_of_a_model_whose_networks_went_is_little_and_promises_the_same(folders):
    shelf = ModelShelf(folders[:1], max_loaded=1)
    kept, whole = shelf.get("nuts").calibration, shelf.get("nuts").scoring.calibration
    assert kept.noise.numel() == 0
    assert whole.noise.numel() > 0
    assert kept.effective_rate(0) == whole.effective_rate(0)
    assert kept.image_threshold(0.2, [5, 50, 100]) == whole.image_threshold(0.2, [5, 50, 100])


def test_models_that_users_open_from_the_hub_are_forgotten_when_there_are_too_many(folders, monkeypatch):
    """The Hub is a folder here; what fetches from it has tests of its own."""
    monkeypatch.setattr(
        model_shelf, "locate_checkpoint", lambda source: folders[NAMES.index(str(source).split("/")[1])]
    )
    monkeypatch.setattr(model_shelf, "MAX_OPENED", 2)
    shelf = ModelShelf([], hub_models=["*"], max_loaded=3)
    for name in ("nuts", "bolts", "nuts", "pins"):
        assert shelf.open_from_hub(f"team/{name}") == [f"team/{name}"]
    assert shelf.names == ["team/nuts", "team/pins"]  # the bolts were opened longest ago
    with refused(ValueError, "no model 'team/bolts'", "team/nuts"):
        shelf.get("team/bolts")
    assert shelf.open_from_hub("team/bolts") == ["team/bolts"]
    assert shelf.names == ["team/pins", "team/bolts"]
