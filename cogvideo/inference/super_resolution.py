"""Stage 3, super-resolution: the frames of one video on a grid three times as fine, tokens [F, N] -> [F, 9N].

Each frame takes one pass of the network.
"""

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
"""Tokens sampled at once on a CPU: few enough that their logits stay in its cache. On a GPU: those of one frame."""


class UpscaledFrames(NamedTuple):
    """One or more finished frames."""

    first: int
    """Index of the first of them."""
    tokens: Tensor  # [frames of this pass, 9N]


@dataclass(frozen=True)
class UpscaleOptions:
    """Options of super-resolution. No option changes a token, except by rounding."""

    frames_per_pass: int = 4
    layers: Callable[[], Iterator[int]] | None = None
    """Yields the number of each layer while its weights are on the device (`layer_streaming.streamed_layers`).

    All frames then pass a layer before any frame passes the next. None: all weights are on the device, and frames
    finish one by one."""
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
    noise_frames, first = noise_frame_indices(len(tokens)), 0
    for group in [parts] if run.layers is not None else [[part] for part in parts]:
        numbers = range(lm.config.layers) if run.layers is None else run.layers()
        for states in _states(lm, group, text, numbers, run.is_cancelled or (lambda: False)):
            end = first + len(states)
            yield UpscaledFrames(first, _tokens(lm, states, sampler, options, seed, noise_frames[first:end]))
            first = end


def _states(
    lm: SuperResLM, parts: Sequence[Tensor], text: Sequence[int], layers: Iterable[int], is_cancelled: IsCancelled
) -> Iterator[Tensor]:
    """Compute the states of the fine slots of each of `parts`: tokens [P, N] -> [P, 9N, h]."""
    passes = []
    for part in parts:
        ids, length = left_pad([text] * len(part), device=part.device)
        passes.append(lm.begin(ids, length, part))
    for number in layers:
        for i, state in enumerate(passes):
            if is_cancelled():
                raise Cancelled
            passes[i] = lm.layer(number, state)
    for state in passes:
        yield lm.finish(state)


def _tokens(
    lm: SuperResLM,
    states: Tensor,
    sampler: ClusterSampler,
    options: TokenSampling,
    seed: int,
    noise_frames: Sequence[int],
) -> Tensor:
    """Sample tokens [P, 9N] from states [P, 9N, h], in chunks, so that few logits exist at a time."""
    frames, fine = states.shape[:2]
    keys = noise_keys([seed] * frames, StageKey.SUPERRES, noise_frames, fine)
    keys = keys.transpose(0, 1).flatten(0, 1).to(sampler.device)  # [P * 9N, 2]
    chunk_size = SAMPLES_PER_PASS if states.device.type == "cpu" else fine
    total, tokens = torch.zeros((), device=states.device), []
    for chunk, key in zip(states.flatten(0, 1).split(chunk_size), keys.split(chunk_size)):
        logits = lm.logits(chunk)
        total = total + logits.sum()  # finite only if all logits are: one check suffices
        tokens.append(sampler.sample(logits, key, options))
    if not bool(torch.isfinite(total)):
        raise non_finite_error()
    return torch.cat(tokens).view(frames, fine)
