"""`python -m cogvideo memory`: print peak memory and time of each memory preset on this machine, and the default one.

With `--measure`, a few steps of each phase run under the named presets, with the model's weights or random ones. On a
GPU the allocator is limited to the memory of the GPU that the preset is made for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cogvideo.benchmarks.memory_report import attempt, predicted
from cogvideo.cli import console
from cogvideo.cli.model_options import add_model_options
from cogvideo.config import PRESETS, ModelConfig, load_preset
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.models.loader import random_models
from cogvideo.runtime.device import DevicePlacement, default_placement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset
from cogvideo.runtime.model_selection import default_model
from cogvideo.runtime.oom import free_memory


def main(argv: Sequence[str]) -> int:
    """Print the table. Returns 0, or 1 if a measured preset did not fit. Raises CogVideoError."""
    options = parser().parse_args(argv)
    name = options.model or default_model(options.device)
    model = load_preset(name)[0].model
    place = default_placement(options.device)
    if not options.measure:
        print(predicted(name, model, place, options.seconds))
        return console.DONE
    results = []
    for preset in _presets(options.measure):
        placement = replace(place, memory=preset)
        models = _load_models(name, model, placement, options.random)
        results.append(attempt(model, models, placement, options.steps))
        del models
        free_memory(placement)
        print(results[-1].as_text(), flush=True)
    if options.json:
        report = [result.as_dict(name, place.dtype) for result in results]
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return console.DONE if all(result.phases for result in results) else console.CHECK_FAILED


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("memory", description=__doc__)
    add_model_options(root, ["model", "device"])
    root.add_argument("--measure", metavar="NAMES", help="presets to measure, such as 24g,16g,8g, or all")
    root.add_argument("--random", action="store_true", help="random weights; the model's files are not required")
    root.add_argument("--steps", type=int, default=16, help="tokens to generate in each phase (default: 16)")
    root.add_argument("--seconds", type=float, default=0.2, help="duration of each hardware measurement (default: 0.2)")
    root.add_argument("--json", type=Path, metavar="FILE", help="file for the measurements")
    return root


def _load_models(name: str, model: ModelConfig, place: DevicePlacement, random: bool) -> Any:
    """Return the networks, in CPU memory."""
    if random:
        return random_models(model, place.dtype, torch.device("cpu"))
    from cogvideo.models import loader

    if name in PRESETS:
        return loader.load(name, place.read_as)
    return loader.load_safetensors(load_preset(name)[1], model, place.read_as)


def _presets(names: str) -> list[MemoryPreset]:
    """Return the presets named in "24g,16g" or "all". Raises RequestError."""
    chosen = list(MEMORY_PRESETS) if names == "all" else names.split(",")
    if unknown := [name for name in chosen if name not in MEMORY_PRESETS]:
        available = ", ".join(MEMORY_PRESETS)
        raise RequestError(*message("memory.unknown_preset", unknown=unknown[0], available=available))
    return [MEMORY_PRESETS[name] for name in chosen]
