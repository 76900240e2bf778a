"""Single damaged files that a fault once brought to light, each with the sentence that stands for it now."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from cogvideo.errors import WeightsError
from cogvideo.pipeline import _read_labels
from cogvideo.weights.http_download import InvalidSourceError
from cogvideo.weights.published_format import checkpoint_file
from cogvideo.weights.verify import GROWTH, unpack

SILENT = partial(tqdm, disable=True)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def test_zip_bomb_is_refused_before_writing(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.zip", {"m/1/mp_rank_00_model_states.pt": bytes(10**6)})
    assert bomb.stat().st_size * GROWTH < 10**6
    with pytest.raises(InvalidSourceError, match=r"at most \d+ are plausible"):
        unpack(bomb, "m", tmp_path / "out", SILENT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("members", [{"m/a": b"x", "m/a/b/c": b"x"}, {"m/" + "a" * 300: b"x" * 300}])
def test_conflicting_member_names_are_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(InvalidSourceError, match="broken archive"):
        unpack(archive(tmp_path / "odd.zip", members), "m", tmp_path / "out", SILENT)


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((  ", b"", b"PK\x05\x06" + bytes(18)])
def test_invalid_labels_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(WeightsError, match=r"labels\.npy"):
        _read_labels(tmp_path / "labels.npy", 64)


def test_labels_of_wrong_dtype_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(64, dtype=[("a", "i4"), ("b", "i4")]))
    with pytest.raises(WeightsError, match=r"labels\.npy"):
        _read_labels(tmp_path / "labels.npy", 64)


def test_undecodable_latest_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(b"\xff\xfe../../etc")
    with pytest.raises(WeightsError, match="missing"):
        checkpoint_file(tmp_path)
