"""A few steps of each phase of a video under a memory preset: how much memory they take, how long all of them would.

In: networks in host memory, a place. Out: for each phase its peak, weights and all, and its seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.benchmarks.peak_memory import held_bytes, peak
from cogvideo.config import CLIP_FRAMES, SamplingOptions
from cogvideo.inference import decoding, super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.runtime.device import Place, Settled, enlarging, resident, settle, threads

CLUSTERS = 500


@dataclass(frozen=True)
class Phase:
    """What a phase takes on the device, for a prompt as long as the model reads."""

    bytes: int
    seconds: float
    """Of a whole video of 33 frames, from those of the steps that were made."""


def rehearse(
    models: Any,
    place: Place,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
    streamed_frames: int = CLIP_FRAMES[-1],
) -> dict[str, Phase]:
    """`steps` tokens of keyframes and of the frames between, and one pass of super-resolution.

    `streamed_frames`: frames of that pass where layers are streamed, whose cost then is shared by all of them.
    """
    rehearsal = _Rehearsal(settle(models, place), place, steps, clock, streamed_frames)
    return {
        "keyframes": rehearsal.measure("stage1", rehearsal.keyframes, 1),
        "interpolate": rehearsal.measure("stage2", rehearsal.interpolate, 1),
        "superres": rehearsal.measure("superres", rehearsal.superres, None),
    }


class _Rehearsal:
    """Runs the phases. Their methods return which part of the phase they were."""

    def __init__(
        self, models: Settled, place: Place, steps: int, clock: Callable[[], float], streamed_frames: int
    ) -> None:
        self.models, self.place, self.steps, self.clock = models, place, steps, clock
        self.streamed_frames = streamed_frames
        config = models.stage1.config
        self.layout = models.stage1.layout
        spare = config.vocab_size - config.image_tokens
        self.text = [config.image_tokens + i % spare for i in range(config.text_length)]
        labels = torch.arange(config.image_tokens) % min(CLUSTERS, config.image_tokens)
        self.sampler = ClusterSampler(labels).to(place.device)

    def measure(self, name: str, run: Callable[[], float], cores: int | None) -> Phase:
        network: nn.Module = getattr(self.models, name)
        streams = self.place.memory.stream and name == "superres"
        ready = nullcontext() if streams else resident(network, self.place)
        with threads(cores), ready, peak(self.place.device) as found:
            held = self._held(None if streams else network)
            start = self.clock()
            share = run()
            if self.place.kind == "cuda":
                torch.cuda.synchronize(self.place.device)
            seconds = (self.clock() - start) / share
        return Phase(held + found.bytes, seconds)

    def keyframes(self) -> float:
        first = self._tokens(1, 1)[:, 0]
        drawn = decoding.keyframes(self.models.stage1, [self.text], first, self._draw, unconditional=[self.text])
        total = CLIP_FRAMES[0] * self.layout.tokens_per_frame  # the first frame takes no longer than the others
        return self._some(drawn) / total

    def interpolate(self) -> float:
        rows = self.place.memory.rows
        drawn = decoding.interpolate(self.models.stage2, [self.text] * rows, self._tokens(rows, 3), self._draw)
        passes = sum(-(-(2**level) // rows) for level in range(1, len(CLIP_FRAMES)))
        return self._some(drawn) / (passes * len(self.layout.generated) * self.layout.tokens_per_frame)

    def superres(self) -> float:
        memory = self.place.memory
        frames = self.streamed_frames if memory.stream else memory.frames_per_pass
        options = SamplingOptions().superres
        clip = self._tokens(1, frames)[0]
        with enlarging(self.models.superres, self.place) as layers:
            wish = self.text, self.sampler, options, 0, memory.frames_per_pass, None, layers
            for _ in super_resolution.draw(self.models.superres, clip, *wish):
                pass
        return min(1.0, frames / CLIP_FRAMES[-1])

    def _some(self, tokens: Iterator[object]) -> int:
        return sum(1 for _ in islice(tokens, self.steps))

    def _draw(self, logits: Tensor, frame: int, slot: int) -> Tensor:
        keys = torch.zeros(len(logits), 2, dtype=torch.long, device=logits.device)
        return self.sampler.draw(logits, keys, SamplingOptions().video)

    def _tokens(self, rows: int, frames: int) -> Tensor:
        shape = rows, frames, self.layout.tokens_per_frame
        return torch.zeros(shape, dtype=torch.long, device=self.place.device)

    def _held(self, network: nn.Module | None) -> int:
        """Bytes of weights that are on the device before `network` begins (None: one that brings its own)."""
        if self.place.kind == "cuda":
            return torch.cuda.memory_allocated(self.place.device)
        models = self.models
        if not self.place.memory.swap:
            return held_bytes((models.stage1, models.stage2, models.superres))
        return held_bytes([models.stage1.transformer] + ([network] if network is not None else []))
