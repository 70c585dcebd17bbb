"""What a request may be before Gradio reads it: not too large, no address to fetch; a malformed one crashes nothing."""

from fastapi.exceptions import RequestValidationError
from gradio.route_utils import FnIndexInferError
from gradio_client.utils import is_http_url_like
from starlette.responses import JSONResponse

from .answering import FAILED, MISFIT, URLS_REFUSED

UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
CALLS = ("/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/")


class RequestLimits:
    """ASGI middleware in front of Gradio; every refusal is one sentence as JSON, with a status from 400 to 413.

    Args:
        app: what it protects.
        max_mb (`int`): the most that a picture may have. Other requests than uploads, which Gradio bounds itself, may
            hold one such picture in base64.
    """

    def __init__(self, app, max_mb):
        self.app = app
        self.max_bytes = max_mb * 1_400_000 + (1 << 16)
        self.too_large = (
            f"The request is too large: pictures of together at most {max_mb} MB fit into one, as data: URIs."
        )

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"].endswith(UPLOAD):
            return await self.app(scope, receive, send)
        if is_http_url_like(scope["path"].partition(FILE)[2].lower()):
            return await _refusal(400, URLS_REFUSED)(scope, receive, send)
        is_call = any(call in scope["path"] for call in CALLS)
        answer = _Answer(send, is_call)
        received = 0

        async def counted_receive():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _TooLargeError
            return message

        try:
            if int(dict(scope["headers"]).get(b"content-length", 0)) > self.max_bytes:
                raise _TooLargeError
            await self.app(scope, counted_receive, answer.send)
        except _TooLargeError:
            await _refusal(413, self.too_large)(scope, receive, send)
        except (FnIndexInferError, KeyError, TypeError, ValueError):
            # Gradio's calls by name look their arguments up without asking whether they are there.
            if answer.has_begun or not is_call:
                raise
            await _refusal(400, MISFIT)(scope, receive, send)


class _Answer:
    """Passes an answer on; what Gradio calls an error of the server, though the sentence says otherwise, as 400."""

    def __init__(self, send, is_call):
        self._send, self._is_call = send, is_call
        self._held = None
        self.has_begun = False

    async def send(self, message):
        self.has_begun = True
        if self._is_call and message["type"] == "http.response.start" and message["status"] == 500:
            self._held = message
            return
        if self._held is not None:
            status = 500 if FAILED.encode() in message.get("body", b"") else 400
            await self._send(self._held | {"status": status})
            self._held = None
        await self._send(message)


async def refuse_malformed(request, error):
    """Answer what is no JSON, or JSON of another form, in one sentence."""
    return _refusal(422, MISFIT)


REFUSALS = {RequestValidationError: refuse_malformed}
"""Exception handlers of the page's server."""


class _TooLargeError(Exception):
    pass


def _refusal(status, sentence):
    return JSONResponse({"error": sentence}, status)
