"""The accepted false alarm rate as users give it: in per cent, and refused where a model does not offer it."""


class RateRefused(ValueError):
    """A rate that is no number, or none that the model offers; the message is one sentence."""


def check_percent(percent):
    """A false alarm rate in per cent as a number.

    Raises:
        RateRefused: if it is no number above 0 and up to 100.
    """
    percent = _number(percent)
    if not 0 < percent <= 100:
        raise RateRefused(f"the accepted false alarm rate is {percent:g} %; it must lie above 0 and at most at 100.")
    return percent


def offered_percent(model, percent):
    """A false alarm rate in per cent as a number that a model offers, on the page and to programs alike.

    Args:
        model (`Model`): offers rates from its `smallest_percent` to its `largest_percent`.
        percent: as it was given; what the smallest rate is rounded up from is taken too.

    Raises:
        RateRefused: if it is no such number: another rate is never taken in its place.
    """
    percent = _number(percent)
    smallest, largest = model.smallest_percent, model.largest_percent
    if not 100 * model.calibration.effective_rate(0) - 1e-9 <= percent <= largest:
        raise RateRefused(
            f"the accepted false alarm rate is {percent:g} %; rates from {smallest:g} %, the smallest that "
            f"{model.name} can promise, to {largest:g} % are offered."
        )
    return percent


def _number(value):
    if value is None:
        raise RateRefused("the accepted false alarm rate is empty; a number is accepted.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RateRefused(f"the accepted false alarm rate is {str(value)[:50]!r}; a number is accepted.")
    return float(value)
