"""The page as a user meets it: a real server, a real client, a real browser; and how its owner starts it."""

import shutil
import subprocess

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from paths import TILE
from sentences import assert_sentence
from serving import FILE, ask, data_uri, served, upload

import app
from page.build import launch_arguments
from page.server.settings import Settings


@pytest.fixture(scope="module")
def page(tiny_checkpoint, tmp_path_factory):
    with served(tiny_checkpoint, tmp_path_factory.mktemp("files")) as page:
        yield page


@pytest.fixture
def url(page):
    return page[0]


def test_page_renders_in_a_browser(url, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom"
    )
    command = [chromium, *options.split(), f"--user-data-dir={tmp_path}", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>Defect inspection</title>" in page
    assert "Is this part good?</h1>" in page
    assert "Show it a part" in page


def test_only_the_service_is_documented(url, tmp_path):
    api = Client(url, verbose=False, download_files=tmp_path).view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/inspect", "/inspect_batch", "/repair", "/models"]
    assert not api["unnamed_endpoints"]
    assert all(endpoint["description"] for endpoint in api["named_endpoints"].values())


def test_page_says_when_it_is_ready(url):
    answer = httpx.get(f"{url}healthz", timeout=30)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "models": ["tiny"]}


def test_uploads_of_more_than_32_megabytes_are_refused(url):
    sizes = {32 << 20: 200, 33 << 20: 413}
    for size, status in sizes.items():
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("big.png", bytes(size))}, timeout=30)
        assert answer.status_code == status


def test_unexpected_error_is_logged_and_not_shown(page, caplog, tmp_path):
    url, shelf = page

    def fail(*_):
        raise RuntimeError("a secret of the server")

    client = Client(url, verbose=False, download_files=tmp_path)
    hook = shelf.get("tiny").scoring.unet.register_forward_hook(fail)
    try:
        with pytest.raises(AppError) as caught:
            client.predict(handle_file(str(TILE)), api_name="/inspect")
        direct = httpx.post(f"{url}gradio_api/run/inspect", json={"data": [data_uri(TILE), "", 20]}, timeout=60)
    finally:
        hook.remove()
    assert_sentence(caught.value.message, "Something went wrong")
    assert "secret" not in caught.value.message
    assert "a secret of the server" in caplog.text
    assert direct.status_code == 500
    assert "secret" not in direct.text


def test_files_that_were_not_uploaded_are_not_read(url, tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(TILE.read_bytes())
    upload(url, TILE)
    for image in (
        {"path": str(outside), "meta": FILE},
        {"path": str(outside)},
        {"path": "../" + TILE.name},
        {"url": f"file://{outside}"},
        str(outside),
        f"file://{outside}",
        None,
        7,
        [],
    ):
        refusal = ask(url, "inspect", image, "", 20)
        assert refusal == "the request names no uploaded file; upload an image first."


def test_missing_checkpoint_ends_the_command_with_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as caught:
        app.main(["--models", str(tmp_path / "missing")])
    assert_sentence(caught.value.code, "missing", "is neither a folder nor a Hub id")


def test_mcp_without_its_package_ends_the_command_with_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mcp.server", None)
    with pytest.raises(ValueError, match=r"pip install 'gradio\[mcp\]'\.$"):
        launch_arguments(Settings(mcp=True))
