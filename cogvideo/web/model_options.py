"""The models of a server as a visitor sees them: which are there, what one takes that is not, how memory holds one."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cogvideo.config import ModelConfig
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web.strings import Strings

WORTH_A_CHOICE: Final = 4 * 10**9
"""Bytes that a model takes at most before a visitor is asked how to hold it: any machine has so much."""


@dataclass(frozen=True)
class Held:
    """How a server holds a model."""

    model: ModelConfig
    kind: str
    """Of device: "cuda" or "cpu"."""
    memory: str
    """Name of the memory preset that was found to fit, or that the server was told to take."""


def large(model: ModelConfig) -> bool:
    """Whether it matters how the model is held."""
    return peak_bytes(model, MEMORY_PRESETS["cpu"]) > WORTH_A_CHOICE


def model_choices(words: Strings, language: str, offers: Iterable[ModelEntry]) -> list[tuple[str, str]]:
    """What to call each model, with its name."""
    return [
        (words.text(language, "model_missing", model=offer.name) if offer.missing() else offer.name, offer.name)
        for offer in offers
    ]


def model_note(words: Strings, language: str, offer: ModelEntry) -> str:
    """A sentence about the model, or what it takes to have it, commands ready to be selected; as HTML."""
    missing = offer.missing()
    if missing:
        said = html.escape(missing[language != "zh"])
        said = re.sub(r"python -m cogvideo [a-z ]*[a-z]", r"<code>\g<0></code>", said)
        return f'<p class="cv-say" data-kind="missing">{said}</p>'
    height, width = offer.preset.final_size if offer.preset.upscale_by_default else offer.preset.frame_size
    return f"<p>{html.escape(words.text(language, 'model_size', width=width, height=height))}</p>"


def memory_choices(words: Strings, language: str, held: Held) -> list[tuple[str, str]]:
    """The memory presets that one may ask for, each with its expected peak; "" is what the server chose."""

    def peak(name: str) -> str:
        return f"{peak_bytes(held.model, MEMORY_PRESETS[name], held.kind) / 1e9:.1f}"

    names = [row.name for row in MEMORY_PRESETS.values() if row.device == held.kind or held.kind == "cpu"]
    usual = peak(held.memory) if held.memory in MEMORY_PRESETS else "?"
    first = words.text(language, "memory_usual", preset=held.memory, peak=usual)
    others = [(words.text(language, "memory_choice", preset=name, peak=peak(name)), name) for name in names]
    return [(first, ""), *others]
