"""Tokens that a step of Jacobi decoding accepts for each lookahead, with a model's own weights and real prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodeOptions, StageOptions
from cogvideo.inference.generation import keyframe_texts
from cogvideo.inference.keyframes import generate_keyframes
from cogvideo.inference.sampling import StageKey, TokenSampler, noise_frame_indices, noise_keys
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.runtime.device import torch_threads
from cogvideo.runtime.placement import on_device
from cogvideo.tokenizers.text import interpolation_text


@dataclass(frozen=True)
class SpeculationResult:
    """Figures of one stage of one prompt with `lookahead` slots a step (1 in stage 2: the wavefront)."""

    stage: str
    prompt: str
    lookahead: int
    slots: int
    """Tokens of the stage per row of the batch."""
    steps: int
    cpu_seconds: float
    """CPU time of this thread, which a busy machine affects little."""
    same: bool
    """Whether the tokens equal those of sequential decoding."""

    @property
    def tokens_per_step(self) -> float:
        return self.slots / self.steps

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "tokens_per_step": self.tokens_per_step,
            "ahead": self.lookahead,  # its name in version 0.1
        }


class _StepCounter:
    """Counter of steps: decoding calls it before each step to check for cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.start = time.thread_time()

    def __call__(self) -> bool:
        self.count += 1
        return False

    @property
    def seconds(self) -> float:
        return time.thread_time() - self.start


def measure_speculation(
    pipeline: CogVideoPipeline, prompts: Sequence[str], lookaheads: Sequence[int]
) -> Iterator[SpeculationResult]:
    """Yield figures for each prompt, stage and lookahead. Raises RequestError, WeightsError.

    Tokens are compared with those of the first of `lookaheads`, which should be 1.
    """
    pipeline.load()
    with torch_threads(1):
        for prompt in prompts:
            request = VideoRequest(pipeline.check_inputs(VideoRequest(prompt, superres=False)).text, superres=False)
            keyframes: list[Tensor] = []
            for lookahead in lookaheads:
                tokens, steps = _keyframes(pipeline, request, lookahead)
                keyframes.append(tokens)
                same = torch.equal(tokens, keyframes[0])
                yield SpeculationResult(
                    "keyframes", prompt, lookahead, tokens[0].numel(), steps.count, steps.seconds, same
                )
            interpolated: list[Tensor] = []
            for lookahead in lookaheads:
                tokens, steps = _interpolate(pipeline, request, keyframes[0], lookahead)
                interpolated.append(tokens)
                same = torch.equal(tokens, interpolated[0])
                yield SpeculationResult(
                    "in-betweens 1", prompt, lookahead, tokens[0].numel(), steps.count, steps.seconds, same
                )


def _keyframes(pipeline: CogVideoPipeline, request: VideoRequest, lookahead: int) -> tuple[Tensor, _StepCounter]:
    """Generate keyframes. Returns tokens [1, 5, N]."""
    tokenizer, sampler, _, models = pipeline.components()
    options = pipeline.preset.sampling
    texts = keyframe_texts(tokenizer, pipeline.preset, [(request.prompt, request.duration)], options.guidance_scale)
    with on_device(models.stage1, pipeline.place) as lm:
        steps = _StepCounter()
        run = StageOptions(lookahead=lookahead, is_cancelled=steps)
        for step in generate_keyframes(lm, texts, sampler, options, [request.seed], run):
            tokens = step.video_tokens
    return tokens, steps


def _interpolate(
    pipeline: CogVideoPipeline, request: VideoRequest, keyframes: Tensor, lookahead: int
) -> tuple[Tensor, _StepCounter]:
    """Run the first round of interpolation between keyframes [1, 5, N]. Returns tokens [2, 2, N]."""
    tokenizer, sampler, _, models = pipeline.components()
    options, indices = pipeline.preset.sampling, noise_frame_indices(9)
    texts = [interpolation_text(tokenizer, request.prompt, request.duration / 2)] * 2
    given = torch.cat((keyframes[:, :3], keyframes[:, 2:]))  # [2, 3, N]
    with on_device(models.stage2, pipeline.place) as lm:
        size = lm.layout.tokens_per_frame
        keys = {
            frame: noise_keys([request.seed] * 2, StageKey.INTERPOLATE, [indices[frame], indices[4 + frame]], size)
            for frame in lm.layout.generated
        }
        token_sampler, steps = TokenSampler(sampler, options.video, keys), _StepCounter()
        decode_options = DecodeOptions(
            text_attention_bias=options.text_attention_bias, lookahead=lookahead, is_cancelled=steps
        )
        return decoding.collect(decoding.interpolate(lm, texts, given, token_sampler, options=decode_options)), steps


def table(lines: Sequence[SpeculationResult]) -> str:
    """Return a table of each stage and lookahead over all prompts, with the extremes of single prompts."""
    rows = [
        f"{'stage':<14}{'lookahead':>10}{'steps':>7}{'tokens/step':>13}{'least':>7}{'most':>7}{'CPU s':>8}{'same':>6}"
    ]
    for stage, lookahead in dict.fromkeys((line.stage, line.lookahead) for line in lines):
        rows_of_stage = [line for line in lines if (line.stage, line.lookahead) == (stage, lookahead)]
        steps, accepted = sum(line.steps for line in rows_of_stage), [line.tokens_per_step for line in rows_of_stage]
        row = f"{stage:<14}{lookahead:>10}{steps:>7}{sum(line.slots for line in rows_of_stage) / steps:>13.2f}"
        row += f"{min(accepted):>7.2f}{max(accepted):>7.2f}{sum(line.cpu_seconds for line in rows_of_stage):>8.2f}"
        rows.append(row + f"{'yes' if all(line.same for line in rows_of_stage) else 'no':>6}")
    return "\n".join(rows)
