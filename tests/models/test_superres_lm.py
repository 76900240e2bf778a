"""Super-resolution against the slow model."""

from __future__ import annotations

import torch

from cogvideo.models.base import left_pad
from tests.support.oracle import superres_logits
from tests.support.small_lm import CONFIG, random_frames, superres_lm

TEXTS = [[51, 52, 53], [54]]


def test_one_pass_equals_the_slow_model_whatever_the_padding() -> None:
    lm, coarse = superres_lm(), random_frames(2)
    for slots in (None, CONFIG.superres_text_length):
        logits = lm(*left_pad(TEXTS, slots), coarse)
        for row, text in enumerate(TEXTS):
            expected = superres_logits(lm.state_dict(), CONFIG, text, coarse[row])
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_every_weight_is_trained() -> None:
    lm = superres_lm()
    lm(*left_pad(TEXTS), random_frames(2)).square().mean().backward()
    assert [name for name, weight in lm.named_parameters() if weight.grad is None] == []
