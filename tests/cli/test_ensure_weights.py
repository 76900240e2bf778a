"""First use of the published model: asked, agreed to or refused; never fetched behind anybody's back."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest
import torch

from cogvideo.cli import ensure_weights
from cogvideo.cli.main import main
from cogvideo.errors import WeightsError
from cogvideo.runtime.model_selection import local_rank_device
from cogvideo.weights.download import Download


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path | None]:
    """An empty home; what would be fetched is counted, with the folder that was named."""
    calls: list[Path | None] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "sat"))
    for name in ("WORLD_SIZE", "LOCAL_RANK", ensure_weights.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Download, "run", lambda self: calls.append(self.source))
    return calls


def sit_down(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Somebody is at the terminal and types `answer`."""
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda *_: answer)


def test_other_models_need_nothing(fetched: list[Path | None]) -> None:
    ensure_weights.ensure_weights("mini")
    ensure_weights.ensure_weights("some/folder")
    assert fetched == []


@pytest.mark.parametrize("answer", ["y", "YES", "是"])
def test_who_agrees_gets_it(
    monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None], capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    sit_down(monkeypatch, answer)
    ensure_weights.ensure_weights("cogvideo")
    assert fetched == [None]
    err = capsys.readouterr().err
    assert "43 GB" in err
    assert "sat" in err


def test_a_folder_is_an_answer(monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None], tmp_path: Path) -> None:
    sit_down(monkeypatch, str(tmp_path))
    ensure_weights.ensure_weights("cogvideo")
    assert fetched == [tmp_path]


@pytest.mark.parametrize("answer", ["n", "", "no", "/nowhere at all"])
def test_who_does_not_agree_is_told_the_command(
    monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None], answer: str
) -> None:
    sit_down(monkeypatch, answer)
    with pytest.raises(WeightsError, match="python -m cogvideo download cogvideo") as refusal:
        ensure_weights.ensure_weights("cogvideo")
    assert "cogview2-dsr" in refusal.value.zh
    assert fetched == []


def test_nobody_is_asked_where_nobody_sits(monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None]) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    with pytest.raises(WeightsError, match="--download"):
        ensure_weights.ensure_weights("cogvideo")
    sit_down(monkeypatch, "y")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WeightsError, match="--download"):
        ensure_weights.ensure_weights("cogvideo")
    assert fetched == []


def test_it_can_be_agreed_to_beforehand(monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None]) -> None:
    ensure_weights.ensure_weights("cogvideo", agreed=True)
    monkeypatch.setenv(ensure_weights.ENVIRONMENT, "1")
    ensure_weights.ensure_weights("cogvideo")
    assert fetched == [None, None]


def test_the_command_line_asks_before_it_draws(
    monkeypatch: pytest.MonkeyPatch, fetched: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "一只熊猫", "--model", "cogvideo"]) == 2
    assert "python -m cogvideo download cogvideo" in capsys.readouterr().err
    assert fetched == []
    assert main(["generate", "一只熊猫", "--model", "cogvideo", "--download"]) == 2  # nothing came, so nothing is drawn
    assert fetched == [None]


def test_each_process_of_a_machine_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_rank_device() is None
    devices = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(local_rank_device())
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert local_rank_device() is None
