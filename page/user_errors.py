"""How the page answers what it cannot do: one sentence for a mistake, no traceback, and no address fetched."""

import functools
import inspect
import logging

import gradio as gr
from gradio.components.api_component import Api
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_http_url_like
from PIL import Image

logger = logging.getLogger(__name__)

URLS_REFUSED = "Web addresses are not fetched; upload the image itself."
NOT_UPLOADED = "the request names no uploaded file; upload an image first."
MISFIT = "The request does not fit this endpoint; the page's API view says what it takes."
NO_IMAGE = "The image cannot be read; choose another one."
FAILED = "Something went wrong on the server; please try again."


def answer_in_one_sentence(function):
    """Show a user what is wrong with the input; of anything else only that it happened, and log it.

    Takes functions and generators alike.
    """

    def refusal(error):
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, (ValueError, TypeError)):
            # The page shows the sentence as HTML, and it may hold a file's name: without "<" there is no markup.
            return gr.Error(str(error).replace("<", "‹"), print_exception=False)
        logger.error("a request failed", exc_info=error)
        return gr.Error(FAILED, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def answered(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise refusal(error) from None
    else:

        @functools.wraps(function)
        def answered(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise refusal(error) from None

    return answered


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
        except gr.Error:
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
