"""Memory that ends at any stage: the server says so, frees everything, offers less, and draws the next video.

The real pipeline at toy size behind a real queue; what runs out is a function of each stage.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.errors import OutOfMemoryError
from cogvideo.jobs.follow_ups import FollowUp, submit_follow_up
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.media.video import VideoWriter
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from tests.jobs.test_service import KEY
from tests.support.toy_model import TOY, ToyModels, toy_models, write_toy

REQUEST = VideoRequest("小猫", seed=3, num_frames=9, duration=2.0)

STAGES = {
    "reading files": "toy.read",
    "loading": "cogvideo.pipeline.place_models",
    "codec": "cogvideo.tokenizers.image.ImageTokenizer.load",
    "first frame": "cogvideo.inference.keyframes.decoding.first_frame",
    "preview": "cogvideo.tokenizers.image.ImageTokenizer.decode_partial",
    "keyframes": "cogvideo.inference.keyframes.decoding.keyframes",
    "interpolation": "cogvideo.inference.interpolation.decoding.interpolate",
    "super-resolution": "cogvideo.models.superres_lm.SuperResLM.layer",
    "scores": "cogvideo.models.superres_lm.SuperResLM.logits",
    "decoding": "cogvideo.tokenizers.image.ImageTokenizer.decode",
}


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class Server:
    """A queue whose model reports which networks are still held."""

    def __init__(self, folder: Path) -> None:
        write_toy(folder)
        self.folder = folder
        self.networks: list[weakref.ref[torch.nn.Module]] = []
        self.asked: list[str | None] = []
        self.read_fails = False
        offer = ModelEntry(TOY, self.make, lambda: None)
        self.jobs = JobService(folder / "data", TOY, lambda: self.make(None), VideoWriter, Limits(), [offer])

    def make(self, memory: str | None) -> CogVideoPipeline:
        self.asked.append(memory)
        place = DevicePlacement(torch.device("cpu"), torch.float32, MEMORY_PRESETS[memory or "cpu"])
        return CogVideoPipeline(TOY, place, self.folder, self.read)

    def read(self, *_: object) -> ToyModels:
        if self.read_fails:
            full()
        models = toy_models()
        self.networks.extend(weakref.ref(network) for network in models)
        return models

    def held(self) -> int:
        gc.collect()
        return sum(network() is not None for network in self.networks)


def ended(jobs: JobService, job: str) -> JobState:
    """The job's last view."""

    async def wait() -> JobState:
        return [view async for view in jobs.follow(job, poll_seconds=0.01)][-1]

    return asyncio.run(wait())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.jobs.start()
    yield running
    running.jobs.close()


@pytest.mark.parametrize("stage", STAGES)
def test_the_server_lives_and_offers_the_same_seed_with_less(
    server: Server, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = server.jobs
    with monkeypatch.context() as broken:
        if stage == "reading files":
            server.read_fails = True
        else:
            broken.setattr(STAGES[stage], full)
        view = ended(jobs, jobs.submit(REQUEST, KEY).id)
        server.read_fails = False
    assert view.status == "failed" and view.error is not None
    assert view.next_preset in MEMORY_PRESETS
    for sentence in view.error:
        assert f"--memory {view.next_preset}" in sentence
    assert server.held() == 0
    (again,) = submit_follow_up(jobs, view.id, FollowUp.SMALLER_MEMORY, KEY)
    view = ended(jobs, again.id)
    assert (view.status, view.memory, view.request) == ("done", again.memory, REQUEST)


def test_what_only_looks_at_a_picture_frees_everything_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path)
    networks: list[weakref.ref[torch.nn.Module]] = []

    def read(*_: object) -> ToyModels:
        models = toy_models()
        networks.extend(weakref.ref(network) for network in models)
        return models

    pipe = CogVideoPipeline(TOY, DevicePlacement(torch.device("cpu"), torch.float32), tmp_path, read)
    picture = np.zeros((32, 32, 3), np.uint8)
    tokens = pipe.encode(picture)
    for name, look in (("encode", lambda: pipe.encode(picture)), ("decode", lambda: pipe.decode(tokens))):
        pipe.load()
        with monkeypatch.context() as broken:
            broken.setattr(f"cogvideo.tokenizers.image.ImageTokenizer.{name}", full)
            with pytest.raises(OutOfMemoryError, match="the same seed"):
                look()
        gc.collect()
        assert not any(network() for network in networks)
    assert pipe.decode(tokens).shape == (1, 32, 32, 3)
