"""The stages of a video, run with random weights and timed, counted, and compared with what the machine can do.

In: a preset's sizes and a place. Out: a `Line` for each stage. The floor of a step is the time that reading its
weights, keys and values once takes at this machine's bandwidth, or its arithmetic at this machine's rate, whichever is
longer; both are measured first, with as many threads as the stage uses.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cogvideo.benchmarks.hardware import measure_machine
from cogvideo.benchmarks.release_baseline import ReleaseStructure, sample
from cogvideo.benchmarks.results import StageResult
from cogvideo.config import ASSETS, FRAME_COUNTS, ModelConfig, Preset, SamplingOptions
from cogvideo.inference import decoding, super_resolution
from cogvideo.inference.sampling import ClusterSampler, StageKey, TokenSampler, noise_keys
from cogvideo.models.base import GuidanceConfig, cache_fp32_heads
from cogvideo.models.fused_decode import should_fuse
from cogvideo.models.kv_cache import TokenSlot as Slot
from cogvideo.models.loader import RandomModels, random_models
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime.device import DevicePlacement, torch_threads, usable_cores
from cogvideo.token_layout import TokenLayout
from cogvideo.tokenizers import image as codecs
from kernels import cpu_decode
from kernels.cpu_decode import Precision

STAGES: Final = ("first", "keyframes", "interpolate", "superres", "decode")

TEXT_TOKENS: Final = 24
"""Length of the prompt that is pretended."""

CLUSTERS: Final = 500

FRAMES_PER_PASS: Final = 4
"""Frames that super-resolution and the codec take at once."""


class _Calls(TorchDispatchMode):
    """Counts operator calls, and among them those that hand a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.syncs += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def count_calls(step: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Operator calls and host syncs of `step`; on a GPU kernel launches instead of calls."""
    with _Calls() as counted:
        step()
    if device.type != "cuda":
        return counted.calls, counted.syncs
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize(device)
    launches = sum(event.device_type is DeviceType.CUDA for event in profile.events())
    return launches, counted.syncs


@dataclass(frozen=True)
class StageWorkload:
    """A stage as the benchmark runs it: `step(i)` for i in 0 .. steps - 1, in order but perhaps not all of them."""

    stage: str
    rows: int
    steps: int
    tokens: int
    step: Callable[[int], object]
    once: float
    """Seconds that were spent before the first step: reading text and given frames."""
    once_cpu: float
    gigabytes: float
    """Moved by all steps together, at least."""
    gigaflop: float
    threads: int
    """Cores that it may use."""
    alone: bool = False
    """Whether PyTorch's operations get one of them, since they are small beside what is divided by itself."""
    seek: Callable[[int], None] = lambda number: None
    """Before a step that does not follow the one before it; not part of what is timed."""
    jumps: bool = False
    """Whether `seek` does anything, so that it has to be called before each step."""


class StageBenchmark:
    """Random weights of a preset's sizes on a place; measures the stages of one video of `frames` frames."""

    def __init__(
        self,
        preset: Preset,
        place: DevicePlacement,
        frames: int,
        most: int | None,
        compare: bool,
        seconds: float,
        precision: Precision = "fp32",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.preset, self.place, self.frames, self.most, self.compare = preset, place, frames, most, compare
        self.options: SamplingOptions = preset.sampling
        self.config: ModelConfig = preset.model
        self.layout = TokenLayout(self.config)
        self.models: RandomModels = random_models(self.config, place.dtype, place.device)
        cache_fp32_heads((self.models.stage1, self.models.stage2, self.models.superres))
        self.precision, self.clock = precision, clock
        self.cores = usable_cores() if place.device.type == "cpu" else 1
        if should_fuse(self.config, place.device):
            self.models.stage1.fuse(precision, threads=self.cores)
            self.models.stage2.fuse(precision, threads=self.cores)
        labels = torch.arange(self.config.image_tokens) % min(CLUSTERS, self.config.image_tokens)
        self.sampler = ClusterSampler(labels, self.cores).to(place.device)
        frame = [[Slot(2, slot)] for slot in range(self.layout.tokens_per_frame)]
        step = int(self._cost(self.models.stage1, (0,), 2, frame)[0] * 1e9 / len(frame))  # of a keyframe
        self.machines = {n: measure_machine(place, n, step, seconds, clock) for n in sorted({1, self.cores})}

    @property
    def form(self) -> str:
        """What computes a step."""
        if not should_fuse(self.config, self.place.device):
            return "PyTorch"
        reason = cpu_decode.unsupported_reason(self._like)
        weights = "exact weights" if self.precision == "fp32" else f"{self.precision} weights"
        return f"C, {weights}" if reason is None else f"PyTorch, since {reason}"

    @property
    def _like(self) -> Tensor:
        weight: Tensor = self.models.stage1.transformer.word_embeddings.weight
        return weight

    def weight_bytes(self, both: bool) -> float:
        """What one step must read of the weights: numbers of fp16, whatever the type that they are computed in."""
        h, size = self.config.hidden, {"fp32": 2, "bf16": 2, "int8": 1}[self.precision]
        if not should_fuse(self.config, self.place.device) or cpu_decode.unsupported_reason(self._like) is not None:
            size = self.place.dtype.itemsize
        return (self.config.layers * h * h * (16 if both else 12) + self.config.image_tokens * h) * size

    def lines(self, stages: Sequence[str]) -> Iterator[StageResult]:
        """One for each stage, or round of it, of those named, as soon as it is measured."""
        for ours, theirs in self._works(stages):
            yield self._measure(ours, theirs)

    def _works(
        self, stages: Sequence[str]
    ) -> Iterator[tuple[Callable[[], StageWorkload], Callable[[], StageWorkload] | None]]:
        if "first" in stages:
            yield self._video("first frame", 1, ())
        if "keyframes" in stages:
            yield self._video("keyframes", 1, (0,))
        if "interpolate" in stages:
            for level in range(1, FRAME_COUNTS.index(self.frames) + 1):
                yield self._video(f"in-betweens {level}", 2**level, self.layout.given)
        if "superres" in stages:
            yield self._superres_work, None
        if "decode" in stages:
            yield self._decode_work, None

    def _video(
        self, name: str, videos: int, given: tuple[int, ...]
    ) -> tuple[Callable[[], StageWorkload], Callable[[], StageWorkload] | None]:
        """What makes our work, and the release's where it is to be compared."""
        theirs = partial(self._release, name, videos, given) if self.compare else None
        return partial(self._video_work, name, videos, given), theirs

    def _measure(self, make: Callable[[], StageWorkload], theirs: Callable[[], StageWorkload] | None) -> StageResult:
        device = self.place.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        work = make()
        seconds, cpu, measured = self._time(work)
        calls, syncs = count_calls(partial(work.step, work.steps // 2), device)
        peak = _peak(device)
        machine = self.machines[work.threads]
        line = StageResult(
            work.stage,
            work.rows,
            work.steps,
            measured,
            work.tokens,
            seconds,
            machine.floor(work.gigabytes, work.gigaflop),
            peak,
            calls,
            syncs,
            cpu,
        )
        if theirs is None:
            return line
        release, release_cpu, steps = self._time(theirs())
        return replace(line, release_seconds=release, release_cpu_seconds=release_cpu, release_measured_steps=steps)

    def _time(self, work: StageWorkload) -> tuple[float, float, int]:
        """Seconds of all steps, by the clock and of the process, timed or extrapolated, and how many were timed."""
        count = work.steps if self.most is None else min(work.steps, self.most)
        chosen = [(2 * i + 1) * work.steps // (2 * count) for i in range(count)]
        spent = cpu = 0.0
        with torch_threads(1 if work.alone else work.threads), _uncollected():
            for i in (chosen[0], chosen[count // 2]):  # with one frame under way, and with two
                work.seek(i)
                work.step(i)
            for piece in [[i] for i in chosen] if work.jumps else [chosen]:
                work.seek(piece[0])
                _wait(self.place.device)
                start, start_cpu = self.clock(), time.process_time()
                for i in piece:
                    work.step(i)
                _wait(self.place.device)
                spent, cpu = spent + self.clock() - start, cpu + time.process_time() - start_cpu
        return work.once + spent * work.steps / count, work.once_cpu + cpu * work.steps / count, count

    # -- stages 1 and 2 ------------------------------------------------------------------------------------------------

    def _video_work(self, name: str, videos: int, given: tuple[int, ...]) -> StageWorkload:
        """Frames that are not given, drawn by our decoder. `given` (): the first frame."""
        lm, guidance, both = self._network(given), self._guidance(given), bool(given)
        texts = [self._text(TEXT_TOKENS)] * videos + [self._text(8)] * (videos if guidance else 0)
        rows, size = len(texts), self.layout.tokens_per_frame
        frames = self._drawn(given)
        lag = self.layout.wavefront_lag if lm.stage == 2 else None
        steps = decoding.schedule(frames, size, lag)
        known = self._tokens(rows, len(given)) if given else None
        boost = 0.0 if guidance else self.options.text_attention_bias
        start, cpu = self.clock(), time.process_time()
        lanes = 1 if lag is None else len(frames)
        with torch_threads(1):
            cache = decoding.prefill(
                lm, texts, given, known, text_attention_bias=boost, use_temporal=both, parallel_frames=lanes
            )
            cache.mark_all_written()
            _wait(self.place.device)
        once, once_cpu = self.clock() - start, time.process_time() - cpu
        dice, held = self._dice(videos, given), self._tokens(videos, 1)[:, 0, 0]

        def step(number: int) -> None:
            places = steps[number]
            ids = torch.stack([held] * len(places), dim=1)
            logits = decoding.decode_one(lm, cache, ids, places, guidance)
            for i, (frame, slot) in enumerate(places):
                dice(logits[:, i], frame, slot)

        bytes_, flops = self._cost(lm, given, rows, steps)
        drawn, cores = videos * len(frames) * size, self.cores
        return StageWorkload(name, rows, len(steps), drawn, step, once, once_cpu, bytes_, flops, cores, alone=True)

    def _release(self, name: str, videos: int, given: tuple[int, ...]) -> StageWorkload:
        """The same frames by the release's structure."""
        lm, guided, size = self._network(given), given == (0,), self.layout.tokens_per_frame
        known = self._tokens(videos, len(given)) if given else None
        boost = 0.0 if guided else self.options.text_attention_bias
        start, cpu = self.clock(), time.process_time()
        with torch_threads(self.cores):
            runs = [
                ReleaseStructure(lm, self._text(length), videos, given, known, boost, use_temporal=bool(given))
                for length in ((TEXT_TOKENS, 8) if guided else (TEXT_TOKENS,))
            ]
        once, once_cpu = self.clock() - start, time.process_time() - cpu
        frames, held = self._drawn(given), self._tokens(videos, 1)[:, 0, 0]
        keys = noise_keys([0] * videos, StageKey.KEYFRAMES, range(videos), size).to(self.place.device)
        how = self.options.video if given else self.options.first_frame
        last = -1

        def seek(number: int) -> None:
            if number != last + 1:
                for run in runs:
                    run.select_slot(frames[number // size], number % size)

        def step(number: int) -> None:
            nonlocal last
            frame, slot = frames[number // size], number % size
            last = number
            scores = [run.step(held, frame, slot) for run in runs]
            logits = (
                scores[0] if len(scores) == 1 else scores[1] + self.options.guidance_scale * (scores[0] - scores[1])
            )
            sample(logits, self.sampler.labels, keys[slot], how)

        tokens = videos * len(frames) * size
        steps, cores = len(frames) * size, self.cores
        return StageWorkload(name, videos, steps, tokens, step, once, once_cpu, 0, 0, cores, seek=seek, jumps=True)

    def _guidance(self, given: tuple[int, ...]) -> GuidanceConfig | None:
        """With which the frames that are not given are drawn: keyframes but the first."""
        return GuidanceConfig(self.options.guidance_scale, self.options.video.plausibility) if given == (0,) else None

    def _network(self, given: tuple[int, ...]) -> VideoLM:
        return self.models.stage2 if len(given) > 1 else self.models.stage1

    def _drawn(self, given: tuple[int, ...]) -> list[int]:
        return [frame for frame in range(self.layout.frames) if frame not in given] if given else [0]

    def _dice(self, videos: int, given: tuple[int, ...]) -> TokenSampler:
        size = self.layout.tokens_per_frame
        keys = {f: noise_keys([0] * videos, StageKey.KEYFRAMES, [f] * videos, size) for f in self._drawn(given)}
        return TokenSampler(self.sampler, self.options.video if given else self.options.first_frame, keys)

    def _text(self, length: int) -> list[int]:
        spare = self.config.vocab_size - self.config.image_tokens
        return [self.config.image_tokens + i % spare for i in range(length)]

    def _tokens(self, rows: int, frames: int) -> Tensor:
        shape = (rows, frames, self.layout.tokens_per_frame)
        return torch.randint(self.config.image_tokens, shape, generator=torch.Generator().manual_seed(0)).to(
            self.place.device
        )

    def _cost(
        self, lm: VideoLM, given: tuple[int, ...], rows: int, steps: Sequence[Sequence[Slot]]
    ) -> tuple[float, float]:
        """Gigabytes and gigaflop of all steps: weights once a step, keys and values of what a slot sees."""
        config, both = self.config, bool(given)
        slots = sum(len(places) for places in steps)
        seen: float = slots * TEXT_TOKENS + sum(
            slot + 1 for places in steps for _, slot in places
        )  # in the spatial channel
        for parity in (0, 1) if both else ():
            shelf = self.layout.temporal_keys(lm.stage, parity, TEXT_TOKENS)
            stretches = {frame: shelf.key_ranges(frame) for frame in self._drawn(given)}
            seen += sum(s.end - s.start for places in steps for f, k in places for s in [stretches[f][k]]) / 2
        per_position = rows * config.layers * 2 * config.hidden
        weights = config.layers * config.hidden**2 * (16 if both else 12)
        head = config.image_tokens * config.hidden
        bytes_ = len(steps) * self.weight_bytes(both) + seen * per_position * self.place.dtype.itemsize
        guidance = self._guidance(given)  # it is linear: one row of the head for both, and one to say what is plausible
        samples = rows // 2 if guidance and not guidance.plausibility else rows
        flops = 2 * slots * (rows * weights + samples * head) + 2 * seen * per_position
        read = rows * (TEXT_TOKENS + len(given) * self.layout.tokens_per_frame)
        flops += 2 * read * weights * (config.layers - 1) / config.layers  # of the last layer keys and values alone
        return bytes_ / 1e9, flops / 1e9

    # -- super-resolution and pixels -----------------------------------------------------------------------------------

    def _superres_work(self) -> StageWorkload:
        """All frames of the video, some in each pass."""
        lm, config, passed = self.models.superres, self.config, min(FRAMES_PER_PASS, self.frames)
        clip, text = self._tokens(1, passed)[0], self._text(TEXT_TOKENS)
        fine = self.layout.fine_tokens
        how = self.options.superres

        def step(_: int) -> None:
            list(
                super_resolution.upscale(lm, clip, text, self.sampler, how, 0, super_resolution.UpscaleOptions(passed))
            )

        flops = self.frames * _superres_flops(lm, TEXT_TOKENS)
        steps = math.ceil(self.frames / passed)
        read = steps * (self.weight_bytes(both=True) + passed * fine * config.image_tokens * 4)
        return StageWorkload(
            "super-res.", passed, steps, self.frames * fine, step, 0.0, 0.0, read / 1e9, flops / 1e9, self.cores
        )

    def _decode_work(self) -> StageWorkload:
        """Tokens of the fine grid to pixels."""
        codec = _random_codec(ASSETS / self.preset.name, self.place)
        passed = min(FRAMES_PER_PASS, self.frames)
        grid = self.config.fine_grid
        codes = torch.randint(min(self.config.image_tokens, len(codec._embedding)), (passed, grid[0] * grid[1]))

        def step(_: int) -> None:
            codec.decode(codes, grid)

        with FlopCounterMode(display=False) as counted:
            codec.decode(codes[:1], grid)
        flops = counted.get_total_flops() * self.frames
        steps = math.ceil(self.frames / passed)
        pixels = self.frames * grid[0] * grid[1]
        return StageWorkload("pixels", passed, steps, pixels, step, 0.0, 0.0, 0.0, flops / 1e9, self.cores)


def _random_codec(folder: Path, place: DevicePlacement) -> codecs.ImageTokenizer:
    """The preset's codec without its weights."""
    config = folder / "codec.json"
    model: Any = codecs.build_vqvae(config, "meta") if config.is_file() else codecs._published_codec()
    codecs._keep_level(model)
    model.to(place.dtype).to_empty(device=place.device)
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.normal_(std=0.02)
    return codecs.ImageTokenizer(model)


def _superres_flops(lm: SuperResLM, text: int) -> float:
    """Of one frame."""
    config, fine = lm.config, lm.layout.fine_tokens
    coarse, h = lm.layout.tokens_per_frame, config.hidden
    keys = math.prod(config.fine_window) + math.prod(config.coarse_window)
    layer = 2 * 12 * h * h * (text + coarse + fine) + 4 * h * (fine * keys + coarse * (text + coarse) + text * text)
    return config.layers * layer + 2 * fine * config.image_tokens * h


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside the block Python looks for no garbage: a third of a second, which would count for few timed steps."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> float:
    """Mebibytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
