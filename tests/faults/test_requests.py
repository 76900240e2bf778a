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
from cogvideo.web.api import validated
from cogvideo.web.direct_api import REQUEST_PARSE_ERRORS, direct_routes, malformed
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
def test_request_refuses_values_of_wrong_type(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is required"):
        VideoRequest(**{"prompt": "猫", **values})


def test_sampling_options_refuse_values_of_wrong_type() -> None:
    for options in ({"video": 5}, {"guidance_scale": "3"}, {"text_attention_bias": None}):
        with pytest.raises(RequestError, match="is required"):
            SamplingOptions(**options)  # type: ignore[arg-type]
    for boost in (float("nan"), float("inf"), -21.0):
        with pytest.raises(RequestError, match="text_attention_bias"):
            SamplingOptions(text_attention_bias=boost)
    with pytest.raises(RequestError, match="top_k is of type float"):
        TokenSampling(1.0, 1.5, 1.0)  # type: ignore[arg-type]


def test_int_is_accepted_as_float() -> None:
    check_type("seconds", 4, float)
    assert VideoRequest("猫", duration=4).frames_per_second == 8


@pytest.mark.parametrize("frames, packed", [("1", "AAAA"), (1, 7), (True, "AAAA")])
def test_token_frames_refuse_values_of_wrong_type(frames: Any, packed: Any) -> None:
    with pytest.raises(RequestError, match="damaged"):
        TokenFrames(frames, packed)


def test_key_with_surrogates_is_hashed() -> None:
    assert owner_of("\ud800" * 16) != owner_of("\ud801" * 16)


def test_invalid_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for port in (0, 65536, -1):
        with pytest.raises(RequestError, match="is not valid"):
            free_port("127.0.0.1", port, search=True)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "eighty")
    with pytest.raises((RequestError, CapacityError, SystemExit)):
        parser().parse_args([])


@pytest.mark.parametrize("error", [TypeError("no `prompt`"), ValueError("too few"), KeyError(9), AttributeError("no")])
def test_gradio_parse_error_gives_422_and_other_errors_500(error: Exception) -> None:
    def trip(request: Request) -> Response:
        raise error

    handlers: Any = dict.fromkeys(REQUEST_PARSE_ERRORS, malformed)
    places = [Route(path, trip, methods=["POST"]) for path in ("/gradio_api/call/v2/make_video", "/media/x/y")]
    with TestClient(Starlette(routes=places, exception_handlers=handlers), raise_server_exceptions=False) as client:
        answer = client.post("/gradio_api/call/v2/make_video")
        assert answer.status_code == 422
        assert "请求格式无效" in answer.json()["detail"] and "openapi.json" in answer.json()["detail"]
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
    with TestClient(Starlette(routes=direct_routes([validated(make_video)])), raise_server_exceptions=False) as client:
        answer = client.post("/gradio_api/run/make_video", content=body, headers={"Content-Type": kind})
    return answer.status_code, answer.json()


def test_direct_call_returns_result() -> None:
    assert ask(b'{"data": ["cat"]}') == (200, {"data": [{"prompt": "cat", "seed": -1}]})
    assert ask(b'{"data": ["cat", 7], "session_hash": "x"}')[1] == {"data": [{"prompt": "cat", "seed": 7}]}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"\xff", b'{"data": null}', b'{"data": {"prompt": "cat"}}', b'{"data": "c"}'),
        *(b'{"data": []}', b'{"data": ["cat", 7, 8]}', b'{"data": ["\\ud800"]}', b'{"data": ' + b"[" * 50_000),
    ],
)
def test_invalid_direct_call_names_the_arguments(body: bytes) -> None:
    status, answer = ask(body)
    assert status == 422
    assert "prompt, seed" in answer["error"]


def test_direct_call_of_other_content_type_is_refused() -> None:
    assert ask(b'{"data": ["cat"]}', "text/plain")[0] == 422


def test_direct_call_reports_request_error_and_hides_other_errors() -> None:
    assert ask('{"data": ["猫"]}'.encode()) == (422, {"error": "no: 猫 / 不行：猫"})
    assert ask(b'{"data": ["fault"]}') == (500, {"error": None})


def endpoint(prompt: str, seed: int = -1, seconds: float = 4.0, superres: bool = True) -> dict[str, Any]:
    return {"values": (prompt, seed, seconds, superres)}


@pytest.mark.parametrize(
    ("values", "named", "words"),
    [
        (("猫", True), {}, ("True", "seed", "a whole number", "整数")),
        (("猫", 9.0), {}, ("9.0", "seed", "a whole number", "整数")),
        (("猫",), {"seed": "7"}, ("'7'", "seed", "a whole number", "整数")),
        (("猫", 7, "4"), {}, ("'4'", "seconds", "a number", "数字")),
        (("猫", 7, 4.0, 1), {}, ("1", "superres", "true or false", "true 或 false")),
        ((None,), {}, ("None", "prompt", "text", "文本")),
        ((), {}, ("prompt", "prompt, seed, seconds, superres")),
        (("猫",), {"sead": 7}, ("sead", "prompt, seed, seconds, superres")),
        (("猫", 7, 4.0, True, 5), {}, ("4", "prompt, seed, seconds, superres")),
        (("猫",), {"prompt": "犬"}, ("prompt", "prompt, seed, seconds, superres")),
    ],
)
def test_endpoint_refuses_invalid_argument_and_names_what_is_allowed(
    values: tuple[Any, ...], named: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(RequestError) as refused:
        validated(endpoint)(*values, **named)
    for word in words:
        assert word in f"{refused.value.en} {refused.value.zh}"


def test_endpoint_accepts_int_as_float() -> None:
    assert validated(endpoint)("猫", seconds=2) == {"values": ("猫", -1, 2.0, True)}
