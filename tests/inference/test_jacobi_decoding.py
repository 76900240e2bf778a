"""Looking several slots ahead draws the tokens of one slot at a time, in fewer steps where guesses hold."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cogvideo.benchmarks.stages import count_calls
from cogvideo.config import SamplingOptions, TokenSampling
from cogvideo.errors import Cancelled
from cogvideo.inference import decoding, interpolation, keyframes
from cogvideo.inference.decoding import DecodeOptions, StageOptions
from cogvideo.inference.sampling import ClusterSampler, TokenSampler, noise_keys
from cogvideo.models.video_lm import VideoLM
from tests.support.small_lm import CONFIG, random_frames, video_lm

TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]
OTHERS = [[59, 60], [59, 60]]
CLIP = random_frames(2, 5)
N = CONFIG.tokens_per_frame
SAMPLER, OPTIONS = ClusterSampler(torch.arange(50) % 9), TokenSampling(1.0, 4, 0.5)


class Counter:
    """Asked once a step."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self) -> bool:
        self.steps += 1
        return False


def dice() -> TokenSampler:
    return TokenSampler(SAMPLER, OPTIONS, {frame: noise_keys([3, 4], 1, [frame] * 2, N) for frame in range(5)})


def tokens_of(lm: VideoLM, name: str, **options: Any) -> torch.Tensor:
    run_options = DecodeOptions(**options)
    run: dict[str, Any] = {
        "first frame": lambda: decoding.first_frame(lm, TEXTS, dice(), run_options),
        "keyframes": lambda: decoding.keyframes(lm, TEXTS, CLIP[:, 0], dice(), None, run_options),
        "guided": lambda: decoding.keyframes(lm, TEXTS, CLIP[:, 0], dice(), OTHERS, run_options),
        "between": lambda: decoding.interpolate(lm, TEXTS, CLIP[:, ::2], dice(), None, run_options),
    }
    return decoding.collect(run[name]())


@pytest.mark.parametrize("name", ["first frame", "keyframes", "guided", "between"])
@pytest.mark.parametrize("fused", [False, True])
def test_tokens_are_those_of_one_slot_at_a_time(name: str, fused: bool) -> None:
    lm = video_lm(2 if name == "between" else 1)
    if fused:
        lm.fuse()
    one_by_one = tokens_of(lm, name)
    counter = Counter()
    assert torch.equal(tokens_of(lm, name, lookahead=5, is_cancelled=counter), one_by_one)
    assert counter.steps <= one_by_one[0].numel()
    assert len(one_by_one.unique()) > 5


@pytest.mark.parametrize("ahead", [2, 5, N])
def test_right_guesses_are_all_kept(ahead: int) -> None:
    lm, counter = video_lm(1), Counter()
    drawn = tokens_of(lm, "keyframes")
    cache = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    again = decoding.collect(decoding.jacobi_decode(lm, cache, 1, dice(), ahead, drawn[:, 0], is_cancelled=counter))
    assert torch.equal(again, drawn[:, :1])
    assert counter.steps == -(-N // ahead)


def test_one_wrong_guess_costs_one_step() -> None:
    lm, counter = video_lm(1), Counter()
    drawn = tokens_of(lm, "keyframes")
    guess = drawn[:, 0].clone()
    guess[1, 7] = (guess[1, 7] + 1) % 50
    cache = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    again = decoding.collect(decoding.jacobi_decode(lm, cache, 1, dice(), N, guess, is_cancelled=counter))
    assert torch.equal(again, drawn[:, :1])
    assert counter.steps >= 2


def test_stop_is_asked_before_every_step() -> None:
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        tokens_of(video_lm(1), "keyframes", lookahead=4, is_cancelled=lambda: next(answers))
    assert next(answers, None) is None


# --- counts of the way that users take ------------------------------------------------------------------------------


def stage_steps(name: str, **options: Any) -> Iterator[Any]:
    if name == "keyframes":
        texts = keyframes.KeyframeTexts(TEXTS, TEXTS, OTHERS)
        return keyframes.generate_keyframes(
            video_lm(1), texts, SAMPLER, SamplingOptions(), [3, 4], StageOptions(**options)
        )
    rounds = interpolation.InterpolationTexts([TEXTS])
    sampling = SamplingOptions(video=OPTIONS)
    return interpolation.interpolate(
        video_lm(2), CLIP.clone(), rounds, SAMPLER, sampling, [3, 4], StageOptions(**options)
    )


@pytest.mark.parametrize(("name", "steps", "frames"), [("keyframes", 5 * N, 5), ("between", N + 9, 2)])
def test_the_host_waits_once_a_frame_and_never_for_a_token(name: str, steps: int, frames: int) -> None:
    counter, iterator = Counter(), stage_steps(name)
    waits = []
    while True:
        found: list[object] = []
        _, syncs = count_calls(lambda: found.append(next(iterator, None)), torch.device("cpu"))  # noqa: B023
        if found[0] is None:
            break
        waits.append(syncs)
    for _ in stage_steps(name, is_cancelled=counter):
        pass
    assert counter.steps == steps if name == "keyframes" else counter.steps == N + video_lm(2).layout.wavefront_lag
    # Whether a text is padded is asked when it is read, whether all scores were finite when a frame is complete.
    assert sum(waits) <= frames + 3
    assert sorted(waits)[: -frames - 3] == [0] * (len(waits) - frames - 3)


def tensors_there() -> tuple[int, int]:
    """How many there are, and the bytes of their storage."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    stored = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(stored.values())


@pytest.mark.parametrize(("name", "begun"), [("keyframes", N), ("between", video_lm(2).layout.wavefront_lag)])
def test_no_tensor_stays_behind_after_a_step(name: str, begun: int) -> None:
    # All three moments lie between the first steps of the last frame that is begun and the last ones of another.
    moments, alive = (begun + 4, begun + 10, begun + 16), []
    for number, _ in enumerate(stage_steps(name)):
        if number in moments:
            alive.append(tensors_there())
    assert len(alive) == 3
    assert len(set(alive)) == 1
