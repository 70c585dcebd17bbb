"""What can go wrong on the way to the Hub or from it, each said in one sentence that tells what to do."""

import errno
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
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
def hub_sentences(repo_id, token=None, writes=True):
    """Within the block every failure of the Hub, the network or the disk becomes a `ValueError` of one sentence.

    Args:
        repo_id (`str`): what is being worked on.
        token (`str`, *optional*): must not be read in any message; that of the machine must not either.
        writes (`bool`): whether something is sent, or only fetched.
    """
    try:
        yield
    except Exception as error:
        sentence = _explain(error, repo_id, writes)
        if sentence is None:
            raise
        for secret in (token, get_token()):
            sentence = without_token(sentence, secret)
        raise ValueError(sentence) from None  # the cause may hold addresses and headers


def without_token(text, token):
    """A text in which a token cannot be read."""
    return text.replace(token, HIDDEN) if isinstance(token, str) and token else text


def is_refused_or_out_of_reach(error):
    """Whether an exception says that the Hub, or the way to it, gave no answer: a refusal, a fault, no network."""
    return isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled)) or _is_of_the_network(error)


def _explain(error, repo_id, writes):
    """The sentence for an exception or for what caused it; None if it is none of those known."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # it says that nothing is cached; the cause says why that matters
        for kinds, explain in (
            (LocalTokenNotFoundError, lambda *_: "no token was found; log in with hf auth login, or set HF_TOKEN."),
            (OfflineModeIsEnabled, _explain_offline),
            (LocalEntryNotFoundError, _explain_not_cached),
            (HFValidationError, lambda *_: f"{repo_id!r} is no Hub id; it has the form organisation/name."),
            (RevisionNotFoundError, lambda *_: f"{repo_id} has no such revision; check its name."),
            (
                UnicodeEncodeError,
                lambda *_: "the token or a name has letters that the Hub does not know; check both.",
            ),
            (HfHubHTTPError, _explain_status),
            (OSError, _explain_system),
        ):
            if isinstance(error, kinds):
                return explain(error, repo_id, writes)
        if _is_of_the_network(error):
            name = type(error).__name__
            return f"the Hub at {constants.ENDPOINT} cannot be reached ({name}); check the network and run it again."
        if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):
            return f"the Hub does not accept the front matter of README.md: {' '.join(str(error).split())}."
        error = error.__cause__
    return None


def _explain_offline(_, repo_id, writes):
    if writes:
        return "HF_HUB_OFFLINE is set, so nothing is sent; unset it."
    return f"HF_HUB_OFFLINE is set and {repo_id} is not in the cache; unset it, or name a folder."


def _explain_not_cached(_, repo_id, writes):
    return f"{repo_id} is not in the cache, or only a part of it; fetch it once with a network, or name a folder."


def _explain_status(error, repo_id, writes):
    status = error.response.status_code
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        right = "write" if writes else "read"
        return f"the Hub does not know this token; make one with the right to {right}, then log in with hf auth login."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is open only to those whom its owner lets in; ask for access on its page, then log in."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{repo_id} does not exist on the Hub, or this token may not see it; check the name and the token."
    if status == 401:
        return "the Hub asks for a token; log in with hf auth login, or set HF_TOKEN."
    if status == 403 and writes:
        return f"this token may not write to {repo_id}; use one with the right to write, or another organisation."
    if status == 403:
        return f"this token may not read {repo_id}; use one with the right to read, or ask its owner for access."
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        wait = f"{wait[:10]} seconds" if wait else "a few minutes"
        return f"the Hub gets too many requests; run it again in {wait}."
    if status == 412:
        return f"somebody else has pushed to {repo_id} meanwhile; look at it, then run it again."
    if status >= 500:
        moved = "sent" if writes else "fetched"
        return f"the Hub has a failure of its own (status {status}); run it again, what was {moved} is kept."
    return f"the Hub refused {repo_id} (status {status}): {' '.join(str(error).split())[:300]}."


def _explain_system(error, repo_id, writes):
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; make room, or let TMPDIR name a folder on another disk, and run it again."
    if type(error).__name__.startswith("Xet"):  # of hf_xet, through which files go where it is installed
        name, right = type(error).__name__, "write" if writes else "read"
        moved = "upload" if writes else "download"
        return f"the Hub's storage refuses the {moved} ({name}); check that the token may {right}, then run it again."
    if isinstance(error, ConnectionError) or error.errno is None:
        return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}); run it again."
    return f"{error.filename or 'a file'} cannot be read or written: {error.strerror}."


def _is_of_the_network(error):
    """Whether it comes from the HTTP client, httpx or its successor, whichever `huggingface_hub` uses."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
