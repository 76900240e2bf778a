"""Measure what each memory preset costs in accuracy: logits and tokens compared with the exact fp32 networks.

Input: `mini` with prompts and the videos it generates from them; small networks with random weights and random tokens.
Output: a table in docs/published-model.md and its Chinese version (`--write`), or on the terminal. All networks read
the same tokens. At each position, the logits are compared with the exact ones, and so are the tokens sampled with the
same noise. Everything runs in fp32, so the error of half precision is not included. The seconds are CPU time of one
core for a complete video of `mini`: 33 frames with super-resolution, weights already loaded. Takes some minutes:

    python scripts/benchmarks/fidelity.py --write
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogvideo.config import PRESETS, SamplingOptions  # noqa: E402
from cogvideo.events import RoundCompleted  # noqa: E402
from cogvideo.inference import decoding  # noqa: E402
from cogvideo.inference.generation import interpolation_texts, keyframe_texts  # noqa: E402
from cogvideo.inference.sampling import ClusterSampler, noise_keys  # noqa: E402
from cogvideo.models import loader  # noqa: E402
from cogvideo.models.base import left_pad  # noqa: E402
from cogvideo.models.loader import random_models  # noqa: E402
from cogvideo.pipeline import CogVideoPipeline  # noqa: E402
from cogvideo.request import VideoRequest  # noqa: E402
from cogvideo.runtime.device import DevicePlacement, torch_threads  # noqa: E402
from cogvideo.runtime.memory_estimate import peak_bytes  # noqa: E402
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset  # noqa: E402
from cogvideo.runtime.placement import on_device, place_models, upscaler_on_device  # noqa: E402
from cogvideo.tokenizers.text import superres_text  # noqa: E402

CPU = torch.device("cpu")
START, END = "<!-- presets: scripts/benchmarks/fidelity.py -->", "<!-- /presets -->"

PROMPTS = ("一只熊猫在草地上向右跑", "夜空中一枚火箭向上飞", "一只企鹅在雪地上跳", "一个篮球在街道上旋转")

TOY = replace(
    PRESETS["mini"].model, layers=4, hidden=128, heads=4, vocab_size=1110, image_tokens=1000, start_of_image=1100
)

HEAD = {
    "docs/published-model.md": "| preset | GPU memory | placement | predicted peak "
    "| logit error, `mini` / toy | same tokens, `mini` / toy "
    "| one core, `mini` | on that GPU |",
    "docs/published-model_zh.md": "| 预设 | 显存 | 方式 | 预测峰值 "
    "| logits 误差，`mini` / toy | 相同 token，`mini` / toy "
    "| 单核 CPU，`mini` | 在该显卡上 |",
}
UNKNOWN = {"docs/published-model.md": "not measured yet", "docs/published-model_zh.md": "尚未测量"}


@dataclass(frozen=True)
class Cost:
    """Distance of the scores as part of their spread, and how often the same token is drawn."""

    off: float
    same: float


@dataclass(frozen=True)
class Film:
    """What the networks are shown: ids of texts; tokens [1, 5, N] of keyframes and of a block of stage 2."""

    keyframes: list[int]
    unconditional: list[int]
    between: list[int]
    superres: list[int]
    clip: Tensor
    block: Tensor


@dataclass(frozen=True)
class Subject:
    """A model that the presets hold in their ways. `load`: its networks anew."""

    load: Callable[[DevicePlacement], Any]
    sampling: SamplingOptions
    sampler: ClusterSampler
    films: Sequence[Film]


def main() -> None:
    """Compare, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/published-model.md and _zh.md")
    options = parser.parse_args()
    with torch_threads(1):
        toy, mini = compare(_toy()), compare(_mini())
        seconds = {name: _seconds(memory) for name, memory in MEMORY_PRESETS.items()}
    for document, head in HEAD.items():
        lines = [head, "|---" * (head.count("|") - 1) + "|"]
        lines += [
            _row(row, mini[row.name], toy[row.name], seconds[row.name], document) for row in MEMORY_PRESETS.values()
        ]
        if options.write:
            _write(ROOT / document, "\n".join(lines))
        else:
            print("\n".join(lines))


def compare(subject: Subject) -> dict[str, Cost]:
    """The cost of every memory preset."""
    exact = scores(subject, _place(MEMORY_PRESETS["cpu"]))
    wanted = _drawn(exact, subject)
    costs = {}
    for name, memory in MEMORY_PRESETS.items():
        got = scores(subject, _place(memory))
        spread = exact - exact.mean(-1, keepdim=True)
        same = (_drawn(got, subject) == wanted).float().mean()
        costs[name] = Cost(float((got - exact).norm() / spread.norm()), float(same))
    return costs


@torch.inference_mode()
def scores(subject: Subject, place: DevicePlacement) -> Tensor:
    """Of all three networks, where each film is shown to them, [places, image tokens] fp32."""
    settled = place_models(subject.load(place), place)
    return torch.cat([part for film in subject.films for part in _shown(film, settled, place, subject.sampling)])


