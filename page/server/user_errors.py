"""How the page answers what it cannot do: one sentence for a mistake, no traceback, and no address fetched."""

import functools
import inspect
import logging

import gradio as gr

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
