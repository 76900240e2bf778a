"""Jobs that go on: drafts that are finished, clips that grow, several models, errands between tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogvideo.config import PRESETS
from cogvideo.errors import CapacityError, OutOfMemoryError, RequestError, WeightsError
from cogvideo.events import Event, Loading
from cogvideo.jobs.artifacts import read_settings
from cogvideo.jobs.follow_ups import FollowUp, submit_follow_up
from cogvideo.jobs.model_registry import ModelEntry, available_models, missing_files_message
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import LoadingProgress
from cogvideo.media.images import data_uri, read_image
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames, last_frame
from cogvideo.web.api import endpoints
from cogvideo.web.form import first_frame_from, first_frame_value
from cogvideo.web.routes import qr_code
from tests.jobs.test_service import KEY, OTHER, _open, finished, until
from tests.support.fakes import PRESET, FakePipeline, PlainFilm

REQUEST = VideoRequest("一只熊猫在草地上向右跑", seed=7, num_frames=9, superres=False)
DRAFT = replace(REQUEST, num_drafts=4)


def test_drafts_progress_together_and_chosen_ones_are_finished(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(DRAFT, KEY).id
    fake.step()
    painted = until(jobs, job, lambda view: view.preview is not None)
    assert painted.preview is not None and len(painted.preview.images) == 4
    assert painted.stage == "drafts"
    fake.step()
    view = until(jobs, job, lambda view: len(view.keyframes) == 4)
    assert (view.tokens_done, view.tokens_total) == (4 * 64, 4 * 5 * 64)
    fake.open()
    view = until(jobs, job, finished)
    assert (view.status, view.num_frames, len(set(view.keyframes))) == ("done", 5, 20)
    chosen = submit_follow_up(jobs, job, FollowUp.FINISH_DRAFTS, KEY, [3, 1])
    for draft, view in zip((3, 1), chosen):
        view = until(jobs, view.id, finished)
        assert (view.status, view.num_frames, view.tokens_total) == ("done", 9, 4 * 64)  # keyframes are not drawn again
        assert view.request == replace(REQUEST, seed=7 + draft, initial_tokens=jobs.tokens(job, draft))
        (row, *_) = jobs.tokens(job, draft).rows()
        assert row[0] == 7 + draft


def test_stopped_drafts_keep_keyframes_complete_in_all_drafts(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(DRAFT, KEY).id
    fake.step(4)
    until(jobs, job, lambda view: len(view.keyframes) == 8)
    jobs.stop(job, KEY)
    view = until(jobs, job, finished)
    assert (view.status, view.num_frames) == ("stopped", 2)
    with pytest.raises(RequestError, match="No valid draft"):
        submit_follow_up(jobs, job, FollowUp.FINISH_DRAFTS, KEY, [])
    with pytest.raises(RequestError, match="No valid draft"):
        submit_follow_up(jobs, job, FollowUp.FINISH_DRAFTS, KEY, [4])


def test_finish_drafts_over_limit_queues_none(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    job = jobs.submit(DRAFT, KEY).id
    until(jobs, job, finished)
    with pytest.raises(CapacityError, match="Choose fewer"):
        submit_follow_up(jobs, job, FollowUp.FINISH_DRAFTS, KEY, [0, 1, 2, 3])
    assert jobs.queue_length() == 0 and len(jobs.history(KEY)) == 1
    assert len(submit_follow_up(jobs, job, FollowUp.FINISH_DRAFTS, OTHER, [0, 1, 2])) == 3


def test_follow_ups_after_restart_reuse_stored_tokens(tmp_path: Path, fake: FakePipeline) -> None:
    fake.open()
    jobs = _open(tmp_path, fake)
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, finished)
    jobs.close()
    jobs = _open(tmp_path, fake)
    jobs.start()
    for change, new in ((FollowUp.ADD_FRAMES, 8), (FollowUp.UPSCALE, 0), (FollowUp.RESAMPLE_INTERPOLATION, 4)):
        (view,) = submit_follow_up(jobs, job, change, KEY)
        view = until(jobs, view.id, finished)
        assert view.status == "done"
        assert view.request.initial_tokens is not None
        assert view.tokens_total == new * 64 + (9 * 24 * 24 if change == FollowUp.UPSCALE else 0)
    assert view.request.interpolation_seed is not None and view.request.initial_tokens.num_frames == 5
    jobs.close()


def test_stopped_job_resumes_from_its_last_round(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(replace(REQUEST, num_frames=33), KEY).id
    fake.step(11)
    until(jobs, job, lambda view: view.round == 1)
    with pytest.raises(RequestError, match="not finished"):
        submit_follow_up(jobs, job, FollowUp.RESUME, KEY)
    jobs.stop(job, KEY)
    until(jobs, job, finished)
    (view,) = submit_follow_up(jobs, job, FollowUp.RESUME, KEY)
    assert (view.tokens_total, view.request.num_frames) == (24 * 64, 33)
    view = until(jobs, view.id, lambda view: view.round == 1)
    assert (view.video, view.num_frames) == ("level-1.mp4", 9)  # shown before anything new is drawn
    fake.open()
    assert until(jobs, view.id, finished).num_frames == 33


def test_worker_calls_run_between_tokens_and_while_idle(jobs: JobService, fake: FakePipeline) -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    first = jobs.models.encode(grey)
    assert first.rows() == [[90] * 64]
    assert jobs.models.decode(first)[0, 0, 0].tolist() == [90, 90, 90]
    job = jobs.submit(replace(REQUEST, first_frame=first), KEY).id
    until(jobs, job, lambda view: len(view.keyframes) == 1)
    heard: list[TokenFrames] = []
    asker = threading.Thread(target=lambda: heard.append(jobs.models.encode(grey)))
    asker.start()
    fake.step(2)
    asker.join(20)
    assert heard == [first] and jobs.state(job).active


def test_worker_call_raises_its_errors_and_times_out_while_busy(tmp_path: Path, fake: FakePipeline) -> None:
    jobs = _open(tmp_path, fake, Limits(call_timeout_seconds=0.01, preview_seconds=0))
    jobs.start()
    with pytest.raises(RequestError, match="damaged"):
        jobs.models.decode(TokenFrames(1, "nonsense"))
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, lambda view: view.status == "running" and view.loading is not None)
    with pytest.raises(CapacityError, match="busy"):
        jobs.models.encode(np.zeros((64, 64, 3), np.uint8))
    fake.open()
    assert until(jobs, job, finished).status == "done"
    jobs.close()


def test_video_metadata_contains_first_frame_and_interpolation_seed(tmp_path: Path) -> None:
    first = TokenFrames.of([[3] * 64])
    jobs = JobService(tmp_path, PRESET, lambda: FakePipeline(free=True))
    jobs.start()
    job = jobs.submit(replace(REQUEST, first_frame=first, interpolation_seed=5), KEY).id
    until(jobs, job, finished)
    found = read_settings(jobs.results / job / "final.mp4")
    assert found and found[0].first_frame == first and found[0].interpolation_seed == 5
    jobs.close()


# --- several models -------------------------------------------------------------------------------------------------


def two_models(
    tmp_path: Path, limits: Limits | None = None, missing: Callable[[], tuple[str, str] | None] = lambda: None
) -> tuple[JobService, FakePipeline, FakePipeline]:
    own, other = FakePipeline(free=True), FakePipeline(free=True)
    offer = ModelEntry(replace(PRESET, name="large"), lambda _: other, missing)
    jobs = JobService(tmp_path, PRESET, lambda: own, PlainFilm, limits or Limits(preview_seconds=0), [offer])
    jobs.start()
    return jobs, own, other


def test_second_model_unloads_the_first(tmp_path: Path) -> None:
    jobs, own, other = two_models(tmp_path)
    for model, (ours, theirs) in (("mini", (0, 0)), ("large", (1, 0)), ("large", (1, 0)), ("mini", (1, 1))):
        view = until(jobs, jobs.submit(REQUEST, KEY, model=model).id, finished)
        assert (view.status, view.model) == ("done", model)
        assert (own.unloaded, other.unloaded) == (ours, theirs)
    assert (len(own.started), len(other.started)) == (2, 2)
    assert jobs.models.estimate(replace(REQUEST, num_frames=5), "large") is not None
    (view,) = submit_follow_up(jobs, view.id, FollowUp.NEXT_SEED, KEY)
    assert view.model == "mini"
    with pytest.raises(RequestError, match="no model called huge"):
        jobs.submit(REQUEST, KEY, model="huge")
    jobs.close()


def test_missing_model_is_refused_until_installed(tmp_path: Path) -> None:
    needs: list[tuple[str, str] | None] = [("要 43 GB", "takes 43 GB")]
    jobs, _, other = two_models(tmp_path, missing=lambda: needs[0])
    with pytest.raises(RequestError, match="43 GB"):
        jobs.submit(REQUEST, KEY, model="large")
    needs[0] = None
    assert until(jobs, jobs.submit(REQUEST, KEY, model="large").id, finished).status == "done"
    assert len(other.started) == 1
    jobs.close()


def test_missing_published_model_names_size_command_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = available_models("mini")
    assert (first.name, first.unavailable_reason()) == ("mini", None)
    assert second.preset == PRESETS["cogvideo"] and second.unavailable_reason() == missing_files_message()
    for sentence in missing_files_message() or ():
        assert "GB" in sentence and "download cogvideo" in sentence and "CogVideo License" in sentence
    with pytest.raises(RequestError, match="mini"):
        available_models("minni")


def test_job_after_failed_load_succeeds(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    fake.fail = WeightsError("文件已损坏", "The file is damaged")
    job = jobs.submit(REQUEST, KEY).id
    view = until(jobs, job, finished)
    assert (view.status, view.error) == ("failed", ("文件已损坏", "The file is damaged"))
    fake.fail = None
    (view,) = submit_follow_up(jobs, job, FollowUp.REPEAT, KEY)
    assert until(jobs, view.id, finished).status == "done"


def test_loading_reports_each_network_and_can_be_stopped(tmp_path: Path) -> None:
    class Large(FakePipeline):
        def _draw(self, request: VideoRequest, stop: Callable[[], bool]) -> Generator[Event, None, None]:
            for part in range(3):
                yield Loading("models", part, 3)
                self._wait(stop)
            yield from super()._draw(request, stop)

    large = Large()
    jobs = _open(tmp_path, large)
    jobs.start()
    first, second = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id
    for part in range(3):
        assert until(jobs, first, lambda view, part=part: view.loading == LoadingProgress(part, 3)).stage == "load"
        if part < 2:
            large.step()
    jobs.stop(first, KEY)
    assert until(jobs, first, finished).status == "stopped"
    large.open()
    view = until(jobs, second, finished)
    assert (view.status, view.loading) == ("done", None)
    assert large.most_busy == 1
    jobs.close()


def test_out_of_memory_job_repeats_under_smaller_preset(tmp_path: Path) -> None:
    asked: list[str | None] = []
    small = FakePipeline(free=True)
    large = FakePipeline(free=True)
    large.fail = OutOfMemoryError("内存不足", "Out of memory", "16g")

    def make(memory: str | None) -> FakePipeline:
        asked.append(memory)
        return small if memory else large

    offer = ModelEntry(replace(PRESET, name="large"), make, lambda: None)
    jobs = JobService(tmp_path, PRESET, FakePipeline, PlainFilm, Limits(preview_seconds=0), [offer])
    jobs.start()
    job = jobs.submit(REQUEST, KEY, model="large").id
    view = until(jobs, job, finished)
    assert (view.status, view.next_preset) == ("failed", "16g")
    assert large.unloaded == 1  # everything is freed before anything else starts
    (again,) = submit_follow_up(jobs, job, FollowUp.SMALLER_MEMORY, KEY)
    view = until(jobs, again.id, finished)
    assert (view.status, view.memory, view.request) == ("done", "16g", REQUEST)
    assert asked == [None, "16g"]
    jobs.close()
    jobs = JobService(tmp_path, PRESET, FakePipeline, PlainFilm, Limits(preview_seconds=0), [offer])
    assert (jobs.state(view.id).memory, jobs.state(view.id).model) == ("16g", "large")
    jobs.close()


def test_idle_server_unloads_weights_and_reloads_them(tmp_path: Path) -> None:
    freed = threading.Event()

    class Idle(FakePipeline):
        def unload(self) -> None:
            super().unload()
            freed.set()

    fake = Idle(free=True)
    jobs = _open(tmp_path, fake, Limits(idle_seconds=0.01, preview_seconds=0))
    jobs.start()
    until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert freed.wait(20)
    assert until(jobs, jobs.submit(REQUEST, KEY).id, finished).status == "done"
    jobs.close()
    assert fake.unloaded <= 2  # once for each time it was used, not for ever


# --- for programs ---------------------------------------------------------------------------------------------------


def test_api_finishes_drafts_and_continues_a_video(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    api = {endpoint.__name__: endpoint for endpoint in endpoints(jobs)}
    draft = api["draft_video"]("一只小猫", seed=5)
    until(jobs, draft["id"], finished)
    made = api["change_video"](draft["id"], "finish", draft["key"], "2, 4")
    for job, seed in zip(made["ids"], (6, 8)):
        assert until(jobs, job, finished).request.seed == seed
    after = api["continue_video"](made["ids"][0], "它跳起来")
    view = until(jobs, after["id"], finished)
    assert view.request.prompt == "它跳起来"
    assert view.request.first_frame == last_frame(jobs.tokens(made["ids"][0]))
    with pytest.raises(RequestError, match="1,3"):
        api["change_video"](draft["id"], "finish", draft["key"], "first")
    with pytest.raises(RequestError, match="no such video"):
        api["continue_video"]("../jobs.sqlite")


def test_continue_without_stored_tokens_is_refused(jobs: JobService, fake: FakePipeline) -> None:
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, lambda view: view.status == "running")
    jobs.stop(job, KEY)
    until(jobs, job, finished)
    api = {endpoint.__name__: endpoint for endpoint in endpoints(jobs)}
    with pytest.raises(RequestError, match="no stored tokens"):
        api["continue_video"](job)
    fake.open()
    (view,) = submit_follow_up(jobs, job, FollowUp.RESUME, KEY)  # from the beginning, then
    assert until(jobs, view.id, finished).num_frames == 9


# --- pictures and codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (100, 300), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_read_image_converts_any_size_and_mode(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", size, (255, 0, 0)).convert(mode).save(path)
    frame = read_image(path, (64, 48))
    assert frame.shape == (64, 48, 3) and frame.dtype == np.uint8
    assert frame.std((0, 1)).max() < 2


def test_read_image_crops_centre_applies_orientation_and_white_background(tmp_path: Path) -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40, 1] = 255  # green between black sides
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", (20, 20)) == (0, 255, 0)).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    half = np.zeros((20, 20, 3), np.uint8)
    half[:10] = 255
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png", (20, 20))
    assert turned[:, 15:].mean() > 250 and turned[:, :5].mean() < 5
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", (8, 8)) == 255).all()


def test_read_image_refuses_other_files_and_oversized_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"0" * 50, b"<svg/>"):
        (tmp_path / "file.png").write_bytes(content)
        with pytest.raises(RequestError, match="JPEG"):
            read_image(tmp_path / "file.png", (64, 64))
    Image.new("1", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr("cogvideo.media.images.MAX_PIXELS", 1000)
    with pytest.raises(RequestError, match="Reduce its size first"):
        read_image(tmp_path / "large.png", (64, 64))


def test_first_frame_value_round_trips() -> None:
    first = TokenFrames.of([[1, 2, 3]])
    picture = data_uri(np.zeros((4, 4, 3), np.uint8))
    assert first_frame_from(first_frame_value(first, picture, None)) == first
    assert picture.startswith("data:image/png;base64,")
    for nothing in (None, "", {}, {"packed": 3}):
        assert first_frame_from(nothing) is None


def test_qr_code_accepts_only_short_links() -> None:
    code = qr_code("https://example.org/?job=abc")
    assert code and code.startswith("<svg") and "#fff" in code
    for no_link in ("", "javascript:alert(1)", "https://example.org/?p=" + "x" * 600):
        assert qr_code(no_link) is None
