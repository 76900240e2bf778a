"""Every way of holding a model computes nearly what the exact one does, and each takes less memory than it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cogvideo.config import SamplingOptions, WeightFormat
from cogvideo.inference import decoding, super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.inference.super_resolution import UpscaleOptions
from cogvideo.models.kv_storage import Int8KVBuffer, KVBuffer, SlotRun, quantize_int8
from cogvideo.models.quantization import Compressor
from cogvideo.runtime.device import DevicePlacement, placement_for
from cogvideo.runtime.memory_estimate import FULL, backbone_bytes, network_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset, PlacementOptions
from cogvideo.runtime.placement import PlacedModels, place_models, upscaler_on_device
from cogvideo.token_layout import KeyRange
from kernels.w8a16 import Int8Linear
from tests.support.small_lm import random_frames, video_lm
from tests.support.toy_model import CONFIG as TOY
from tests.support.toy_model import toy_models

DEVICE = torch.device("cpu")
EXACT = MEMORY_PRESETS["cpu"]
TEXT, LENGTH = torch.tensor([[70, 71, 72]]), torch.tensor([3])
CLIP = torch.arange(5 * 16).view(1, 5, 16) * 7 % 64


def held(memory: MemoryPreset, dtype: torch.dtype = torch.float32) -> PlacedModels:
    return place_models(toy_models(), DevicePlacement(DEVICE, dtype, memory))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# --- weights in fewer bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, least, most", [("int8", 0.001, 0.05), ("bnb8", 0.001, 0.05), ("nf4", 0.05, 0.8)])
def test_fewer_bits_draw_nearly_the_same(weights: WeightFormat, least: float, most: float) -> None:
    exact, small = toy_models(), held(replace(EXACT, weights=weights))
    for one, other in ((exact.stage1, small.stage1), (exact.stage2, small.stage2)):
        wanted, got = (lm.forward_training(TEXT, LENGTH, CLIP) for lm in (one, other))
        assert least < relative(got, wanted) < most
    wanted, got = (lm(TEXT, LENGTH, CLIP[:, 0]) for lm in (exact.superres, small.superres))
    assert least < relative(got, wanted) < most
    assert small.stage1.transformer is small.stage2.transformer is small.superres.transformer


@pytest.mark.parametrize("weights", ["exact", "int8", "nf4"])
def test_weights_take_what_is_predicted(weights: WeightFormat) -> None:
    memory = replace(EXACT, weights=weights)
    models = held(memory)
    tensors = (*models.stage1.transformer.parameters(), *models.stage1.transformer.buffers())
    assert sum(tensor.nbytes for tensor in tensors) == backbone_bytes(TOY, memory, FULL)
    for part in ("stage1", "stage2", "superres"):
        own = getattr(models, part).mixins
        assert sum(t.nbytes for t in (*own.parameters(), *own.buffers())) == network_bytes(TOY, part, memory, FULL)


def test_what_is_small_already_is_left_alone() -> None:
    lm = video_lm(1)
    Compressor("int8", DEVICE, torch.float32).compress(lm)
    first = lm.transformer.layers[0].mlp.dense_h_to_4h
    again = Compressor("int8", DEVICE, torch.float32)
    again.compress(lm)
    assert again.result.layers == 0
    assert lm.transformer.layers[0].mlp.dense_h_to_4h is first


# --- keys and values in 8 bits ----------------------------------------------------------------------------------------


def test_eight_bit_keys_are_within_half_a_step() -> None:
    x = torch.randn(2, 1, 3, 5, 8) * torch.tensor([1e-3, 1.0, 100.0])[:, None, None]
    codes, scales = quantize_int8(x)
    assert ((codes * scales - x).abs() <= scales * 0.5001).all()
    codes, scales = quantize_int8(torch.zeros(4, 8, dtype=torch.float16))
    assert torch.equal(codes * scales, torch.zeros(4, 8, dtype=torch.float16))


def test_both_arenas_keep_the_same() -> None:
    like, places, run = torch.zeros(1), torch.tensor([0, 1, 4]), SlotRun(KeyRange(0, 6), 1, None)
    first, last = torch.randn(2, 1, 2, 3, 8), torch.randn(2, 1, 2, 1, 8)
    seen = []
    for kind in (KVBuffer, Int8KVBuffer):
        arena = kind(1, 2, 7, 8, like)
        arena.write(torch.arange(7), torch.zeros(2, 1, 2, 7, 8))
        arena.write(places, first)
        seen.append(arena.append(run, last))
    for wanted, got in zip(seen[0][:2], seen[1][:2]):
        assert got.shape == wanted.shape == (1, 2, 6, 8)
        torch.testing.assert_close(got, wanted, rtol=0, atol=float(wanted.abs().max()) / 250)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("guided", [False, True])
def test_scores_from_an_eight_bit_cache_are_nearly_the_same(stage: int, guided: bool) -> None:
    texts, clip = [[51, 52, 53], [54, 55, 56, 57, 58]], random_frames(2, 5)
    lm = video_lm(stage)
    seen: list[torch.Tensor] = []

    def teacher(logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        seen.append(logits)
        return clip[:, frame, slot]

    run = decoding.keyframes if stage == 1 else decoding.interpolate
    options = {"unconditional": [[59, 60], [59, 60]]} if guided else {}
    for lm.int8_cache in (False, True):
        decoding.collect(run(lm, texts, clip[:, 0] if stage == 1 else clip[:, ::2], teacher, **options))  # type: ignore
    wanted, got = torch.stack(seen).chunk(2)
    assert 1e-5 < relative(got, wanted) < 0.03
    assert (got.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.97


# --- layer by layer ---------------------------------------------------------------------------------------------------


def test_streamed_super_resolution_is_exact_beside_weights_in_fewer_bits() -> None:
    memory = replace(EXACT, stream_layers=True, weights="int8", swap_networks=True)
    place, exact, models = DevicePlacement(DEVICE, torch.float32, memory), toy_models(), held(memory)
    sampler, options = ClusterSampler(torch.arange(64) % 9), SamplingOptions().superres
    wish = (CLIP[0], [70, 71, 72], sampler, options, 7)
    wanted = torch.cat([part.tokens for part in super_resolution.upscale(exact.superres, *wish, UpscaleOptions(2))])
    for _ in range(2):  # also the second time
        with upscaler_on_device(models.superres, place) as layers:
            assert layers is not None
            parts = super_resolution.upscale(models.superres, *wish, UpscaleOptions(2, layers))
            got = torch.cat([part.tokens for part in parts])
        assert torch.equal(got, wanted)
    assert isinstance(models.stage1.transformer.layers[0].mlp.dense_h_to_4h, Int8Linear)


def test_offloaded_matrices_are_there_only_for_their_product() -> None:
    exact, models = toy_models(), held(placement_for(TOY, PlacementOptions("cpu", offload="layers")).memory)
    wanted, got = (lm.forward_training(TEXT, LENGTH, CLIP) for lm in (exact.stage1, models.stage1))
    torch.testing.assert_close(got, wanted)
    wanted, got = (lm(TEXT, LENGTH, CLIP[:, 0]) for lm in (exact.superres, models.superres))
    torch.testing.assert_close(got, wanted)
    for name, weight in models.stage1.named_parameters():
        matrix = any(word in name for word in ("query_key_value", "dense"))
        assert weight.is_meta == matrix, name
