"""Examples of README and docs run as printed, those in Python in a process that has never seen this repository."""

import json
import os
import re
import shutil
import subprocess
import sys

import httpx
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from printed import printed
from serving import mcp_is_installed

from benchmarks.running_page import running_page
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.inference.parquet_files import write_maps


@pytest.mark.parametrize(
    ("mark", "shown", "expected"),
    [
        ("example", "print(result.is_anomalous[0], result.anomaly_map[0].shape)", "True"),
        ("repair", "print(result.is_accepted[0], result.images[0].size)", "True"),
    ],
)
def test_the_readmes_examples_find_and_remove_the_defect(tmp_path, mark, shown, expected):
    if not (ROOT / "checkpoints" / "magnetic-tile").is_dir():
        pytest.skip("the embedded checkpoint is not in this tree")
    code = printed(mark, "python")
    # Run where only checkpoint and examples can be seen, under their printed names.
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    code += shown + "\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)


def test_the_embedded_checkpoint_carries_todays_code_and_stays_small(tmp_path):
    """`AnomalyScoringPipeline.from_pretrained(folder).save_pretrained(folder, half_precision=True)` renews it."""
    checkpoint = ROOT / "checkpoints" / "magnetic-tile"
    AnomalyScoringPipeline.from_pretrained(checkpoint).save_pretrained(tmp_path)
    carried, today = (
        {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
        for folder in (checkpoint, tmp_path)
    )
    assert carried == today
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 40e6


def test_an_exported_checkpoint_gives_the_same_verdicts_without_pytorch_asprinted(tmp_path):
    if not (ROOT / "checkpoints" / "magnetic-tile").is_dir():
        pytest.skip("the embedded checkpoint is not in this tree")
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    for name in ("training", "checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(line):
        return subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True)

    install, score = printed("elsewhere", "bash").strip().splitlines()
    installed = run(install)
    if installed.returncode:
        pytest.skip(f"numpy, Pillow and onnxruntime cannot be installed: {installed.stderr.splitlines()[-1]}")
    assert not list(tmp_path.glob(".venv/lib/*/site-packages/torch"))
    exported = run(printed("export", "bash").replace("python ", f"{sys.executable} ", 1))
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == ""
    scored = run(score)
    assert scored.returncode == 0, scored.stderr
    pipe = AnomalyScoringPipeline.from_pretrained(ROOT / "checkpoints" / "magnetic-tile", mixed_precision="no")
    files = sorted((ROOT / "examples").glob("*.jpg"))
    images = [Image.open(path) for path in files]
    expected = pipe(images)
    *lines, summary = scored.stdout.splitlines()
    assert summary.endswith("0 unreadable; see scores.")
    for index, (path, line) in enumerate(zip(files, lines, strict=True)):
        name, score, p_value, verdict = re.fullmatch(r".+ (.+): score (\S+), p-value (\S+), (\w+)", line).groups()
        assert name == path.name
        assert verdict == ("defect" if expected.is_anomalous[index] else "good")
        # Pillow 13, which may have been installed there, enlarges images with other rounding than 12.
        assert float(score) == pytest.approx(expected.anomaly_score[index], rel=0.05, abs=0.1)
        assert float(p_value) == pytest.approx(expected.p_value[index], abs=0.03)
        assert Image.open(tmp_path / "scores" / "overlays" / f"{path.name}.png").size == images[index].size


def test_an_anomaly_map_is_read_back_asprinted(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    expected = np.linspace(-1, 40, 12, dtype=np.float16).reshape(3, 4)
    (tmp_path / "SCORES" / "maps").mkdir(parents=True)
    with open(tmp_path / "SCORES" / "maps" / "part-000000-00000.parquet", "wb") as stream:
        write_maps(["a.png"], [expected], stream)
    code = printed("maps", "python") + "print(maps['file'][0], anomaly_map.tolist())\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == f"a.png {expected.tolist()}", done.stderr


PRINTED = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def served_url():
    """The embedded checkpoint's page, started as the README says, on a port that is free here."""
    if not (ROOT / "checkpoints" / "magnetic-tile").is_dir():
        pytest.skip("the embedded checkpoint is not in this tree")
    with running_page(["--mcp", "on"] if mcp_is_installed() else []) as (url, _):
        yield url


def test_the_service_answers_gradio_client_asprinted(served_url):
    code = printed("client", "python").replace(PRINTED, served_url)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()[-1]
    assert found.startswith("True ")
    assert found.endswith("overlay.png")


def test_the_service_answers_plain_http_asprinted(served_url):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    code = printed("http", "bash").replace(PRINTED, served_url)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("event: complete\n")
    verdict, overlay, _ = json.loads(done.stdout.partition("data: ")[2])
    assert verdict["is_anomalous"]
    assert verdict["false_alarm_rate"] == pytest.approx(0.1)
    assert httpx.get(overlay["url"]).content.startswith(b"\x89PNG")


def test_the_service_answers_mcp_whereprinted(served_url):
    if not mcp_is_installed():
        pytest.skip("gradio[mcp] is not installed")
    (server,) = json.loads(printed("mcp", "json"))["mcpServers"].values()
    ping = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    answer = httpx.post(server["url"].replace(PRINTED, served_url), json=ping, headers=headers, timeout=60)
    tools = json.loads(answer.text.partition("data: ")[2])["result"]["tools"]
    assert [tool["name"] for tool in tools] == ["inspect", "inspect_batch", "repair", "models"]
