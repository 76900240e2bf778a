"""Workloads of the stage benchmark: what one step of super-resolution or of the image tokenizer computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cogvideo.config import ASSETS, ModelConfig, Preset, TokenSampling
from cogvideo.inference import super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.runtime.device import DevicePlacement
from cogvideo.token_layout import TokenLayout
from cogvideo.tokenizers import image as codecs

TEXT_TOKENS: Final = 24
"""Length of the simulated prompt."""

CLUSTERS: Final = 500

FRAMES_PER_PASS: Final = 4
"""Frames per pass of super-resolution and of the image tokenizer."""


@dataclass(frozen=True)
class StageWorkload:
    """A stage to benchmark: `step(i)` runs for ascending i in 0 .. steps - 1, possibly not for all."""

    stage: str
    rows: int
    steps: int
    tokens: int
    step: Callable[[int], object]
    once: float
    """Seconds before the first step: prefill of text and given frames."""
    once_cpu: float
    gigabytes: float
    """Least memory traffic of all steps."""
    gigaflop: float
    threads: int
    """Cores that the stage may use."""
    alone: bool = False
    """Whether PyTorch uses one thread only: its operations are small, and our kernels have their own threads."""
    seek: Callable[[int], None] = lambda number: None
    """Called before a step that does not follow its predecessor; not timed."""
    jumps: bool = False
    """Whether `seek` must be called before each step."""


def prompt_tokens(config: ModelConfig, length: int) -> list[int]:
    """Return `length` ids of text."""
    spare = config.vocab_size - config.image_tokens
    return [config.image_tokens + i % spare for i in range(length)]


def random_tokens(layout: TokenLayout, device: torch.device, rows: int, frames: int) -> Tensor:
    """Return random image tokens, [rows, frames, tokens per frame]."""
    shape = (rows, frames, layout.tokens_per_frame)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(layout.config.image_tokens, shape, generator=generator).to(device)


def superres_workload(
    lm: SuperResLM, sampler: ClusterSampler, options: TokenSampling, frames: int, weight_bytes: float, cores: int
) -> StageWorkload:
    """Return the workload of super-resolution of all frames. `weight_bytes`: read once per pass."""
    layout, config, passed = lm.layout, lm.config, min(FRAMES_PER_PASS, frames)
    device = lm.transformer.word_embeddings.weight.device
    clip, text = random_tokens(layout, device, 1, passed)[0], prompt_tokens(config, TEXT_TOKENS)

    def step(_: int) -> None:
        list(super_resolution.upscale(lm, clip, text, sampler, options, 0, super_resolution.UpscaleOptions(passed)))

    flops = frames * _superres_flops(lm, TEXT_TOKENS)
    steps, fine = math.ceil(frames / passed), layout.fine_tokens
    read = steps * (weight_bytes + passed * fine * config.image_tokens * 4)
    return StageWorkload("super-res.", passed, steps, frames * fine, step, 0.0, 0.0, read / 1e9, flops / 1e9, cores)


def decode_workload(preset: Preset, place: DevicePlacement, frames: int, cores: int) -> StageWorkload:
    """Return the workload of decoding tokens of the fine grid to pixels."""
    codec = _random_codec(ASSETS / preset.name, place)
    passed, grid = min(FRAMES_PER_PASS, frames), preset.model.fine_grid
    codes = torch.randint(min(preset.model.image_tokens, len(codec._embedding)), (passed, grid[0] * grid[1]))

    def step(_: int) -> None:
        codec.decode(codes, grid)

    with FlopCounterMode(display=False) as counted:
        codec.decode(codes[:1], grid)
    flops = counted.get_total_flops() * frames
    steps, pixels = math.ceil(frames / passed), frames * grid[0] * grid[1]
    return StageWorkload("pixels", passed, steps, pixels, step, 0.0, 0.0, 0.0, flops / 1e9, cores)


def _random_codec(folder: Path, place: DevicePlacement) -> codecs.ImageTokenizer:
    """Return the preset's image tokenizer with random weights."""
    config = folder / "codec.json"
    model: Any = codecs.build_vqvae(config, "meta") if config.is_file() else codecs._published_codec()
    codecs._keep_level(model)
    model.to(place.dtype).to_empty(device=place.device)
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.normal_(std=0.02)
    return codecs.ImageTokenizer(model)


def _superres_flops(lm: SuperResLM, text: int) -> float:
    """Return the operations of one frame."""
    config, fine = lm.config, lm.layout.fine_tokens
    coarse, h = lm.layout.tokens_per_frame, config.hidden
    keys = math.prod(config.fine_window) + math.prod(config.coarse_window)
    layer = 2 * 12 * h * h * (text + coarse + fine) + 4 * h * (fine * keys + coarse * (text + coarse) + text * text)
    return config.layers * layer + 2 * fine * config.image_tokens * h
