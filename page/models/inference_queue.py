"""Whose turn it is: the models compute for one request at a time, in the order in which they asked."""

import importlib.util
import os
import threading
import time
from collections import deque
from contextlib import contextmanager

SLICE = 0.1
"""Seconds that long work computes before it lets others go first: they wait little, and it comes to its end."""

MAX_LONG_WORK = 16
"""Batches, repairs and recalibrations that run or wait at once: each holds images in memory."""


class Turns:
    """A first-come-first-served lock. Long work lets others go first between its steps by `pass_on`.

    On a CPU two networks at once take longer than one after the other; on a GPU they would share its memory.

    Args:
        slice_seconds (`float`): the least that a turn lasts before it is passed on.
        max_long_work (`int`): how much long work may be under way.
    """

    def __init__(self, slice_seconds=SLICE, max_long_work=MAX_LONG_WORK):
        self._places = threading.BoundedSemaphore(max_long_work)
        self._slice_seconds, self._began = slice_seconds, 0.0
        self._condition = threading.Condition()
        self._waiting = deque()

    def start(self, work, *args):
        """Start long work, which takes turns, in a thread of its own. Returns the `threading.Thread`.

        Raises:
            ValueError: if as much as may be is under way.
        """
        if not self._places.acquire(blocking=False):
            raise ValueError("the server is busy with the batches and repairs of others; try again in some minutes.")

        def run():
            try:
                work(*args)
            finally:
                self._places.release()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    @contextmanager
    def take(self):
        """Wait for one's turn and hold it while the block runs."""
        self._wait()
        try:
            yield
        finally:
            self._end()

    def pass_on(self):
        """Let whoever waits go first, then take the next turn; to be called, often, by who holds it."""
        if len(self._waiting) > 1 and time.monotonic() - self._began >= self._slice_seconds:
            self._end()
            self._wait()

    def close(self):
        """Wait for the turn in hand, and let no other begin: Python is aborted if it ends while a network computes."""
        ticket = object()
        with self._condition:
            self._waiting.insert(1, ticket)  # behind who holds the turn, before all who wait
            self._condition.wait_for(lambda: self._waiting[0] is ticket)

    def _wait(self):
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            self._condition.wait_for(lambda: self._waiting[0] is ticket)
        self._began = time.monotonic()

    def _end(self):
        with self._condition:
            self._waiting.popleft()
            self._condition.notify_all()


def lends_gpu():
    """Whether this is a ZeroGPU Space: its GPU is there during a call only, in a process of its own."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(function, seconds=60):
    """A function that is given a ZeroGPU Space's GPU whenever it is called; anywhere else the function itself.

    Args:
        function: arguments and result are pickled on their way to and from the other process.
        seconds (`int`): the longest that a call takes.
    """
    if not lends_gpu() or importlib.util.find_spec("spaces") is None:
        return function
    import spaces

    return spaces.GPU(function, duration=seconds)
