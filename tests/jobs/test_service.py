from __future__ import annotations

import asyncio
import gc
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cogvideo.config import SamplingOptions, TokenSampling
from cogvideo.errors import CapacityError, RequestError, WeightsError
from cogvideo.jobs.eta import ThroughputEstimator
from cogvideo.jobs.model_registry import Pipeline
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService, new_key
from cogvideo.jobs.state import JobState
from cogvideo.media.metadata import read_metadata
from cogvideo.request import VideoRequest, request_from_dict, request_to_dict, tokens_per_stage
from tests.support.fakes import PRESET, FakePipeline, PlainFilm, killed, moving_square

KEY, OTHER = "k" * 20, "o" * 20
PATIENCE = 120.0
"""Seconds after which a test gives up: a busy machine is no failure."""
REQUEST = VideoRequest("一只熊猫在草地上向右跑", seed=7, num_frames=9, superres=False)


def _open(
    data: Path, fake: Pipeline, limits: Limits | None = None, factory: Callable[[], Pipeline] | None = None
) -> JobService:
    return JobService(data, PRESET, factory or (lambda: fake), PlainFilm, limits or Limits(preview_seconds=0))


def until(jobs: JobService, job: str, true: Callable[[JobState], bool]) -> JobState:
    """The first view of the job for which `true` holds."""

    async def wait() -> JobState:
        while True:
            async for view in jobs.follow(job, poll_seconds=0.002):
                if true(view):
                    return view
            raise AssertionError(f"it never came: {view}")

    return asyncio.run(asyncio.wait_for(wait(), timeout=PATIENCE))


def finished(view: JobState) -> bool:
    return not view.active


def kinds(jobs: JobService, job: str) -> list[str]:
    return [logged.entry.kind for logged in jobs.log(job)]


