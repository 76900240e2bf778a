"""How many tokens a step keeps that looks ahead, with a model's own weights and real prompts: by this it is chosen.

In: a pipeline, prompts, numbers of slots to look ahead. Out: a line for each stage, prompt and number; as a table.
"""

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
    """One stage of one prompt, drawn with `ahead` slots a step (frames between with 1: the wavefront)."""

    stage: str
    prompt: str
    lookahead: int
    slots: int
    """Tokens of the stage, for each row of its batch."""
    steps: int
    cpu_seconds: float
    """Of this thread, so that a busy machine does not matter much."""
    same: bool
    """Whether the tokens are those of one slot at a time."""

    @property
    def tokens_per_step(self) -> float:
        return self.slots / self.steps

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "tokens_per_step": self.tokens_per_step,
            "ahead": self.lookahead,  # its name in version 0.1
        }


class _Steps:
    """Asked once a step whether to stop."""

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
    pipeline: CogVideoPipeline, prompts: Sequence[str], aheads: Sequence[int]
) -> Iterator[SpeculationResult]:
    """`aheads` should begin with 1, which the others' tokens are compared with. Raises RequestError, WeightsError."""
    pipeline.load()
    with torch_threads(1):
        for prompt in prompts:
            request = VideoRequest(pipeline.check_inputs(VideoRequest(prompt, superres=False)).text, superres=False)
            clips: list[Tensor] = []
            for ahead in aheads:
                clip, steps = _keyframes(pipeline, request, ahead)
                clips.append(clip)
                same = torch.equal(clip, clips[0])
                yield SpeculationResult("keyframes", prompt, ahead, clip[0].numel(), steps.count, steps.seconds, same)
            between: list[Tensor] = []
            for ahead in aheads:
                tokens, steps = _between(pipeline, request, clips[0], ahead)
                between.append(tokens)
                same = torch.equal(tokens, between[0])
                yield SpeculationResult(
                    "in-betweens 1", prompt, ahead, tokens[0].numel(), steps.count, steps.seconds, same
                )


def _keyframes(pipeline: CogVideoPipeline, request: VideoRequest, ahead: int) -> tuple[Tensor, _Steps]:
    """-> tokens [1, 5, N]."""
    tokenizer, sampler, _, models = pipeline.components()
    options = pipeline.preset.sampling
    texts = keyframe_texts(tokenizer, pipeline.preset, [(request.prompt, request.duration)], options.guidance_scale)
    with on_device(models.stage1, pipeline.place) as lm:
        steps = _Steps()
        run = StageOptions(lookahead=ahead, is_cancelled=steps)
        for step in generate_keyframes(lm, texts, sampler, options, [request.seed], run):
            clip = step.video_tokens
    return clip, steps


def _between(pipeline: CogVideoPipeline, request: VideoRequest, clip: Tensor, ahead: int) -> tuple[Tensor, _Steps]:
    """The first round, between keyframes [1, 5, N] -> tokens [2, 2, N]."""
    tokenizer, sampler, _, models = pipeline.components()
    options, clock = pipeline.preset.sampling, noise_frame_indices(9)
    texts = [interpolation_text(tokenizer, request.prompt, request.duration / 2)] * 2
    given = torch.cat((clip[:, :3], clip[:, 2:]))  # [2, 3, N]
    with on_device(models.stage2, pipeline.place) as lm:
        size = lm.layout.tokens_per_frame
        keys = {
            frame: noise_keys([request.seed] * 2, StageKey.INTERPOLATE, [clock[frame], clock[4 + frame]], size)
            for frame in lm.layout.generated
        }
        dice, steps = TokenSampler(sampler, options.video, keys), _Steps()
        decode_options = DecodeOptions(
            text_attention_bias=options.text_attention_bias, lookahead=ahead, is_cancelled=steps
        )
        return decoding.collect(decoding.interpolate(lm, texts, given, dice, options=decode_options)), steps


def table(lines: Sequence[SpeculationResult]) -> str:
    """For a person to read: each stage and number over all prompts, the smallest and largest count of one prompt."""
    rows = [f"{'stage':<14}{'ahead':>6}{'steps':>7}{'tokens/step':>13}{'least':>7}{'most':>7}{'CPU s':>8}{'same':>6}"]
    for stage, ahead in dict.fromkeys((line.stage, line.lookahead) for line in lines):
        these = [line for line in lines if (line.stage, line.lookahead) == (stage, ahead)]
        steps, kept = sum(line.steps for line in these), [line.tokens_per_step for line in these]
        row = f"{stage:<14}{ahead:>6}{steps:>7}{sum(line.slots for line in these) / steps:>13.2f}"
        row += f"{min(kept):>7.2f}{max(kept):>7.2f}{sum(line.cpu_seconds for line in these):>8.2f}"
        rows.append(row + f"{'yes' if all(line.same for line in these) else 'no':>6}")
    return "\n".join(rows)
