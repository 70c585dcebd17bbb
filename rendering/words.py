"""Counts and times as one says them, and text of strangers as a line of one's own."""

MAX_LINE = 300


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


def one_line(text):
    """Text in a single line, without control characters or letters that turn the direction of others, cut if long."""
    text = str(text)[:MAX_LINE]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