def test_state_follows_keyframes_and_rounds(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    for count in range(1, 6):
        fake.step()
        painted = until(jobs, job, lambda view: view.preview is not None)
        assert painted.preview is not None and painted.preview.index == count - 1
        assert painted.preview.images[0].startswith("data:image/webp;base64,")
        fake.step()
        view = until(jobs, job, lambda view, count=count: len(view.keyframes) == count)
        assert view.tokens_done == count * 64
    view = until(jobs, job, lambda view: view.round == 0)
    assert (view.video, view.num_frames, view.stage) == ("level-0.mp4", 5, "keyframes")
    fake.step()
    view = until(jobs, job, finished)
    assert (view.status, view.video, view.num_frames, view.tokens_done, view.tokens_total) == (
        "done",
        "final.mp4",
        9,
        9 * 64,
        9 * 64,
    )
    assert kinds(jobs, job) == ["queued", "running", *["keyframe"] * 5, "level", "level", "done"]
    names = {path.name for path in (jobs.results / job).iterdir()}
    assert {"key-0.webp", "key-4.webp", "level-0.mp4", "final.mp4", "final-strip.webp", "final-poster.webp"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_finished_state_is_restored_from_log(jobs: JobService, fake: FakePipeline, tmp_path: Path) -> None:
    fake.open()
    sampling = SamplingOptions(guidance_scale=5.0, video=TokenSampling(0.9, 3, 0.5))
    job = jobs.submit(VideoRequest("熊貓", 3, 5, 2.0, True, sampling), KEY, embed_settings=False).id
    before = until(jobs, job, finished)
    jobs.close()
    again = _open(tmp_path, fake)
    after = again.state(job)
    again.close()
    assert after.request == before.request and after.request.sampling == sampling
    assert "熊猫" in after.request.prompt and "converted" in after.notes[0][1] and not after.embed_settings
    assert (after.status, after.video, after.keyframes) == ("done", "final.mp4", before.keyframes)


def test_settings_are_embedded_unless_user_opts_out(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    open_job, closed_job = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY, embed_settings=False).id
    until(jobs, open_job, finished)
    until(jobs, closed_job, finished)
    assert "熊猫" in (jobs.results / open_job / "final.mp4").read_text()
    assert "熊猫" not in (jobs.results / closed_job / "final.mp4").read_text()


def test_jobs_run_one_at_a_time_and_owners_alternate(jobs: JobService, fake: FakePipeline) -> None:
    first = jobs.submit(VideoRequest("一", seed=1, num_frames=5), KEY)
    until(jobs, first.id, lambda view: view.status == "running")
    rest = [
        jobs.submit(VideoRequest("一", seed=2, num_frames=5), KEY),
        jobs.submit(VideoRequest("一", seed=3, num_frames=5), KEY),
        jobs.submit(VideoRequest("二", seed=4, num_frames=5), OTHER),
    ]
    assert [jobs.state(job.id).queue_position for job in rest] == [2, 3, 1]
    fake.open()
    for job in rest:
        until(jobs, job.id, finished)
    assert [request.seed for request in fake.started] == [1, 4, 2, 3]
    assert fake.most_busy == 1


def test_stop_ends_job_at_next_token_and_keeps_keyframes(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    fake.step(4)
    until(jobs, job, lambda view: len(view.keyframes) == 2)
    jobs.stop(job, KEY)
    view = until(jobs, job, finished)
    assert (view.status, view.video, view.num_frames, view.error) == ("stopped", "kept.mp4", 2, None)
    following = jobs.submit(REQUEST, KEY).id
    until(jobs, following, lambda view: view.status == "running")
    assert fake.most_busy == 1


def test_stop_after_round_completes_the_round(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    fake.step(2)
    until(jobs, job, lambda view: len(view.keyframes) == 1)
    jobs.stop(job, KEY, after_round=True)
    assert jobs.state(job).stopping == "level"
    fake.open()
    view = until(jobs, job, finished)
    assert (view.status, view.round, view.num_frames, view.video) == ("stopped", 0, 5, "kept.mp4")


def test_queued_job_stops_without_starting(jobs: JobService, fake: FakePipeline) -> None:
    running = jobs.submit(REQUEST, KEY).id
    waiting = jobs.submit(VideoRequest("二", seed=99), KEY).id
    jobs.stop(waiting, KEY)
    assert jobs.state(waiting).status == "stopped"
    fake.open()
    until(jobs, running, finished)
    assert [request.seed for request in fake.started] == [7]


def test_stop_and_delete_refuse_other_keys(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    for act in (jobs.stop, jobs.delete):
        with pytest.raises(RequestError, match="Only the user"):
            act(job, OTHER)
        with pytest.raises(RequestError):
            act(job, "")
        with pytest.raises(RequestError):
            act(job, job)
    assert jobs.state(job).active and jobs.is_owner(job, KEY) and not jobs.is_owner(job, OTHER)
    fake.open()
    until(jobs, job, finished)
    jobs.delete(job, KEY)
    assert not (jobs.results / job).exists()
    with pytest.raises(RequestError, match="no such video"):
        jobs.state(job)


def test_delete_refuses_running_job(jobs: JobService) -> None:
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, lambda view: view.status == "running")
    with pytest.raises(RequestError, match="Stop it first"):
        jobs.delete(job, KEY)


def test_ids_are_random_and_keys_are_stored_hashed(jobs: JobService, tmp_path: Path) -> None:
    first, second = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id
    assert first[:8] != second[:8] and len(first) >= 22  # 48 bits each: by chance the same once in 1e14 times
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite*"))
    assert first.encode() in kept and KEY.encode() not in kept


def test_history_lists_own_jobs_newest_first(jobs: JobService) -> None:
    mine = [jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id]
    jobs.submit(REQUEST, OTHER)
    assert [view.id for view in jobs.history(KEY)] == mine[::-1]
    assert jobs.history(new_key()) == []


def test_submit_over_owner_or_queue_limit_stores_nothing(tmp_path: Path, fake: FakePipeline) -> None:
    jobs = _open(tmp_path, fake, Limits(waiting=4, per_owner=3))  # no worker: all of them wait
    for _ in range(3):
        jobs.submit(REQUEST, KEY)
    with pytest.raises(CapacityError, match="You have 3 videos"):
        jobs.submit(REQUEST, KEY)
    jobs.submit(REQUEST, OTHER)
    with pytest.raises(CapacityError, match="queue is full"):
        jobs.submit(REQUEST, new_key())
    with pytest.raises(RequestError, match="empty"):
        jobs.submit(VideoRequest("  "), new_key())
    assert jobs.queue_length() == 4
    jobs.close()


def test_restart_runs_queued_jobs_and_interrupts_running_one(tmp_path: Path) -> None:
    hung = FakePipeline()
    jobs = _open(tmp_path, hung)
    jobs.start()
    running = jobs.submit(REQUEST, KEY).id
    hung.step(10)
    until(jobs, running, lambda view: view.round == 0)
    waiting = [jobs.submit(VideoRequest("二", seed=seed, num_frames=5), KEY).id for seed in (1, 2)]
    jobs.close()

    fresh = FakePipeline(free=True)
    jobs = _open(tmp_path, fresh)
    view = jobs.state(running)
    assert (view.status, view.round, view.num_frames) == ("interrupted", 0, 5) and view.video
    jobs.start()
    for job in waiting:
        assert until(jobs, job, finished).status == "done"
    repeated = jobs.resubmit(running, KEY)
    assert until(jobs, repeated.id, finished).status == "done"
    assert [request.seed for request in fresh.started] == [1, 2, 7]
    jobs.close()


def test_running_job_of_killed_server_is_interrupted_at_next_start(tmp_path: Path) -> None:
    hung = FakePipeline()
    jobs = _open(tmp_path, hung)
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    hung.step(10)
    until(jobs, job, lambda view: view.round == 0)
    with killed(jobs):
        following = _open(tmp_path, FakePipeline())
    view = following.state(job)
    assert (view.status, view.video, kinds(following, job)[-1]) == ("interrupted", "level-0.mp4", "interrupted")
    following.close()


def test_data_folder_refuses_second_server(jobs: JobService, tmp_path: Path, fake: FakePipeline) -> None:
    with pytest.raises(CapacityError, match="Another server uses"):
        _open(tmp_path, fake)


def test_job_error_is_shown_and_next_job_runs(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    fake.fail = WeightsError("缺少权重。", "Weights are missing.")
    view = until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert (view.status, view.error) == ("failed", ("缺少权重。", "Weights are missing."))
    fake.fail = ZeroDivisionError("secret detail")
    view = until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert view.status == "failed" and view.error and "ZeroDivisionError" in view.error[1]
    assert "secret detail" not in view.error[0] + view.error[1]
    fake.fail = None
    assert until(jobs, jobs.submit(REQUEST, KEY).id, finished).status == "done"


def test_submit_raises_error_of_pipeline_factory_and_server_continues(tmp_path: Path) -> None:
    broken = [True]

    def make() -> Pipeline:
        if broken:
            raise WeightsError("缺少权重。", "Weights are missing.")
        return FakePipeline(free=True)

    jobs = _open(tmp_path, FakePipeline(), factory=make)
    jobs.start(preload=True)
    with pytest.raises(WeightsError):
        jobs.submit(REQUEST, KEY)
    assert jobs.history(KEY) == []
    broken.clear()
    assert until(jobs, jobs.submit(REQUEST, KEY).id, finished).status == "done"
    jobs.close()


def test_pipeline_is_created_once_on_first_use(tmp_path: Path) -> None:
    made: list[FakePipeline] = []

    def make() -> Pipeline:
        made.append(FakePipeline(free=True))
        return made[-1]

    jobs = _open(tmp_path, FakePipeline(), factory=make)
    assert made == []
    jobs.start()
    for _ in range(2):
        until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert len(made) == 1 and made[0].loaded == 0
    jobs.close()


def test_preload_loads_weights_before_first_job(tmp_path: Path, fake: FakePipeline) -> None:
    fake.open()
    jobs = _open(tmp_path, fake)
    jobs.start(preload=True)
    until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert fake.loaded == 1
    assert gc.get_freeze_count() > 0  # nobody waits while it is looked through for garbage
    gc.unfreeze()
    jobs.close()


def test_oldest_videos_are_deleted_over_size_limit(tmp_path: Path) -> None:
    jobs = _open(tmp_path, FakePipeline(free=True), Limits(keep_bytes=1))
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    deadline = time.monotonic() + PATIENCE
    while jobs.history(KEY) or (jobs.results / job).exists():
        assert time.monotonic() < deadline
    jobs.close()


def test_start_deletes_expired_videos_and_unknown_folders(tmp_path: Path) -> None:
    jobs = _open(tmp_path, FakePipeline(free=True))
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, finished)
    (jobs.results / "stray").mkdir()
    jobs.close()
    jobs = _open(tmp_path, FakePipeline(), Limits(keep_seconds=-1))
    assert list(jobs.results.iterdir()) == [] and jobs.history(KEY) == []
    jobs.close()


def test_queued_job_without_viewer_is_stopped(tmp_path: Path, fake: FakePipeline) -> None:
    jobs = _open(tmp_path, fake, Limits(abandoned_seconds=0.0))
    job = jobs.submit(REQUEST, KEY).id
    jobs.start()
    deadline = time.monotonic() + PATIENCE
    while jobs._store.job(job).status != "stopped":  # type: ignore[union-attr]
        assert time.monotonic() < deadline
    view = jobs.state(job)
    assert view.error and "left the queue" in view.error[1] and fake.started == []
    jobs.close()


def test_file_accepts_only_exact_names(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, finished)
    assert jobs.file(job, "final.mp4") is not None
    for folder, name in ((job, "../../jobs.sqlite"), (job, ""), ("..", "jobs.sqlite"), ("", job), (job, ".")):
        assert jobs.file(folder, name) is None


def test_gif_and_zip_are_generated_on_request(tmp_path: Path) -> None:
    jobs = JobService(tmp_path, PRESET, lambda: FakePipeline(free=True))
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    assert jobs.file(job, "clip.gif") is None
    until(jobs, job, finished)
    gif, archive = jobs.file(job, "clip.gif"), jobs.file(job, "frames.zip")
    assert gif and archive and jobs.file(job, "clip.gif") == gif
    with Image.open(gif) as picture:
        assert (picture.n_frames, picture.size) == (9, (64, 64))  # type: ignore[attr-defined]
    assert (read_metadata(gif) or {})["seed"] == 7
    with zipfile.ZipFile(archive) as pictures:
        assert len(pictures.namelist()) == 9
        with Image.open(pictures.open("frame-09.png")) as last:
            assert np.array_equal(np.asarray(last), moving_square(33, 7)[-1])
    jobs.close()


def test_fifty_followers_see_final_state_without_threads(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    threads = set(threading.enumerate())

    async def one() -> list[JobState]:
        return [view async for view in jobs.follow(job, poll_seconds=0.002)]

    async def all_of_them() -> list[list[JobState]]:
        tails = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.sleep(0)
        assert set(threading.enumerate()) <= threads
        fake.open()
        return await asyncio.wait_for(asyncio.gather(*tails), timeout=PATIENCE)

    for views in asyncio.run(all_of_them()):
        assert views[-1].status == "done"
        assert [view.tokens_done for view in views] == sorted(view.tokens_done for view in views)


def test_throughput_of_finished_job_gives_next_estimate(jobs: JobService, fake: FakePipeline) -> None:
    assert jobs.models.estimate(REQUEST) is None
    fake.open()
    until(jobs, jobs.submit(VideoRequest("一", num_frames=33), KEY).id, finished)
    second = jobs.submit(REQUEST, KEY).id
    until(jobs, second, finished)
    estimate = jobs.models.estimate(REQUEST)
    assert estimate is not None and 0 < estimate < 60


def test_seconds_left_sums_stages() -> None:
    plan = tokens_per_stage(PRESET.model, VideoRequest("一", num_frames=9, superres=True))
    assert plan == {"keyframes": 5 * 64, "interpolate": 4 * 64, "superres": 9 * 576}
    pace = ThroughputEstimator({"keyframes": 64.0, "interpolate": 32.0, "superres": 576.0})
    assert pace.seconds_left(plan, 0) == pytest.approx(5 + 8 + 9)
    assert pace.seconds_left(plan, 5 * 64 + 32) == pytest.approx(7 + 9)
    assert pace.seconds_left(plan, sum(plan.values())) == 0
    pace.advance("keyframes", 0, 10.0)
    pace.advance("keyframes", 128, 11.0)
    assert pace.seconds_left(plan, 128) == pytest.approx(1.5 + 8 + 9)
    assert ThroughputEstimator({}).seconds_left(plan, 0) is None


def test_request_round_trips_through_json() -> None:
    for request in (REQUEST, VideoRequest("一", sampling=SamplingOptions(guidance_scale=1.5))):
        assert request_from_dict(_through_json(request_to_dict(request))) == request


def _through_json(data: dict[str, Any]) -> dict[str, Any]:
    import json

    return json.loads(json.dumps(data))  # type: ignore[no-any-return]
