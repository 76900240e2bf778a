"""The synthetic world: clips inside the frame, captions, odds, held-out pairs, and the judge on rendered clips."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from cogvideo.config import ASSETS
from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENE_PHRASES, SCENES, SUBJECTS
from cogvideo.data.synthetic_world import (
    BASE_SIZES,
    DURATIONS,
    FIELD,
    FINEST_TURN,
    GROWTH,
    TURN,
    Clip,
    ClipOdds,
    Drift,
    State,
    caption,
    describe_held_out,
    describe_world,
    place_clip,
    sample_clip,
    sample_held_out,
)
from cogvideo.errors import RequestError
from cogvideo.evaluation import frame_reader
from tests.support.toy_world import needs_font

clips = st.builds(
    lambda seed, subject, scene, motion, duration: place_clip(
        np.random.default_rng(seed), subject, scene, motion, duration
    ),
    st.integers(0, 2**32),
    st.integers(0, len(SUBJECTS) - 1),
    st.integers(0, len(SCENES) - 1),
    st.integers(0, len(MOTIONS) - 1),
    st.sampled_from(DURATIONS),
)


def test_world_has_the_documented_subjects_scenes_and_motions() -> None:
    assert len(SUBJECTS) >= 24
    assert set(SCENES) == {"草地", "雪地", "大海", "夜空", "沙漠", "街道"}
    assert set(MOTIONS) == {"向左", "向右", "向上", "向下", "跳", "旋转", "变大", "变小"}
    assert len({s.name for s in SUBJECTS}) == len({s.emoji for s in SUBJECTS}) == len(SUBJECTS)


@given(clips)
@settings(max_examples=300, deadline=None)
def test_subject_stays_inside_the_frame(clip: Clip) -> None:
    assert_stays_inside(replace(clip, duration=max(DURATIONS)))


def assert_stays_inside(clip: Clip, slack: float = 0.0) -> None:
    for state in clip.states(clip.frame_times(33)):
        half = state.size / 2 - slack
        assert half <= state.y <= FIELD - half
        assert half <= state.x <= FIELD - half
        assert min(BASE_SIZES) <= state.size <= max(BASE_SIZES)


@given(clips)
@settings(max_examples=100, deadline=None)
def test_distance_is_proportional_to_time(clip: Clip) -> None:
    course, start = clip.states((0, 0.5, 1.0)), clip.state(0)
    if MOTIONS[clip.motion] in ("向左", "向右", "向上", "向下"):
        moved = [abs(s.y - start.y) + abs(s.x - start.x) for s in course]
        assert moved == [0, 0.5, 1.0]


def test_sampled_clips_have_no_held_out_pairs() -> None:
    held_out, rng = sample_held_out(), np.random.default_rng(0)
    for _ in range(2000):
        clip = sample_clip(rng, held_out)
        assert (clip.subject, clip.motion) not in held_out.subject_motion
        assert (clip.subject, clip.scene) not in held_out.subject_scene


def test_pairs_of_the_readme_are_not_held_out() -> None:
    held_out = sample_held_out()
    assert (0, MOTIONS.index("向右")) not in held_out.subject_motion
    assert (0, SCENES.index("草地")) not in held_out.subject_scene


def test_shipped_lists_equal_the_world() -> None:
    folder = ASSETS / "mini"
    assert json.loads((folder / "world.json").read_text(encoding="utf-8")) == describe_world()
    assert json.loads((folder / "held_out.json").read_text(encoding="utf-8")) == describe_held_out()


@given(clips, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_full_captions_contain_subject_and_scene(clip: Clip, seed: int) -> None:
    text = caption(np.random.default_rng(seed), clip, partial=0.0)
    subject = SUBJECTS[clip.subject]
    assert any(name in text for name in (subject.name, *subject.aliases))
    assert any(phrase in text for phrase in SCENE_PHRASES[SCENES[clip.scene]])


def test_motions_follow_their_odds() -> None:
    rng = np.random.default_rng(0)
    odds = ClipOdds(motions=[0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1.0, 0.0])
    seen = [sample_clip(rng, sample_held_out(), odds=odds).motion for _ in range(400)]
    assert set(seen) == {5, 6}
    assert 0.65 < np.mean(np.array(seen) == 5) < 0.85


@pytest.mark.parametrize("drift_probability", [0.0, 1.0])
def test_sizes_follow_their_odds(drift_probability: float) -> None:
    rng = np.random.default_rng(0)
    odds = ClipOdds(sizes=[3, 0, 1], drift_probability=drift_probability)
    clips = [sample_clip(rng, sample_held_out(), odds=odds) for _ in range(400)]
    grows = {MOTIONS.index("变大"), MOTIONS.index("变小")}  # which have a fixed first size
    kept = [c.size for c in clips if (not c.drift.growth if c.drift else c.motion not in grows)]
    assert set(kept) == {2.0, 4.0}
    share = np.mean(np.array(kept) == 2.0)
    assert 0.65 < share < (1.0 if drift_probability else 0.85)  # large subjects have less room to drift


@pytest.mark.parametrize("odds", [[1, 1], [0, 0, 0], [1, -1, 1]])
def test_unusable_size_odds_are_refused(odds: list[float]) -> None:
    with pytest.raises(RequestError, match=r"size_odds.*3 numbers"):
        sample_clip(np.random.default_rng(0), sample_held_out(), odds=ClipOdds(sizes=odds))


def test_drifting_clips_stay_inside_and_have_two_changes() -> None:
    held_out, rng = sample_held_out(), np.random.default_rng(0)
    clips = [sample_clip(rng, held_out, odds=ClipOdds(drift_probability=1.0)) for _ in range(300)]
    for clip in clips:
        assert clip.drift is not None
        assert not held_out.contains(clip)
        assert_stays_inside(clip, slack=1 / 16)  # places are rounded to eighths, sizes are not
        first, last = clip.states((0.0, 1.0))
        moved = (first.y != last.y, first.x != last.x, first.size != last.size, first.angle != last.angle)
        assert sum(moved) >= 2
        assert caption(rng, clip, partial=0.0).endswith("移动")
    turned = {clip.subject for clip in clips if clip.drift and clip.drift.turn}
    assert turned == set(range(len(SUBJECTS)))  # subjects whose turning is held out, too
    assert not any(sample_clip(rng, held_out).drift for _ in range(100))
    some = [sample_clip(rng, held_out, odds=ClipOdds(drift_probability=0.25)).drift is not None for _ in range(400)]
    assert 0.18 < np.mean(some) < 0.32


def test_most_drifting_clips_move_whole_cells_between_keyframes() -> None:
    """They move whole cells from one keyframe to the next, which keeps a subject's tokens."""
    rng = np.random.default_rng(1)
    clips = [sample_clip(rng, sample_held_out(), odds=ClipOdds(drift_probability=1.0)) for _ in range(300)]
    for named in (Drift(0, 0, GROWTH, 0), Drift(0, 0, -GROWTH, 0), Drift(0, 0, 0, TURN)):
        such = [c for c in clips if c.drift and replace(c.drift, down=0, right=0) == named]
        courses = [c.states(c.frame_times(5)) for c in such]
        whole = [(b.y - a.y) % 1 == (b.x - a.x) % 1 == 0 for course in courses for a, b in pairwise(course)]
        assert len(such) > 20
        assert np.mean(whole) > 0.75


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None)
def test_angles_are_multiples_of_the_finest_turn(seed: int, share: float) -> None:
    """Frames of videos of four and two seconds require no finer angles."""
    odds = ClipOdds(motions=[0, 0, 0, 0, 0, 1, 0, 0], drift_probability=0.5)
    clip = sample_clip(np.random.default_rng(seed), sample_held_out(), odds=odds)
    seconds = share * clip.duration
    angle = clip.state(seconds).angle
    assert angle % FINEST_TURN == 0
    expected = clip.drift.turn * seconds if clip.drift else TURN * seconds
    assert abs((angle - expected + 180) % 360 - 180) <= FINEST_TURN / 2 + 1e-9
    assert (TURN * 2.0 / 32) % FINEST_TURN == 0


