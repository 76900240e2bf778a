"""The world that mini learns from: clips stay in the picture, captions say what is shown, held-out pairs stay out."""

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

needs_font = pytest.mark.skipif(
    not any(path.exists() for path in synthetic_render.FONT_PATHS),
    reason="fonts-noto-color-emoji is needed to draw the world",
)
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


def test_world_is_as_large_as_promised() -> None:
    assert len(SUBJECTS) >= 24
    assert set(SCENES) == {"草地", "雪地", "大海", "夜空", "沙漠", "街道"}
    assert set(MOTIONS) == {"向左", "向右", "向上", "向下", "跳", "旋转", "变大", "变小"}
    assert len({s.name for s in SUBJECTS}) == len({s.emoji for s in SUBJECTS}) == len(SUBJECTS)


@given(clips)
@settings(max_examples=300, deadline=None)
def test_subject_never_leaves_the_picture(clip: Clip) -> None:
    assert_stays_inside(replace(clip, duration=max(DURATIONS)))


def assert_stays_inside(clip: Clip, slack: float = 0.0) -> None:
    for state in clip.states(clip.frame_times(33)):
        half = state.size / 2 - slack
        assert half <= state.y <= FIELD - half
        assert half <= state.x <= FIELD - half
        assert min(BASE_SIZES) <= state.size <= max(BASE_SIZES)


@given(clips)
@settings(max_examples=100, deadline=None)
def test_a_clip_of_half_the_duration_moves_half_as_far(clip: Clip) -> None:
    course, start = clip.states((0, 0.5, 1.0)), clip.state(0)
    if MOTIONS[clip.motion] in ("向左", "向右", "向上", "向下"):
        moved = [abs(s.y - start.y) + abs(s.x - start.x) for s in course]
        assert moved == [0, 0.5, 1.0]


def test_sampled_clips_avoid_held_out_pairs() -> None:
    held_out, rng = sample_held_out(), np.random.default_rng(0)
    for _ in range(2000):
        clip = sample_clip(rng, held_out)
        assert (clip.subject, clip.motion) not in held_out.subject_motion
        assert (clip.subject, clip.scene) not in held_out.subject_scene


def test_the_pair_the_readme_shows_is_trained_on() -> None:
    held_out = sample_held_out()
    assert (0, MOTIONS.index("向右")) not in held_out.subject_motion
    assert (0, SCENES.index("草地")) not in held_out.subject_scene


def test_shipped_lists_are_the_worlds() -> None:
    folder = ASSETS / "mini"
    assert json.loads((folder / "world.json").read_text(encoding="utf-8")) == describe_world()
    assert json.loads((folder / "held_out.json").read_text(encoding="utf-8")) == describe_held_out()


@given(clips, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_captions_name_subject_and_scene(clip: Clip, seed: int) -> None:
    said = caption(np.random.default_rng(seed), clip, partial=0.0)
    subject = SUBJECTS[clip.subject]
    assert any(name in said for name in (subject.name, *subject.aliases))
    assert any(phrase in said for phrase in SCENE_PHRASES[SCENES[clip.scene]])


def test_odds_say_how_often_a_motion_comes() -> None:
    rng = np.random.default_rng(0)
    odds = [0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1.0, 0.0]
    seen = [sample_clip(rng, sample_held_out(), odds=odds).motion for _ in range(400)]
    assert set(seen) == {5, 6}
    assert 0.65 < np.mean(np.array(seen) == 5) < 0.85


@pytest.mark.parametrize("drifting", [0.0, 1.0])
def test_odds_say_how_often_a_size_comes(drifting: float) -> None:
    rng = np.random.default_rng(0)
    clips = [sample_clip(rng, sample_held_out(), drifting=drifting, size_odds=[3, 0, 1]) for _ in range(400)]
    grows = {MOTIONS.index("变大"), MOTIONS.index("变小")}  # which begin with a size of their own
    kept = [c.size for c in clips if (not c.drift.growth if c.drift else c.motion not in grows)]
    assert set(kept) == {2.0, 4.0}
    share = np.mean(np.array(kept) == 2.0)
    assert 0.65 < share < (1.0 if drifting else 0.85)  # large ones find less room to move freely


@pytest.mark.parametrize("odds", [[1, 1], [0, 0, 0], [1, -1, 1]])
def test_odds_of_sizes_that_cannot_be_used_are_named(odds: list[float]) -> None:
    with pytest.raises(RequestError, match=r"size_odds.*3 numbers"):
        sample_clip(np.random.default_rng(0), sample_held_out(), size_odds=odds)


def test_who_drifts_stays_inside_and_does_nothing_that_has_a_name() -> None:
    held_out, rng = sample_held_out(), np.random.default_rng(0)
    clips = [sample_clip(rng, held_out, drifting=1.0) for _ in range(300)]
    for clip in clips:
        assert clip.drift is not None
        assert not held_out.contains(clip)
        assert_stays_inside(clip, slack=1 / 16)  # places are rounded to eighths, sizes are not
        first, last = clip.states((0.0, 1.0))
        moved = (first.y != last.y, first.x != last.x, first.size != last.size, first.angle != last.angle)
        assert sum(moved) >= 2
        assert caption(rng, clip, partial=0.0).endswith("移动")
    turned = {clip.subject for clip in clips if clip.drift and clip.drift.turn}
    assert turned == set(range(len(SUBJECTS)))  # who is never to be shown turning, too
    assert not any(sample_clip(rng, held_out).drift for _ in range(100))
    some = [sample_clip(rng, held_out, drifting=0.25).drift is not None for _ in range(400)]
    assert 0.18 < np.mean(some) < 0.32


def test_most_who_grow_or_turn_freely_look_in_keyframes_as_they_would_in_place() -> None:
    """They go whole cells from one keyframe to the next, which leaves a subject's tokens as they are."""
    rng = np.random.default_rng(1)
    clips = [sample_clip(rng, sample_held_out(), drifting=1.0) for _ in range(300)]
    for named in (Drift(0, 0, GROWTH, 0), Drift(0, 0, -GROWTH, 0), Drift(0, 0, 0, TURN)):
        such = [c for c in clips if c.drift and replace(c.drift, down=0, right=0) == named]
        courses = [c.states(c.frame_times(5)) for c in such]
        whole = [(b.y - a.y) % 1 == (b.x - a.x) % 1 == 0 for course in courses for a, b in pairwise(course)]
        assert len(such) > 20
        assert np.mean(whole) > 0.75


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None)
def test_angles_are_those_that_a_small_frame_can_show(seed: int, share: float) -> None:
    """And at least as fine as any frame of a film of four or two seconds asks for."""
    clip = sample_clip(np.random.default_rng(seed), sample_held_out(), odds=[0, 0, 0, 0, 0, 1, 0, 0], drifting=0.5)
    seconds = share * clip.duration
    angle = clip.state(seconds).angle
    assert angle % FINEST_TURN == 0
    meant = clip.drift.turn * seconds if clip.drift else TURN * seconds
    assert abs((angle - meant + 180) % 360 - 180) <= FINEST_TURN / 2 + 1e-9
    assert (TURN * 2.0 / 32) % FINEST_TURN == 0


