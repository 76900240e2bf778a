"""Stages 1 and 2 in one pass, against the slow model."""

from __future__ import annotations

import pytest
import torch

from cogvideo.models.base import left_pad
from cogvideo.models.video_lm import VideoLM
from tests.support.oracle import video_logits
from tests.support.small_lm import CONFIG, random_frames, video_lm

TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]


@pytest.mark.parametrize("stage", [1, 2])
def test_training_pass_equals_the_slow_model(stage: int) -> None:
    lm, clip = video_lm(stage), random_frames(2, 5)
    logits = lm.forward_training(*left_pad(TEXTS, CONFIG.text_length, pad=69), clip)
    for row, text in enumerate(TEXTS):
        expected = video_logits(lm.state_dict(), CONFIG, lm.stage, text, clip[row])
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_images_equal_the_slow_model_without_the_second_channel() -> None:
    lm, frames = video_lm(1), random_frames(2)
    logits = lm.forward_images(*left_pad(TEXTS, CONFIG.text_length), frames)
    for row, text in enumerate(TEXTS):
        expected = video_logits(lm.state_dict(), CONFIG, 1, text, frames[row : row + 1], both=False)[0]
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_scored_frames_are_those_of_the_whole() -> None:
    lm, clip, text = video_lm(2), random_frames(2, 5), left_pad(TEXTS)
    some = lm.forward_training(*text, clip, scored=(3, 1))
    torch.testing.assert_close(some, lm.forward_training(*text, clip)[:, [3, 1]])


@pytest.mark.parametrize("stage", [1, 2])
def test_every_weight_that_a_clip_needs_is_trained(stage: int) -> None:
    lm = video_lm(stage)
    lm.forward_training(*left_pad(TEXTS), random_frames(2, 5)).square().mean().backward()
    assert [name for name, weight in lm.named_parameters() if weight.grad is None] == []
    assert all(bool(weight.grad.isfinite().all()) for weight in lm.parameters() if weight.grad is not None)


def test_images_train_the_backbone_alone() -> None:
    lm = video_lm(1)
    lm.forward_images(*left_pad(TEXTS), random_frames(2)).square().mean().backward()
    trained = {name.split(".")[0] for name, weight in lm.named_parameters() if weight.grad is not None}
    assert trained == {"transformer"}


def test_models_on_one_backbone_do_not_disturb_each_other() -> None:
    clip, text = random_frames(2, 5), left_pad(TEXTS)
    alone = video_lm(1)
    before = alone.forward_training(*text, clip)
    other = VideoLM(CONFIG, 2, transformer=alone.transformer)
    assert other.transformer is alone.transformer
    other.forward_training(*text, clip)
    torch.testing.assert_close(alone.forward_training(*text, clip), before, rtol=0, atol=0)


def test_the_second_channel_starts_as_a_copy_of_the_backbone() -> None:
    lm = VideoLM(CONFIG, 1)
    state = lm.state_dict()
    for layer in range(CONFIG.layers):
        copy = state[f"mixins.attention_plus.query_key_value.{layer}.weight"]
        assert torch.equal(copy, state[f"transformer.layers.{layer}.attention.query_key_value.weight"])
        assert copy.data_ptr() != state[f"transformer.layers.{layer}.attention.query_key_value.weight"].data_ptr()


def test_clips_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        video_lm(1).forward_training(*left_pad(TEXTS), random_frames(2, 4))


@pytest.mark.parametrize("texts", [[[1], []], [[1, 2, 3, 4]]])
def test_texts_that_do_not_fit_are_refused(texts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        left_pad(texts, 3)


@pytest.mark.parametrize("stage", [1, 2])
def test_mixed_precision_trains(stage: int) -> None:
    lm, clip, text = video_lm(stage), random_frames(2, 5), left_pad(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = lm.forward_training(*text, clip)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, lm.forward_training(*text, clip), rtol=0.1, atol=0.3)
    logits.square().mean().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in lm.parameters() if weight.grad is not None)
