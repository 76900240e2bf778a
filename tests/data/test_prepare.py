"""Preparation of training data: windows, captions, rejected clips, and shards that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.numpy import load_file

from cogvideo.cli import prepare as cli_prepare
from cogvideo.config import PRESETS, load_preset
from cogvideo.data import prepare
from cogvideo.data.dataset import PreparedClips, downscale, open_dataset
from cogvideo.data.video_reader import choose_window, read_clip
from cogvideo.errors import RequestError
from cogvideo.media.video import write_video
from cogvideo.tokenizers.image import ImageTokenizer
from tests.support.toy_clips import MOTIONS, moving, write_clips, write_pictures

MINI = PRESETS["mini"]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "clips")


def run(*arguments: object) -> int:
    return cli_prepare.main([*map(str, arguments), "--workers", "1", "--device", "cpu"])


def rejected(out: Path) -> dict[str, str]:
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {Path(item["file"]).name: item["en"] + item["zh"] for item in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("length", "rate", "seconds", "frames"),
    [
        (10.0, 30.0, 4.0, 33),
        (4.0, 8.0, 4.0, 33),
        (4.0, 29.97, 4.0, 33),
        (3.9, 30.0, 2.0, 33),
        (1.5, 25.0, 1.0, 17),
        (0.5, 24.0, 0.5, 9),
        (60.0, 1.0, 4.0, 5),
        (60.0, 2.5, 4.0, 9),
    ],
)
def test_window_has_the_lowest_rate_with_five_frames(length: float, rate: float, seconds: float, frames: int) -> None:
    window = choose_window(length, rate)
    assert (window.seconds, window.frames) == (seconds, frames)


@pytest.mark.parametrize(("length", "rate"), [(0.4, 30.0), (0.5, 6.0), (60.0, 0.5), (2.0, 1.0)])
def test_clip_too_short_for_five_frames_is_refused(length: float, rate: float) -> None:
    with pytest.raises(RequestError, match=r"0\.5"):
        choose_window(length, rate)


def place(picture: npt.NDArray[Any]) -> float:
    """Return the column of the middle of the bright area, as a fraction of the width."""
    columns = picture.astype(int).sum(2).max(0) > 400
    return float(np.nonzero(columns)[0].mean() / len(columns))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_read_frames_are_evenly_spaced_in_time(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", moving("向右"), 4.0)
    frames, seconds = read_clip(path, (96, 96), 8.0)
    assert frames.shape == (33, 96, 96, 3)
    assert seconds == 4.0
    expected = np.linspace(place(moving("向右")[0]), place(moving("向右")[-1]), 33)
    np.testing.assert_allclose([place(f) for f in frames], expected, atol=0.05)


def test_images_of_another_shape_are_cropped(tmp_path: Path) -> None:
    wide = np.zeros((33, 64, 128, 3), np.uint8)
    wide[:, 16:48, 48:80] = 255  # a square in the middle
    for number, picture in enumerate(wide):
        Image.fromarray(picture).save(tmp_path / f"{number:03}.png")
    frames, _ = read_clip(tmp_path, (64, 64), 8.0)
    bright = frames[0].mean(2) > 128
    assert bright.any(0).sum() == bright.any(1).sum() == 32


def test_rows_have_the_codecs_tokens_of_the_frames(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert run(clips, out, "--pixels") == 0
    assert not rejected(out)
    data = PreparedClips(out, MINI)
    assert [row.caption for row in data.rows] == [f"一个方块{motion}" for motion in MOTIONS]
    codec = ImageTokenizer.load(MINI)
    pictures, seconds = read_clip(Path(data.rows[0].file), MINI.final_size, 8.0)
    clip = data[0]
    assert clip.seconds == seconds == 4.0
    assert clip.frames.dtype == np.int32
    np.testing.assert_array_equal(clip.frames, codec.encode(downscale(pictures, 3)))
    np.testing.assert_array_equal(clip.keyframes, clip.frames[::8])
    np.testing.assert_array_equal(clip.fine, codec.encode(pictures[::8]))
    np.testing.assert_array_equal(data.pixels(0), pictures[::8])


def test_unusable_clips_are_rejected_with_reasons_and_others_kept(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "向左.mp4").read_bytes()
    for name, content in {"broken.mp4": whole[: len(whole) // 2], "noise.gif": b"GIF89a?", "empty.webm": b""}.items():
        (clips / name).write_bytes(content)
        (clips / name).with_suffix(".txt").write_text("一个方块", encoding="utf-8")
    write_video(clips / "silent.mp4", moving("向右"), 4.0)
    write_video(clips / "english.mp4", moving("向右"), 4.0)
    (clips / "english.txt").write_text("a square")
    write_pictures(clips / "short", moving("向右")[:3])
    (clips / "short.txt").write_text("一个方块", encoding="utf-8")
    out = tmp_path / "data"
    assert run(clips, out) == 0
    reasons = rejected(out)
    assert set(reasons) == {"broken.mp4", "noise.gif", "empty.webm", "silent.mp4", "english.mp4", "short"}
    assert "empty" in reasons["silent.mp4"]
    assert "Chinese" in reasons["english.mp4"]
    assert "too short" in reasons["short"]
    assert all("decoded" in reasons[name] for name in ("broken.mp4", "noise.gif", "empty.webm"))
    assert len(PreparedClips(out, MINI)) == len(MOTIONS)


def test_error_without_usable_clips_names_the_list_of_reasons(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    with pytest.raises(RequestError, match=r"rejected\.jsonl"):
        run(tmp_path / "clips", tmp_path / "data")
    assert "a.mp4" in rejected(tmp_path / "data")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_are_read_from_a_list(clips: Path, tmp_path: Path, kind: str) -> None:
    rows = [("向左.mp4", "一个方块，\n向左走"), ("gone.mp4", "一个方块")]
    path = clips / f"list.{kind}"
    if kind == "csv":
        body = "".join(f'{file},"{caption}"\n' for file, caption in rows)
        path.write_text("file,caption\n" + body, encoding="utf-8-sig")
    else:
        body = "".join(json.dumps({"file": file, "caption": caption}) + "\n" for file, caption in rows)
        path.write_text(body, encoding="utf-8")
    assert run(path, tmp_path / "data") == 0
    assert [row.caption for row in PreparedClips(tmp_path / "data", MINI).rows] == ["一个方块， 向左走"]
    assert "no such file" in rejected(tmp_path / "data")["gone.mp4"]


@pytest.mark.parametrize("text", ["name,text\na.mp4,b\n", "file,caption\n", ""])
def test_list_without_clips_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(RequestError, match=r"list\.csv"):
        run(tmp_path / "list.csv", tmp_path / "data")


def test_only_missing_and_changed_shards_are_made(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD", 1)
    made: list[str] = []
    make = prepare.make_shard

    def killed_at_the_second(shard: prepare.ClipShard) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(shard.path.name)
        make(shard)

    monkeypatch.setattr(prepare, "make_shard", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path / "data")
    with pytest.raises(RequestError, match="prepare"):
        PreparedClips(tmp_path / "data", MINI)
    again: list[str] = []
    monkeypatch.setattr(prepare, "make_shard", lambda shard: (again.append(shard.path.name), make(shard)))
    assert run(clips, tmp_path / "data") == 0
    assert len(again) == len(MOTIONS) - 1
    (clips / f"{MOTIONS[0]}.txt").write_text("一个蓝色的方块", encoding="utf-8")
    again.clear()
    assert run(clips, tmp_path / "data") == 0
    assert again == ["rows-00000.safetensors"]


def test_several_processes_make_the_same_rows(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD", 1)
    options = prepare.PrepareOptions("mini", 8.0, False, "cpu")
    sources = prepare.find_clips(clips)[:2]
    alone = prepare.prepare(sources, tmp_path / "one", options, workers=1)
    assert prepare.prepare(sources, tmp_path / "two", options, workers=2) == alone
    for name in ("rows-00000.safetensors", "rows-00001.safetensors"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        for key, tokens in one.items():
            np.testing.assert_array_equal(tokens, two[key])


def test_rows_of_other_sizes_are_refused(clips: Path, tmp_path: Path) -> None:
    assert run(clips, tmp_path / "data") == 0
    with pytest.raises(RequestError, match="other sizes"):
        PreparedClips(tmp_path / "data", PRESETS["cogvideo"])


def test_dataset_without_its_class_is_refused() -> None:
    with pytest.raises(RequestError, match="Nothing"):
        open_dataset(f"{Path(__file__).parents[2]}/examples/moving_square.py:Nothing", MINI, lambda: None)


def test_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="no-such-model"):
        load_preset("no-such-model")
