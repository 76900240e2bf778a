"""Sizes in bytes as text, in decimal units: 1 GB is 10**9 bytes."""

from __future__ import annotations

from typing import Final

GB: Final = 1e9
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def format_gigabytes(count: float | None, digits: int = 1) -> str:
    """Return bytes as gigabytes without the unit, such as "22.7"; "?" for None.

    `digits`: decimals. A size above zero that they would show as zero gets three significant digits instead.
    """
    if count is None:
        return "?"
    gigabytes = count / GB
    text = f"{gigabytes:.{digits}f}"
    return f"{gigabytes:.3g}" if count > 0 and float(text) == 0 else text


def format_bytes(count: float | None) -> str:
    """Return bytes with three significant digits in the largest unit that fits, such as "1.64 MB"; "?" for None."""
    if count is None:
        return "?"
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.3g} {unit}"
