"""Benchmark of the stages of a video with random weights, compared with the limits of the hardware.

The floor of a step is the longer of two times: reading its weights, keys and values once at the measured bandwidth, and
its arithmetic at the measured rate. Both limits are measured with as many threads as the stage uses.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from cogvideo.benchmarks.hardware import measure_machine
from cogvideo.benchmarks.release_baseline import ReleaseStructure, sample
from cogvideo.benchmarks.results import StageResult
from cogvideo.benchmarks.stage_workloads import (
    CLUSTERS,
    TEXT_TOKENS,
    StageWorkload,
    decode_workload,
    prompt_tokens,
    random_tokens,
    superres_workload,
)
from cogvideo.config import FRAME_COUNTS, ModelConfig, Preset, SamplingOptions
from cogvideo.inference import decoding
from cogvideo.inference.sampling import ClusterSampler, StageKey, TokenSampler, noise_keys
from cogvideo.models.base import GuidanceConfig, cache_fp32_heads
from cogvideo.models.fused_decode import should_fuse
from cogvideo.models.kv_cache import TokenSlot as Slot
from cogvideo.models.loader import RandomModels, random_models
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime.device import DevicePlacement, torch_threads, usable_cores
from cogvideo.token_layout import TokenLayout
from kernels import cpu_decode
from kernels.cpu_decode import Precision

STAGES: Final = ("first", "keyframes", "interpolate", "superres", "decode")


class _Calls(TorchDispatchMode):
    """Counter of operator calls, and of those that return a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.syncs += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def count_calls(step: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Return (operator calls, synchronizations) of `step`; on a GPU, kernel launches instead of calls."""
    with _Calls() as counted:
        step()
    if device.type != "cuda":
        return counted.calls, counted.syncs
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize(device)
    launches = sum(event.device_type is DeviceType.CUDA for event in profile.events())
    return launches, counted.syncs


class StageBenchmark:
    """Benchmark of the stages of one video of `frames` frames, with random weights of a preset's sizes."""

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
        """What computes a step: C or PyTorch, and in which precision."""
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
        """Return the bytes of weights that one step must read. fp32 kernels store fp16 weights."""
        h, size = self.config.hidden, {"fp32": 2, "bf16": 2, "int8": 1}[self.precision]
        if not should_fuse(self.config, self.place.device) or cpu_decode.unsupported_reason(self._like) is not None:
            size = self.place.dtype.itemsize
        return (self.config.layers * h * h * (16 if both else 12) + self.config.image_tokens * h) * size

    def lines(self, stages: Sequence[str]) -> Iterator[StageResult]:
        """Yield a result for each named stage, or each round of it, as soon as it is measured."""
        for ours, release_factory in self._works(stages):
            yield self._measure(ours, release_factory)

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
        """Return factories of our workload, and of the release's if they are compared."""
        release_factory = partial(self._release, name, videos, given) if self.compare else None
        return partial(self._video_work, name, videos, given), release_factory

    def _measure(
        self, make: Callable[[], StageWorkload], release_factory: Callable[[], StageWorkload] | None
    ) -> StageResult:
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
        if release_factory is None:
            return line
        release, release_cpu, steps = self._time(release_factory())
        return replace(line, release_seconds=release, release_cpu_seconds=release_cpu, release_measured_steps=steps)

    def _time(self, work: StageWorkload) -> tuple[float, float, int]:
        """Return (seconds, CPU seconds, timed steps) of a workload; times are extrapolated to all steps."""
        count = work.steps if self.most is None else min(work.steps, self.most)
        chosen = [(2 * i + 1) * work.steps // (2 * count) for i in range(count)]
        spent = cpu = 0.0
        with torch_threads(1 if work.alone else work.threads), _gc_disabled():
            for i in (chosen[0], chosen[count // 2]):  # warm-up with one frame in progress, and with two
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
        """Return the workload of our decoder for frames that are not given. `given` (): the first frame."""
        lm, guidance, both = self._network(given), self._guidance(given), bool(given)
        texts = [prompt_tokens(self.config, TEXT_TOKENS)] * videos + [prompt_tokens(self.config, 8)] * (
            videos if guidance else 0
        )
        rows, size = len(texts), self.layout.tokens_per_frame
        frames = self._drawn(given)
        lag = self.layout.wavefront_lag if lm.stage == 2 else None
        steps = decoding.schedule(frames, size, lag)
        known = random_tokens(self.layout, self.place.device, rows, len(given)) if given else None
        bias = 0.0 if guidance else self.options.text_attention_bias
        start, cpu = self.clock(), time.process_time()
        parallel_frames = 1 if lag is None else len(frames)
        with torch_threads(1):
            cache = decoding.prefill(
                lm, texts, given, known, text_attention_bias=bias, use_temporal=both, parallel_frames=parallel_frames
            )
            cache.mark_all_written()
            _wait(self.place.device)
        once, once_cpu = self.clock() - start, time.process_time() - cpu
        token_sampler, held = (
            self._token_sampler(videos, given),
            random_tokens(self.layout, self.place.device, videos, 1)[:, 0, 0],
        )

        def step(number: int) -> None:
            places = steps[number]
            ids = torch.stack([held] * len(places), dim=1)
            logits = decoding.decode_one(lm, cache, ids, places, guidance)
            for i, (frame, slot) in enumerate(places):
                token_sampler(logits[:, i], frame, slot)

        bytes_, flops = self._cost(lm, given, rows, steps)
        drawn, cores = videos * len(frames) * size, self.cores
        return StageWorkload(name, rows, len(steps), drawn, step, once, once_cpu, bytes_, flops, cores, alone=True)

    def _release(self, name: str, videos: int, given: tuple[int, ...]) -> StageWorkload:
        """Return the same workload by the 2022 release's algorithm."""
        lm, guided, size = self._network(given), given == (0,), self.layout.tokens_per_frame
        known = random_tokens(self.layout, self.place.device, videos, len(given)) if given else None
        bias = 0.0 if guided else self.options.text_attention_bias
        start, cpu = self.clock(), time.process_time()
        with torch_threads(self.cores):
            runs = [
                ReleaseStructure(
                    lm, prompt_tokens(self.config, length), videos, given, known, bias, use_temporal=bool(given)
                )
                for length in ((TEXT_TOKENS, 8) if guided else (TEXT_TOKENS,))
            ]
        once, once_cpu = self.clock() - start, time.process_time() - cpu
        frames, held = self._drawn(given), random_tokens(self.layout, self.place.device, videos, 1)[:, 0, 0]
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
        """Return the guidance: for keyframes except the first."""
        return GuidanceConfig(self.options.guidance_scale, self.options.video.plausibility) if given == (0,) else None

    def _network(self, given: tuple[int, ...]) -> VideoLM:
        return self.models.stage2 if len(given) > 1 else self.models.stage1

    def _drawn(self, given: tuple[int, ...]) -> list[int]:
        return [frame for frame in range(self.layout.frames) if frame not in given] if given else [0]

    def _token_sampler(self, videos: int, given: tuple[int, ...]) -> TokenSampler:
        size = self.layout.tokens_per_frame
        keys = {f: noise_keys([0] * videos, StageKey.KEYFRAMES, [f] * videos, size) for f in self._drawn(given)}
        return TokenSampler(self.sampler, self.options.video if given else self.options.first_frame, keys)

    def _cost(
        self, lm: VideoLM, given: tuple[int, ...], rows: int, steps: Sequence[Sequence[Slot]]
    ) -> tuple[float, float]:
        """Return gigabytes and gigaflop of all steps: weights once a step, and the keys and values of each slot."""
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
        guidance = self._guidance(given)  # linear: one row of the head for both sequences, and one for plausibility
        samples = rows // 2 if guidance and not guidance.plausibility else rows
        flops = 2 * slots * (rows * weights + samples * head) + 2 * seen * per_position
        read = rows * (TEXT_TOKENS + len(given) * self.layout.tokens_per_frame)
        flops += (
            2 * read * weights * (config.layers - 1) / config.layers
        )  # the last layer computes keys and values only
        return bytes_ / 1e9, flops / 1e9

    def _superres_work(self) -> StageWorkload:
        lm, how = self.models.superres, self.options.superres
        return superres_workload(lm, self.sampler, how, self.frames, self.weight_bytes(both=True), self.cores)

    def _decode_work(self) -> StageWorkload:
        return decode_workload(self.preset, self.place, self.frames, self.cores)


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable garbage collection inside the block: it takes a third of a second, much for a few timed steps."""
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
    """Return the peak memory in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
