"""What a request may be before Gradio reads it: not too large, no address to fetch; a malformed one crashes nothing."""

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from page.server.gradio_internals import FnIndexInferError, is_http_url_like
from page.server.settings import BASE64_BYTES_PER_MB
from page.server.user_errors import FAILED, MISFIT, URLS_REFUSED

UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
CALLS = ("/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/", "/gradio_api/queue/join")


class RequestLimits:
    """ASGI middleware in front of Gradio; every refusal is one sentence as JSON, with a status from 400 to 413.

    Args:
        app: what it protects.
        max_mb (`int`): the most that an image may have. Other requests than uploads, which Gradio bounds itself, may
            hold one such image in base64.
    """

    def __init__(self, app, max_mb):
        self.app = app
        self.max_bytes = max_mb * BASE64_BYTES_PER_MB + (1 << 16)
        self.too_large = f"The request is too large: images of at most {max_mb} MB together fit into it as data: URIs."

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"].endswith(UPLOAD):
            await self.app(scope, receive, send)
        elif is_http_url_like(scope["path"].partition(FILE)[2].lower()):
            await _refusal(400, URLS_REFUSED)(scope, receive, send)
        elif _declared_length(scope) > self.max_bytes:
            await _refusal(413, self.too_large)(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope, receive, send):
        is_call = any(call in scope["path"] for call in CALLS)
        exchange = _Exchange(receive, send, self.max_bytes, is_call)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except _TooLargeError:
            pass
        except (FnIndexInferError, KeyError, TypeError, ValueError):
            # Gradio's calls by name look their arguments up without asking whether they are there.
            if exchange.is_answered or not is_call:
                raise
            await _refusal(400, MISFIT)(scope, receive, send)
        if exchange.is_too_large:
            await _refusal(413, self.too_large)(scope, receive, send)


class _Exchange:
    """A request whose length is counted, and its answer.

    What Gradio answers to a body that broke off is not sent. What it calls an error of the server, though the sentence
    in it is about the request, becomes a 400.
    """

    def __init__(self, receive, send, max_bytes, is_call):
        self._receive, self._send, self._is_call = receive, send, is_call
        self._left, self._held = max_bytes, None
        self.is_too_large = self.is_answered = False

    async def receive(self):
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_too_large = True
            raise _TooLargeError
        return message

    async def send(self, message):
        if self.is_too_large:
            return
        self.is_answered = True
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


def _declared_length(scope):
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def _refusal(status, sentence):
    return JSONResponse({"error": sentence}, status, {"connection": "close"} if status == 413 else None)
