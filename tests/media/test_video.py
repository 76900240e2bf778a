"""Video files: what goes in comes out, every level plays equally long, nothing half-written stays behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from PIL import Image

from cogvideo.errors import CapacityError
from cogvideo.media.metadata import read_metadata
from cogvideo.media.video import VideoWriter, frame_schedule, write_video

METADATA = {
    "prompt": '一只熊猫在草地上"向右"跑；a=b; #c \\ d',
    "seed": 7,
    "frames": 33,
    "nested": {"x": [1, 2.5, None]},
}


def clip(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of one grey each, brighter and brighter."""
    levels = np.linspace(20, 235, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def read_mp4(path: Path) -> tuple[dict, np.ndarray]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    frames = [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]
    return meta, np.stack(frames)


@pytest.mark.parametrize("count", [5, 9, 17, 33])
@pytest.mark.parametrize("seconds", [4.0, 0.5])
def test_every_level_has_the_same_length(tmp_path: Path, count: int, seconds: float) -> None:
    frames = clip(count)
    meta, pictures = read_mp4(write_video(tmp_path / "a.mp4", frames, seconds))
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 32 / seconds >= 8
    assert len(pictures) == 33
    for step, index in enumerate(frame_schedule(count, 32)):
        assert abs(int(pictures[step].mean()) - int(frames[index].mean())) <= 4


def test_timeline_shows_the_nearest_frame_and_both_ends() -> None:
    assert frame_schedule(5, 32) == [0] * 4 + [1] * 8 + [2] * 8 + [3] * 8 + [4] * 5
    assert frame_schedule(33, 32) == list(range(33))


def test_longer_clips_keep_all_their_frames(tmp_path: Path) -> None:
    meta, pictures = read_mp4(write_video(tmp_path / "a.mp4", clip(41), 4.0))
    assert len(pictures) == 41
    assert meta["fps"] == 10


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("count", [5, 33])
def test_a_film_encoded_as_it_is_made_is_the_same_file(tmp_path: Path, suffix: str, count: int) -> None:
    frames = clip(count)
    whole = write_video(tmp_path / f"whole{suffix}", frames, 4.0, METADATA)
    with VideoWriter(tmp_path / f"film{suffix}", count, 4.0, METADATA) as film:
        for start in range(0, count, 4):
            film.add(frames[start : start + 4])
        film.finish()
    assert (tmp_path / f"film{suffix}").read_bytes() == whole.read_bytes()


def test_frames_are_encoded_before_the_last_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, enough = [], threading.Event()
    write = FFMPEG_VideoWriter.write_frame

    def noted(self: FFMPEG_VideoWriter, frame: np.ndarray) -> None:
        write(self, frame)
        written.append(frame)
        if len(written) == 28:  # what is shown of the first four of five
            enough.set()

    monkeypatch.setattr(FFMPEG_VideoWriter, "write_frame", noted)
    frames = clip(5)
    with VideoWriter(tmp_path / "a.mp4", 5, 4.0) as film:
        film.add(frames[:4])
        assert enough.wait(30)
        assert not (tmp_path / "a.mp4").exists()
        film.add(frames[4:])
        film.finish()
    assert len(written) == 33


def test_a_film_that_is_given_up_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 33, 4.0) as film:
        film.add(clip(7))
        raise KeyboardInterrupt
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"older")]
    assert not [thread for thread in threading.enumerate() if thread.name == "film a.mp4"]


def test_a_film_asks_for_all_its_frames(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="7 frames were added to a video of 33"),
        VideoWriter(tmp_path / "a.mp4", 33, 4) as film,
    ):
        film.add(clip(7))
        film.finish()
    assert not list(tmp_path.iterdir())


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    meta, _ = read_mp4(write_video(tmp_path / "a.mp4", clip(5, 33, 47), 4.0))
    assert meta["size"] == (48, 34)


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", clip(5), 4.0).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_metadata_comes_back(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"熊猫{suffix}", clip(5), 4.0, METADATA)
    assert read_metadata(path) == METADATA


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_metadata_can_be_left_out(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", clip(5), 4.0)
    assert read_metadata(path) is None
    assert b"{" not in path.read_bytes()[-4000:] or suffix == ".mp4"


@pytest.mark.parametrize("content", [b"", b"not a film", b"#EXTM3U\n#EXTINF:1\nhttp://example.com/x.ts\n"])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_strange_files_have_no_metadata(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert read_metadata(path) is None
    assert read_metadata(tmp_path / f"gone{suffix}") is None


def test_a_comment_that_is_no_object_is_none(tmp_path: Path) -> None:
    Image.new("P", (4, 4)).save(tmp_path / "a.gif", comment=json.dumps([1]).encode())
    assert read_metadata(tmp_path / "a.gif") is None


@pytest.mark.parametrize("seconds, count", [(4.0, 33), (0.5, 33), (4.0, 5)])
def test_gif_plays_for_the_right_time_with_colours(tmp_path: Path, seconds: float, count: int) -> None:
    frames = clip(count)
    frames[..., 0] = 255 - frames[..., 0]
    with Image.open(write_video(tmp_path / "a.gif", frames, seconds)) as picture:
        durations, colours = [], []
        for number in range(picture.n_frames):
            picture.seek(number)
            durations.append(picture.info["duration"])
            colours.append(np.asarray(picture.convert("RGB")).reshape(-1, 3).mean(0))
        assert picture.info["loop"] == 0
    assert min(durations) >= 30
    span = seconds * 1000
    assert span <= sum(durations) <= span * (1 + 1 / (len(durations) - 1)) + 10
    np.testing.assert_allclose(colours[0], frames[0].reshape(-1, 3).mean(0), atol=12)
    np.testing.assert_allclose(colours[-1], frames[-1].reshape(-1, 3).mean(0), atol=12)


def test_failure_says_why_and_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="nowhere"):
        write_video(tmp_path / "nowhere" / "a.mp4", clip(5), 4.0)
    old = write_video(tmp_path / "a.gif", clip(5), 4.0).read_bytes()
    with pytest.raises(ValueError, match="at least one"):
        write_video(tmp_path / "a.gif", clip(5)[:0], 4.0)
    assert (tmp_path / "a.gif").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
