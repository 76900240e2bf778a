"""Placement of networks between host and device, and contexts in which a network is on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cogvideo.models.base import TokenModel, cache_fp32_heads
from cogvideo.models.cache_pool import CachePool
from cogvideo.models.quantization import Compression, Compressor, linear_layers
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime.device import DevicePlacement, Module
from cogvideo.runtime.layer_streaming import streamed_layers
from cogvideo.runtime.memory_estimate import cache_pool_bytes
from cogvideo.runtime.oom import empty_device_cache


@dataclass(frozen=True)
class PlacedModels:
    """The three networks, placed according to a memory preset."""

    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM
    compression: Compression = field(default_factory=Compression)


def place_models(models: Any, place: DevicePlacement) -> PlacedModels:
    """Place networks that are in host memory (usually mapped from their files) according to `place`.

    Tensors are converted one by one. Host memory grows only by the tensors that stay there.
    """
    memory, device, dtype = place.memory, place.device, place.dtype
    video: tuple[VideoLM, VideoLM] = (models.stage1, models.stage2)
    superres: SuperResLM = _copy_modules(models.superres) if memory.stream_layers else models.superres
    placed: tuple[TokenModel, ...] = video if memory.stream_layers else (*video, superres)
    if memory.offload:
        _offload(placed, device)
    compressor = Compressor(memory.weights, device, dtype)
    for part, network in zip(("stage1", "stage2", "superres"), placed):
        compressor.compress(network.transformer, f"{part}.transformer")
        compressor.compress(network.mixins, f"{part}.mixins", place.home)
    compressor.log()
    weights_move = memory.offload or memory.swap_networks
    pool = CachePool(0 if weights_move else cache_pool_bytes(models.stage1.config, memory, place.kind))
    for lm in video:
        lm.int8_cache, lm.swapped, lm.cache_pool = memory.int8_cache, memory.offload, pool
    for network in placed:
        _move(network.transformer, device, dtype)
        _move(network.mixins, place.home, dtype)
    cache_fp32_heads(placed)
    return PlacedModels(*video, superres, compressor.result)


def current(place: DevicePlacement) -> AbstractContextManager[object]:
    """Make the placement's GPU the current CUDA device in the block: kernels are launched on the current device."""
    return torch.cuda.device(place.device) if place.device.type == "cuda" else nullcontext()


@contextmanager
def on_device(network: Module, place: DevicePlacement) -> Iterator[Module]:
    """Hold a placed `network` on the device during the block. If networks are swapped, its own weights are moved there.

    Afterwards those weights have their original storage, even after an error. Nothing is copied back, since weights do
    not change.
    """
    part: nn.Module | None = getattr(network, "mixins", None)
    if part is None or not place.memory.swap_networks:
        with current(place):
            yield network
        return
    original = part.state_dict()
    try:
        part.to(place.device)
        with current(place):
            yield network
    finally:
        part.load_state_dict(original, assign=True)
        part.requires_grad_(False)
        empty_device_cache(place.device)


@contextmanager
def upscaler_on_device(superres: SuperResLM, place: DevicePlacement) -> Iterator[Callable[[], Iterator[int]] | None]:
    """Hold super-resolution on the device, as `on_device`. Yield the `layers` argument of `UpscaleOptions`."""
    if not place.memory.stream_layers:
        with on_device(superres, place):
            yield None
        return
    with current(place), streamed_layers(superres, superres.layer_modules(), place.device, place.dtype) as layers:
        yield layers
    empty_device_cache(place.device)


def _offload(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Copy every weight matrix to `device` for its product alone from now on (accelerate's hooks)."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    layers = {id(layer): layer for network in networks for _, _, layer in linear_layers(network)}  # each once
    for layer in layers.values():
        add_hook_to_module(layer, AlignDevicesHook(device, offload=True))


def _copy_modules(network: SuperResLM) -> SuperResLM:
    """Copy a network's modules but not its tensors, so that modules of the other networks can be replaced."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move the tensors of `module` to `device`, one by one. Offloaded weights are skipped.

    Weights are converted to `dtype`; the buffers of quantized weights keep their types.
    """
    for weight in module.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(device, dtype if weight.is_floating_point() else None)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
