"""`python -m cogvideo bench` at toy size: what it counts is right and what it writes can be read. No timings."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideo.benchmarks.hardware import HardwareLimits
from cogvideo.benchmarks.stages import count_calls
from cogvideo.benchmarks.svg_chart import stage_bars
from cogvideo.cli import bench as benchmarks_report
from cogvideo.errors import RequestError
from cogvideo.inference.sampling import ClusterSampler

WORDS = "--preset cogvideo --layers 2 --hidden 32 --heads 2 --grid 4 --vocab 64 --device cpu"
TOY = WORDS.split()
QUICK = ["--frames", "17", "--seconds", "0.01", "--steps", "2"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "bench.json"), "--plot", str(folder / "bench.svg")]
    assert benchmarks_report.main([*TOY, *QUICK, "--compare", "release", *files]) == 0
    ElementTree.parse(folder / "bench.svg")
    written: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return written


def stages(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["stage"]: line for line in report["stages"]}


def test_forwards_of_a_video(report: dict[str, Any]) -> None:
    # 16 tokens a frame, windows of 2: the second drawn frame of stage 2 follows by 6 slots.
    steps = {name: line["steps"] for name, line in stages(report).items()}
    assert steps == {
        "first frame": 16,
        "keyframes": 64,
        "in-betweens 1": 22,
        "in-betweens 2": 22,
        "super-res.": 5,
        "pixels": 5,
    }
    drawn = [stages(report)[name]["tokens"] for name in ("first frame", "keyframes", "in-betweens 1", "in-betweens 2")]
    assert drawn == [16, 64, 64, 128]


def test_no_token_waits_for_the_host(report: dict[str, Any]) -> None:
    for name in ("first frame", "keyframes", "in-betweens 1", "in-betweens 2"):
        assert stages(report)[name]["syncs_per_step"] == 0
        assert stages(report)[name]["calls_per_step"] > 0


def test_every_stage_has_its_floor_and_the_token_stages_their_ratio(report: dict[str, Any]) -> None:
    for name, line in stages(report).items():
        assert line["measured_steps"] == 2
        assert line["floor_seconds"] > 0
        assert line["seconds"] > 0
        assert (line["times_release"] is None) == (name in ("super-res.", "pixels"))
    assert report["times_release"] > 0
    assert report["command"].startswith("python -m cogvideo bench --preset cogvideo --layers 2")


def test_the_table_marks_what_is_extrapolated(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks_report.main([*TOY, *QUICK, "--stages", "first"])
    said = capsys.readouterr().out
    assert "first frame" in said
    assert "~" in said
    assert "keyframes" not in said


@pytest.mark.parametrize("wrong", [["--heads", "3"], ["--grid", "5"], ["--stages", "tea"]])
def test_sizes_and_stages_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(RequestError):
        benchmarks_report.main([*TOY, *QUICK, *wrong])


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    machine = HardwareLimits("m", 1, gigabytes_per_second=10.0, gigaflops=100.0)
    assert machine.floor(20.0, 100.0) == 2.0
    assert machine.floor(20.0, 500.0) == 5.0


def test_syncs_are_seen() -> None:
    number = torch.ones(3)

    def asks() -> None:
        if number.sum() > 2:
            number[0].item()

    assert count_calls(asks, torch.device("cpu"))[1] == 2


def test_a_plot_shows_every_stage_and_its_share() -> None:
    text = stage_bars("a & b", "here", [("one", 2.0, 1.0, None), ("two", 1.0, 0.25, 8.0)])
    ElementTree.fromstring(text)
    assert "a &amp; b" in text
    assert "50% floor" in text
    assert "(x8.0)" in text


def test_look_ahead_reports_what_a_step_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of draws always the same token: the guess that a keyframe is like the one before is right.
    monkeypatch.setattr(ClusterSampler, "sample", lambda self, logits, keys, options: keys[:, 0] * 0)
    file = tmp_path / "kept.json"
    words = ["--preset", "mini", "--device", "cpu", "--lookahead", "1,8", "--prompt", "一只熊猫在草地上向右跑"]
    assert benchmarks_report.main([*words, "--json", str(file)]) == 0
    lines = json.loads(file.read_text("utf-8"))["lines"]
    assert [(line["stage"], line["ahead"]) for line in lines] == [
        (stage, ahead) for stage in ("keyframes", "in-betweens 1") for ahead in (1, 8)
    ]
    assert all(line["same"] for line in lines)
    assert lines[0]["steps"] == lines[0]["slots"] == 5 * 64
    assert lines[1]["steps"] < lines[0]["steps"]
    assert "tokens/step" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_fewer_bits_lower_the_floor(weights: str, report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    benchmarks_report.main([*TOY, *QUICK, "--stages", "first", "--weights", weights, "--json", str(file)])
    small = json.loads(file.read_text())
    assert weights in small["step"] or "PyTorch" in small["step"]
    assert report["times_release_cpu"] > 0
    assert small["stages"][0]["cpu_seconds"] > 0
