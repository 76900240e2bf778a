"""Compressed layers multiply by the weights that their codes stand for, and layers that would be spoilt stay exact."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogvideo.cli import memory as cli_memory
from cogvideo.config import SamplingOptions, WeightFormat, describe_preset
from cogvideo.inference import super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.inference.super_resolution import UpscaleOptions
from cogvideo.models import loader
from cogvideo.models.quantization import BOUNDS, Compression, Compressor, Nf4Linear, unpacked, worst_row_error
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_estimate import backbone_bytes, network_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.runtime.placement import on_device, place_models, upscaler_on_device
from kernels.w8a16 import Int8Linear
from tests.support.toy_model import CONFIG as TOY
from tests.support.toy_model import ToyModels, toy_models

CPU = torch.device("cpu")
EXACT = MEMORY_PRESETS["cpu"]
CLIP = torch.arange(5 * 16).view(1, 5, 16) * 7 % 64

NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor(NEGATIVE + POSITIVE)
"""The code book of Dettmers et al. 2023 (QLoRA, arXiv:2305.14314, appendix E)."""

MAKERS: dict[str, Callable[[Tensor, Tensor], nn.Module]] = {
    "int8": Int8Linear,
    "nf4": Nf4Linear.of,
    "nf4, fp32 scales": Nf4Linear.with_full_scales,
}


def by_hand(layer: Any) -> Tensor:
    """The weights [out, in] fp32 of a compressed layer, from its buffers alone."""
    if isinstance(layer, Int8Linear):
        return torch.stack([row * scale for row, scale in zip(layer.weight.float(), layer.scale)])
    buffers = dict(layer.named_buffers())
    scales = buffers["scales"]
    if "outer_scales" in buffers:
        outer = buffers["outer_scales"].repeat_interleave(256)[: len(scales)]
        scales = buffers["outer_code"][scales.long()] * outer + buffers["offset"]
    codes = buffers["weight"].flatten()
    numbers = NF4[torch.stack((codes >> 4, codes & 15), 1).flatten().long()]
    count = layer.shape.numel()
    return (numbers[:count] * scales.repeat_interleave(64)[:count]).view(layer.shape)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())


# --- what a compressed layer computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("width", range(32, 513, 32))
def test_layer_of_any_width_multiplies_by_its_codes(width: int, kind: str, dtype: torch.dtype, most: float) -> None:
    generator = torch.Generator().manual_seed(width)
    weight, x = (torch.randn(rows, width, generator=generator) for rows in (37, 3))
    bias = torch.randn(37, generator=generator)
    layer = MAKERS[kind](weight.to(dtype), bias.to(dtype))
    hand = by_hand(layer)
    got = layer(x.to(dtype))
    assert got.shape == (3, 37) and got.dtype == dtype
    assert relative(unpacked(layer, dtype), hand) <= most
    assert relative(got, nn.functional.linear(x.to(dtype).float(), hand, bias.to(dtype).float())) <= most
    assert relative(hand, weight) < (0.02 if kind == "int8" else 0.12)


@pytest.mark.parametrize("shape", [(7, 9), (5, 48), (24, 24), (3, 1), (1, 64), (300, 80)])
@pytest.mark.parametrize("kind", MAKERS)
def test_layer_of_any_shape_multiplies_by_its_codes(shape: tuple[int, int], kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=generator), torch.randn(2, 4, shape[1], generator=generator)
    layer = MAKERS[kind](weight, torch.zeros(shape[0]))
    torch.testing.assert_close(layer(x), nn.functional.linear(x, by_hand(layer)), rtol=1e-4, atol=1e-4)


def test_int8_layer_without_bias_adds_none() -> None:
    weight = torch.eye(5, 33)
    torch.testing.assert_close(Int8Linear(weight)(torch.ones(1, 33)), torch.ones(1, 5))


@pytest.mark.parametrize("factor", [0.1, 0.01, 0.001])
def test_small_rows_beside_large_ones_stay_precise_in_four_bits(factor: float) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    weight[::8] *= factor
    layer = Nf4Linear.of(weight, torch.zeros(512))
    assert worst_row_error(weight, layer.unpacked(torch.float32)) < 0.14


# --- how the error is measured ----------------------------------------------------------------------------------------


def test_worst_row_counts_however_small_it_is() -> None:
    exact = torch.ones(600, 4)
    exact[300] *= 1e-30
    assert worst_row_error(exact, exact) == 0
    restored = exact.clone()
    restored[300] *= 1.5
    assert worst_row_error(exact, restored) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e-9])
def test_row_that_is_no_number_or_no_longer_zero_is_infinitely_wrong(wrong: float) -> None:
    exact = torch.ones(3, 4)
    exact[1] = 0
    restored = exact.clone()
    restored[1, 2] = wrong
    assert worst_row_error(exact, restored) == torch.inf


# --- which layers stay exact ------------------------------------------------------------------------------------------


def uneven(rows: int, width: int) -> Tensor:
    """Rows of 1 and of a thousandth by turns: if a block spans two rows, 4 bits lose the smaller one."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    weight[::2] *= 1e-3
    return weight


