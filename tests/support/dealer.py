"""A sampler that deals tokens instead of drawing them and keeps the scores it was shown.

What it deals depends on no score. So a test can compare scores, which differ by rounding alone, instead of draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from cogvideo.config import TokenSampling
from cogvideo.events import KeyframeCompleted, RoundCompleted
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest


class Draw(NamedTuple):
    """One call of the sampler."""

    logits: Tensor  # [R, V]
    options: TokenSampling
    ids: Tensor  # [R]


class Dealer(ClusterSampler):
    """Deals `tokens` in their order to every row; without them, what the noise key of each row says."""

    def __init__(self, vocabulary: int, tokens: Iterable[int] | None = None) -> None:
        super().__init__(torch.arange(vocabulary))
        self._tokens = None if tokens is None else iter(tokens)
        self.seen: list[Draw] = []

    def sample(self, logits: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
        if self._tokens is None:
            ids = keys[:, 0] % self.vocabulary
        else:
            ids = torch.full((len(logits),), next(self._tokens))
        self.seen.append(Draw(logits.clone(), options, ids))
        return ids


def dealt(pipe: CogVideoPipeline, request: VideoRequest) -> list[list[Draw]]:
    """The draws of one video: those of each keyframe, of each round between keyframes, and of super-resolution."""
    dealer = Dealer(pipe.preset.model.image_tokens)
    parts: list[list[Draw]] = []
    with mock.patch.dict(pipe._parts, clusters=dealer):
        for event in pipe.stream(request):
            if isinstance(event, KeyframeCompleted) or (isinstance(event, RoundCompleted) and event.round):
                parts.append(dealer.seen)
                dealer.seen = []
    return [*parts, dealer.seen]


def differ(some: list[Draw], others: list[Draw]) -> bool:
    """Whether any score differs by more than rounding."""
    pairs = zip(some, others, strict=True)
    return not all(torch.allclose(one.logits, other.logits, rtol=1e-3, atol=1e-3) for one, other in pairs)
