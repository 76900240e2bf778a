"""What files and programs may put into a request: values of another kind are refused with a sentence, at every door."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from cogvideo.config import SamplingOptions, TokenSampling, VideoRequest, demand
from cogvideo.errors import CapacityError, RequestError
from cogvideo.keys import owner_of
from cogvideo.page_malformed import TRIPS, malformed
from cogvideo.serving import free_port, parser
from cogvideo.tokens import TokenFrames


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": None},
        {"seed": 1.5},
        {"seed": True},
        {"frames": 9.0},
        {"drafts": 1.5},
        {"seconds": "4"},
        {"superres": "yes"},
        {"between_seed": "7"},
        {"sampling": {"guidance": 3.0}},
        {"first_frame": "AAAA"},
    ],
)
def test_values_of_another_kind_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is wanted"):
        VideoRequest(**{"prompt": "猫", **values})


def test_sampling_of_another_kind_is_refused() -> None:
    for options in ({"video": 5}, {"guidance": "3"}, {"text_boost": None}):
        with pytest.raises(RequestError, match="is wanted"):
            SamplingOptions(**options)  # type: ignore[arg-type]
    for boost in (float("nan"), float("inf"), -21.0):
        with pytest.raises(RequestError, match="text_boost"):
            SamplingOptions(text_boost=boost)
    with pytest.raises(RequestError, match="top_k is of type float"):
        TokenSampling(1.0, 1.5, 1.0)  # type: ignore[arg-type]


def test_whole_numbers_are_fine_where_fractions_are() -> None:
    demand("seconds", 4, float)
    assert VideoRequest("猫", seconds=4).frames_per_second == 8


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

    handlers: Any = dict.fromkeys(TRIPS, malformed)
    places = [Route(path, trip, methods=["POST"]) for path in ("/gradio_api/call/v2/make_video", "/media/x/y")]
    with TestClient(Starlette(routes=places, exception_handlers=handlers), raise_server_exceptions=False) as client:
        answer = client.post("/gradio_api/call/v2/make_video")
        assert answer.status_code == 422
        assert "请求无法识别" in answer.json()["detail"] and "openapi.json" in answer.json()["detail"]
        assert answer.json()["reason"] == str(error)
        assert client.post("/media/x/y").status_code == 500