def _shown(film: Film, settled: Any, place: DevicePlacement, sampling: SamplingOptions) -> list[Tensor]:
    size = film.clip.shape[-1]
    seen: list[Tensor] = []

    def teacher(clip: Tensor) -> decoding.SampleFn:
        def show(logits: Tensor, frame: int, slot: int) -> Tensor:
            seen.append(logits.float())
            return clip[:, frame, slot]

        return show

    options = decoding.DecodeOptions(
        guidance_scale=sampling.guidance_scale, text_attention_bias=sampling.text_attention_bias
    )
    with on_device(settled.stage1, place) as lm:
        first, teach = film.clip[:, 0], teacher(film.clip)
        drawn = decoding.keyframes(lm, [film.keyframes], first, teach, [film.unconditional], options)
        list(islice(drawn, size))
    with on_device(settled.stage2, place) as lm:
        drawn = decoding.interpolate(lm, [film.between], film.block[:, ::2], teacher(film.block), options=options)
        list(islice(drawn, size))
    lm = settled.superres
    with upscaler_on_device(lm, place) as layers:
        at = lm.begin(*left_pad([film.superres]), film.clip[0, :1])
        for number in layers() if layers else range(lm.config.layers):
            at = lm.layer(number, at)
        return [*seen, lm.logits(lm.finish(at)[0]).float()]


def _drawn(logits: Tensor, subject: Subject) -> Tensor:
    keys, options = noise_keys([0], 1, [0], len(logits))[:, 0], subject.sampling.video
    parts = zip(logits.split(128), keys.split(128))
    return torch.cat([subject.sampler.sample(some, key, options) for some, key in parts])


def _toy() -> Subject:
    """Random weights, which are far less sure than learnt ones."""

    def load(place: DevicePlacement) -> Any:
        torch.manual_seed(0)
        return random_models(TOY, torch.float32, CPU)

    shape, generator = (2, 1, 5, TOY.tokens_per_frame), torch.Generator().manual_seed(0)
    clip, block = torch.randint(TOY.image_tokens, shape, generator=generator)
    text = [TOY.image_tokens + i for i in range(12)]
    sampler = ClusterSampler(torch.arange(TOY.image_tokens) % 200)
    return Subject(
        load, replace(SamplingOptions(), guidance_scale=1.5), sampler, [Film(text, text[:3], text, text, clip, block)]
    )


def _mini() -> Subject:
    """The model that ships, and what it draws itself."""
    pipeline = CogVideoPipeline(PRESETS["mini"], _place(MEMORY_PRESETS["cpu"]), previews=False)
    films = [_film(pipeline, VideoRequest(prompt, seed=7, num_frames=9, superres=False)) for prompt in PROMPTS]
    sampler = pipeline.components().sampler
    return Subject(lambda place: loader.load("mini", place.read_as), PRESETS["mini"].sampling, sampler, films)


def _film(pipeline: CogVideoPipeline, request: VideoRequest) -> Film:
    """Its five keyframes, and the first five of its nine frames."""
    levels = (event.tokens for event in pipeline.stream(request) if isinstance(event, RoundCompleted))
    clip, longer = (torch.from_numpy(tokens) for tokens in levels if tokens is not None)
    preset, tokenizer = pipeline.preset, pipeline.components().tokenizer
    texts = keyframe_texts(tokenizer, preset, [(request.prompt, request.duration)], preset.sampling.guidance_scale)
    between = interpolation_texts(tokenizer, preset, [request], 1.0).conditional
    unconditional = (texts.unconditional or texts.video)[0]
    enlarged = superres_text(tokenizer, request.prompt)
    return Film(list(texts.video[0]), list(unconditional), between[0][0], enlarged, clip, longer[:, :5])


def _place(memory: MemoryPreset) -> DevicePlacement:
    return DevicePlacement(CPU, torch.float32, memory)


def _seconds(memory: MemoryPreset) -> float:
    """Of processor time, for a film of 33 frames with super-resolution, warm."""
    pipeline = CogVideoPipeline(PRESETS["mini"], _place(memory), previews=False)
    pipeline(VideoRequest(PROMPTS[0], seed=7, num_frames=5, superres=True))
    start = time.process_time()
    pipeline(VideoRequest(PROMPTS[0], seed=7, num_frames=33, superres=True))
    return time.process_time() - start


def _row(memory: MemoryPreset, mini: Cost, toy: Cost, seconds: float, document: str) -> str:
    chinese = document.endswith("_zh.md")
    model = PRESETS["cogvideo"].model
    card = f"{memory.vram_gb} GB" if memory.vram_gb else "—"
    cells: Sequence[str] = (
        f"`{memory.name}`",
        card,
        memory.zh if chinese else memory.en,
        f"{peak_bytes(model, memory) / 1e9:.1f} GB",
        f"{mini.off:.2%} / {toy.off:.2%}",
        f"{mini.same:.1%} / {toy.same:.1%}",
        f"{seconds:.1f} s",
        UNKNOWN[document] if memory.vram_gb else "—",
    )
    return "| " + " | ".join(cells) + " |"


def _write(path: Path, table: str) -> None:
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    path.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
