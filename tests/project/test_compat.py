"""What the build 0a8de33 has written and what it understood: all of it is still opened, continued and accepted.

The data lie in tests/compat, whose README says how each was made. Names of that build stand on the left of the tables
below, those of today on the right.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import numpy as np
import pytest

from cogvideo.config import PRESETS
from cogvideo.errors import RequestError
from cogvideo.jobs.artifacts import read_settings
from cogvideo.jobs.follow_ups import FollowUp, submit_follow_up
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames, last_frame
from cogvideo.web.api import endpoints
from cogvideo.web.components import Components
from cogvideo.web.form import Form
from cogvideo.web.handler_context import HandlerContext
from cogvideo.web.handlers import Handlers
from cogvideo.web.strings import Strings
from tests.jobs.test_service import finished, until
from tests.support.compat_data import DATA, JOBS, KEY, read
from tests.support.fakes import FakePipeline, PlainFilm

REQUEST = {
    "prompt": "prompt",
    "seed": "seed",
    "frames": "num_frames",
    "seconds": "duration",
    "superres": "superres",
    "between_seed": "interpolation_seed",
    "drafts": "num_drafts",
}
SAMPLING = {
    "guidance": "guidance_scale",
    "between_guidance": "interpolation_guidance_scale",
    "text_boost": "text_attention_bias",
    "candidates": "best_of",
}
TOKEN_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "inner_temperature": "within_cluster_temperature",
    "plausibility": "plausibility",
}
STAGES = {"first_frame": "first_frame", "video": "video", "superres": "superres"}
GIVEN = {"first_frame": "first_frame", "clip": "initial_tokens"}
FORM = {
    "prompt": "prompt",
    "seed": "seed",
    "frames": "num_frames",
    "seconds": "duration",
    "guidance": "guidance_scale",
    "temperature": "temperature",
    "top_k": "top_k",
    "superres": "superres",
    "between": "interpolation_seed",
}
MINI = PRESETS["mini"]


def same(value: object, old: dict[str, Any], names: dict[str, str], besides: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """`value` has everything that `old` says under the names of 0a8de33, and `names` leaves nothing of it out."""
    assert set(old) == set(names) | besides
    assert {name: getattr(value, today) for name, today in names.items()} == {name: old[name] for name in names}


def same_request(request: VideoRequest, old: dict[str, Any]) -> None:
    same(request, old, REQUEST, {"sampling", *GIVEN})
    for name, today in GIVEN.items():
        given = getattr(request, today)
        assert (given and given.rows()) == (old[name] and TokenFrames(*old[name].values()).rows())
    if old["sampling"] is None:
        assert request.sampling is None
        return
    assert request.sampling is not None
    same(request.sampling, old["sampling"], SAMPLING, set(STAGES))
    for name, today in STAGES.items():
        same(getattr(request.sampling, today), old["sampling"][name], TOKEN_SAMPLING)


# --- a server's data folder -------------------------------------------------------------------------------------------


@pytest.fixture
def fake() -> FakePipeline:
    return FakePipeline(free=True)


@pytest.fixture
def jobs(tmp_path: Path, fake: FakePipeline) -> Iterator[JobService]:
    """The old folder, opened; nothing runs yet."""
    shutil.copytree(DATA / "server", tmp_path / "server")
    jobs = JobService(tmp_path / "server", MINI, lambda: fake, PlainFilm, Limits(preview_seconds=0, per_owner=9))
    yield jobs
    jobs.close()


def job_id(name: str) -> str:
    return str(JOBS[name]["id"])


def test_old_history_lists_all_jobs_newest_first(jobs: JobService) -> None:
    assert [view.id for view in jobs.history(KEY)] == [job["id"] for job in reversed(JOBS.values())]
    assert all(jobs.is_owner(job["id"], KEY) for job in JOBS.values())
    assert jobs.history("o" * 20) == []


@pytest.mark.parametrize("name", JOBS)
def test_old_job_has_its_state_request_and_files(jobs: JobService, name: str) -> None:
    old = JOBS[name]
    view = jobs.state(old["id"])
    assert (view.status, view.round, view.num_frames, view.video) == tuple(
        old[key] for key in ("status", "level", "frames", "video")
    )
    assert (len(view.keyframes), view.next_preset, view.embed_settings, view.model) == tuple(
        old[key] for key in ("keyframes", "smaller", "comment", "model")
    )
    assert view.error == (old["error"] and tuple(old["error"]))
    same_request(view.request, old["request"])
    tokens = jobs.tokens(view.id)
    assert (tokens and tokens.num_frames) == old["tokens"]
    shown = {*view.keyframes, view.video, view.strip, view.poster} - {None}
    assert shown <= set(old["files"])
    assert all(jobs.file(view.id, file) is not None for file in old["files"])


@pytest.mark.parametrize(("name", "frames"), [("plain", 9), ("enlarged", 5)])
def test_old_clip_is_exported_frame_by_frame(jobs: JobService, name: str, frames: int) -> None:
    path = jobs.file(job_id(name), "frames.zip")
    assert path is not None
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == frames
    assert jobs.file(job_id(name), "clip.gif") is not None


def test_old_speeds_give_an_estimate(jobs: JobService) -> None:
    assert jobs.models.estimate(replace(VideoRequest("熊猫"), superres=True)) is not None


def test_old_waiting_job_runs_after_the_start_and_the_others_stay(jobs: JobService) -> None:
    jobs.start()
    assert until(jobs, job_id("waiting"), finished).status == "done"
    assert {name: jobs.state(job["id"]).status for name, job in JOBS.items() if name != "waiting"} == {
        name: job["status"] for name, job in JOBS.items() if name != "waiting"
    }


@pytest.mark.parametrize(
    ("name", "change", "frames", "kept"),
    [
        ("plain", "again", 9, None),
        ("plain", "next", 9, None),
        ("plain", "finer", 17, 9),
        ("plain", "between", 9, 5),
        ("five frames, settings kept out of the file", "enlarge", 5, 5),
        ("stopped after a round", "resume", 17, 5),
        ("resumed", "finer", 33, 17),
        ("first frame of a visitor", "finer", 9, 5),
        ("drafts", "finish", 9, 5),
        ("failed", "smaller", 5, None),
        ("interrupted", "resume", 5, None),
    ],
)
def test_old_job_is_followed_up(
    jobs: JobService, fake: FakePipeline, name: str, change: str, frames: int, kept: int | None
) -> None:
    jobs.delete(job_id("waiting"), KEY)
    jobs.start()
    draft = 1 if change == "finish" else 0
    (view,) = submit_follow_up(jobs, job_id(name), FollowUp.parse(change), KEY, [draft] if change == "finish" else [])
    view = until(jobs, view.id, finished)
    assert (view.status, view.num_frames) == ("done", frames)
    (asked,) = fake.started
    drawn = jobs.tokens(job_id(name), draft)
    if kept is None:
        assert asked.initial_tokens is None
    else:
        assert asked.initial_tokens is not None and drawn is not None
        step = (drawn.num_frames - 1) // (kept - 1)
        assert asked.initial_tokens.rows() == drawn.rows()[::step]
    assert view.memory == ("cpu" if change == "smaller" else None)


def test_old_job_is_continued_from_its_last_frame(jobs: JobService, fake: FakePipeline) -> None:
    jobs.start()
    api = {endpoint.__name__: endpoint for endpoint in endpoints(jobs)}
    after = api["continue_video"](job_id("finished draft"), "它跳起来", 3, KEY)
    view = until(jobs, after["id"], finished)
    tokens = jobs.tokens(job_id("finished draft"))
    assert tokens is not None
    assert view.request.first_frame == last_frame(tokens)
    assert view.status == "done"


def test_old_tokens_of_mini_show_the_frames_that_were_kept(jobs: JobService) -> None:
    tokens = jobs.tokens(job_id("plain"))
    assert tokens is not None
    with np.load(jobs.results / job_id("plain") / "frames.npz") as kept:
        frames = kept["frames"].astype(int)
    shown = CogVideoPipeline.from_pretrained("mini", device="cpu").decode(tokens).astype(int)
    assert np.abs(shown - frames).max() <= 1  # one: where another processor rounds the other way


# --- films, links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_old_film_of_the_command_has_its_settings(suffix: str) -> None:
    found = read_settings(DATA / "film" / f"panda.{suffix}")
    assert found is not None
    request, model = found
    own = MINI.sampling
    first, video = (replace(own.first_frame, top_k=9), replace(own.video, top_k=9))
    sampling = replace(own, first_frame=first, video=video, guidance_scale=2.5)
    assert request == VideoRequest("一只熊猫在草地上向右跑", 7, 5, 2.0, False, sampling)
    assert model == "mini"


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job["video"]])
def test_old_film_of_the_page_has_its_settings(name: str) -> None:
    old = JOBS[name]
    found = read_settings(DATA / "server" / "results" / old["id"] / old["video"])
    if not old["comment"]:
        assert found is None
        return
    assert found is not None
    same_request(found[0], old["request"] | {"clip": None})
    assert found[1] == "mini"


LINKS: list[dict[str, Any]] = read("links.json")


def query(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(link).query))


@pytest.mark.parametrize("link", LINKS, ids=lambda link: str(link["form"]["prompt"]))
def test_old_link_fills_the_form_with_the_jobs_request(jobs: JobService, link: dict[str, Any]) -> None:
    asked = query(link["link"])
    form = Form.from_query(asked, Form.default(MINI))
    assert form is not None
    same(form, link["form"], FORM, {"start"})
    expected = jobs.state(asked["job"]).request
    request = form.request(MINI.sampling)
    assert replace(request, sampling=None) == replace(expected, sampling=None, initial_tokens=None)
    assert (request.sampling is None) == (expected.sampling is None)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: str(link["form"]["prompt"]))
def test_old_link_opens_the_page_with_job_and_settings(jobs: JobService, link: dict[str, Any]) -> None:
    with gr.Blocks():
        parts = Components(Strings.load(), list(jobs.models.entries.values()), [], "secret")
    visit: Any = SimpleNamespace(query_params=query(link["link"]), headers={"accept-language": "zh-CN"})
    updates = Handlers(HandlerContext(jobs, parts, Strings.load(), [])).page.on_load({"key": KEY}, visit)
    fields = {
        "prompt": parts.prompt,
        "seed": parts.seed,
        "frames": parts.num_frames,
        "seconds": parts.duration,
        "superres": parts.superres,
    }
    shown = {name: updates[field] for name, field in fields.items()}
    values = {name: update["value"] if isinstance(update, dict) else update for name, update in shown.items()}
    assert values == {name: link["form"][name] for name in values}
    assert updates[parts.screen]["id"] == query(link["link"])["job"]
    assert updates[parts.screen]["mine"]


# --- endpoints ------------------------------------------------------------------------------------------------------


def test_old_endpoints_take_their_parameters_by_name(jobs: JobService) -> None:
    jobs.delete(job_id("waiting"), KEY)
    given = {"prompt": "熊猫", "seed": 3, "frames": 9, "seconds": 2.0, "superres": False, "guidance": 2.0, "drafts": 2}
    given |= {"id": job_id("plain"), "key": KEY, "after_level": True, "change": "finer"}
    api = {endpoint.__name__: endpoint for endpoint in endpoints(jobs)}
    old = read("interfaces.json")["endpoints"]
    assert set(old) <= set(api)
    for name, parameters in old.items():
        named = {parameter: given[parameter] for parameter in parameters}
        if name == "change_video":
            named["drafts"] = ""
        if name in ("stop_video", "delete_video"):
            with pytest.raises(RequestError):
                api[name](**named | {"id": "nothing"})
        else:
            assert api[name](**named)
