"""The structure that the benchmark compares with computes what our decoder computes, and draws the same tokens."""

from __future__ import annotations

import pytest
import torch

from cogvideo.benchmarks.release_baseline import ReleaseStructure, sample
from cogvideo.config import TokenSampling
from cogvideo.inference import decoding
from cogvideo.inference.sampling import ClusterSampler, TokenSampler, noise_keys
from tests.support.small_lm import CONFIG, random_frames, video_lm

TEXT = [51, 52, 53]
CLIP = random_frames(2, 5)
N = CONFIG.tokens_per_frame


def given_frames(stage: int) -> tuple[int, ...]:
    return (0,) if stage == 1 else (0, 2, 4)


def scores(run: ReleaseStructure, frames: list[int]) -> torch.Tensor:
    """Logits [rows, frames, N, image_tokens] with the tokens of CLIP fed back."""
    start = torch.full((2,), CONFIG.start_of_image)
    return torch.stack(
        [torch.stack([run.step(CLIP[:, f, k - 1] if k else start, f, k) for k in range(N)], dim=1) for f in frames],
        dim=1,
    )


class Teacher:
    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        self.seen[frame, slot] = logits
        return CLIP[:, frame, slot]

    def scores(self) -> torch.Tensor:
        frames = sorted({frame for frame, _ in self.seen})
        return torch.stack([torch.stack([self.seen[f, k] for k in range(N)], dim=1) for f in frames], dim=1)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("boost", [0.0, 1.4])
def test_scores_are_those_of_the_decoder(stage: int, boost: float) -> None:
    lm, given, teacher = video_lm(stage), given_frames(stage), Teacher()
    known = CLIP[:, list(given)]
    run = decoding.keyframes if stage == 1 else decoding.interpolate
    options = decoding.DecodeOptions(text_attention_bias=boost)
    decoding.collect(run(lm, [TEXT] * 2, known[:, 0] if stage == 1 else known, teacher, options=options))
    frames = [frame for frame in range(5) if frame not in given]
    theirs = scores(ReleaseStructure(lm, TEXT, 2, given, known, boost), frames)
    torch.testing.assert_close(theirs, teacher.scores(), rtol=1e-4, atol=1e-4)


def test_the_first_frame_has_the_same_scores() -> None:
    lm, teacher = video_lm(1), Teacher()
    decoding.collect(decoding.first_frame(lm, [TEXT] * 2, teacher))
    theirs = scores(ReleaseStructure(lm, TEXT, 2, text_attention_bias=1.4, use_temporal=False), [0])
    torch.testing.assert_close(theirs, teacher.scores(), rtol=1e-4, atol=1e-4)


def test_sampling_in_a_loop_draws_our_tokens() -> None:
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(1)) * 2
    sampler, options = ClusterSampler(torch.arange(50) % 9), TokenSampling(1.05, 4, 0.89)
    keys = noise_keys([7] * 16, 1, [0] * 16, 16)
    for slot in range(16):
        ours = sampler.sample(logits, keys[slot], options)
        assert torch.equal(sample(logits, sampler.labels, keys[slot], options), ours)
    assert len(ours.unique()) > 3


def test_two_passes_of_guidance_draw_our_tokens() -> None:
    lm, sampler, options = video_lm(1), ClusterSampler(torch.arange(50) % 9), TokenSampling(1.05, 4, 0.89)
    keys = {frame: noise_keys([3, 4], 1, [frame] * 2, N) for frame in range(5)}
    dice = TokenSampler(sampler, options, keys)
    ours = decoding.collect(decoding.keyframes(lm, [TEXT] * 2, CLIP[:, 0], dice, unconditional=[[59, 60]] * 2))
    first = CLIP[:, :1]
    with_text, without = (ReleaseStructure(lm, text, 2, (0,), first) for text in (TEXT, [59, 60]))
    ids = torch.full((2,), CONFIG.start_of_image)
    for slot in range(N):
        c, u = with_text.step(ids, 1, slot), without.step(ids, 1, slot)
        ids = sample(u + 3.0 * (c - u), sampler.labels, keys[1][slot], options)
        assert torch.equal(ids, ours[:, 0, slot])


@pytest.mark.parametrize("stage", [1, 2])
def test_the_middle_of_a_clip_can_be_reached_at_once(stage: int) -> None:
    lm, given = video_lm(stage), given_frames(stage)
    walked, jumped = (ReleaseStructure(lm, TEXT, 2, given, CLIP[:, list(given)]) for _ in range(2))
    scores(walked, [1])
    walked.step(CLIP[:, 3, 0], 3 if stage == 2 else 2, 0)
    jumped.select_slot(3 if stage == 2 else 2, 1)
    if stage == 1:
        assert [m.shape for m in jumped.spatial] == [m.shape for m in walked.spatial]
    assert [m.shape for m in jumped.across] == [m.shape for m in walked.across]
