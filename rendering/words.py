"""Counts and times as one says them, and text of strangers as a line of one's own."""

import os

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
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def escaped(text):
    """Text, or a file's name of whatever bytes, with escapes for what cannot be seen or encoded; nothing is lost."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def one_line(text):
    """Text in a single line, without control characters or letters that turn the direction of others, cut if long."""
    text = str(text)[:MAX_LINE]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
