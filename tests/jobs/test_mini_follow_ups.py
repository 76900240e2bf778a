"""The model that ships goes on from its own clips and from a picture, as jobs of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from cogvideo.config import PRESETS
from cogvideo.inference import interpolation
from cogvideo.inference import keyframes as stage1
from cogvideo.inference.sampling import noise_keys
from cogvideo.jobs.follow_ups import FollowUp, keyframe_tokens, submit_follow_up
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.token_frames import last_frame
from tests.support.fakes import PlainFilm

KEY = "k" * 20
MINI = PRESETS["mini"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobService]:
    def make() -> CogVideoPipeline:
        return CogVideoPipeline.from_pretrained("mini", device="cpu")

    jobs = JobService(tmp_path_factory.mktemp("data"), MINI, make, PlainFilm)
    jobs.start()
    yield jobs
    jobs.close()


def drawn(jobs: JobService, view: JobState) -> JobState:
    async def wait() -> JobState:
        return [seen async for seen in jobs.follow(view.id)][-1]

    last = asyncio.run(wait())
    assert last.status == "done", last.error
    return last


def test_drafts_of_mini_are_finished_continued_and_changed(jobs: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is left to chance: here frames that are kept, and seeds that reach the noise, are looked at."""
    seeds: dict[str, set[int]] = {}

    def listen_to(stage: ModuleType, name: str) -> None:
        def listen(wanted: Sequence[int], *key: Any) -> Tensor:
            seeds.setdefault(name, set()).update(wanted)
            return noise_keys(wanted, *key)

        monkeypatch.setattr(stage, "noise_keys", listen)

    listen_to(stage1, "keyframes")
    listen_to(interpolation, "between")

    draft = drawn(jobs, jobs.submit(VideoRequest("一只蝴蝶在旋转", 7, 33, superres=False, num_drafts=2), KEY))
    assert seeds == {"keyframes": {7, 8}}
    first, second = (jobs.tokens(draft.id, number) for number in (0, 1))
    assert first and second and first.num_frames == second.num_frames == 5
    (made,) = submit_follow_up(jobs, draft.id, FollowUp.FINISH_DRAFTS, KEY, [1])
    assert (made.request.seed, made.request.initial_tokens) == (8, second)
    film = drawn(jobs, made)
    tokens = jobs.tokens(film.id)
    assert tokens and tokens.num_frames == 33 and keyframe_tokens(tokens) == second
    assert seeds == {"keyframes": {7, 8}, "between": {8}}  # no keyframe was drawn again
    seeds.clear()
    (other,) = submit_follow_up(jobs, film.id, FollowUp.RESAMPLE_INTERPOLATION, KEY)
    between = other.request.interpolation_seed
    assert between is not None and (other.request.seed, other.request.initial_tokens) == (8, second)
    changed = jobs.tokens(drawn(jobs, other).id)
    assert changed and changed.num_frames == 33 and keyframe_tokens(changed) == second
    assert seeds == {"between": {between}}
    wish = VideoRequest("一只熊猫在草地上跳", 3, 5, superres=False, first_frame=last_frame(tokens))
    after = jobs.tokens(drawn(jobs, jobs.submit(wish, KEY)).id)
    assert after and after.rows()[0] == tokens.rows()[-1]


def test_mini_reconstructs_image_within_tolerance(jobs: JobService) -> None:
    height, width = MINI.frame_size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2] = (150, 200, 240)  # sky
    picture[height // 2 :] = (110, 180, 80)  # grass
    seen = jobs.models.decode(jobs.models.encode(picture))[0]
    assert seen.shape == picture.shape
    assert np.abs(seen.astype(int) - picture).mean() < 40
