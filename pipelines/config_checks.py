"""What a setting may be: configs come from anywhere, and a wrong one must not cost gigabytes before it is noticed."""

import inspect
import math
from numbers import Integral, Real

MAX_STOCK_NUMBER = 2**16
MAX_STOCK_LIST = 10_000
MAX_TEXT = 200

MAX_NOISE_STEPS = 10_000
"""Timesteps of a noise schedule."""

MAX_TIMESTEPS = 10
"""Of Eq. 11: tables have a row for every subset of them, 1023 of so many."""


def check_whole(name, value, low, high):
    """Check that a setting is a whole number in `low` to `high`.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a whole number from {low} to {high} is accepted.")


def check_number(name, value, low, high):
    """Check that a setting is a number in `low` to `high`.

    Raises:
        ValueError: if it is none, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a number from {low:g} to {high:g} is accepted.")


def check_rate(value):
    """Check that a false alarm rate is a share of good parts, above 0 and at most 1.

    Raises:
        ValueError: if it is none; of one in per cent it says the share.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        share = f": {value / 100:g} for {value:g} %" if is_number and 1 < value <= 100 else ""
        raise ValueError(f"false_alarm_rate is {shown(value)}; it must lie above 0 and at most at 1{share}.")


def check_list(name, values, shortest, longest):
    """Check that a setting is a list of so many values.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(values, (list, tuple)) or not shortest <= len(values) <= longest:
        counts = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        raise ValueError(f"{name} is {shown(values)}; a list of {counts} values is accepted.")


def check_timesteps(timesteps, num_timesteps=MAX_NOISE_STEPS):
    """Check T of Eq. 11: a list of timesteps of a noise schedule, each once.

    Args:
        timesteps (`list[int]`): in any order.
        num_timesteps (`int`): of the schedule.

    Raises:
        ValueError: with what is wrong with them.
    """
    check_list("timesteps", timesteps, 1, MAX_TIMESTEPS)
    for timestep in timesteps:
        check_whole("timesteps", timestep, 0, num_timesteps - 1)
    if len(set(timesteps)) < len(timesteps):
        raise ValueError(f"timesteps are {shown(timesteps)}; each is accepted once.")


def check_stock_config(component_class, config):
    """Check a config of a class of diffusers by what its settings are by default: kind, and a bound on size.

    Args:
        component_class (`type`): its `__init__` has a default for every setting.
        config (`dict`): settings by name.

    Raises:
        ValueError: with the name of a setting that cannot be right.
    """
    parameters = inspect.signature(component_class.__init__).parameters
    for name, value in config.items():
        default = parameters[name].default
        if not _is_of_kind(value, default):
            raise ValueError(
                f"{name} is {shown(value)}, of no kind or size that {component_class.__name__} takes; by default it is "
                f"{shown(default)}."
            )


def shown(value):
    """A value as it may stand in a message: on one line, without control characters, cut after 60 of them."""
    text = "".join(letter if letter.isprintable() else "?" for letter in repr(value)[:1000])
    return text if len(text) <= 60 else text[:60] + "…"


def _is_of_kind(value, default):
    if value is None or isinstance(value, bool):
        return default is None or (isinstance(default, bool) and value is not None)
    if isinstance(value, str):
        return (default is None or isinstance(default, str)) and len(value) <= MAX_TEXT
    if isinstance(value, Real):
        is_number = isinstance(default, Real) and not isinstance(default, bool)
        return (default is None or is_number) and math.isfinite(value) and abs(value) <= MAX_STOCK_NUMBER
    if isinstance(value, (list, tuple)):
        scalars = all(item is not None and not isinstance(item, (list, tuple)) for item in value)
        is_list = default is None or isinstance(default, (list, tuple))
        return is_list and len(value) <= MAX_STOCK_LIST and scalars and all(_is_of_kind(item, None) for item in value)
    return False
