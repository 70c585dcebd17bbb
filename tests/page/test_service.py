"""The page as a service: every endpoint gives the pipeline's own answer, through gradio_client and plain HTTP."""

import base64
import io

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from paths import TILE, TILES
from PIL import Image
from sentences import assert_sentence
from serving import ask, assert_same_verdict, data_uri, served, upload

from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from training.data.image_reading import read_image

CRACKED = sorted((TILES / "test" / "crack").glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def url(tiny_checkpoint, tmp_path_factory):
    with served(tiny_checkpoint, tmp_path_factory.mktemp("files"), max_batch=20) as (url, _):
        yield url


@pytest.fixture
def client(url, tmp_path):
    return Client(url, verbose=False, download_files=tmp_path / "downloads")


def _save(name, path):
    """One image in the formats that come from cameras and image editors."""
    tile = Image.open(TILE).convert("L")
    if name.startswith("16-bit"):
        Image.fromarray(np.asarray(tile).astype(np.uint16) * 257).save(path)
    elif name == "alpha.png":
        alpha = Image.linear_gradient("L").resize(tile.size)
        Image.merge("RGBA", [tile, tile, tile, alpha]).save(path)
    elif name == "cmyk.jpg":
        tile.convert("CMYK").save(path)
    elif name == "rotated.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to see it upright
        tile.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    elif name == "one-pixel.png":
        Image.new("RGB", (1, 1), "red").save(path)


@pytest.mark.parametrize("name", ["16-bit.png", "16-bit.tif", "alpha.png", "cmyk.jpg", "rotated.jpg", "one-pixel.png"])
def test_images_are_inspected_as_they_were_uploaded(client, tiny_pipeline, tmp_path, name):
    _save(name, tmp_path / name)
    output = tiny_pipeline(read_image(tmp_path / name), false_alarm_rate=0.2)
    numbers, overlay, mask = client.predict(handle_file(str(tmp_path / name)), "tiny", 20, api_name="/inspect")
    assert_same_verdict(numbers, output)
    assert numbers["file"] == name
    assert np.asarray(Image.open(overlay)).shape == (*output.anomaly_map[0].shape, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 0, output.pred_mask[0])


def test_large_image_is_inspected_whole_and_drawn_smaller(client, tiny_pipeline, tmp_path):
    Image.open(TILE).resize((1500, 3000)).save(tmp_path / "large.png")
    numbers, overlay, mask = client.predict(handle_file(str(tmp_path / "large.png")), "", 20, api_name="/inspect")
    assert_same_verdict(numbers, tiny_pipeline(Image.open(tmp_path / "large.png"), false_alarm_rate=0.2))
    assert Image.open(overlay).size == Image.open(mask).size == (512, 1024)


def test_every_way_to_give_an_image_leads_to_the_same_answer(url, client, tiny_pipeline):
    output = tiny_pipeline(Image.open(CRACKED), false_alarm_rate=0.2)
    uploaded = upload(url, CRACKED)
    by_name = {"picture": data_uri(CRACKED), "model": "tiny", "false_alarm_percent": 20}
    event = httpx.post(f"{url}gradio_api/call/v2/inspect", json=by_name, timeout=60).json()["event_id"]
    assert str(output.p_value[0]) in httpx.get(f"{url}gradio_api/call/v2/inspect/{event}", timeout=60).text
    answers = [
        ask(url, "inspect", uploaded, "", 20)[0],
        ask(url, "inspect", uploaded["path"], "", 20)[0],
        ask(url, "inspect", data_uri(CRACKED), "", 20)[0],
        client.predict(data_uri(CRACKED), "tiny", 20, api_name="/inspect")[0],
        client.predict(picture=handle_file(str(CRACKED)), false_alarm_percent=20.0, api_name="/inspect")[0],
    ]
    for numbers in answers:
        assert_same_verdict(numbers, output)


def test_plain_http_fetches_the_drawn_answers_by_their_urls(url, tiny_pipeline):
    output = tiny_pipeline(Image.open(CRACKED), false_alarm_rate=0.2)
    _, overlay, mask = ask(url, "inspect", data_uri(CRACKED), "", 20)
    sizes = {Image.open(io.BytesIO(httpx.get(file["url"], timeout=60).content)).size for file in (overlay, mask)}
    assert sizes == {output.anomaly_map[0].shape[::-1]}


def test_without_a_rate_the_models_own_is_taken(url, client):
    (model,) = client.predict(api_name="/models")
    assert model["test_images_rejected"] is None  # nobody has measured it
    assert model["name"] == "tiny"
    numbers = ask(url, "inspect", data_uri(TILE), "", None)[0]
    assert numbers["false_alarm_rate"] == pytest.approx(model["default_false_alarm_percent"] / 100, abs=1e-4)
    assert model["smallest_false_alarm_percent"] <= model["default_false_alarm_percent"]


def test_batch_gives_each_image_its_own_verdict_or_reason_in_order(url, client, tiny_pipeline, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    _save("16-bit.png", tmp_path / "16-bit.png")
    files = [TILE, tmp_path / "text.png", CRACKED, tmp_path / "16-bit.png", *[TILE, CRACKED] * 4]
    entries = client.predict([handle_file(str(file)) for file in files], "", 20, api_name="/inspect_batch")
    assert len(entries) == len(files)
    for file, entry in zip(files, entries, strict=True):
        if file.name == "text.png":
            assert entry == {"verdict": None, "error": "text.png is not an image in a known format."}
        else:
            assert entry["error"] == ""
            assert entry["verdict"]["file"] == file.name
            assert_same_verdict(entry["verdict"], tiny_pipeline(read_image(file), false_alarm_rate=0.2))


def test_batch_is_scored_in_batches(tiny_checkpoint, tmp_path):
    with served(tiny_checkpoint, tmp_path) as (url, shelf):
        sizes = []
        hook = shelf.get("tiny").scoring.unet.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        try:
            ask(url, "inspect", data_uri(TILE), "", 20)
            alone = len(sizes)
            ask(url, "inspect_batch", [data_uri(TILE)] * 9, "", 20)
        finally:
            hook.remove()
    assert len(sizes) == 3 * alone


@pytest.mark.parametrize(
    ("images", "words"),
    [([], "at least one"), ("x", "at least one"), (None, "at least one"), (["x"] * 21, "at most 20")],
)
def test_batches_of_none_or_too_many_are_refused_in_one_sentence(url, images, words):
    assert_sentence(ask(url, "inspect_batch", images, "", 20), words)


def test_repair_returns_the_pipelines_own_image(client, url, tiny_pipeline, tmp_path):
    pixels = np.array(Image.open(TILE).convert("RGB"))
    pixels[100:140, 40:80] = 255
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    output = GradientDenoisePipeline.from_pipe(tiny_pipeline)(Image.open(tmp_path / "bar.png"), false_alarm_rate=0.2)
    answer, repaired, mask = client.predict(handle_file(str(tmp_path / "bar.png")), "", 20, None, api_name="/repair")
    assert answer["is_changed"]
    assert answer["is_accepted"] == output.is_accepted[0]
    assert answer["anomaly_score"] == pytest.approx(output.anomaly_score[0], abs=1e-4)
    assert answer["repaired_score"] == pytest.approx(output.repaired_score[0], abs=1e-2)
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), np.asarray(output.masks[0]))
    kept = np.asarray(output.masks[0]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(repaired))[kept], pixels[kept])
    assert np.abs(np.asarray(Image.open(repaired)).astype(int) - np.asarray(output.images[0])).mean() < 1


