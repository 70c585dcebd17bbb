"""Counts and times as one says them, and text of strangers as a line of one's own."""

import os

MAX_LINE = 300


def count_of(count, noun):
    """How many of something, in words."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(share):
    """A share, from 0 to 1, in per cent: two digits, and more where it would else read as none or all of them.

    Every measured or promised rate is written so: 2 of 191 are "1.0 %", 201 of 392 "51 %", 9,997 of 10,000 "99.97 %".
    """
    value = 100 * share
    digits = 0 if value >= 9.95 or value == 0 else 1
    while 0 < value < 100 and float(f"{value:.{digits}f}") in (0, 100):
        digits += 1
    return f"{value:.{digits}f} %"


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
