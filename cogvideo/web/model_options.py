"""The choice of models and memory presets: labels, installation hints, expected peaks. No Gradio."""

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
from cogvideo.units import format_gigabytes
from cogvideo.web.strings import Strings

MIN_BYTES_FOR_CHOICE: Final = 4 * 10**9
"""Peak memory from which the page offers memory presets; every machine has less than that to spare."""


@dataclass(frozen=True)
class ModelPlacement:
    """How a server loads a model."""

    model: ModelConfig
    device_type: str
    """"cuda" or "cpu"."""
    memory: str
    """Memory preset that fits, or that the server was started with."""


def has_memory_choice(model: ModelConfig) -> bool:
    """Return whether the memory preset matters for a model."""
    return peak_bytes(model, MEMORY_PRESETS["cpu"]) > MIN_BYTES_FOR_CHOICE


def model_choices(strings: Strings, language: str, models: Iterable[ModelEntry]) -> list[tuple[str, str]]:
    """Return (label, name) of each model."""
    return [
        (
            strings.text(language, "model_missing", model=model.name) if model.unavailable_reason() else model.name,
            model.name,
        )
        for model in models
    ]


def model_note(strings: Strings, language: str, model: ModelEntry) -> str:
    """Return the frame size of a model, or how to install it, as HTML with selectable commands."""
    if reason := model.unavailable_reason():
        note = html.escape(reason[language != "zh"])
        note = re.sub(r"python -m cogvideo [a-z ]*[a-z]", r"<code>\g<0></code>", note)
        return f'<p class="cv-say" data-kind="missing">{note}</p>'
    height, width = model.preset.final_size if model.preset.upscale_by_default else model.preset.frame_size
    return f"<p>{html.escape(strings.text(language, 'model_size', width=width, height=height))}</p>"


def memory_choices(strings: Strings, language: str, placement: ModelPlacement) -> list[tuple[str, str]]:
    """Return (label with expected peak, name) of each memory preset; the name "" is the server's choice."""

    def peak(name: str) -> str:
        return format_gigabytes(peak_bytes(placement.model, MEMORY_PRESETS[name], placement.device_type))

    names = [preset.name for preset in MEMORY_PRESETS.values() if placement.device_type in ("cpu", preset.device)]
    default_peak = peak(placement.memory) if placement.memory in MEMORY_PRESETS else "?"
    default = strings.text(language, "memory_usual", preset=placement.memory, peak=default_peak)
    others = [(strings.text(language, "memory_choice", preset=name, peak=peak(name)), name) for name in names]
    return [(default, ""), *others]
