"""Counts and times as one says them."""


def count_of(count, noun):
    """How many of something, in words."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds):
    """A time in words, rounded as one would say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