def test_repair_changes_what_the_mask_marks(url, client, tmp_path):
    size = Image.open(TILE).size
    marked = Image.new("L", size)
    marked.paste(255, (20, 30, 50, 60))
    marked.save(tmp_path / "mask.png")
    image, mask = handle_file(str(TILE)), handle_file(str(tmp_path / "mask.png"))
    answer, _, changed = client.predict(image, "", 20, mask, api_name="/repair")
    assert answer["is_changed"]
    changed = np.asarray(Image.open(changed)) > 0
    assert changed[45, 35]
    assert not changed[:, 90:].any()
    Image.new("L", (3, 3), 255).save(tmp_path / "small.png")
    refusal = ask(url, "repair", data_uri(TILE), "", 20, data_uri(tmp_path / "small.png"))
    assert_sentence(refusal, "mask", "3")


@pytest.mark.parametrize("percent", [0.1, 50, 0, -3, 101, "much", True])
@pytest.mark.parametrize("endpoint", ["inspect", "inspect_batch", "repair"])
def test_rates_that_are_not_offered_are_refused_in_one_sentence(url, endpoint, percent):
    image = [data_uri(TILE)] if endpoint == "inspect_batch" else data_uri(TILE)
    refusal = ask(url, endpoint, image, "", percent, *[None] * (endpoint == "repair"))
    assert_sentence(refusal, "rate")
    if percent in (0.1, 50):
        assert_sentence(refusal, f"is {percent} %", "from 4 %, the smallest that tiny can promise, to 20 %")


def test_the_smallest_rate_is_taken_as_it_is_listed_and_as_it_is(url, client):
    (model,) = client.predict(api_name="/models")
    smallest = model["smallest_false_alarm_percent"]
    assert ask(url, "inspect", data_uri(TILE), "", smallest)[0]["false_alarm_rate"] == pytest.approx(smallest / 100)
    assert ask(url, "inspect", data_uri(TILE), "", 100 / 25)[0]["false_alarm_rate"] == pytest.approx(0.04)
    assert model["largest_false_alarm_percent"] == 20


def test_data_uris_are_checked(url):
    too_large = "data:image/png;base64," + base64.b64encode(bytes(33 << 20)).decode()
    for uri, words in {
        "data:text/html;base64,PGI+": "is no image",
        "data:image/png;base64,!!!": "cannot be read",
        "data:image/png;base64,PGI+": "not an image",
        "data:image/svg+xml;utf8,<svg/>": "is no image",
        too_large: "32 MB",
    }.items():
        assert_sentence(ask(url, "inspect", uri, "", 20), words)


def test_use_via_api_describes_arguments_and_gives_images_as_files(url):
    endpoints = httpx.get(f"{url}gradio_api/info", timeout=60).json()["named_endpoints"]
    snippets = {name: endpoint["code_snippets"]["python"] for name, endpoint in endpoints.items()}
    for name in ("/inspect", "/repair"):
        assert "picture=handle_file('part.png')" in snippets[name]
    assert "pictures=[handle_file('part.png')]" in snippets["/inspect_batch"]
    for name, endpoint in endpoints.items():
        for argument in endpoint["parameters"]:
            assert argument["python_type"]["description"], (name, argument)
            assert "additional_description" not in argument["type"]
        assert all(len(answer["label"]) > 10 for answer in endpoint["returns"]), name
    picture, *_ = endpoints["/inspect"]["parameters"]
    assert picture["type"] == {"type": "string"}  # what clients are held to
    assert endpoints["/inspect"]["returns"][1]["label"].startswith("overlay: PNG")
