"""Frames of one video, tokens [F, N] -> the same frames on a grid three times as fine, [F, 9N], in one pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.config import TokenSampling
from cogvideo.errors import Cancelled
from cogvideo.inference.decoding import IsCancelled
from cogvideo.inference.sampling import ClusterSampler, StageKey, noise_frame_indices, noise_keys, non_finite_error
from cogvideo.models.base import left_pad
from cogvideo.models.superres_lm import SuperResLM

SAMPLES_PER_PASS = 128
"""Tokens that are drawn at once on a CPU: few enough for their scores to stay in its cache. Elsewhere a frame's."""


class UpscaledFrames(NamedTuple):
    """Some frames are done."""

    first: int
    """Index of the first of them."""
    tokens: Tensor  # [frames of this pass, 9N]


@dataclass(frozen=True)
class UpscaleOptions:
    """How super-resolution runs. No option changes a token, except by rounding."""

    frames_per_pass: int = 4
    layers: Callable[[], Iterator[int]] | None = None
    """Yields the number of each layer while its weights are on the device (`layer_streaming.streamed_layers`). All
    frames then pass a layer before any passes the next. None: all weights are there, and frames come one by one."""
    is_cancelled: IsCancelled | None = None


def upscale(
    lm: SuperResLM,
    tokens: Tensor,
    text: Sequence[int],
    sampler: ClusterSampler,
    options: TokenSampling,
    seed: int,
    run: UpscaleOptions = UpscaleOptions(),
) -> Iterator[UpscaledFrames]:
    """Upscale the frames `tokens` [F, N], `run.frames_per_pass` at a time. Raises Cancelled, WeightsError."""
    parts = list(tokens.split(run.frames_per_pass))
    clock, first = noise_frame_indices(len(tokens)), 0
    for group in [parts] if run.layers is not None else [[part] for part in parts]:
        numbers = range(lm.config.layers) if run.layers is None else run.layers()
        for states in _states(lm, group, text, numbers, run.is_cancelled or (lambda: False)):
            yield UpscaledFrames(first, _tokens(lm, states, sampler, options, seed, clock[first : first + len(states)]))
            first += len(states)


def _states(
    lm: SuperResLM, parts: Sequence[Tensor], text: Sequence[int], layers: Iterable[int], stop: IsCancelled
) -> Iterator[Tensor]:
    """Parts [P, N] -> for each the states of its fine slots, [P, 9N, h]."""
    passes = []
    for part in parts:
        ids, length = left_pad([text] * len(part), device=part.device)
        passes.append(lm.begin(ids, length, part))
    for number in layers:
        for i, at in enumerate(passes):
            if stop():
                raise Cancelled
            passes[i] = lm.layer(number, at)
    for at in passes:
        yield lm.finish(at)


def _tokens(
    lm: SuperResLM,
    states: Tensor,
    sampler: ClusterSampler,
    options: TokenSampling,
    seed: int,
    clock: Sequence[int],
) -> Tensor:
    """[P, 9N, h] -> [P, 9N]; never more scores at a time than are drawn from at once."""
    passed, fine = states.shape[:2]
    keys = noise_keys([seed] * passed, StageKey.SUPERRES, clock, fine)
    keys = keys.transpose(0, 1).flatten(0, 1).to(sampler.device)  # [P * 9N, 2]
    at_once = SAMPLES_PER_PASS if states.device.type == "cpu" else fine
    total, tokens = torch.zeros((), device=states.device), []
    for some, key in zip(states.flatten(0, 1).split(at_once), keys.split(at_once)):
        logits = lm.logits(some)
        total = total + logits.sum()  # finite as long as all scores were
        tokens.append(sampler.sample(logits, key, options))
    if not bool(torch.isfinite(total)):
        raise non_finite_error()
    return torch.cat(tokens).view(passed, fine)
