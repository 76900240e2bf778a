"""User-facing sentences in Chinese and English. The catalogue is messages.json: translators need no Python.

A key is `module.words`; a value is the Chinese and the English sentence, with {names} for the values of a message.
Sentences of the page are in the section "page".
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Final

CATALOGUE: Final = Path(__file__).with_name("messages.json")

BilingualText = tuple[str, str]
"""The same sentence in Chinese and in English."""


def message(key: str, /, **values: object) -> BilingualText:
    """Return the sentence `key` in both languages, filled with `values`. Raises KeyError if it does not exist."""
    zh, en = sentences("library")[key]
    return zh.format(**values), en.format(**values)


@functools.cache
def sentences(section: str) -> dict[str, list[str]]:
    """Return one section of the catalogue, "library" or "page": key -> Chinese and English sentence."""
    catalogue: dict[str, dict[str, list[str]]] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return catalogue[section]
