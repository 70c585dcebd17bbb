"""How the page answers what it cannot do: one sentence for a mistake, no traceback, and no address fetched."""

import functools
import inspect
import logging

import gradio as gr
from gradio_client.utils import is_http_url_like

logger = logging.getLogger(__name__)

URLS_REFUSED = "Web addresses are not fetched; upload the picture itself."
FAILED = "Something went wrong on the server; please try again."


def answer_in_one_sentence(function):
    """Show a visitor what is wrong with the input; of anything else only that it happened, and log it.

    Takes functions and generators alike.
    """

    def refusal(error):
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, (ValueError, TypeError)):
            return gr.Error(str(error), print_exception=False)
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
    """Keep Gradio from fetching addresses that a client names instead of uploading a file."""

    def guarded(move):
        async def move_to_cache(path):
            if is_http_url_like(str(path)):
                raise gr.Error(URLS_REFUSED, print_exception=False)
            return await move(path)

        return move_to_cache

    for block in demo.blocks.values():
        block.async_move_resource_to_block_cache = guarded(block.async_move_resource_to_block_cache)