def test_same_seed_gives_the_same_clip_and_caption() -> None:
    def draw() -> tuple[Clip, str]:
        rng = np.random.default_rng(5)
        clip = sample_clip(rng, sample_held_out())
        return clip, caption(rng, clip)

    assert draw() == draw()


def test_shipped_vocabulary_covers_every_caption(tmp_path: Path) -> None:
    from cogvideo.tokenizers.text import TextTokenizer

    tokenizer = TextTokenizer(ASSETS / "mini" / "text.model", 4096)
    rng = np.random.default_rng(0)
    for index in range(500):
        clip = place_clip(rng, index % len(SUBJECTS), index % len(SCENES), index % len(MOTIONS))
        assert tokenizer.unknown_words(caption(rng, clip)) == []


@needs_font
@given(clips)
@settings(max_examples=20, deadline=None)
def test_small_frame_is_the_average_of_the_large_one(clip: Clip) -> None:
    state = clip.state(clip.duration / 2)
    small, _ = synthetic_render.render_state(clip.subject, clip.scene, clip.variant, state, synthetic_render.COARSE)
    large, _ = synthetic_render.render_state(clip.subject, clip.scene, clip.variant, state, synthetic_render.FINE)
    factor = synthetic_render.FINE // synthetic_render.COARSE
    height, width = small.shape[:2]
    averaged = large.reshape(height, factor, width, factor, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 2


@needs_font
@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=lambda m: MOTIONS[m])
def test_judge_reads_rendered_clips(motion: int) -> None:
    rng = np.random.default_rng(motion)
    clip = place_clip(rng, int(rng.integers(len(SUBJECTS))), int(rng.integers(len(SCENES))), motion, 4.0)
    readings = [frame_reader.read_frame(frame) for frame in synthetic_render.render_clip(clip)]
    assert {r.subject for r in readings} == {clip.subject}
    assert {r.scene for r in readings} == {clip.scene}
    assert frame_reader.classify_motion([r.state for r in readings], clip.duration) == motion
    expected = clip.states(clip.frame_times(5))
    assert all(
        frame_reader.is_exact(*case)
        for case in zip(synthetic_render.render_clip(clip), readings, expected, strict=True)
    )


