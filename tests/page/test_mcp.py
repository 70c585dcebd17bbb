"""The endpoints as MCP tools, asked by a real MCP client."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image
from sentences import assert_sentence
from serving import FILE, assert_same_verdict, data_uri, mcp_is_installed, served, upload

pytest.importorskip("mcp")
streamable_http = pytest.importorskip("mcp.client.streamable_http")

from mcp import ClientSession
from paths import TILE

if not mcp_is_installed():
    pytest.skip("gradio[mcp] is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def url(tiny_checkpoint, tmp_path_factory):
    with served(tiny_checkpoint, tmp_path_factory.mktemp("files"), mcp=True) as (url, _):
        yield url


def ask_tool(url, name, arguments, query=""):
    """Call a tool. Returns whether it failed, and what came back: JSON, images and sentences."""

    async def call():
        async with (
            streamable_http.streamablehttp_client(f"{url}gradio_api/mcp/{query}") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await session.call_tool(name, arguments)

    answer = asyncio.run(call())
    return answer.isError, answer.content


def test_every_endpoint_is_a_described_tool(url):
    async def list_tools():
        async with (
            streamable_http.streamablehttp_client(f"{url}gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(list_tools())}
    assert list(tools) == ["inspect", "inspect_batch", "repair", "models"]
    assert "Find defects in an image of a manufactured part" in tools["inspect"].description
    for tool in tools.values():
        assert len(tool.description) > 50
        for argument in tool.inputSchema["properties"].values():
            assert argument["description"]
    assert tools["inspect"].inputSchema["required"] == ["picture"]
    assert "data:image/png;base64" in tools["inspect"].inputSchema["properties"]["picture"]["description"]


def test_inspection_gives_the_pipelines_own_score_and_images(url, tiny_pipeline):
    output = tiny_pipeline(Image.open(TILE), false_alarm_rate=0.2)
    for image in (data_uri(TILE), upload(url, TILE)["path"]):
        is_error, content = ask_tool(url, "inspect", {"picture": image, "false_alarm_percent": 20})
        assert not is_error
        assert_same_verdict(json.loads(content[0].text), output)
        images = [Image.open(io.BytesIO(base64.b64decode(part.data))) for part in content if part.type == "image"]
        assert [image.size for image in images] == [output.anomaly_map[0].shape[::-1]] * 2


def test_lists_are_json(url, tiny_pipeline):
    output = tiny_pipeline(Image.open(TILE), false_alarm_rate=0.2)
    _, content = ask_tool(url, "inspect_batch", {"pictures": [data_uri(TILE), "x"], "false_alarm_percent": 20})
    good, bad = json.loads(content[0].text)
    assert_same_verdict(good["verdict"], output)
    assert_sentence(bad["error"], "no uploaded file")
    _, content = ask_tool(url, "models", {})
    assert [model["name"] for model in json.loads(content[0].text)] == ["tiny"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("http://127.0.0.1:9/x.png", "Web addresses are not fetched; upload the image itself."),
        ("https://example.com/x.png", "Web addresses are not fetched; upload the image itself."),
        ("/etc/passwd", "the request names no uploaded file; upload an image first."),
        (str(TILE), "the request names no uploaded file; upload an image first."),
        ({"path": str(TILE), "meta": FILE}, "is not of type 'string'"),
        ({"path": "http://127.0.0.1:9/x.png", "meta": FILE}, "is not of type 'string'"),
        ("data:image/png;base64,AAAA", "is not an image"),
    ],
)
def test_addresses_and_files_of_the_machine_are_refused(url, image, words):
    """A file object would make Gradio upload the machine's own file: the types keep it out, in every argument."""
    attempts = [
        ("inspect", {"picture": image}, ""),
        ("inspect", {"picture": image}, "?tools=inspect"),
        ("repair", {"picture": data_uri(TILE), "mask": image}, ""),
    ]
    for name, arguments, query in attempts:
        is_error, content = ask_tool(url, name, arguments, query)
        assert is_error
        assert words in content[0].text or "is not valid under any of the given schemas" in content[0].text
    is_error, content = ask_tool(url, "inspect_batch", {"pictures": [image]})
    assert words in content[0].text
    is_error, content = ask_tool(url, "inspect", {"picture": image}, "?tools=models")
    assert is_error
