"""Placement of networks: where they wait, and a context in which one is ready on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cogvideo.models.base import TokenModel, cache_fp32_heads
from cogvideo.models.cache_pool import CachePool
from cogvideo.models.quantization import linear_layers, quantize_linear_layers
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime.device import DevicePlacement, Module
from cogvideo.runtime.layer_streaming import streamed_layers
from cogvideo.runtime.memory_estimate import cache_pool_bytes
from cogvideo.runtime.oom import empty_device_cache


@dataclass(frozen=True)
class PlacedModels:
    """The three networks as a memory preset holds them."""

    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM


def place_models(models: Any, place: DevicePlacement) -> PlacedModels:
    """Networks in host memory (as a rule mapped from their files, in their type) -> the same, held as `place` says.

    Tensor by tensor: host memory gets nothing that was not there before but what is held or waits there.
    """
    memory, device, dtype = place.memory, place.device, place.dtype
    video: tuple[VideoLM, VideoLM] = (models.stage1, models.stage2)
    superres: SuperResLM = _apart(models.superres) if memory.stream_layers else models.superres
    held: tuple[TokenModel, ...] = video if memory.stream_layers else (*video, superres)
    if memory.offload:
        _offload(held, device)
    for network in held:
        quantize_linear_layers(network.transformer, memory.weights, device, dtype)
        quantize_linear_layers(network.mixins, memory.weights, device, dtype, place.home)
    moves = memory.offload or memory.swap_networks
    kept = CachePool(0 if moves else cache_pool_bytes(models.stage1.config, memory, place.kind))
    for lm in video:
        lm.int8_cache, lm.swapped, lm.cache_pool = memory.int8_cache, memory.offload, kept
    for network in held:
        _bring(network.transformer, device, dtype)
        _bring(network.mixins, place.home, dtype)
    cache_fp32_heads(held)
    return PlacedModels(*video, superres)


def current(place: DevicePlacement) -> AbstractContextManager[object]:
    """Inside the block the place's card is the one that kernels start on: on another they would not find their data."""
    return torch.cuda.device(place.device) if place.device.type == "cuda" else nullcontext()


@contextmanager
def on_device(network: Module, place: DevicePlacement) -> Iterator[Module]:
    """Has a settled `network` ready to compute inside the block: where parts take turns, its own part comes now.

    Afterwards that part is home again, whatever happened; nothing is copied back, since nothing has changed.
    """
    part: nn.Module | None = getattr(network, "mixins", None)
    if part is None or not place.memory.swap_networks:
        with current(place):
            yield network
        return
    waiting = part.state_dict()
    try:
        part.to(place.device)
        with current(place):
            yield network
    finally:
        part.load_state_dict(waiting, assign=True)
        part.requires_grad_(False)
        empty_device_cache(place.device)


@contextmanager
def upscaler_on_device(superres: SuperResLM, place: DevicePlacement) -> Iterator[Callable[[], Iterator[int]] | None]:
    """As `resident` for super-resolution; gives what `stages.superres.draw` takes as `layers`."""
    if not place.memory.stream_layers:
        with on_device(superres, place):
            yield None
        return
    with current(place), streamed_layers(superres, superres.layer_modules(), place.device, place.dtype) as layers:
        yield layers
    empty_device_cache(place.device)


def _offload(networks: Iterable[nn.Module], device: torch.device) -> None:
    """From now on every matrix waits where it is and comes to `device` for its product alone (accelerate's hooks)."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    layers = {id(layer): layer for network in networks for _, _, layer in linear_layers(network)}  # each once
    for layer in layers.values():
        add_hook_to_module(layer, AlignDevicesHook(device, offload=True))


def _apart(network: SuperResLM) -> SuperResLM:
    """A network of the same tensors whose modules are its own, so that others may exchange theirs."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _bring(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move what is not there yet, tensor by tensor; what comes by itself (`_offload`) stays away.

    Weights become `dtype`; what belongs to weights in fewer bits stays as it is.
    """
    for weight in module.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(device, dtype if weight.is_floating_point() else None)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
