"""The figures of `evaluate`, on clips whose truth is known: drawn ones, and ones spoilt on purpose."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cogvideo.cli import evaluate
from cogvideo.config import PRESETS
from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import MOTIONS, SUBJECTS
from cogvideo.data.synthetic_world import Clip, place_clip
from cogvideo.errors import RequestError
from cogvideo.evaluation import frame_reader, metrics, suite
from cogvideo.evaluation.sampler import EvaluationCase

pytestmark = pytest.mark.skipif(
    not any(path.exists() for path in synthetic_render.FONT_PATHS),
    reason="fonts-noto-color-emoji is needed to draw the world",
)
PANDA = Clip(0, 0, MOTIONS.index("向右"), 0, 3.0, 5.5, 2.5, 4.0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_drawn_film_is_steady_and_beats_its_cross_fade(motion: str) -> None:
    clip = place_clip(np.random.default_rng(3), 0, 0, MOTIONS.index(motion), 4.0)
    film = synthetic_render.render_clip(clip, frames=9)
    verdict = metrics.judge_video(clip, film, unchanged)
    stays = motion in ("旋转", "变大", "变小")
    assert verdict == metrics.VideoVerdict(
        True, 1.0, better_than_crossfade=True, better_than_crossfade_decoded=True, nearer=None if stays else True
    )


def unchanged(frames: frame_reader.Pixels) -> frame_reader.Pixels:
    """A codec that loses nothing."""
    return frames


def darken(frames: frame_reader.Pixels) -> frame_reader.Pixels:
    """A codec that halves all values."""
    return frames // 2


def test_a_cross_faded_film_does_not_beat_itself() -> None:
    film = synthetic_render.render_clip(PANDA, frames=9).astype(np.float64)
    film[1::2] = (film[:-1:2] + film[2::2]) / 2
    verdict = metrics.judge_video(PANDA, np.rint(film).astype(np.uint8), unchanged)
    assert (verdict.better_than_crossfade, verdict.better_than_crossfade_decoded, verdict.nearer) == (
        False,
        False,
        False,
    )


def test_an_in_between_in_the_right_place_is_nearer_however_it_is_drawn() -> None:
    """In front of another sky the pixels are far off, and the place is right."""
    film = synthetic_render.render_clip(PANDA, frames=9)
    film[1::2] = synthetic_render.render_clip(replace(PANDA, scene=3), frames=9)[1::2]
    verdict = metrics.judge_video(PANDA, film, unchanged)
    assert (verdict.better_than_crossfade, verdict.nearer) == (False, True)


def test_what_the_codec_loses_counts_against_no_in_between() -> None:
    """Keyframes are true, in-betweens as a bad codec shows them: far from the drawing, not from what it shows."""
    film = synthetic_render.render_clip(PANDA, frames=9)
    film[1::2] = darken(film[1::2])
    verdict = metrics.judge_video(PANDA, film, darken)
    assert (verdict.better_than_crossfade, verdict.better_than_crossfade_decoded) == (False, True)


def test_a_film_of_nothing_beats_nothing() -> None:
    empty = np.stack([synthetic_render.background(0, 0, synthetic_render.COARSE).astype(np.uint8)] * 9)
    verdict = metrics.judge_video(PANDA, empty, unchanged)
    assert verdict == metrics.VideoVerdict(
        False, 0.0, better_than_crossfade=False, better_than_crossfade_decoded=False, nearer=False
    )


def test_a_subject_that_changes_on_the_way_is_not_steady() -> None:
    film = synthetic_render.render_clip(PANDA, frames=9)
    film[3] = synthetic_render.render_clip(replace(PANDA, subject=5), frames=9)[3]
    verdict = metrics.judge_video(PANDA, film, unchanged)
    assert not verdict.subject_consistent
    assert verdict.consistent_fraction == pytest.approx(8 / 9)


def test_keyframes_of_another_motion_scene_or_subject_are_told_apart() -> None:
    drawn = synthetic_render.render_clip(PANDA)
    assert metrics.judge_keyframes(PANDA, drawn) == metrics.KeyframeVerdict(True, True, True, True, PANDA.motion)
    asked = replace(PANDA, subject=1, scene=3, motion=MOTIONS.index("变大"))
    verdict = metrics.judge_keyframes(asked, drawn)
    assert (verdict.subject, verdict.scene, verdict.motion, verdict.exact) == (False, False, False, False)
    assert verdict.seen_motion == PANDA.motion


def test_one_keyframe_in_the_wrong_place_is_not_exact() -> None:
    drawn = synthetic_render.render_clip(PANDA)
    drawn[2] = drawn[1]
    verdict = metrics.judge_keyframes(PANDA, drawn)
    assert verdict.motion
    assert not verdict.exact


@pytest.mark.parametrize("duration", [4.0, 2.0, 1.0])
def test_way_gone_is_the_duration_at_one_cell_a_second(duration: float) -> None:
    clip = replace(PANDA, duration=duration)
    assert metrics.distance_travelled(clip, synthetic_render.render_clip(clip)) == pytest.approx(duration, abs=0.13)
    assert metrics.distance_travelled(clip, synthetic_render.render_clip(clip)[::-1]) == pytest.approx(
        -duration, abs=0.13
    )


def test_psnr_and_sharpness_fall_where_a_picture_is_blurred() -> None:
    drawn = synthetic_render.render_clip(PANDA)[0]
    blurred = (drawn.astype(np.float64) + np.roll(drawn, 1, 0) + np.roll(drawn, 1, 1)) / 3
    blurred = np.rint(blurred).astype(np.uint8)
    assert metrics.psnr(drawn, drawn) == 60.0
    assert 10 < metrics.psnr(blurred, drawn) < 35
    assert metrics.sharpness(blurred) < 0.8 * metrics.sharpness(drawn)


def test_noise_of_ten_steps_is_28_dB() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert metrics.psnr(grey + 10, grey) == pytest.approx(20 * np.log10(255 / 10))


def test_every_part_of_an_evaluation_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--count", "4", "--clips", "1", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(suite.PARTS) <= set(figures)
    assert len(figures["keyframes"]["cases"]) == 4
    assert list(figures["guidance"]) == [f"{g}, temperature {t}" for t in (0.3, 1.05) for g in (1, 3)]
    assert all(0 <= figures["keyframes"]["all"][name] <= 100 for name in ("subject", "scene", "motion", "exact"))
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert "held-out pairs" in capsys.readouterr().out


def test_films_whose_subject_changes_place_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who grows or turns on the spot is no test of positions."""
    named = ("向左", "变大", "跳", "旋转")
    clips = [place_clip(np.random.default_rng(0), 0, 0, MOTIONS.index(name), 4.0) for name in named]
    told = [(True, True), (False, None), (False, False), (False, None)]
    verdicts = {clip: metrics.VideoVerdict(beats, 1.0, beats, True, near) for clip, (beats, near) in zip(clips, told)}
    monkeypatch.setattr(metrics, "judge_video", lambda clip, film, through_codec: verdicts[clip])
    films = np.zeros((4, 33, 64, 64, 3), np.uint8)
    studio = SimpleNamespace(videos=lambda *_: None, show=lambda _: films)
    options = PRESETS["mini"].sampling
    evaluation = suite.Evaluation(studio, options, argparse.Namespace(count=4, clips=4, seed=0))  # type: ignore[arg-type]
    evaluation.cases = [EvaluationCase(name, clip, False, 0) for name, clip in zip(named, clips, strict=True)]
    evaluation._clips = torch.zeros(4, 5, 64)
    figures = evaluation.videos()
    assert (figures["clips"], figures["beats_fade"]) == (4, 25.0)
    assert {name: row["steady"] for name, row in figures["by motion"].items()} == {
        "向左": 100.0,
        "跳": 0.0,
        "旋转": 0.0,
        "变大": 0.0,
    }
    moved = figures["change place"]
    assert (moved["clips"], moved["beats_fade"], moved["nearer"]) == (2, 50.0, 50.0)
    evaluation.cases = evaluation.cases[1:2] * 4
    assert evaluation.videos()["change place"] == {"clips": 0}


def test_only_the_wanted_parts_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--parts", "codec", "--clips", "2"]) == 0
    said = capsys.readouterr().out
    assert "Codec" in said
    assert "Keyframes" not in said


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="smell"):
        evaluate._parser().parse_args(["--parts", "smell"])


def test_travelling_clips_stay_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        clip = suite._travelling(rng, index)
        assert clip.subject < len(SUBJECTS)
        for state in clip.states(clip.frame_times(5)):
            assert state.size / 2 - 0.01 <= state.x <= 8.01 - state.size / 2
            assert state.size / 2 - 0.01 <= state.y <= 8.01 - state.size / 2


def test_parts_default_to_all() -> None:
    args: argparse.Namespace = evaluate._parser().parse_args([])
    assert tuple(args.parts) == tuple(suite.PARTS)
    assert args.count == 200
