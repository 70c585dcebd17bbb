"""What the page changes in Gradio, and its names that are not public: the version is pinned below 7 for their sake.

- `preprocess_data` is wrapped (`refuse_urls`): Gradio would fetch any address that a client names, and would answer bad
  input with a traceback. There is no setting for either.
- `postprocess_output_data` of its MCP server is wrapped (`answer_mcp_in_json`): it writes numbers as Python does, and
  MCP clients read JSON.
- `get_api_info` is wrapped (`describe_endpoints`): "Use via API" would describe the arguments of endpoints without
  widgets as those of "the 1st Api component", and would show no way to give an image. `gr.api` takes no descriptions.
- `FnIndexInferError` is what a call by a name that there is not ends in; `request_limits.py` answers it.
- `get_upload_folder` and `is_in_or_equal` say where uploads lie, so that no other file is served or read.
"""

import contextlib
import functools
import json

import gradio as gr
from gradio.components.api_component import Api
from gradio.exceptions import InvalidPathError
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_function_description, get_upload_folder, is_in_or_equal
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like
from PIL import Image

from page.server.user_errors import MISFIT, NO_IMAGE, NOT_UPLOADED, URLS_REFUSED

__all__ = [
    "FnIndexInferError",
    "answer_mcp_in_json",
    "describe_endpoints",
    "get_upload_folder",
    "is_http_url_like",
    "is_in_or_equal",
    "mcp_is_possible",
    "refuse_urls",
]


def refuse_urls(demo):
    """Keep Gradio from fetching addresses that a client names instead of uploading a file, and say so in one sentence.

    Every input of every event is looked through, however deep the address lies in it, before Gradio touches it. What
    is sent to endpoints without widgets is not remembered in the client's session: it may hold whole images.
    """
    preprocess = demo.preprocess_data

    async def preprocess_without_fetching(block_fn, inputs, state, *args, **kwargs):
        if all(isinstance(block, Api) for block in block_fn.inputs):
            state = None
        try:
            if _names_address(inputs):
                raise gr.Error(URLS_REFUSED, print_exception=False)
            return await preprocess(block_fn, inputs, state, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False  # it is the user's mistake, whoever noticed it
            raise
        except InvalidPathError:
            raise gr.Error(NOT_UPLOADED, print_exception=False) from None
        except (ValueError, RecursionError) as error:
            # Gradio opens some images itself.
            is_image = isinstance(error.__cause__, (OSError, Image.DecompressionBombError))
            raise gr.Error(NO_IMAGE if is_image else MISFIT, print_exception=False) from None

    demo.preprocess_data = preprocess_without_fetching


def _names_address(value):
    """Whether a file somewhere in the value is an address."""
    if isinstance(value, dict):
        path = value.get("path")
        return is_http_url_like(path) or any(map(_names_address, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_names_address, value))


EXAMPLE_FILE = {"path": "part.png", "url": "part.png", "meta": {"_type": "gradio.FileData"}}


def describe_endpoints(demo, images):
    """Let "Use via API" say of arguments and answers what the functions' docstrings do, and give images as files.

    JSON schemas, which clients hold arguments against, stay as they are: this is for reading alone.

    Args:
        demo (`gr.Blocks`): with its endpoints.
        images (`dict[str, object]`): arguments that take an image, or a list of images, each with its example.
    """
    get_api_info = demo.get_api_info

    @functools.wraps(get_api_info)
    def described(*args, **kwargs):
        info = get_api_info(*args, **kwargs)
        functions = {f"/{function.api_name}": function.fn for function in demo.fns.values()}
        for name, endpoint in info["named_endpoints"].items():
            _, described, answers = get_function_description(functions[name])
            for argument in endpoint["parameters"]:
                _describe(argument, described.get(argument["parameter_name"], ""), images)
            for answer, words in zip(endpoint["returns"], answers, strict=False):
                answer["label"] = words
        return info

    demo.get_api_info = described


def _describe(argument, words, images):
    name = argument["parameter_name"]
    argument["label"], argument["python_type"]["description"] = name, words
    if name in images:
        example = images[name]
        is_list = isinstance(example, list)
        argument["example_input"] = example
        argument["python_type"]["type"] = "list[filepath | str]" if is_list else "filepath | str"
        argument["component"] = argument["component"] if is_list else "Image"


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
