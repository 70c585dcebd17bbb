"""Where models compute: on this machine, or on the GPU that a ZeroGPU Space lends for one call."""

import importlib.util
import os


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
