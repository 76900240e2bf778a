"""Memory: predictions equal what the networks and caches are, and the preset that fits is taken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cogvideo.benchmarks.memory_probe import held_bytes, probe_memory
from cogvideo.config import PRESETS, ModelConfig
from cogvideo.errors import CapacityError, RequestError
from cogvideo.models.kv_cache import CacheKey, KVCache
from cogvideo.models.loader import BACKBONE, NETWORKS, expected, random_models
from cogvideo.runtime import device, placement
from cogvideo.runtime.memory_estimate import (
    ENVIRONMENT,
    cache_bytes,
    captured_bytes,
    choose_preset,
    parameters,
    peak_bytes,
    phase_bytes,
    smaller_preset,
    weight_bytes,
)
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, PlacementOptions
from cogvideo.token_layout import TokenLayout
from tests.support.toy_model import CONFIG as TOY
from tests.support.toy_model import toy_models

BIG = PRESETS["cogvideo"].model
GB = 10**9


@pytest.mark.parametrize("model", [TOY, PRESETS["mini"].model], ids=["toy", "mini"])
def test_numbers_are_counted_exactly(model: ModelConfig) -> None:
    matrices, rest, own = parameters(model)
    for part in NETWORKS:
        tensors = expected(model, part)
        backbone = sum(t.numel() for name, t in tensors.items() if name.startswith(BACKBONE))
        assert matrices + rest == backbone
        assert own[part] == sum(t.numel() for t in tensors.values()) - backbone


def test_the_published_model_is_as_large_as_is_said() -> None:
    matrices, rest, own = parameters(BIG)
    assert matrices + rest + own["stage1"] + own["stage2"] == pytest.approx(9.4e9, rel=0.05)
    assert weight_bytes(BIG, MEMORY_PRESETS["48g"])["keyframes"] == pytest.approx(22.7 * GB, rel=0.02)


@pytest.mark.parametrize("model", [TOY, PRESETS["mini"].model], ids=["toy", "mini"])
@pytest.mark.parametrize("int8", [False, True])
def test_caches_are_as_large_as_predicted(model: ModelConfig, int8: bool) -> None:
    layout, like, memory = TokenLayout(model), torch.zeros(1), replace(MEMORY_PRESETS["cpu"], int8_cache=int8)
    for stage, rows in ((1, 2), (2, 3)):
        cache = KVCache(layout, CacheKey(stage, rows, model.text_length, (), True, 0.0, stage, int8), like)  # type: ignore[arg-type]
        arenas = cache._spatial + cache._temporal
        kept = sum(t.nbytes for arena in arenas for t in vars(arena).values() if isinstance(t, torch.Tensor))
        assert cache.nbytes == kept == cache_bytes(model, stage, rows, memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["48g", "24g"])
def test_weights_on_a_card_take_what_is_predicted(name: str) -> None:
    models = placement.place_models(
        toy_models(), device.DevicePlacement(torch.device("cpu"), torch.float16, MEMORY_PRESETS[name])
    )
    head = models.stage1.full_head
    assert head is not None and head is models.stage2.full_head is models.superres.full_head
    held = held_bytes((models.stage1, models.stage2, models.superres)) + head.nbytes
    assert held == weight_bytes(TOY, MEMORY_PRESETS[name], "cuda")["keyframes"]


@pytest.mark.parametrize("name", ["a100", "48g", "24g", "16g", "8g"])
def test_what_earlier_videos_left_is_counted(name: str) -> None:
    row = MEMORY_PRESETS[name]
    phases, weights = phase_bytes(BIG, row), weight_bytes(BIG, row)
    left = cache_bytes(BIG, 2, row.max_batch_rows, row) if name in ("a100", "48g", "24g") else 0
    for phase in ("keyframes", "superres"):
        assert phases[phase] - weights[phase] > left + captured_bytes(row)
    assert phases["interpolate"] - weights["interpolate"] > cache_bytes(BIG, 2, row.max_batch_rows, row)
    assert (captured_bytes(row) > 0) == (name != "8g")  # whose keys and values no captured step takes


@pytest.mark.parametrize("name, size", [("a100", 80), ("48g", 48), ("24g", 24), ("16g", 16), ("8g", 8)])
def test_every_card_has_room_for_its_preset(name: str, size: int) -> None:
    assert peak_bytes(BIG, MEMORY_PRESETS[name]) < 0.93 * size * 2**30  # the rest is the system's


def test_later_presets_take_less() -> None:
    peaks = [peak_bytes(BIG, row) for row in MEMORY_PRESETS.values() if row.device == "cuda"]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_the_next_smaller_preset_takes_less(name: str) -> None:
    for kind in ("cuda", "cpu"):
        row = smaller_preset(BIG, MEMORY_PRESETS[name], kind)
        if row is not None:
            assert peak_bytes(BIG, row, kind) < peak_bytes(BIG, MEMORY_PRESETS[name], kind)
        assert (row is None) == (name == "8g")
    assert smaller_preset(BIG, MEMORY_PRESETS["a100"], "cuda") == MEMORY_PRESETS["48g"]


MEDIUM = replace(
    PRESETS["mini"].model, layers=2, hidden=96, heads=4, vocab_size=400, image_tokens=300, start_of_image=390
)


@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_every_phase_takes_what_is_predicted_or_less(name: str) -> None:
    memory = replace(
        MEMORY_PRESETS[name], max_batch_rows=min(2, MEMORY_PRESETS[name].max_batch_rows), frames_per_pass=2
    )
    predicted = phase_bytes(MEDIUM, memory, "cpu")
    place = device.DevicePlacement(torch.device("cpu"), torch.float32, memory)
    measured = probe_memory(random_models(MEDIUM, place.dtype, place.device), place, steps=2).phases
    for phase, most in predicted.items():
        assert 0.6 * most < measured[phase].bytes <= most, (phase, most, measured[phase])


def test_the_best_preset_that_fits_is_taken() -> None:
    for name in ("a100", "48g", "24g", "16g", "8g"):
        assert choose_preset(BIG, "cuda", peak_bytes(BIG, MEMORY_PRESETS[name])).name == name
    with pytest.raises(CapacityError, match=r"5\.0 GB are free.*mini"):
        choose_preset(BIG, "cuda", 5 * GB)
    assert choose_preset(PRESETS["mini"].model, "cuda", 4 * GB).name == "a100"


def test_a_name_and_the_environment_overrule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "16g")
    assert choose_preset(BIG, "cuda", 80 * GB).name == "16g"
    assert choose_preset(BIG, "cuda", 80 * GB, "24g").name == "24g"
    with pytest.raises(RequestError, match=r'Unknown memory preset "4g"\. Available: a100, 48g, 24g, 16g, 8g, cpu'):
        choose_preset(BIG, "cuda", 80 * GB, "4g")
    assert choose_preset(BIG, "cpu", 80 * GB).name == "16g"  # named, a preset may be used anywhere


def test_free_memory_decides_how_a_model_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert device.placement_for(PRESETS["mini"].model, PlacementOptions("cpu")) == device.default_placement("cpu")
    assert not device.has_room(BIG) or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * GB, 17 * GB))
    assert device.placement_for(BIG).memory == MEMORY_PRESETS["16g"]
    assert device.has_room(BIG)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 6 * GB))
    assert not device.has_room(BIG)


@pytest.mark.parametrize("name", ["docs/published-model.md", "docs/published-model_zh.md"])
def test_documented_peaks_are_the_predicted_ones(name: str) -> None:
    text = (Path(__file__).resolve().parents[2] / name).read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \|.*?\| (\d+\.\d) GB \|", text, flags=re.M)
    assert {row: float(peak) for row, peak in told} == {
        name: round(peak_bytes(BIG, row) / GB, 1) for name, row in MEMORY_PRESETS.items()
    }
