"""The cached decoder draws from the same scores as one pass over the finished clip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cogvideo.errors import Cancelled
from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodeOptions
from cogvideo.models.base import IMPLAUSIBLE, left_pad
from cogvideo.models.kv_cache import TokenSlot
from cogvideo.models.kv_storage import CacheOverflowError
from tests.support.oracle import video_logits
from tests.support.small_lm import CONFIG, random_frames, video_lm

TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]
OTHERS = [[59, 60], [59, 60]]
CLIP = random_frames(2, 5)
N = CONFIG.tokens_per_frame


class Teacher:
    """Draws the tokens of `clip` [rows, F, N] and remembers the scores it was shown."""

    def __init__(self, clip: torch.Tensor) -> None:
        self.clip = clip
        self.seen: dict[int, list[torch.Tensor]] = {}

    def __call__(self, logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        assert len(self.seen.setdefault(frame, [])) == slot
        self.seen[frame].append(logits)
        return self.clip[:, frame, slot]

    def scores(self, frame: int) -> torch.Tensor:
        """[rows, N, image_tokens]."""
        return torch.stack(self.seen[frame], dim=1)


def draw(stage: int, teacher: Teacher, unconditional: decoding.Texts | None = None, **options: Any) -> torch.Tensor:
    lm = video_lm(stage)
    run = decoding.keyframes if stage == 1 else decoding.interpolate
    known = CLIP[:, 0] if stage == 1 else CLIP[:, ::2]
    return decoding.collect(run(lm, TEXTS, known, teacher, unconditional, DecodeOptions(**options)))


def drawn(stage: int) -> list[int]:
    return [1, 2, 3, 4] if stage == 1 else [1, 3]


@pytest.mark.parametrize("stage", [1, 2])
def test_cached_scores_are_those_of_the_training_pass(stage: int) -> None:
    teacher = Teacher(CLIP)
    tokens = draw(stage, teacher, text_attention_bias=0.0)
    assert torch.equal(tokens, CLIP[:, drawn(stage)])
    whole = video_lm(stage).forward_training(*left_pad(TEXTS, CONFIG.text_length), CLIP)
    for frame in drawn(stage):
        torch.testing.assert_close(teacher.scores(frame), whole[:, frame], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_boost_acts_where_the_slow_model_has_it(stage: int) -> None:
    teacher = Teacher(CLIP)
    draw(stage, teacher, text_attention_bias=1.4)
    lm = video_lm(stage)
    for row, text in enumerate(TEXTS):
        expected = video_logits(lm.state_dict(), CONFIG, lm.stage, text, CLIP[row], boost=1.4)
        for frame in drawn(stage):
            torch.testing.assert_close(teacher.scores(frame)[row], expected[frame], rtol=1e-4, atol=1e-4)


def test_first_frame_is_drawn_by_the_backbone_alone() -> None:
    lm, teacher = video_lm(1), Teacher(CLIP)
    tokens = decoding.collect(decoding.first_frame(lm, TEXTS, teacher))
    assert torch.equal(tokens, CLIP[:, :1])
    for row, text in enumerate(TEXTS):
        expected = video_logits(lm.state_dict(), CONFIG, 1, text, CLIP[row, :1], boost=1.4, both=False)[0]
        torch.testing.assert_close(teacher.scores(0)[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_guidance_is_a_step_beyond_the_conditional_scores(stage: int) -> None:
    guided, with_text, without = Teacher(CLIP), Teacher(CLIP), Teacher(CLIP)
    draw(stage, guided, unconditional=OTHERS, guidance_scale=3.0)
    draw(stage, with_text, text_attention_bias=0.0)
    lm, run = video_lm(stage), decoding.keyframes if stage == 1 else decoding.interpolate
    known = CLIP[:, 0] if stage == 1 else CLIP[:, ::2]
    decoding.collect(run(lm, OTHERS, known, without, options=DecodeOptions(text_attention_bias=0.0)))
    for frame in drawn(stage):
        u, c = without.scores(frame), with_text.scores(frame)
        torch.testing.assert_close(guided.scores(frame), u + 3.0 * (c - u), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_guidance_leaves_out_what_the_prompt_alone_finds_implausible(stage: int) -> None:
    guided, held, with_text = Teacher(CLIP), Teacher(CLIP), Teacher(CLIP)
    draw(stage, guided, unconditional=OTHERS, guidance_scale=3.0)
    draw(stage, held, unconditional=OTHERS, guidance_scale=3.0, plausibility=0.5)
    draw(stage, with_text, text_attention_bias=0.0)
    for frame in drawn(stage):
        odds = with_text.scores(frame).softmax(-1)
        share = odds / odds.amax(-1, keepdim=True)
        kept, scores = held.scores(frame) > IMPLAUSIBLE, held.scores(frame)
        assert 0 < kept.float().mean() < 1
        assert (share[kept] > 0.4999).all() and (share[~kept] < 0.5001).all()
        torch.testing.assert_close(scores[kept], guided.scores(frame)[kept])


def test_a_row_does_not_depend_on_its_company() -> None:
    together, alone = Teacher(CLIP), Teacher(CLIP[:1])
    draw(1, together)
    decoding.collect(decoding.keyframes(video_lm(1), TEXTS[:1], CLIP[:1, 0], alone))
    torch.testing.assert_close(together.scores(4)[:1], alone.scores(4), rtol=1e-4, atol=1e-5)


def test_tokens_appear_one_by_one_in_time_order() -> None:
    tokens = list(
        decoding.interpolate(video_lm(2), TEXTS, CLIP[:, ::2], Teacher(CLIP), options=DecodeOptions(wavefront=False))
    )
    assert [(token.frame, token.slot) for token in tokens] == [(f, k) for f in (1, 3) for k in range(N)]
    seen: list[decoding.DecodedTokens] = []
    decoding.collect(iter(tokens), seen.append)
    assert seen == tokens


def test_stop_is_asked_before_every_token_and_ends_the_work() -> None:
    answers = iter([False] * (N + 3) + [True])
    teacher = Teacher(CLIP)
    tokens: Iterator[decoding.DecodedTokens] = decoding.keyframes(
        video_lm(1), TEXTS, CLIP[:, 0], teacher, options=DecodeOptions(is_cancelled=lambda: next(answers))
    )
    with pytest.raises(Cancelled):
        decoding.collect(tokens)
    assert [len(scores) for scores in teacher.seen.values()] == [N, 3]
    assert next(answers, None) is None


def test_a_slot_beyond_the_frame_is_refused() -> None:
    lm = video_lm(1)
    cache = decoding.prefill(lm, TEXTS, (), text_attention_bias=0.0, use_temporal=False)
    with pytest.raises(CacheOverflowError, match=f"slot {N}"):
        decoding.decode_one(lm, cache, CLIP[:, 0, :1], [TokenSlot(0, N)])


def test_a_frame_beyond_the_sequence_is_refused() -> None:
    lm = video_lm(1)
    cache = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=0.0, use_temporal=True)
    with pytest.raises(CacheOverflowError, match="frame 5"):
        decoding.decode_one(lm, cache, CLIP[:, 0, :1], [TokenSlot(5, 0)])


def test_a_text_that_runs_into_the_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="text slots"):
        decoding.prefill(
            video_lm(1), [[51] * (CONFIG.image_start + 1)], (), text_attention_bias=0.0, use_temporal=False
        )


def test_the_cache_does_not_grow() -> None:
    lm = video_lm(2)
    cache = decoding.prefill(lm, TEXTS, lm.layout.given, CLIP[:, ::2], text_attention_bias=0.0, use_temporal=True)
    before = [arena.k_v.data_ptr() for arena in (*cache._spatial, *cache._temporal)]
    decoding.collect(decoding.decode_frames(lm, cache, lm.layout.generated, Teacher(CLIP)))
    assert [arena.k_v.data_ptr() for arena in (*cache._spatial, *cache._temporal)] == before


def greedy(logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
    return logits.argmax(-1)


@pytest.mark.parametrize("unconditional", [None, OTHERS])
def test_wavefront_draws_the_tokens_of_frame_after_frame_in_fewer_steps(unconditional: decoding.Texts | None) -> None:
    lm = video_lm(2)
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    def draw_all(wavefront: bool) -> torch.Tensor:
        nonlocal steps
        steps = 0
        run = decoding.interpolate(
            lm, TEXTS, CLIP[:, ::2], greedy, unconditional, DecodeOptions(wavefront=wavefront, is_cancelled=count)
        )
        return decoding.collect(run)

    one_by_one = draw_all(False)
    assert steps == 2 * N
    assert torch.equal(draw_all(True), one_by_one)
    assert steps == N + lm.layout.wavefront_lag < 2 * N
    assert len(one_by_one.unique()) > 5  # the greedy path is no constant


@pytest.mark.parametrize(("missing", "finite"), [(0, True), (2, False)])
def test_the_lag_is_the_least_at_which_nothing_unwritten_is_read(missing: int, finite: bool) -> None:
    lm, teacher = video_lm(2), Teacher(CLIP)
    cache = decoding.prefill(
        lm, TEXTS, lm.layout.given, CLIP[:, ::2], text_attention_bias=0.0, use_temporal=True, parallel_frames=2
    )
    for layer, arena in enumerate(cache._temporal):
        for frame in lm.layout.generated:
            arena.k_v[:, :, :, lm.layout.temporal_keys(2, layer, cache.text).frame_slots(frame)] = torch.nan
    decoding.collect(
        decoding.decode_frames(lm, cache, lm.layout.generated, teacher, lag=lm.layout.wavefront_lag - missing)
    )
    assert bool(teacher.scores(3).isfinite().all()) == finite


@pytest.mark.parametrize("stage", [1, 2])
def test_half_precision_scores_are_near(stage: int) -> None:
    exact, near = Teacher(CLIP), Teacher(CLIP)
    draw(stage, exact)
    lm, run = video_lm(stage).to(torch.bfloat16), decoding.keyframes if stage == 1 else decoding.interpolate
    decoding.collect(run(lm, TEXTS, CLIP[:, 0] if stage == 1 else CLIP[:, ::2], near))
    for frame in drawn(stage):
        assert near.scores(frame).dtype == torch.float32
        torch.testing.assert_close(near.scores(frame), exact.scores(frame), rtol=0.1, atol=0.3)
