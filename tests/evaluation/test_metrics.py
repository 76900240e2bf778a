"""Verdicts and figures of `evaluate` on rendered clips, correct ones and altered ones."""

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
from cogvideo.evaluation import metrics, suite
from cogvideo.evaluation.sampler import EvaluationCase
from cogvideo.events import Frames
from tests.support.toy_world import needs_font

pytestmark = needs_font
PANDA = Clip(0, 0, MOTIONS.index("向右"), 0, 3.0, 5.5, 2.5, 4.0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_rendered_video_is_consistent_and_better_than_its_crossfade(motion: str) -> None:
    clip = place_clip(np.random.default_rng(3), 0, 0, MOTIONS.index(motion), 4.0)
    video = synthetic_render.render_clip(clip, frames=9)
    verdict = metrics.judge_video(clip, video, unchanged)
    stays = motion in ("旋转", "变大", "变小")
    assert verdict == metrics.VideoVerdict(
        True, 1.0, better_than_crossfade=True, better_than_crossfade_decoded=True, nearer=None if stays else True
    )


def unchanged(frames: Frames) -> Frames:
    """Stands for a lossless codec."""
    return frames


def darken(frames: Frames) -> Frames:
    """Stands for a codec that halves all values."""
    return frames // 2


def test_crossfaded_video_is_not_better_than_a_crossfade() -> None:
    video = synthetic_render.render_clip(PANDA, frames=9).astype(np.float64)
    video[1::2] = (video[:-1:2] + video[2::2]) / 2
    verdict = metrics.judge_video(PANDA, np.rint(video).astype(np.uint8), unchanged)
    assert (verdict.better_than_crossfade, verdict.better_than_crossfade_decoded, verdict.nearer) == (
        False,
        False,
        False,
    )


def test_in_between_with_the_correct_place_is_nearer_on_any_background() -> None:
    """On another scene the pixels are wrong, but the place is correct."""
    video = synthetic_render.render_clip(PANDA, frames=9)
    video[1::2] = synthetic_render.render_clip(replace(PANDA, scene=3), frames=9)[1::2]
    verdict = metrics.judge_video(PANDA, video, unchanged)
    assert (verdict.better_than_crossfade, verdict.nearer) == (False, True)


def test_losses_of_the_codec_do_not_count_against_in_betweens() -> None:
    """In-betweens passed a bad codec: far from the rendering, and equal to the rendering after the codec."""
    video = synthetic_render.render_clip(PANDA, frames=9)
    video[1::2] = darken(video[1::2])
    verdict = metrics.judge_video(PANDA, video, darken)
    assert (verdict.better_than_crossfade, verdict.better_than_crossfade_decoded) == (False, True)


def test_video_without_subject_fails_every_verdict() -> None:
    empty = np.stack([synthetic_render.background(0, 0, synthetic_render.COARSE).astype(np.uint8)] * 9)
    verdict = metrics.judge_video(PANDA, empty, unchanged)
    assert verdict == metrics.VideoVerdict(
        False, 0.0, better_than_crossfade=False, better_than_crossfade_decoded=False, nearer=False
    )


def test_video_with_a_changed_subject_is_not_consistent() -> None:
    video = synthetic_render.render_clip(PANDA, frames=9)
    video[3] = synthetic_render.render_clip(replace(PANDA, subject=5), frames=9)[3]
    verdict = metrics.judge_video(PANDA, video, unchanged)
    assert not verdict.subject_consistent
    assert verdict.consistent_fraction == pytest.approx(8 / 9)


def test_keyframes_of_another_clip_fail_every_verdict() -> None:
    drawn = synthetic_render.render_clip(PANDA)
    assert metrics.judge_keyframes(PANDA, drawn) == metrics.KeyframeVerdict(True, True, True, True, PANDA.motion)
    asked = replace(PANDA, subject=1, scene=3, motion=MOTIONS.index("变大"))
    verdict = metrics.judge_keyframes(asked, drawn)
    assert (verdict.subject, verdict.scene, verdict.motion, verdict.exact) == (False, False, False, False)
    assert verdict.seen_motion == PANDA.motion


def test_keyframe_in_the_wrong_place_is_not_exact() -> None:
    drawn = synthetic_render.render_clip(PANDA)
    drawn[2] = drawn[1]
    verdict = metrics.judge_keyframes(PANDA, drawn)
    assert verdict.motion
    assert not verdict.exact


@pytest.mark.parametrize("duration", [4.0, 2.0, 1.0])
def test_distance_travelled_is_one_cell_a_second(duration: float) -> None:
    clip = replace(PANDA, duration=duration)
    assert metrics.distance_travelled(clip, synthetic_render.render_clip(clip)) == pytest.approx(duration, abs=0.13)
    assert metrics.distance_travelled(clip, synthetic_render.render_clip(clip)[::-1]) == pytest.approx(
        -duration, abs=0.13
    )


def test_blur_lowers_psnr_and_sharpness() -> None:
    drawn = synthetic_render.render_clip(PANDA)[0]
    blurred = (drawn.astype(np.float64) + np.roll(drawn, 1, 0) + np.roll(drawn, 1, 1)) / 3
    blurred = np.rint(blurred).astype(np.uint8)
    assert metrics.psnr(drawn, drawn) == 60.0
    assert 10 < metrics.psnr(blurred, drawn) < 35
    assert metrics.sharpness(blurred) < 0.8 * metrics.sharpness(drawn)


def test_difference_of_ten_steps_is_28_dB() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert metrics.psnr(grey + 10, grey) == pytest.approx(20 * np.log10(255 / 10))


def test_evaluation_writes_figures_of_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--count", "4", "--clips", "1", "--output", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(suite.EVALUATION_PARTS) | {"films"} <= set(figures)
    assert figures["films"] == figures["videos"]
    assert len(figures["keyframes"]["cases"]) == 4
    assert list(figures["guidance"]) == [f"{g}, temperature {t}" for t in (0.3, 1.05) for g in (1, 3)]
    assert all(0 <= figures["keyframes"]["all"][name] <= 100 for name in ("subject", "scene", "motion", "exact"))
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert "held-out pairs" in capsys.readouterr().out


def test_video_figures_separate_motions_that_change_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subjects that grow or turn keep their place."""
    named = ("向左", "变大", "跳", "旋转")
    clips = [place_clip(np.random.default_rng(0), 0, 0, MOTIONS.index(name), 4.0) for name in named]
    judged = [(True, True), (False, None), (False, False), (False, None)]
    verdicts = {
        clip: metrics.VideoVerdict(better, 1.0, better, True, near) for clip, (better, near) in zip(clips, judged)
    }
    monkeypatch.setattr(metrics, "judge_video", lambda clip, video, through_codec: verdicts[clip])
    videos = np.zeros((4, 33, 64, 64, 3), np.uint8)
    sampler = SimpleNamespace(videos=lambda *_: None, show=lambda _: videos)
    sampling = PRESETS["mini"].sampling
    evaluation = suite.Evaluation(sampler, sampling, suite.EvaluationOptions(count=4, clips=4))  # type: ignore[arg-type]
    evaluation.cases = [EvaluationCase(name, clip, False, 0) for name, clip in zip(named, clips, strict=True)]
    evaluation._keyframe_tokens = torch.zeros(4, 5, 64)
    figures = evaluation.videos()
    assert (figures["clips"], figures["better_than_crossfade"]) == (4, 25.0)
    assert {name: row["subject_consistent"] for name, row in figures["by motion"].items()} == {
        "向左": 100.0,
        "跳": 0.0,
        "旋转": 0.0,
        "变大": 0.0,
    }
    moved = figures["change place"]
    assert (moved["clips"], moved["better_than_crossfade"], moved["nearer"]) == (2, 50.0, 50.0)
    for row in (figures, moved, *figures["by motion"].values()):  # keys of version 0.1
        assert row["steady"] == row["subject_consistent"]
        assert row["steady_frames"] == row["consistent_fraction"]
        assert row["beats_fade"] == row["better_than_crossfade"]
        assert row["beats_fade_coded"] == row["better_than_crossfade_decoded"]
    evaluation.cases = evaluation.cases[1:2] * 4
    assert evaluation.videos()["change place"] == {"clips": 0}


def test_only_requested_parts_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--parts", "codec", "--clips", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Codec" in printed
    assert "Keyframes" not in printed


def test_unknown_part_is_refused() -> None:
    with pytest.raises(RequestError, match="smell"):
        evaluate.parser().parse_args(["--parts", "smell"])


def test_travelling_clips_stay_inside_the_frame() -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        clip = suite._travelling(rng, index)
        assert clip.subject < len(SUBJECTS)
        for state in clip.states(clip.frame_times(5)):
            assert state.size / 2 - 0.01 <= state.x <= 8.01 - state.size / 2
            assert state.size / 2 - 0.01 <= state.y <= 8.01 - state.size / 2


def test_default_is_to_evaluate_all_parts() -> None:
    args: argparse.Namespace = evaluate.parser().parse_args([])
    assert tuple(args.parts) == tuple(suite.EVALUATION_PARTS)
    assert args.count == 200


def test_old_part_name_selects_the_renamed_part() -> None:
    assert evaluate.parser().parse_args(["--parts", "films", "codec"]).parts == ["videos", "codec"]


def test_events_keep_the_old_part_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluate, "EVALUATION_PARTS", {"videos": lambda _: {"clips": 3}})
    assert evaluate.main(["--parts", "videos", "--json"]) == 0
    figures, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert figures == {
        "type": "figures",
        "event": "figures",
        "part": "films",
        "evaluation": "videos",
        "figures": {"clips": 3},
    }
    assert (done["parts"], done["evaluations"]) == (["films"], ["videos"])
