"""How a refusal has to look: the right exception with one sentence that names what was given."""

from contextlib import contextmanager

import pytest


@contextmanager
def refused(exception, *words):
    """Expect `exception` with a one-line message that ends in a full stop and holds every one of `words`."""
    with pytest.raises(exception) as caught:
        yield caught
    assert_sentence(str(caught.value), *words)


def assert_sentence(message, *words):
    """Check that a message is one line, ends in a full stop and holds every one of `words`."""
    assert message, "the message is empty"
    assert "\n" not in message, message
    assert message.rstrip().endswith("."), message
    assert "Traceback" not in message, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
