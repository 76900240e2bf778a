"""Sizes as text."""

from __future__ import annotations

import pytest

from cogvideo.units import format_bytes, format_gigabytes


@pytest.mark.parametrize(
    ("count", "digits", "text"),
    [
        (22_700_000_000, 1, "22.7"),
        (43_000_000_000, 0, "43"),
        (0, 1, "0.0"),
        (1_640_000, 1, "0.00164"),
        (400_000_000, 0, "0.4"),
        (None, 1, "?"),
    ],
)
def test_gigabytes(count: int | None, digits: int, text: str) -> None:
    assert format_gigabytes(count, digits) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_640_000, "1.64 MB"),
        (999_600, "1 MB"),
        (22_700_000_000, "22.7 GB"),
        (5_000_000_000_000_000, "5e+03 TB"),
        (None, "?"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert format_bytes(count) == text