def test_same_seed_same_clip_and_caption() -> None:
    def draw() -> tuple[Clip, str]:
        rng = np.random.default_rng(5)
        clip = sample_clip(rng, sample_held_out())
        return clip, caption(rng, clip)

    assert draw() == draw()


def test_the_shipped_vocabulary_knows_every_caption(tmp_path: Path) -> None:
    from cogvideo.tokenizers.text import TextTokenizer

    tokenizer = TextTokenizer(ASSETS / "mini" / "text.model", 4096)
    rng = np.random.default_rng(0)
    for index in range(500):
        clip = place_clip(rng, index % len(SUBJECTS), index % len(SCENES), index % len(MOTIONS))
        assert tokenizer.unknown_words(caption(rng, clip)) == []


@needs_font
@given(clips)
@settings(max_examples=20, deadline=None)
def test_small_frame_is_the_small_version_of_the_large_one(clip: Clip) -> None:
    state = clip.state(clip.duration / 2)
    small, _ = synthetic_render.render_state(clip.subject, clip.scene, clip.variant, state, synthetic_render.COARSE)
    large, _ = synthetic_render.render_state(clip.subject, clip.scene, clip.variant, state, synthetic_render.FINE)
    factor = synthetic_render.FINE // synthetic_render.COARSE
    height, width = small.shape[:2]
    averaged = large.reshape(height, factor, width, factor, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 2


@needs_font
@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=lambda m: MOTIONS[m])
def test_the_judge_reads_rendered_clips(motion: int) -> None:
    rng = np.random.default_rng(motion)
    clip = place_clip(rng, int(rng.integers(len(SUBJECTS))), int(rng.integers(len(SCENES))), motion, 4.0)
    readings = [frame_reader.read_frame(frame) for frame in synthetic_render.render_clip(clip)]
    assert {r.subject for r in readings} == {clip.subject}
    assert {r.scene for r in readings} == {clip.scene}
    assert frame_reader.classify_motion([r.state for r in readings], clip.duration) == motion
    meant = clip.states(clip.frame_times(5))
    assert all(
        frame_reader.is_exact(*seen) for seen in zip(synthetic_render.render_clip(clip), readings, meant, strict=True)
    )


@needs_font
@pytest.mark.parametrize(("name", "unseen"), [("篮球", True), ("熊猫", False), ("公交车", False)])
def test_a_turn_counts_where_it_can_be_seen(name: str, unseen: bool) -> None:
    subject = next(i for i, s in enumerate(SUBJECTS) if s.name == name)
    upright = State(4.5, 4.5, 3.0, 0.0)
    turned = replace(upright, angle=180.0)
    frame = Image.fromarray(synthetic_render.render_state(subject, 0, 0, turned)[0])
    blurred = np.asarray(frame.filter(ImageFilter.GaussianBlur(2)))
    reading = frame_reader.FrameReading(0, 0, subject, turned)
    assert frame_reader.is_exact(blurred, reading, turned)
    assert frame_reader.is_exact(blurred, reading, upright) == unseen


@needs_font
def test_the_judge_finds_nobody_in_an_empty_scene() -> None:
    frame = np.rint(synthetic_render.background(2, 1, synthetic_render.COARSE)).astype(np.uint8)
    reading = frame_reader.read_frame(frame)
    assert reading.scene == 2
    assert reading.state is None
