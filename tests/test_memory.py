"""Memory: predictions equal what the networks and caches are, and the preset that fits is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from toy_model import CONFIG as TOY

from cogvideo import device
from cogvideo.config import MEMORY, PRESETS, ModelConfig
from cogvideo.errors import CapacityError, RequestError
from cogvideo.layout import Layout
from cogvideo.memory import ENVIRONMENT, cache_bytes, choose, parameters, peak_bytes, weight_bytes
from cogvideo.models.cache import Cache
from cogvideo.models.loader import BACKBONE, PARTS, expected

BIG = PRESETS["cogvideo"].model
GB = 10**9


@pytest.mark.parametrize("model", [TOY, PRESETS["mini"].model], ids=["toy", "mini"])
def test_numbers_are_counted_exactly(model: ModelConfig) -> None:
    matrices, rest, own = parameters(model)
    for part in PARTS:
        tensors = expected(model, part)
        backbone = sum(t.numel() for name, t in tensors.items() if name.startswith(BACKBONE))
        assert matrices + rest == backbone
        assert own[part] == sum(t.numel() for t in tensors.values()) - backbone


def test_the_published_model_is_as_large_as_is_said() -> None:
    matrices, rest, own = parameters(BIG)
    assert matrices + rest + own["stage1"] + own["stage2"] == pytest.approx(9.4e9, rel=0.05)
    assert weight_bytes(BIG, MEMORY["a100"]) == pytest.approx(22.7 * GB, rel=0.02)


@pytest.mark.parametrize("model", [TOY, PRESETS["mini"].model], ids=["toy", "mini"])
def test_caches_are_no_larger_than_predicted(model: ModelConfig) -> None:
    layout, like = Layout(model), torch.zeros(1)
    first = Cache(layout, 1, 2, model.text_length, (), True, 0.0, like)
    second = Cache(layout, 2, 1, model.text_length, (), True, 0.0, like, lanes=2)
    kept = [sum(arena.k_v.nbytes for arena in cache._spatial + cache._temporal) for cache in (first, second)]
    assert max(kept) == cache_bytes(model, number=4)


@pytest.mark.parametrize("name, size", [("a100", 80), ("48g", 48), ("24g", 24), ("16g", 16)])
def test_every_card_has_room_for_its_preset(name: str, size: int) -> None:
    assert peak_bytes(BIG, MEMORY[name]) < 0.93 * size * 2**30  # the rest is the system's


def test_later_presets_take_less() -> None:
    peaks = [peak_bytes(BIG, row) for row in MEMORY.values() if row.device == "cuda"]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_the_best_preset_that_fits_is_taken() -> None:
    for name in ("a100", "48g", "24g", "16g"):
        assert choose(BIG, "cuda", peak_bytes(BIG, MEMORY[name])).name == name
    with pytest.raises(CapacityError, match=r"8\.0 GB are free.*mini"):
        choose(BIG, "cuda", 8 * GB)
    assert choose(PRESETS["mini"].model, "cuda", 4 * GB).name == "a100"


def test_a_name_and_the_environment_overrule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "16g")
    assert choose(BIG, "cuda", 80 * GB).name == "16g"
    assert choose(BIG, "cuda", 80 * GB, "24g").name == "24g"
    with pytest.raises(RequestError, match="a100, 48g, 24g, 16g"):
        choose(BIG, "cuda", 80 * GB, "8g")
    with pytest.raises(RequestError, match="16g for cpu"):
        choose(BIG, "cpu", 80 * GB)


def test_free_memory_decides_how_a_model_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert device.fit_place(PRESETS["mini"].model, "cpu") == device.pick_place("cpu")
    assert not device.has_room(BIG) or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * GB, 17 * GB))
    place = device.fit_place(BIG)
    assert (place.eight_bit, place.keep, place.frames_per_pass) == (True, False, 2)
    assert device.has_room(BIG)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * GB, 9 * GB))
    assert not device.has_room(BIG)


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readme_tells_the_predicted_peaks(name: str) -> None:
    text = (Path(__file__).resolve().parent.parent / name).read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| .* \| (\d+) GB \|$", text, flags=re.M)
    assert {row: int(peak) for row, peak in told} == {
        name: round(peak_bytes(BIG, row) / GB) for name, row in MEMORY.items()
    }
