"""Shares as they are said."""

import pytest

from rendering.words import percent


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (2 / 191, "1.0 %"),
        (1 / 19, "5.3 %"),
        (201 / 392, "51 %"),
        (0.0996, "10 %"),
        (0.0994, "9.9 %"),
        (1 / 5000, "0.02 %"),
        (0.996, "99.6 %"),
        (0.9997, "99.97 %"),
        (0.99, "99 %"),
    ],
)
def test_a_share_has_two_digits_and_never_reads_as_none_or_all(share, said):
    assert percent(share) == said
