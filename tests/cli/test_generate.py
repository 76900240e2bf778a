"""`python -m cogvideo generate`: files appear, mistakes end in one sentence, Ctrl-C keeps what exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cogvideo.cli import generate, generate_args
from cogvideo.cli.main import main
from cogvideo.config import PRESETS
from cogvideo.events import Event, Frames, RoundCompleted
from cogvideo.media.metadata import read_metadata
from cogvideo.media.video import VideoWriter, write_video
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from tests.support.toy_model import toy_pipeline

PROMPT = "一只熊猫在草地上向右跑"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> CogVideoPipeline:
    return toy_pipeline(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pipe: CogVideoPipeline) -> None:
    """The toy instead of mini, in an empty folder."""
    monkeypatch.setattr(CogVideoPipeline, "from_pretrained", classmethod(lambda cls, name, **options: pipe))
    monkeypatch.chdir(tmp_path)


def requested(words: list[str]) -> VideoRequest:
    return generate._request(generate_args.parser().parse_args([*words, "--model", "mini"]))


def test_a_sentence_becomes_a_film_that_knows_how_it_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", PROMPT, "--seed", "7", "--frames", "9", "--output", "panda.mp4"]) == 0
    out, err = capsys.readouterr()
    assert out == "panda.mp4\n"
    assert "seed: 7" in err
    metadata = read_metadata(tmp_path / "panda.mp4")
    assert metadata is not None
    assert (metadata["prompt"], metadata["seed"], metadata["frames"], metadata["seconds"]) == (PROMPT, 7, 9, 4.0)


@pytest.mark.parametrize(("switch", "added"), [("--superres", [1] * 5), ("--no-superres", [5])])
def test_a_film_is_encoded_while_its_frames_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: CogVideoPipeline, switch: str, added: list[int]
) -> None:
    seen = []
    add = VideoWriter.add

    def noted(self: VideoWriter, frames: Frames) -> None:
        seen.append(len(frames))
        add(self, frames)

    monkeypatch.setattr(VideoWriter, "add", noted)
    words = [PROMPT, "--seed", "7", "--frames", "5", "--output", "a.mp4", "--no-metadata", switch]
    assert main(["generate", *words]) == 0
    assert seen == added
    request = requested(words)
    assert write_video(tmp_path / "b.mp4", pipe(request), request.duration).read_bytes() == Path("a.mp4").read_bytes()


def test_quiet_prints_the_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [PROMPT, "--seed", "3", "--frames", "5", "--no-superres", "--gif", "--no-metadata", "--quiet"]
    assert main(["generate", *words]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["cogvideo-3.mp4", "cogvideo-3.gif"]
    assert err == ""
    assert read_metadata(tmp_path / "cogvideo-3.mp4") is None
    assert read_metadata(tmp_path / "cogvideo-3.gif") is None


def test_notes_are_shown_in_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "一隻熊貓", "--frames", "5", "--no-superres", "--output", "a.gif"]) == 0
    out, err = capsys.readouterr()
    assert "繁体" in err
    assert "Traditional" in err
    assert out == "a.gif\n"


@pytest.mark.parametrize(
    "words, said",
    [
        ([""], "empty"),
        (["a panda"], "Chinese"),
        ([PROMPT, "--seed", "-1"], "4294967295"),
        ([PROMPT, "--seed", "x"], "--seed"),
        ([PROMPT, "--frames", "10"], "5, 9, 17 or 33"),
        ([PROMPT, "--seconds", "3"], "4, 2, 1 or 0.5"),
        ([PROMPT, "--guidance", "99"], "20"),
        ([PROMPT, "--temperature", "0"], "0.05"),
        ([PROMPT, "--top-k", "0"], "1 or more"),
        ([PROMPT, "--candidates", "17"], "1 to 16"),
        ([PROMPT, "--model", "maxi"], "mini, cogvideo"),
        ([PROMPT, "--output", "panda.avi"], ".mp4 or .gif"),
        ([PROMPT, "--output", "nowhere/panda.mp4"], "nowhere"),
        ([PROMPT, "--colour"], "--colour"),
        ([], "prompt"),
    ],
)
def test_mistakes_end_in_a_sentence_in_two_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["generate", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert len(err.strip().splitlines()) == 2
    assert any("\u4e00" <= c <= "\u9fff" for c in err.splitlines()[0])
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_request() -> None:
    assert requested([PROMPT]).sampling is None
    assert requested([PROMPT]).superres is PRESETS["mini"].upscale_by_default
    assert requested([PROMPT, "--superres"]).superres
    assert requested([PROMPT, "--seconds", "2"]).duration == 2.0
    sampling = requested([PROMPT, "--guidance", "5", "--temperature", "0.8", "--top-k", "4"]).sampling
    assert sampling is not None
    assert sampling.guidance_scale == 5
    assert {sampling.video.temperature, sampling.first_frame.temperature} == {0.8}
    assert {sampling.video.top_k, sampling.first_frame.top_k} == {4}
    assert sampling.superres == PRESETS["mini"].sampling.superres
    assert sampling.best_of == PRESETS["mini"].sampling.best_of
    sampling = requested([PROMPT, "--candidates", "2"]).sampling
    assert sampling == dataclasses.replace(PRESETS["mini"].sampling, best_of=2)


def test_a_random_seed_is_another_one_each_time() -> None:
    assert requested([PROMPT]).seed != requested([PROMPT]).seed


def test_help_explains_in_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["generate", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "一句中文" in text
    for word in ("--seed", "--frames", "--seconds", "--output", "--gif", "--guidance", "panda.mp4"):
        assert word in text


def test_ctrl_c_keeps_the_last_finished_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: CogVideoPipeline, request: VideoRequest) -> Iterator[Event]:
        yield RoundCompleted(0, np.full((5, 16, 16, 3), 90, np.uint8))
        raise KeyboardInterrupt

    monkeypatch.setattr(CogVideoPipeline, "stream", interrupted)
    assert main(["generate", PROMPT, "--output", "a.mp4"]) == 130
    assert (tmp_path / "a.mp4").is_file()
    assert "Interrupted" in capsys.readouterr().err
