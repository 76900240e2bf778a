"""`python -m cogvideo memory`: every memory preset with the peak and the time to expect here, and which would be taken.

In: a model, a device. Out: a table. With `--measure` each preset named is tried: a few steps of each phase with the
model's weights or random ones; on a GPU the allocator is held to the memory of the card that the preset is made for.
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
from cogvideo.config import PRESETS, ModelConfig, load_preset
from cogvideo.errors import RequestError
from cogvideo.models.loader import random_models
from cogvideo.runtime.device import DevicePlacement, default_placement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset
from cogvideo.runtime.model_selection import default_model
from cogvideo.runtime.oom import free_memory


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; 0, or 1 where a preset that was tried did not fit. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    name = options.model or default_model(options.device)
    model = load_preset(name)[0].model
    place = default_placement(options.device)
    if not options.measure:
        print(predicted(name, model, place, options.seconds))
        return 0
    tried = []
    for row in _named(options.measure):
        held = replace(place, memory=row)
        models = _models(name, model, held, options.random)
        tried.append(attempt(model, models, held, options.steps))
        del models
        free_memory(held)
        print(tried[-1].as_text(), flush=True)
    if options.json:
        told = [result.as_dict(name, held.dtype) for result in tried]
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result.phases for result in tried) else 1


def _parser() -> console.Parser:
    parser = console.Parser("memory", description=__doc__)
    parser.add_argument(
        "--model", help=f"{', '.join(PRESETS)}, or the folder of a trained model (default: as the page)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the best there is)")
    parser.add_argument("--measure", metavar="NAMES", help="try these presets, for example 24g,16g,8g, or all")
    parser.add_argument("--random", action="store_true", help="with random weights: the model's files are not needed")
    parser.add_argument("--steps", type=int, default=16, help="tokens of each phase that are drawn (default: 16)")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each speed of the machine (default: 0.2)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _models(name: str, model: ModelConfig, place: DevicePlacement, random: bool) -> Any:
    """The networks in host memory."""
    if random:
        return random_models(model, place.dtype, torch.device("cpu"))
    from cogvideo.models import loader

    if name in PRESETS:
        return loader.load(name, place.read_as)
    return loader.load_safetensors(load_preset(name)[1], model, place.read_as)


def _named(names: str) -> list[MemoryPreset]:
    words = list(MEMORY_PRESETS) if names == "all" else names.split(",")
    if unknown := [word for word in words if word not in MEMORY_PRESETS]:
        there = ", ".join(MEMORY_PRESETS)
        raise RequestError(
            f"没有名为 {unknown[0]} 的显存预设：可用的有 {there}。",
            f"There is no memory preset {unknown[0]}: there are {there}.",
        )
    return [MEMORY_PRESETS[word] for word in words]
