"""Whose turn it is: the models compute for one request at a time, in the order in which they asked."""

import threading
from collections import deque
from contextlib import contextmanager


class Turns:
    """A first-come-first-served lock. Long work lets others go first between its steps by `pass_on`.

    On a CPU two networks at once take longer than one after the other; on a GPU they would share its memory.
    """

    def __init__(self):
        self._condition = threading.Condition()
        self._waiting = deque()

    @contextmanager
    def take(self):
        """Wait for one's turn and hold it while the block runs."""
        self._wait()
        try:
            yield
        finally:
            self._end()

    def pass_on(self):
        """Let whoever waits go first, then take the next turn; to be called by who holds it."""
        if len(self._waiting) > 1:
            self._end()
            self._wait()

    def _wait(self):
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            self._condition.wait_for(lambda: self._waiting[0] is ticket)

    def _end(self):
        with self._condition:
            self._waiting.popleft()
            self._condition.notify_all()
