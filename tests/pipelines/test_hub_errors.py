"""Failures of the Hub's client as sentences; those that need no server. `test_publish.py` has the others."""

import errno

import hf_xet
import pytest
from sentences import refused

from pipelines.hub_errors import HIDDEN, hub_sentences, without_token


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/hf_secret"), ["/x/", HIDDEN, "Permission denied"]),
        (hf_xet.XetAuthenticationError("hf_secret is wrong"), ["refuses the upload"]),
        (ConnectionResetError("hf_secret"), ["cannot be reached", "ConnectionResetError"]),
    ],
)
def test_a_failure_is_a_sentence_whatever_wraps_it_and_never_shows_the_token(error, words):
    for wrapped in (False, True):
        with refused(ValueError, *words) as caught, hub_sentences("team/tile", "hf_secret"):
            if wrapped:
                raise RuntimeError("Error while uploading 'x' to the Hub.") from error
            raise error
        assert "hf_secret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_mistake_of_our_own_is_not_hidden():
    with pytest.raises(ZeroDivisionError), hub_sentences("team/tile"):
        _ = 1 / 0
    with pytest.raises(ValueError, match="ours"), hub_sentences("team/tile"):
        raise ValueError("ours")


def test_a_token_is_hidden_wherever_it_stands():
    assert without_token("a hf_secret b hf_secret", "hf_secret") == f"a {HIDDEN} b {HIDDEN}"
    assert without_token("a", None) == "a"
