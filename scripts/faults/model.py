"""A model that misbehaves: memory that runs out at every stage, weights that are no numbers, a clock that jumps.

What is expected: the job ends with a sentence, what was drawn is kept, and the next job is drawn.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scripts.faults.report import Counts, Fault, expect
from scripts.faults.victim import KEY, MANY, ROOT

sys.path[:0] = [str(ROOT)]

PROMPT = "一只熊猫在草地上向右跑"


def final(jobs: Any, request: Any) -> Any:
    """The view of a new job once it has ended."""
    job = jobs.submit(request, KEY).id
    while (view := jobs.state(job)).active:
        time.sleep(0.005)
    return view


def out_of_memory(folder: Path, times: int) -> Counts:
    """Memory runs out while the networks are read, in each stage, in the codec and while a film is written."""
    import torch

    from cogvideo.inference import generation
    from cogvideo.jobs import artifacts
    from cogvideo.jobs.service import JobService
    from cogvideo.request import VideoRequest
    from cogvideo.tokenizers.image import ImageTokenizer
    from tests.support.fakes import PlainFilm
    from tests.support.toy_model import TOY, toy_pipeline

    counts, dice = Counts(), random.Random(5)
    errors: tuple[Callable[[], BaseException], ...] = (
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError,
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    )
    places = {
        "keyframes": (generation, "generate_keyframes"),
        "interpolation": (generation, "interpolate"),
        "super-resolution": (generation, "upscale"),
        "codec": (ImageTokenizer, "decode"),
        "film": (artifacts.JobArtifacts, "write_video"),
    }
    pipe = toy_pipeline(folder)
    request = VideoRequest(PROMPT, seed=7, num_frames=9)
    with closing(JobService(folder / "data", TOY, lambda: pipe, PlainFilm, MANY)) as jobs:
        jobs.start()
        for number in range(times):
            name, (owner, method) = list(places.items())[number % len(places)]
            error = MemoryError if name == "film" else errors[number // len(places) % len(errors)]
            at = 0 if method == "write_video" else dice.randrange(3)
            with patch.object(owner, method, _failing(getattr(owner, method), at, error)):
                view = final(jobs, request)
            words = view.error[1] if view.error else ""
            expect(view.status == "failed" and "ut of " in words and "emory" in words, f"{name}: {view.status} {words}")
            counts[f"in {name}"] += 1
        after = final(jobs, request)
        expect(after.status == "done", f"after running out of memory: {after.status}, {after.error}")
    return counts


def _failing(original: Callable[..., Any], at: int, error: Callable[[], BaseException]) -> Callable[..., Any]:
    """`original`, which raises at its step (a generator's) or call number `at`, and never again."""
    left = [at]

    def count() -> None:
        left[0] -= 1
        if left[0] == -1:
            raise error()

    def call(*values: Any, **named: Any) -> Any:
        result = original(*values, **named)
        if not hasattr(result, "__next__"):
            count()
            return result
        return steps(result)

    def steps(result: Iterator[Any]) -> Iterator[Any]:
        for step in result:
            count()
            yield step

    return call


def no_numbers(folder: Path, times: int) -> Counts:
    """One tensor of one network becomes NaN or infinite."""
    import torch

    from cogvideo.jobs.service import JobService
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.request import VideoRequest
    from cogvideo.runtime.device import DevicePlacement
    from tests.support.fakes import PlainFilm
    from tests.support.toy_model import TOY, toy_models, write_toy

    counts, dice = Counts(), random.Random(6)
    write_toy(folder)
    models = toy_models()
    pipe = CogVideoPipeline(TOY, DevicePlacement(torch.device("cpu"), torch.float32), folder, lambda *_: models)
    request = VideoRequest(PROMPT, seed=7, num_frames=9)
    with closing(JobService(folder / "data", TOY, lambda: pipe, PlainFilm, MANY)) as jobs:
        jobs.start()
        for number in range(times):
            network = models[number % 3]
            parameter = dice.choice(list(network.parameters()))
            sound = parameter.data.clone()
            parameter.data.fill_(float("nan") if number % 2 else float("inf"))
            view = final(jobs, request)
            parameter.data.copy_(sound)
            said = view.status == "failed" and view.error is not None and "NaN or infinity" in view.error[1]
            expect(said or view.status == "done", f"{view.status}, {view.error}")
            counts["said" if said else "without effect"] += 1
        expect(final(jobs, request).status == "done", "after weights that are no numbers")
    expect(counts["said"], "no weight that is no number was noticed")
    return counts


def clock_jumps(folder: Path, times: int) -> Counts:
    """The clock on the wall is set to any year before each video; order, clips and log stay as they are."""
    from cogvideo.jobs import service as module
    from cogvideo.request import VideoRequest
    from tests.support.fakes import PRESET, FakePipeline, PlainFilm

    dice, real, jump = random.Random(7), time.time, [0.0]
    asked: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(module.time, "time", lambda: real() + jump[0]))
        jobs = stack.enter_context(
            closing(module.JobService(folder, PRESET, lambda: FakePipeline(free=True), PlainFilm, MANY))
        )
        jobs.start()
        for seed in range(times):
            jump[0] = dice.uniform(-20, 20) * 365 * 86400
            view = final(jobs, VideoRequest("熊猫", seed=seed, num_frames=5, superres=False))
            expect(view.status == "done", f"{view.status} after the clock was set")
            asked.append(view.id)
        mine = [view.id for view in jobs.history(KEY, limit=times + 1)]
        expect(mine == asked[::-1], f"{len(mine)} of {times} clips are there, or their order is another")
    return Counts(jumps=times, kept=len(mine))


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block the failures that were asked for are not logged."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _quietly(run: Callable[[Path, int], Counts]) -> Callable[[Path, int], Counts]:
    def quietly(folder: Path, times: int) -> Counts:
        with quiet():
            return run(folder, times)

    return quietly


FAULTS = (
    Fault(
        "out of memory",
        "a sentence with a remedy; the next video is drawn",
        "一句话和办法，下一段照画",
        _quietly(out_of_memory),
        small=5,
        full=25,
    ),
    Fault(
        "weights that are no numbers",
        "a sentence, unless unused; the next is drawn",
        "一句话，未用到的除外；下一段照画",
        _quietly(no_numbers),
        small=3,
        full=100,
    ),
    Fault(
        "clock jumps", "no clip lost, the order kept", "不丢视频，顺序不变", _quietly(clock_jumps), small=10, full=500
    ),
)