def outlier(rows: int, width: int) -> Tensor:
    """One number that leaves the rest of its row no steps in 8 bits, and the scales beside its own few in 4."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    weight[1, 2] = 1e6
    return weight


def middling(rows: int, width: int) -> Tensor:
    """A row whose largest number makes the step of 8 bits as large as the others are."""
    weight = torch.full((rows, width), 0.45 / 127)
    weight[:, 0] = 1
    return weight


def network_of(*weights: Tensor) -> nn.Sequential:
    layers = [nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights]
    for layer, weight in zip(layers, weights):
        layer.weight.data = weight
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize(
    "weights, spoilt",
    [
        ("nf4", uneven(64, 96)),
        ("int8", middling(8, 3000)),
        ("bnb8", middling(8, 3000)),
        ("nf4", outlier(8, 64) * torch.inf),
    ],
)
def test_layer_beyond_the_bound_stays_exact_and_is_counted(
    weights: WeightFormat, spoilt: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    network = network_of(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), spoilt)
    layer = network[1]
    compressor = Compressor(weights, CPU, torch.float32)
    with caplog.at_level(logging.INFO):
        compressor.compress(network, "part")
        compressor.log()
    result = compressor.result
    assert network[1] is layer and not network[0].weight.is_floating_point()
    assert result.layers == 2 and [name for name, _ in result.exact] == ["part.1"]
    assert result.exact[0][1] > BOUNDS[weights]
    assert result.extra_bytes > 0
    assert "1 of 2 layers keep exact weights" in caplog.text and "part.1" in caplog.text


def test_scales_are_kept_in_full_if_eight_bits_spoil_them() -> None:
    network = network_of(outlier(64, 64), torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    weight = network[0].weight.clone()
    compressor = Compressor("nf4", CPU, torch.float32)
    compressor.compress(network)
    result = compressor.result
    assert result.full_scales == ("0",) and not result.exact
    assert worst_row_error(weight, unpacked(network[0], torch.float32)) < BOUNDS["nf4"]
    tensors = [sum(tensor.nbytes for tensor in layer.buffers()) for layer in network]
    assert result.extra_bytes == tensors[0] - tensors[1]
    assert "1 have scales in full precision" in result.sentences()[1]


def test_layer_that_networks_share_is_compared_and_counted_once() -> None:
    network = network_of(uneven(64, 96), torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    compressor = Compressor("nf4", CPU, torch.float32)
    compressor.compress(network, "first")
    kept, small = network
    compressor.compress(network, "second")
    assert network[0] is kept and network[1] is small
    assert compressor.result.layers == 2
    assert [name for name, _ in compressor.result.exact] == ["first.0"]


def test_notes_of_the_files_are_followed_by_the_counts_if_any_layer_takes_more() -> None:
    assert Compression(6).after(None) is None
    assert Compression(6).after(("甲。", "A.")) == ("甲。", "A.")
    zh, en = Compression(6, (("x", 0.5),), (), 2 * 10**9).after(("甲。", "A.")) or ("", "")
    assert zh == "甲。6 个线性层中有 1 个保留精确权重，最多比预测多占 2 GB。"
    assert en == "A. 1 of 6 layers keep exact weights, at most 2 GB more than predicted."


# --- models of which some layers stay exact ---------------------------------------------------------------------------


def mixed_models() -> ToyModels:
    """A toy in which a layer of the backbone and one of each network's own part cannot be compressed."""
    models = toy_models()
    with torch.no_grad():
        for network in (models.stage1, models.stage2, models.superres):
            own = network.get_mixin("attention_plus")
            for layer in (network.transformer.layers[0].mlp.dense_h_to_4h, own.query_key_value[1]):
                layer.weight.copy_(uneven(*layer.weight.shape))
    return models


