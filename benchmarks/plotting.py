"""The plots' only way to matplotlib, which is no dependency of the project itself."""

import importlib.util


def require_matplotlib():
    """Called before a command measures anything.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib; install requirements-test.txt.")


def pyplot():
    """`matplotlib.pyplot`, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
