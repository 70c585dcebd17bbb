"""The page as its owner starts it, with its files in a folder of the test's own, and the ways in which it is asked."""

import base64
import json
import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import httpx
import pytest

from page.build import build_page, launch_arguments
from page.models.model_shelf import ModelShelf
from page.server.gradio_internals import mcp_is_possible
from page.server.settings import Settings

FILE = {"_type": "gradio.FileData"}


@contextmanager
def served(checkpoint, folder, **settings):
    """Serve a checkpoint with `Settings`; uploads and answers go to `folder`. Yields the address and the shelf."""
    with mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(folder)}):
        settings = Settings(models=(str(checkpoint),), host="127.0.0.1", **settings)
        shelf = ModelShelf(settings.models)
        demo = build_page(settings, shelf)
        arguments = launch_arguments(settings) | {"prevent_thread_lock": True, "quiet": True}
        try:
            yield demo.launch(**arguments)[1], shelf
        finally:
            demo.close()


def mcp_is_installed():
    """Whether the package mcp is there in a version that Gradio supports."""
    try:
        return mcp_is_possible()
    except ValueError:
        return False


def data_uri(path):
    """An image file as a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def upload(url, path, name=None):
    """Upload a file as a browser does. Returns what names it in a request."""
    content = Path(path).read_bytes()
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": (name or Path(path).name, content)}, timeout=60)
    answer.raise_for_status()
    return {"path": answer.json()[0], "meta": FILE}


def ask(url, endpoint, *data):
    """Call an endpoint over plain HTTP. Returns its answers, or its one-sentence refusal as a string."""
    call = f"{url}gradio_api/call/{endpoint}"
    begun = httpx.post(call, json={"data": data}, timeout=60)
    if begun.status_code >= 400:
        assert begun.status_code < 500, begun.text
        return begun.json()["error"]
    lines = httpx.get(f"{call}/{begun.json()['event_id']}", timeout=300).text.splitlines()
    event, answer = [line.partition(": ")[2] for line in lines if line][-2:]
    answer = json.loads(answer)
    return answer if event == "complete" else answer["error"]


def assert_same_verdict(numbers, output):
    """Check a `Verdict` against the pipeline's own `AnomalyScoringOutput` of the same image."""
    assert numbers["is_anomalous"] == output.is_anomalous[0]
    assert numbers["p_value"] == output.p_value[0]
    assert numbers["anomaly_score"] == pytest.approx(output.anomaly_score[0], abs=1e-4)
    assert numbers["defect_share"] == pytest.approx(output.pred_mask[0].mean(), abs=1e-3)
    assert numbers["image_threshold"] == output.image_threshold
    assert numbers["pixel_threshold"] == output.pixel_threshold
    assert (numbers["height"], numbers["width"]) == output.anomaly_map[0].shape