@needs_font
@pytest.mark.parametrize(("name", "unseen"), [("篮球", True), ("熊猫", False), ("公交车", False)])
def test_wrong_angle_is_exact_only_if_it_is_invisible(name: str, unseen: bool) -> None:
    subject = next(i for i, s in enumerate(SUBJECTS) if s.name == name)
    upright = State(4.5, 4.5, 3.0, 0.0)
    turned = replace(upright, angle=180.0)
    frame = Image.fromarray(synthetic_render.render_state(subject, 0, 0, turned)[0])
    blurred = np.asarray(frame.filter(ImageFilter.GaussianBlur(2)))
    reading = frame_reader.FrameReading(0, 0, subject, turned)
    assert frame_reader.is_exact(blurred, reading, turned)
    assert frame_reader.is_exact(blurred, reading, upright) == unseen


@needs_font
def test_judge_reads_no_subject_in_an_empty_scene() -> None:
    frame = np.rint(synthetic_render.background(2, 1, synthetic_render.COARSE)).astype(np.uint8)
    reading = frame_reader.read_frame(frame)
    assert reading.scene == 2
    assert reading.state is None


@pytest.mark.parametrize("odds", [[1, 2], [1] * 9, [0] * 8, [-1, 2, 1, 1, 1, 1, 1, 1], [float("nan")] * 8])
def test_unusable_motion_odds_are_refused(odds: list[float]) -> None:
    with pytest.raises(RequestError, match=r"motion_odds.*8 numbers"):
        sample_clip(np.random.default_rng(0), sample_held_out(), odds=ClipOdds(motions=odds))
