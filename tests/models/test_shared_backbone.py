"""The backbone of three published checkpoints, equal or not: kept once or apart, and either way a film comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.benchmarks.memory_probe import held_bytes, peak
from cogvideo.events import Frames, Loading
from cogvideo.models import loader
from cogvideo.models.convert import convert
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.runtime.placement import place_models
from cogvideo.weights import checkpoint, published_format
from cogvideo.weights.catalog import PREFIXES
from tests.support.dealer import dealt, differ
from tests.support.toy_model import CONFIG, TOY, toy_models, write_toy

CPU = torch.device("cpu")
REQUEST = VideoRequest("小猫", seed=3, num_frames=9, duration=2.0)
NAME = "transformer.layers.1.mlp.dense_h_to_4h.weight"

Change = Callable[[dict[str, torch.Tensor]], object]


def publish(home: Path, changes: dict[str, Change]) -> None:
    """The toy in the published format; some networks' tensors are changed first."""
    for part, network in zip(published_format.PUBLISHED, toy_models()):
        tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
        changes.get(part, len)(tensors)
        folder = home / published_format.PUBLISHED[part] / "1"
        folder.mkdir(parents=True)
        (folder.parent / "latest").write_text("1")
        (folder.parent / "model_config.json").write_text("{}")
        torch.save({"module": tensors}, folder / "mp_rank_00_model_states.pt")


def louder(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME] * 1.5


def in_another_precision(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME].float()


def pipeline(folder: Path, memory: str, read: Callable[..., loader.LoadedModels]) -> CogVideoPipeline:
    return CogVideoPipeline(TOY, DevicePlacement(CPU, torch.float32, MEMORY_PRESETS[memory]), folder, read)


def film(folder: Path, memory: str, read: Callable[..., loader.LoadedModels]) -> tuple[Frames, str]:
    """A film of the networks that `read` gives, and what was told of their files."""
    pipe = pipeline(folder, memory, read)
    told = [event.message for event in pipe.stream(REQUEST) if isinstance(event, Loading) and event.message]
    return pipe(REQUEST), told[0][1] if told else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_toy(tmp_path)
    return tmp_path


@pytest.mark.parametrize("memory", ["cpu", "16g", "8g"])
def test_equal_and_unequal_backbones_make_films(folder: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    films, scores = {}, []
    cases: dict[str, dict[str, Change]] = {"equal": {}, "unequal": {"stage2": louder}}
    for case, changes in cases.items():
        home, out = folder / case, folder / f"{case}-converted"
        publish(home, changes)
        films[case], told = film(
            folder, memory, lambda _, dtype, device, home=home: loader.load_published(home, CONFIG, dtype)
        )
        assert ("stored once" in told) == (case == "equal")
        assert ("stage2 1" in told) == (case == "unequal")
        with monkeypatch.context() as sizes:
            sizes.setattr(published_format, "published_config", lambda home: CONFIG)
            convert(home, out)
        copy, _ = film(folder, memory, lambda _, dtype, device, out=out: loader.load_safetensors(out, CONFIG, dtype))
        np.testing.assert_array_equal(copy, films[case])
        published = pipeline(
            folder, memory, lambda _, dtype, device, home=home: loader.load_published(home, CONFIG, dtype)
        )
        scores.append(dealt(published, REQUEST))
    for one, other in zip(films["equal"][::2], films["unequal"][::2]):
        np.testing.assert_array_equal(one, other)  # keyframes are stage 1's
    *keyframes, between, enlarged = (differ(one, other) for one, other in zip(*scores, strict=True))
    assert keyframes == [False] * 5
    assert between
    assert not enlarged


def test_the_same_numbers_in_another_precision_are_kept_apart_and_work(folder: Path) -> None:
    publish(folder / "a", {})
    publish(folder / "b", {"superres": in_another_precision})
    wanted, _ = film(folder, "cpu", lambda _, dtype, device: loader.load_published(folder / "a", CONFIG, dtype))
    got, told = film(folder, "cpu", lambda _, dtype, device: loader.load_published(folder / "b", CONFIG, dtype))
    assert "superres 1" in told
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_checkpoints_are_found_below_the_folders_that_some_archives_have(folder: Path, prefix: str) -> None:
    publish(folder / "home" / prefix, {})
    models = loader.load_published(folder / "home", CONFIG)
    assert models.stage1.transformer is models.superres.transformer


def test_differences_are_found_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "COMPARE_CHUNK", 7)
    one = torch.arange(60.0).view(6, 10)
    assert checkpoint.tensors_equal({"x": one}, {"x": one.clone()}, "x")
    for place in range(60):
        other = one.clone()
        other.view(-1)[place] += 1
        assert not checkpoint.tensors_equal({"x": one}, {"x": other}, "x")
    assert not checkpoint.tensors_equal({"x": one}, {"x": one.view(10, 6)}, "x")
    assert not checkpoint.tensors_equal({"x": one}, {"x": one.double()}, "x")


@pytest.mark.parametrize("memory", ["24g", "16g", "8g"])
def test_weights_in_fewer_bits_never_pass_through_memory_at_full_length(folder: Path, memory: str) -> None:
    publish(folder / "home", {})
    place = DevicePlacement(CPU, torch.float32, MEMORY_PRESETS[memory])
    read = loader.load_published(folder / "home", CONFIG, place.read_as)
    assert {tensor.dtype for tensor in read.stage1.parameters()} == {torch.float16}  # the file's own: mapped
    with peak(CPU) as found:
        models = place_models(read, place)
    networks = [models.stage1, models.stage2] + ([] if place.memory.stream_layers else [models.superres])
    largest = max(tensor.numel() for tensor in loader.expected(CONFIG, "stage1").values()) * 4
    assert found.bytes <= held_bytes(networks) + 3 * largest  # what stays, and one matrix with its codes
