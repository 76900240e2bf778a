"""A video goes on from what was drawn before: drafts, given frames, other in-betweens, on toy networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogvideo.config import FRAME_COUNTS, MAX_SEED
from cogvideo.errors import RequestError
from cogvideo.events import Event, KeyframeCompleted, KeyframePreview, Progress, RoundCompleted
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.token_frames import TokenFrames
from tests.support.dealer import dealt, differ
from tests.support.toy_model import TOY, flat_models, toy_pipeline

PROMPT = "一只熊猫在草地上向右跑"
REQUEST = VideoRequest(PROMPT, seed=7, num_frames=17)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> CogVideoPipeline:
    return toy_pipeline(tmp_path_factory.mktemp("toy"))


def run(pipe: CogVideoPipeline, request: VideoRequest) -> list[Event]:
    """All events; progress is exact whatever was given."""
    events = list(pipe.stream(request))
    progress = [event for event in events if isinstance(event, Progress)]
    total = sum(tokens_per_stage(TOY.model, request).values())
    assert {event.total for event in progress} <= {total}
    assert [event.done for event in progress][-1:] == ([total] if total else [])
    return events


def levels(events: list[Event]) -> list[RoundCompleted]:
    return [event for event in events if isinstance(event, RoundCompleted)]


def packed(level: RoundCompleted, draft: int = 0) -> TokenFrames:
    assert level.tokens is not None
    return TokenFrames.of(level.tokens[draft].tolist())


@pytest.fixture(scope="module")
def whole(pipe: CogVideoPipeline) -> list[Event]:
    return run(pipe, REQUEST)


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_a_clip_goes_on_where_it_was_left(pipe: CogVideoPipeline, whole: list[Event], begun: int) -> None:
    events = run(pipe, dataclasses.replace(REQUEST, initial_tokens=packed(levels(whole)[begun])))
    assert [level.round for level in levels(events)] == list(range(begun, 3))
    assert not any(isinstance(event, KeyframeCompleted) for event in events)
    np.testing.assert_array_equal(events[-1].frames, whole[-1].frames)


def test_other_in_betweens_leave_the_keyframes_alone(pipe: CogVideoPipeline, whole: list[Event]) -> None:
    wish = dataclasses.replace(REQUEST, interpolation_seed=8, superres=False)
    resumed = run(pipe, dataclasses.replace(wish, initial_tokens=packed(levels(whole)[0])))
    tokens, before = levels(resumed)[-1].tokens, levels(whole)[-1].tokens
    np.testing.assert_array_equal(tokens[:, ::4], before[:, ::4])
    np.testing.assert_array_equal(run(pipe, wish)[-1].frames, resumed[-1].frames)  # nothing of it needs the clip


def test_another_seed_between_keyframes_gives_other_tokens_there(pipe: CogVideoPipeline) -> None:
    # All scores are alike, so that an in-between stays the same with a probability below 36 ** -16.
    flat = CogVideoPipeline(TOY, pipe.place, pipe._folder, lambda *_: flat_models())
    wish = dataclasses.replace(REQUEST, superres=False)
    before, after = (
        levels(run(flat, dataclasses.replace(wish, interpolation_seed=seed)))[-1].tokens for seed in (7, 8)
    )
    assert (before != after).any(2)[0].tolist() == [frame % 4 > 0 for frame in range(17)]


def test_a_given_first_frame_stays_and_the_rest_follows_it(pipe: CogVideoPipeline, whole: list[Event]) -> None:
    last = TokenFrames.of(levels(whole)[-1].tokens[0, -1:].tolist())
    events = run(pipe, VideoRequest(PROMPT, seed=7, num_frames=9, superres=False, first_frame=last))
    tokens = levels(events)[-1].tokens
    np.testing.assert_array_equal(tokens[0, 0], levels(whole)[-1].tokens[0, -1])
    assert not [event for event in events if isinstance(event, KeyframePreview) and event.index == 0]
    assert [event.index for event in events if isinstance(event, KeyframeCompleted)] == list(range(5))


def test_later_keyframes_read_the_first_frame_that_was_given(pipe: CogVideoPipeline) -> None:
    wish = VideoRequest(PROMPT, seed=7, num_frames=5, superres=False)
    one, other = (
        dealt(pipe, dataclasses.replace(wish, first_frame=TokenFrames.of([[token] * 16]))) for token in (1, 2)
    )
    assert one[0] == other[0] == []
    assert all(differ(one[number], other[number]) for number in range(1, 5))


def test_drafts_are_the_keyframes_of_their_own_seeds(pipe: CogVideoPipeline) -> None:
    wish = VideoRequest(PROMPT, seed=MAX_SEED, num_frames=33, num_drafts=4)
    events = run(pipe, wish)
    (level,) = levels(events)
    assert level.tokens.shape == (4, 5, 16)
    assert {(event.index, event.draft) for event in events if isinstance(event, KeyframeCompleted)} == {
        (index, draft) for index in range(5) for draft in range(4)
    }
    assert events[-1].frames.shape == (5, 64, 64, 3)  # two by two
    for draft, seed in enumerate([MAX_SEED, 0, 1, 2]):
        alone = run(pipe, VideoRequest(PROMPT, seed=seed, num_frames=5, superres=False))
        np.testing.assert_array_equal(levels(alone)[0].tokens[0], level.tokens[draft])
        y, x = divmod(draft, 2)
        shown = events[-1].frames[:, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
        np.testing.assert_array_equal(shown, alone[-1].frames)
    chosen = run(pipe, VideoRequest(PROMPT, seed=1, num_frames=9, initial_tokens=packed(level, 2)))
    np.testing.assert_array_equal(chosen[-1].frames, run(pipe, VideoRequest(PROMPT, seed=1, num_frames=9))[-1].frames)


def test_drafts_of_a_given_first_frame_share_it(pipe: CogVideoPipeline) -> None:
    first = pipe.encode(np.full((32, 32, 3), 200, np.uint8))
    events = run(pipe, VideoRequest(PROMPT, seed=3, num_drafts=3, first_frame=first))
    tokens = levels(events)[0].tokens
    assert (tokens[:, 0] == np.array(first.rows())).all()
    assert (events[-1].frames[:, 32:, 32:] == 255).all()  # no fourth


def test_a_picture_becomes_tokens_and_what_the_model_sees_in_them(pipe: CogVideoPipeline) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    first = pipe.encode(picture)
    seen = pipe.decode(first)
    assert seen.shape == (1, 32, 32, 3)
    shown = run(pipe, VideoRequest(PROMPT, num_frames=5, superres=False, first_frame=first))[-1].frames
    np.testing.assert_allclose(shown[0].astype(int), seen[0], atol=1)


@given(st.lists(st.lists(st.integers(0, 65535), min_size=3, max_size=3), min_size=1, max_size=33))
def test_tokens_survive_packing(rows: list[list[int]]) -> None:
    assert TokenFrames.of(rows).rows() == rows
    assert TokenFrames.of(rows) == TokenFrames.of(rows)


@pytest.mark.parametrize("packing", ["", "no base64", "AAAA", TokenFrames.of([[1, 2, 3]]).packed[:-5]])
def test_tampered_tokens_are_refused(packing: str) -> None:
    with pytest.raises(RequestError):
        TokenFrames(2, packing).rows()


def test_frames_that_do_not_fit_are_refused(pipe: CogVideoPipeline) -> None:
    def frames(count: int, size: int = 16, token: int = 1) -> TokenFrames:
        return TokenFrames.of([[token] * size] * count)

    for wrong in (
        {"first_frame": frames(2)},
        {"initial_tokens": frames(6)},
        {"initial_tokens": frames(17), "num_frames": 9},
        {"initial_tokens": frames(5), "num_drafts": 4},
        {"num_drafts": 0},
        {"num_drafts": 5},
        {"interpolation_seed": -1},
    ):
        with pytest.raises(RequestError):
            VideoRequest(PROMPT, **wrong)
    for other_model in (frames(1, 64), frames(1, 16, 64)):
        with pytest.raises(RequestError, match="another model"):
            pipe.check_inputs(VideoRequest(PROMPT, first_frame=other_model))
    assert FRAME_COUNTS[0] == 5 and pipe.check_inputs(VideoRequest(PROMPT, initial_tokens=frames(5)))
