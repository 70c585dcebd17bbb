"""The endpoints as MCP tools: Gradio serves them; here their answers become JSON."""

import contextlib
import json

from gradio_client.utils import is_file_obj_with_meta


def mcp_is_possible():
    """True; the owner of the page is told at start, not by a missing tool.

    Raises:
        ValueError: if the package mcp is missing, or is one that this Gradio cannot use.
    """
    try:
        from mcp.server import Server
    except ImportError:
        Server = None
    if not hasattr(Server, "call_tool"):
        raise ValueError("--mcp on needs the package mcp in a version that Gradio supports: pip install 'gradio[mcp]'.")
    return True


@contextlib.asynccontextmanager
async def answer_mcp_in_json(app):
    """While the page runs: MCP clients get numbers as JSON, where Gradio writes them as Python does, and images."""
    server = app.get_blocks().mcp_server_obj
    if server is not None:
        as_content = server.postprocess_output_data
        server.postprocess_output_data = lambda data, root_url: as_content(_as_texts(data), root_url)
    yield


def _as_texts(data):
    if len(data) == 1 and isinstance(data[0], tuple):  # Gradio wraps several answers once more
        data = data[0]
    return [one if isinstance(one, str) or is_file_obj_with_meta(one) else json.dumps(one) for one in data]
