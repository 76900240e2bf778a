"""The command `memory`: what to expect of every preset, and what each takes when it is tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cogvideo.benchmarks import memory_report
from cogvideo.benchmarks.memory_probe import MemoryProbeResult
from cogvideo.cli import memory
from cogvideo.cli.main import main
from cogvideo.config import PRESETS, describe_preset
from cogvideo.errors import RequestError
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_estimate import gigabytes_read, is_slow, peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from tests.support.toy_model import CONFIG, toy_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sizes of a toy; for random weights nothing else is needed."""
    (tmp_path / "preset.json").write_text(describe_preset("mini", CONFIG), encoding="utf-8")
    return tmp_path


def test_every_preset_is_told_with_peak_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--model", "cogvideo", "--device", "cpu", "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    rows = {name: float(peak) for name, peak in re.findall(r"^[> ] (\w+) +(\d+\.\d) GB +\d+ s", out, flags=re.M)}
    model = PRESETS["cogvideo"].model
    assert rows == {name: round(peak_bytes(model, row, "cpu") / 1e9, 1) for name, row in MEMORY_PRESETS.items()}
    assert re.search(r"^> cpu ", out, flags=re.M)  # the one that would be taken


def test_presets_are_tried_and_written_down(folder: Path, tmp_path: Path) -> None:
    words = ["memory", "--model", str(folder), "--device", "cpu", "--random", "--steps", "2"]
    assert main([*words, "--measure", "8g,cpu", "--json", str(tmp_path / "out.json")]) == 0
    eight, full = json.loads((tmp_path / "out.json").read_text())
    assert (eight["preset"], full["preset"]) == ("8g", "cpu")
    for result in (eight, full):
        assert set(result["measured"]) == set(result["seconds"]) == {"keyframes", "interpolate", "superres"}
        assert all(seconds > 0 for seconds in result["seconds"].values())
    assert eight["measured"]["interpolate"] < full["measured"]["interpolate"]


def test_a_preset_that_does_not_fit_is_said_and_the_next_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(models: object, place: DevicePlacement, steps: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(memory_report, "probe_memory", full)
    assert main(["memory", "--model", str(folder), "--device", "cpu", "--random", "--measure", "all"]) == 1
    assert capsys.readouterr().out.count("out of memory") == len(MEMORY_PRESETS)


def test_a_gpu_is_held_to_the_card_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    card = type("Card", (), {"total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: fractions.append(part))
    monkeypatch.setattr(memory_report, "probe_memory", lambda models, place, steps: MemoryProbeResult({}))
    for name in ("16g", "8g", "cpu"):
        memory_report.attempt(
            CONFIG, toy_models(), DevicePlacement(torch.device("cuda"), torch.float16, MEMORY_PRESETS[name]), 1
        )
    assert fractions == pytest.approx([16 / 80 * 0.94, 8 / 80 * 0.94], abs=0.01)


def test_names_that_do_not_exist_are_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"4g.*Available: a100"):
        memory.main(["--model", str(folder), "--device", "cpu", "--measure", "24g,4g"])


def test_before_a_long_video_the_time_to_expect_is_told() -> None:
    place = DevicePlacement(torch.device("cpu"), torch.float32, MEMORY_PRESETS["8g"])
    assert is_slow(PRESETS["cogvideo"].model, place.memory, "cpu")
    assert not is_slow(PRESETS["mini"].model, MEMORY_PRESETS["cpu"])
    told = memory_report.expectation(PRESETS["cogvideo"].model, place, seconds=0.001)
    assert all(
        int(re.findall(r"about (\d+) minutes|约 (\d+) 分钟", said)[0][number]) > 1 for said, number in zip(told, (1, 0))
    )


def test_weights_in_fewer_bits_are_read_sooner() -> None:
    model = PRESETS["cogvideo"].model
    exact, eight = (gigabytes_read(model, MEMORY_PRESETS[name]) for name in ("48g", "24g"))
    assert 0.45 < eight / exact < 0.75  # half as much a step, some more steps since batches are smaller