@pytest.mark.parametrize("name", ["8g", "24g"])
def test_model_of_exact_and_compressed_layers_computes_nearly_the_same(name: str) -> None:
    memory = replace(MEMORY_PRESETS[name], stream_layers=False, swap_networks=True)
    place, exact = DevicePlacement(CPU, torch.float32, memory), mixed_models()
    models = place_models(mixed_models(), place)
    four = memory.weights == "nf4"
    assert models.compression.layers == 2 * 4 + 3 * 2 * 2
    assert len(models.compression.exact) == (4 if four else 0)  # 8 bits have a scale for every row
    for part in ("stage1", "stage2"):
        text, length = torch.tensor([[70, 71, 72]]), torch.tensor([3])
        wanted = getattr(exact, part).forward_training(text, length, CLIP)
        before = {name: tensor.data_ptr() for name, tensor in getattr(models, part).state_dict().items()}
        for _ in range(2):  # the part goes home and comes back
            with on_device(getattr(models, part), place) as lm:
                assert relative(lm.forward_training(text, length, CLIP), wanted) < (0.8 if four else 0.05)
        assert {name: tensor.data_ptr() for name, tensor in getattr(models, part).state_dict().items()} == before


def test_streamed_super_resolution_is_exact_beside_a_mix() -> None:
    memory = replace(EXACT, stream_layers=True, weights="nf4", swap_networks=True)
    place, exact, models = (
        DevicePlacement(CPU, torch.float32, memory),
        mixed_models(),
        place_models(mixed_models(), DevicePlacement(CPU, torch.float32, memory)),
    )
    sampler, options = ClusterSampler(torch.arange(64) % 9), SamplingOptions().superres
    wish = (CLIP[0], [70, 71, 72], sampler, options, 7)
    wanted = torch.cat([part.tokens for part in super_resolution.upscale(exact.superres, *wish, UpscaleOptions(2))])
    for _ in range(2):
        with upscaler_on_device(models.superres, place) as layers:
            parts = super_resolution.upscale(models.superres, *wish, UpscaleOptions(2, layers))
            got = torch.cat([part.tokens for part in parts])
        assert torch.equal(got, wanted)
    assert len(models.compression.exact) == 3  # super-resolution is not compressed


def test_mix_takes_what_is_predicted_and_the_extra_bytes() -> None:
    memory = replace(EXACT, weights="nf4")
    models = place_models(mixed_models(), DevicePlacement(CPU, torch.float32, memory))
    networks = models.stage1, models.stage2, models.superres
    modules = [models.stage1.transformer, *(network.mixins for network in networks)]
    taken = sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
    predicted = backbone_bytes(TOY, memory, 4)
    predicted += sum(network_bytes(TOY, part, memory, 4) for part in ("stage1", "stage2", "superres"))
    assert models.compression.extra_bytes > 0
    assert taken == predicted + models.compression.extra_bytes


def test_weights_of_a_mix_are_loaded_into_another_of_the_same_kind() -> None:
    memory = replace(EXACT, weights="nf4")
    one, other = (place_models(mixed_models(), DevicePlacement(CPU, torch.float32, memory)) for _ in range(2))
    state = {name: tensor.clone() for name, tensor in one.stage1.state_dict().items()}
    for tensor in other.stage1.state_dict().values():
        tensor.zero_()
    other.stage1.load_state_dict(state)
    text, length = torch.tensor([[70, 71, 72]]), torch.tensor([3])
    wanted, got = (models.stage1.forward_training(text, length, CLIP) for models in (one, other))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_mini_is_compressed_as_a_whole(weights: WeightFormat) -> None:
    place = DevicePlacement(CPU, torch.float32, replace(EXACT, weights=weights))
    result = place_models(loader.load("mini", place.read_as), place).compression
    assert result.layers > 60
    assert result == Compression(result.layers)


# --- the report -------------------------------------------------------------------------------------------------------


def test_memory_command_counts_exact_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preset.json").write_text(describe_preset("mini", TOY), encoding="utf-8")
    monkeypatch.setattr(cli_memory, "_load_models", lambda *_: mixed_models())
    words = ["--model", str(tmp_path), "--device", "cpu", "--steps", "1", "--measure", "8g,cpu"]
    assert cli_memory.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert out.count("3 of 16 layers keep exact weights") == out.count("16 个线性层中有 3 个保留精确权重") == 1
    four, full = json.loads((tmp_path / "out.json").read_text())
    assert (four["layers"], len(four["exact_layers"])) == (16, 3)
    assert "stage1.transformer.layers.0.mlp.dense_h_to_4h" in four["exact_layers"]
    assert (full["layers"], full["exact_layers"], full["extra_bytes"]) == (0, [], 0)


def test_predictions_state_what_they_assume(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_memory.main(["--model", "mini", "--device", "cpu", "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "if every layer can be compressed" in out and "假定每一层都能按预设压缩" in out
