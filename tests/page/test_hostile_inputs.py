"""What a hostile user sends: one sentence each, a server that goes on, no foreign file read, nothing left behind."""

import io
import struct
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gradio as gr
import httpx
import pytest
from gradio import processing_utils
from paths import ROOT, TILE
from PIL import Image
from sentences import assert_sentence
from serving import FILE, ask, assert_same_verdict, data_uri, served, upload

from page.server.uploads import Folder
from page.server.user_errors import answer_in_one_sentence

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def url(tiny_checkpoint, folder):
    with served(tiny_checkpoint, folder) as (url, _):
        yield url


@pytest.fixture(autouse=True)
def _goes_on(url, tiny_pipeline):
    """After every attack, the next user gets the right answer."""
    yield
    assert_same_verdict(
        ask(url, "inspect", data_uri(TILE), "", 20)[0], tiny_pipeline(Image.open(TILE), false_alarm_rate=0.2)
    )


def bomb(side):
    """A PNG of a few hundred kilobytes that says, and holds, `side` × `side` black pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pack, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    rows = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation():
    stream = io.BytesIO()
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


FILES = {
    "text.png": (b"no image", "text.png is not an image in a known format."),
    "empty.png": (b"", "empty.png is not an image in a known format."),
    "cut.jpg": (TILE.read_bytes()[:2000], "cut.jpg is damaged or cut short"),
    "bomb.png": (None, "bomb.png has too many pixels; crop it or scale it down first."),
    "image.svg": (SVG, "image.svg is not an image in a known format."),
    "svg-as.png": (SVG, "svg-as.png is not an image in a known format."),
    "postscript.png": (EPS, "postscript.png is not an image in a known format."),
    "moving.gif": (animation(), "moving.gif is an animation; give one of its images."),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_good_image_are_refused_in_one_sentence(url, tmp_path, name):
    content, sentence = FILES[name]
    (tmp_path / name).write_bytes(bomb(50_000) if content is None else content)
    assert (tmp_path / name).stat().st_size < 1_000_000
    uploaded = upload(url, tmp_path / name)
    assert_sentence(ask(url, "inspect", uploaded, "", 20), sentence)
    assert_sentence(ask(url, "repair", uploaded, "", 20, None), sentence)
    assert_sentence(ask(url, "repair", data_uri(TILE), "", 20, uploaded), sentence)
    assert_sentence(ask(url, "inspect_batch", [uploaded], "", 20)[0][0]["error"], sentence)
    assert_sentence(ask(url, "inspect", data_uri(tmp_path / name), "", 20), sentence.partition(" ")[2])


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_bomb_is_refused_member_by_member(url, tmp_path):
    path = upload(url, zipped(tmp_path / "bomb.zip", {"a.png": bytes(64 << 20)}))
    bombs = Folder([path], 10, 32)
    with pytest.raises(ValueError, match="unpacks to 64 MB, more than an image that is taken here") as caught:
        bombs.read(0)
    assert_sentence(str(caught.value))
    assert_sentence(ask(url, "inspect", path, "", 20), "bomb.zip is not an image")


def test_paths_in_a_zip_write_nothing_and_read_nothing(url, folder, tmp_path):
    tile = TILE.read_bytes()
    names = ["../../../escaped.png", "/etc/escaped.png", "..\\escaped.png", "link.png"]
    archive = zipped(tmp_path / "climbing.zip", dict.fromkeys(names[:3], tile))
    with zipfile.ZipFile(archive, "a") as more:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        more.writestr(link, "/etc/passwd")
    before = set(folder.parent.rglob("*escaped*"))
    images = Folder([upload(url, archive)], 10, 32)
    assert images.names == [names[0], names[1], names[3]]
    assert images.read(0).shape == images.read(1).shape
    with pytest.raises(ValueError, match=r"^link\.png is not an image in a known format\.$"):
        images.read(2)
    assert set(folder.parent.rglob("*escaped*")) == before


def test_upload_of_500_megabytes_is_refused_before_it_is_kept(url, folder):
    def content():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\n\r\n'
        for _ in range(500):
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        answer = httpx.post(
            f"{url}gradio_api/upload",
            content=content(),
            headers={"content-type": "multipart/form-data; boundary=x"},
            timeout=60,
        )
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server has answered and hung up while we were still sending
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - kept < 40 << 20


@pytest.mark.parametrize("declared", [True, False])
def test_json_of_500_megabytes_is_refused_unread(url, declared):
    sent = []

    def content():
        for _ in range(500):
            sent.append(1)
            yield b"A" * (1 << 20)

    headers = {"content-type": "application/json"} | ({"content-length": str(500 << 20)} if declared else {})
    try:
        answer = httpx.post(f"{url}gradio_api/call/inspect", content=content(), headers=headers, timeout=60)
        assert answer.status_code == 413
        assert_sentence(answer.json()["error"], "too large", "32 MB")
    except httpx.WriteError:
        pass  # as above
    assert len(sent) < 300


@pytest.mark.parametrize(
    "body",
    ["{", "[]", "7", '"x"', "null", "{}", '{"data": 7}', '{"data": {}}', "", "\x00\xff", "[" * 100_000],
)
@pytest.mark.parametrize("path", ["call/inspect", "call/v2/inspect", "run/inspect", "call/none", "call/v2/none"])
def test_wrong_json_is_refused_with_a_status_of_the_clients(url, path, body):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}gradio_api/{path}", content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    sentence = answer.json().get("error") or answer.json()["detail"]
    assert isinstance(sentence, str)


@pytest.mark.parametrize("event", [99_999, -1, "x", None])
@pytest.mark.parametrize("path", ["queue/join", "run/predict"])
def test_events_that_there_are_not_are_refused_with_a_status_of_the_clients(url, path, event):
    body = {"data": [], "fn_index": event, "session_hash": "x"}
    answer = httpx.post(f"{url}gradio_api/{path}", json=body, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "data",
    [
        [],
        [1, 2, 3, 4, 5],
        [{"path": {"path": 1}, "meta": FILE}, "", 1],
        [{"path": 3, "meta": FILE}, "", 1],
        [{"meta": FILE}, "", 1],
        [{"path": "/", "meta": FILE}, "", 1],
        [{"path": "\0", "meta": FILE}, "", 1],
        ["\0", "", 1],
        ["/" * 5000, "", 1],
        [eval("[" * 90 + "]" * 90), "", 1],
        ["data:image/png;base64,", ["x"], 1],
        ["data:image/png;base64,", {"x": 1}, 1],
    ],
    ids=range(12),
)
def test_wrong_values_are_refused_in_one_sentence(url, data):
    assert_sentence(ask(url, "inspect", *data))


@pytest.mark.parametrize("model", ["../../etc", "/etc/passwd", "nobody/nothing", "<b>x</b>", "x" * 10_000, 7])
def test_models_that_there_are_not_are_refused_in_one_sentence(url, model):
    refusal = ask(url, "inspect", data_uri(TILE), model, 20)
    assert_sentence(refusal, "there is no model", "choose one of tiny.")
    assert len(refusal) < 200


def test_no_address_is_fetched(url, monkeypatch):
    hits = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(TILE.read_bytes())

        do_HEAD = do_POST = do_GET

    async def download(address, *_, **__):  # Gradio's own would refuse a local address: here nothing else protects
        return httpx.get(address) and str(TILE)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", download)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/x.png"
    file = {"path": address, "meta": FILE}
    try:
        assert httpx.get(address).status_code == 200
        assert hits.pop()
        refusals = [
            ask(url, "inspect", file, "", 20),
            ask(url, "inspect", file | {"url": address}, "", 20),
            ask(url, "inspect", {"path": address}, "", 20),
            ask(url, "inspect", {"url": address}, "", 20),
            ask(url, "inspect", address, "", 20),
            ask(url, "inspect", data_uri(TILE), file, 20),
            ask(url, "inspect", data_uri(TILE), "", {"deep": [file]}),
            ask(url, "repair", data_uri(TILE), "", 20, file),
            ask(url, "inspect_batch", [data_uri(TILE), [{"deeper": file}]], "", 20),
            ask(url, "inspect_batch", [address], "", 20)[0][0]["error"],
            httpx.get(f"{url}gradio_api/file={address}").json()["error"],
            httpx.get(f"{url}gradio_api/file={address.upper()}").json()["error"],
        ]
        assert set(refusals) == {"Web addresses are not fetched; upload the image itself."}
        assert not _every_event_with(url, file)
        assert httpx.get(f"{url}gradio_api/proxy={address}").status_code == 400
    finally:
        server.shutdown()
    assert hits == []


def _every_event_with(url, file):
    """Send a file as every input of every event of the page, in one session, twice. Returns what was no refusal."""
    wrong = []
    for _ in range(2):
        for event in httpx.get(f"{url}config", timeout=60).json()["dependencies"]:
            if not event["inputs"] or not event["backend_fn"]:
                continue
            body = {"data": [file] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "hostile"}
            answer = httpx.post(f"{url}gradio_api/run/predict", json=body, timeout=60)
            if answer.status_code < 400 or answer.status_code >= 500:
                wrong.append((event["id"], answer.text))
    return wrong


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "gradio_api/file={folder}/../../../../../../etc/passwd",
        "gradio_api/file={folder}/answers/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "gradio_api/file={folder}",
        "gradio_api/file={root}/app.py",
        "gradio_api/file=app.py",
        "gradio_api/file=file:///etc/passwd",
        "gradio_api/file//etc/passwd",
        "static/../../../../../etc/passwd",
        "static/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "svelte/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "theme.css/..%2f..%2fetc%2fpasswd",
    ],
)
def test_nothing_but_the_pages_own_files_can_be_read(url, folder, path):
    request = httpx.Request("GET", f"{url}{path.format(folder=folder, root=ROOT)}")
    with httpx.Client(timeout=60) as client:
        answer = client.send(request)
    assert 400 <= answer.status_code < 500
    assert "root:" not in answer.text
    assert "def main" not in answer.text


def test_markup_in_a_file_name_is_no_markup_of_the_page(url, tmp_path):
    (tmp_path / "text").write_bytes(b"no image")
    uploaded = upload(url, tmp_path / "text", name="<img src=x onerror=alert(1)>.png")
    uploaded["orig_name"] = "<b>bold</b>.png"
    refusal = ask(url, "inspect", uploaded, "", 20)
    assert_sentence(refusal, "is not an image in a known format")
    assert "<" not in refusal
    numbers = ask(url, "inspect", upload(url, TILE, name="../../<script>alert(1)</script>.jpg"), "", 20)[0]
    assert "<" not in numbers["file"]
    assert "/" not in numbers["file"]


def test_markup_in_a_sentence_of_the_page_is_text():
    @answer_in_one_sentence
    def refuse():
        raise ValueError("<img src=x onerror=alert(1)>.png is no image.")

    with pytest.raises(gr.Error) as caught:
        refuse()
    assert "<" not in caught.value.message
    assert_sentence(caught.value.message, "img src=x", "is no image.")


@pytest.mark.parametrize("name", ["text.png", "bomb.png"])
def test_tab_repair_says_that_an_image_cannot_be_read(url, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name][0] or bomb(50_000))
    config = httpx.get(f"{url}config", timeout=60).json()
    button = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "repair")
    event = next(event for event in config["dependencies"] if (button, "click") in map(tuple, event["targets"]))
    image = upload(url, tmp_path / name)
    body = {"data": [None, image, None, None], "fn_index": event["id"], "session_hash": "x"}
    answer = httpx.post(f"{url}gradio_api/run/predict", json=body, timeout=60)
    assert answer.status_code == 400
    assert_sentence(answer.json()["error"], "cannot be read")


def test_files_are_gone_when_the_page_has_ended(tiny_checkpoint, tmp_path):
    with served(tiny_checkpoint, tmp_path) as (url, _):
        ask(url, "inspect", upload(url, TILE), "", 20)
        ask(url, "repair", data_uri(TILE), "", 4, None)
        assert sum(path.is_file() for path in tmp_path.rglob("*")) == 5
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_files_are_gone_after_their_time_while_the_page_runs(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("page.build.KEPT_SECONDS", 1)
    with served(tiny_checkpoint, tmp_path) as (url, _):
        ask(url, "inspect", upload(url, TILE), "", 20)
        assert sum(path.is_file() for path in tmp_path.rglob("*")) == 3
        for _ in range(100):
            if not any(path.is_file() for path in tmp_path.rglob("*")):
                break
            threading.Event().wait(0.1)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
