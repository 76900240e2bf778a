"""What files and programs may put into a request: values of another kind are refused with a sentence, at every door."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from cogvideo.cli.serve import parser
from cogvideo.config import SamplingOptions, TokenSampling, check_type
from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.service import owner_of
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames
from cogvideo.web.direct_api import REQUEST_PARSE_ERRORS, direct, malformed
from cogvideo.web.server import free_port


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": None},
        {"seed": 1.5},
        {"seed": True},
        {"num_frames": 9.0},
        {"num_drafts": 1.5},
        {"duration": "4"},
        {"superres": "yes"},
        {"interpolation_seed": "7"},
        {"sampling": {"guidance": 3.0}},
        {"first_frame": "AAAA"},
    ],
)
def test_values_of_another_kind_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is required"):
        VideoRequest(**{"prompt": "猫", **values})


def test_sampling_of_another_kind_is_refused() -> None:
    for options in ({"video": 5}, {"guidance_scale": "3"}, {"text_attention_bias": None}):
        with pytest.raises(RequestError, match="is required"):
            SamplingOptions(**options)  # type: ignore[arg-type]
    for boost in (float("nan"), float("inf"), -21.0):
        with pytest.raises(RequestError, match="text_attention_bias"):
            SamplingOptions(text_attention_bias=boost)
    with pytest.raises(RequestError, match="top_k is of type float"):
        TokenSampling(1.0, 1.5, 1.0)  # type: ignore[arg-type]


def test_whole_numbers_are_fine_where_fractions_are() -> None:
    check_type("seconds", 4, float)
    assert VideoRequest("猫", duration=4).frames_per_second == 8


@pytest.mark.parametrize("frames, packed", [("1", "AAAA"), (1, 7), (True, "AAAA")])
def test_frames_of_another_kind_are_refused(frames: Any, packed: Any) -> None:
    with pytest.raises(RequestError, match="damaged"):
        TokenFrames(frames, packed)


def test_a_key_that_is_no_text_of_unicode_is_still_a_key() -> None:
    assert owner_of("\ud800" * 16) != owner_of("\ud801" * 16)


def test_ports_that_do_not_exist_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for port in (0, 65536, -1):
        with pytest.raises(RequestError, match="no port"):
            free_port("127.0.0.1", port, search=True)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "eighty")
    with pytest.raises((RequestError, CapacityError, SystemExit)):
        parser().parse_args([])


@pytest.mark.parametrize("error", [TypeError("no `prompt`"), ValueError("too few"), KeyError(9), AttributeError("no")])
def test_what_gradio_trips_over_is_a_sentence_and_our_own_faults_stay_faults(error: Exception) -> None:
    def trip(request: Request) -> Response:
        raise error

    handlers: Any = dict.fromkeys(REQUEST_PARSE_ERRORS, malformed)
    places = [Route(path, trip, methods=["POST"]) for path in ("/gradio_api/call/v2/make_video", "/media/x/y")]
    with TestClient(Starlette(routes=places, exception_handlers=handlers), raise_server_exceptions=False) as client:
        answer = client.post("/gradio_api/call/v2/make_video")
        assert answer.status_code == 422
        assert "请求无法识别" in answer.json()["detail"] and "openapi.json" in answer.json()["detail"]
        assert answer.json()["reason"] == str(error)
        assert client.post("/media/x/y").status_code == 500


def make_video(prompt: str, seed: int = -1) -> dict[str, Any]:
    """An endpoint that refuses one prompt, and has a fault for another."""
    if prompt == "fault":
        raise KeyError(prompt)
    if not prompt.isascii():
        raise RequestError(f"不行：{prompt}", f"no: {prompt}")
    return {"prompt": prompt, "seed": seed}


def ask(body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer of a direct call."""
    with TestClient(Starlette(routes=direct([make_video])), raise_server_exceptions=False) as client:
        answer = client.post("/gradio_api/run/make_video", content=body, headers={"Content-Type": kind})
    return answer.status_code, answer.json()


def test_a_direct_call_is_answered_at_once() -> None:
    assert ask(b'{"data": ["cat"]}') == (200, {"data": [{"prompt": "cat", "seed": -1}]})
    assert ask(b'{"data": ["cat", 7], "session_hash": "x"}')[1] == {"data": [{"prompt": "cat", "seed": 7}]}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"\xff", b'{"data": null}', b'{"data": {"prompt": "cat"}}', b'{"data": "c"}'),
        *(b'{"data": []}', b'{"data": ["cat", 7, 8]}', b'{"data": ' + b"[" * 50_000),
    ],
)
def test_a_direct_call_that_is_none_is_told_what_is_wanted(body: bytes) -> None:
    status, answer = ask(body)
    assert status == 422
    assert "请求无法识别" in answer["error"] and "prompt, seed" in answer["error"]


def test_a_page_of_another_host_cannot_make_a_browser_call_unasked() -> None:
    assert ask(b'{"data": ["cat"]}', "text/plain")[0] == 422


def test_a_refused_direct_call_has_the_sentence_and_a_fault_of_ours_stays_one() -> None:
    assert ask('{"data": ["猫"]}'.encode()) == (422, {"error": "no: 猫 / 不行：猫"})
    assert ask(b'{"data": ["\\ud800"]}') == (422, {"error": "no: \ud800 / 不行：\ud800"})
    assert ask(b'{"data": ["fault"]}') == (500, {"error": None})
