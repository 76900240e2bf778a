"""Choice: the published model where it can run, the small one everywhere else, and what somebody says before both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cogvideo.jobs.service import open_jobs
from cogvideo.runtime.model_selection import ENVIRONMENT, default_model
from cogvideo.weights.catalog import CONVERTED

GOLDEN = Path(__file__).parents[1] / "golden"
GB = 10**9


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with all files of the published model, by name, and a card of 80 GB."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "sat"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.delenv("COGVIDEO_MEMORY", raising=False)
    shutil.copytree(GOLDEN, tmp_path / "sat")
    (tmp_path / ".icetk_models").mkdir()
    for name in ("sat/cluster_label2.npy", ".icetk_models/ice_text.model", ".icetk_models/ice_image.pt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GB, 80 * GB))
    return tmp_path


def test_the_published_model_is_taken_where_it_can_run(home: Path) -> None:
    assert default_model() == "cogvideo"
    assert default_model("cuda:1") == "cogvideo"
    assert default_model("cpu") == "mini"


@pytest.mark.parametrize("name", ["sat/cogvideo-stage2", ".icetk_models/ice_image.pt", "sat/cluster_label2.npy"])
def test_with_a_file_missing_it_is_mini(home: Path, name: str) -> None:
    path = home / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert default_model() == "mini"


def test_a_converted_copy_will_do(home: Path) -> None:
    (home / "sat" / CONVERTED).mkdir()
    (home / "sat" / CONVERTED / "backbone.safetensors").touch()
    shutil.rmtree(home / "sat" / "cogvideo-stage1")
    assert default_model() == "cogvideo"


def test_without_room_it_is_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GB, 80 * GB))
    assert default_model() == "mini"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_model() == "mini"


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "mini")
    assert default_model() == "mini"


@pytest.mark.parametrize("wanted, taken", [(None, "cogvideo"), ("mini", "mini")])
def test_the_page_takes_it_too(tmp_path: Path, wanted: str | None, taken: str) -> None:
    jobs = open_jobs(tmp_path / "data", wanted)
    try:
        assert jobs.preset.name == taken
    finally:
        jobs.close()
