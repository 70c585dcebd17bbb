"""What can go wrong between a command and the Hub, each said in one sentence that tells what to do."""

import errno
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HIDDEN = "hf_…"
"""Stands where a token would have been read."""


@contextmanager
def hub_sentences(repo_id, token=None):
    """Within the block every failure of the Hub, the network or the disk becomes a `ValueError` of one sentence.

    Args:
        repo_id (`str`): what is being worked on.
        token (`str`, *optional*): must not be read in any message.
    """
    try:
        yield
    except Exception as error:
        sentence = _explain(error, repo_id)
        if sentence is None:
            raise
        raise ValueError(
            without_token(sentence, token or get_token())
        ) from None  # the cause may hold addresses and headers


def without_token(text, token):
    """A text in which a token cannot be read."""
    return text.replace(token, HIDDEN) if token else text


def _explain(error, repo_id):
    """The sentence for an exception or for what caused it; None if it is none of those known."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # it says that nothing is cached; the cause says why that matters
        for kinds, explain in (
            (LocalTokenNotFoundError, lambda *_: "no token was found; log in with hf auth login, or set HF_TOKEN."),
            (OfflineModeIsEnabled, lambda *_: "HF_HUB_OFFLINE is set, so nothing is sent; unset it."),
            (HFValidationError, lambda *_: f"{repo_id!r} is no Hub id; it has the form organisation/name."),
            (RevisionNotFoundError, lambda *_: f"{repo_id} has no such revision; check --revision."),
            (HfHubHTTPError, _explain_status),
            (OSError, _explain_system),
        ):
            if isinstance(error, kinds):
                return explain(error, repo_id)
        if _is_of_the_network(error):
            name = type(error).__name__
            return f"the Hub at {constants.ENDPOINT} cannot be reached ({name}); check the network and run it again."
        if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):
            return f"the Hub does not accept the front matter of README.md: {' '.join(str(error).split())}."
        error = error.__cause__
    return None


def _explain_status(error, repo_id):
    status = error.response.status_code
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        return "the Hub does not know this token; make one with the right to write, then log in with hf auth login."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{repo_id} does not exist on the Hub, or this token may not see it; check the name and the token."
    if status == 401:
        return "the Hub asks for a token; log in with hf auth login, or set HF_TOKEN."
    if status == 403:
        return f"this token may not write to {repo_id}; use one with the right to write, or another organisation."
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return f"the Hub gets too many requests; run it again in {f'{wait} seconds' if wait else 'a few minutes'}."
    if status == 412:
        return f"somebody else has pushed to {repo_id} meanwhile; look at it, then run it again."
    if status >= 500:
        return f"the Hub has a failure of its own (status {status}); run it again, what has arrived is not sent twice."
    return f"the Hub refused {repo_id} (status {status}): {' '.join(str(error).split())[:300]}."


def _explain_system(error, _):
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; make room, or let TMPDIR name a folder on another disk, and run it again."
    if type(error).__name__.startswith("Xet"):  # of hf_xet, through which uploads go where it is installed
        name = type(error).__name__
        return f"the Hub's storage refuses the upload ({name}); check that the token may write, then run it again."
    if isinstance(error, ConnectionError) or error.errno is None:
        return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}); run it again."
    return f"{error.filename or 'a file'} cannot be read or written: {error.strerror}."


def _is_of_the_network(error):
    """Whether it comes from the HTTP client, httpx or its successor, whichever `huggingface_hub` uses."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
