"""The model that ships, through the door that users take: it is complete, it draws, and it draws what was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cogvideo.data.synthetic_render import FONT_PATHS
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES, SUBJECTS
from cogvideo.evaluation.frame_reader import classify_motion, read_frame
from cogvideo.events import RoundCompleted, VideoCompleted
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest

GRASS = VideoRequest("一只熊猫在草地上向右跑", seed=7, num_frames=5)
SEA = VideoRequest("一艘帆船在大海上向左行驶", seed=7, num_frames=5, superres=False)


@pytest.fixture(scope="module")
def pipe() -> CogVideoPipeline:
    return CogVideoPipeline.from_pretrained("mini", device="cpu")


def colour(frames: np.ndarray) -> np.ndarray:
    """Mean red, green and blue of the lower third of all frames."""
    return frames[:, -frames.shape[1] // 3 :].reshape(-1, 3).mean(0)


def test_the_first_example_is_drawn_on_grass_large_and_small(pipe: CogVideoPipeline) -> None:
    events = list(pipe.stream(GRASS))
    (small,) = [e.frames for e in events if isinstance(e, RoundCompleted)]
    assert isinstance(events[-1], VideoCompleted)
    large = events[-1].frames
    assert small.shape == (5, 64, 64, 3)
    assert large.shape == (5, 192, 192, 3)
    for frames in (small, large):
        red, green, blue = colour(frames)
        assert green > red
        assert green > blue
    shrunk = large.reshape(5, 64, 3, 64, 3, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 30  # the same pictures, only larger


def test_another_scene_has_another_colour_and_every_run_is_the_same(pipe: CogVideoPipeline) -> None:
    frames = pipe(SEA)
    red, _, blue = colour(frames)
    assert blue > red
    np.testing.assert_array_equal(pipe(SEA), frames)


def test_its_vocabulary_knows_its_world(pipe: CogVideoPipeline) -> None:
    assert pipe.check_inputs(GRASS).notes == ()
    (note,) = pipe.check_inputs(VideoRequest("一只恐龙在草地上")).notes
    assert "恐龙" in note.zh
    assert "熊猫" in note.zh


@pytest.mark.skipif(not any(p.exists() for p in FONT_PATHS), reason="the judge draws with fonts-noto-color-emoji")
def test_a_panda_runs_to_the_right_on_grass(pipe: CogVideoPipeline) -> None:
    keyframes = next(e.frames for e in pipe.stream(GRASS) if isinstance(e, RoundCompleted))
    readings = [read_frame(frame) for frame in keyframes]
    assert {SCENES[r.scene] for r in readings} == {"草地"}
    assert {SUBJECTS[r.subject].name for r in readings} == {"熊猫"}
    states = [r.state for r in readings]
    assert MOTIONS[classify_motion(states, GRASS.duration)] == "向右"
    assert all(now.x < later.x for now, later in pairwise(states) if now and later)
