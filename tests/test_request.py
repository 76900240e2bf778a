"""Requests: what cannot be drawn is refused when the request is made, in both languages, with the limits."""

from __future__ import annotations

from typing import Any

import pytest

from cogvideo.config import PRESETS, SamplingOptions, TokenSampling
from cogvideo.errors import RequestError
from cogvideo.request import VideoRequest


@pytest.mark.parametrize(
    "values, limit",
    [
        ({"seed": -1}, "4294967295"),
        ({"seed": 2**32}, "4294967295"),
        ({"num_frames": 7}, "33"),
        ({"duration": 3.0}, "0.5"),
        ({"duration": float("nan")}, "0.5"),
    ],
)
def test_requests_out_of_range(values: dict, limit: str) -> None:
    with pytest.raises(RequestError) as refusal:
        VideoRequest("一只熊猫", **values)
    assert limit in refusal.value.zh
    assert limit in refusal.value.en
    assert str(next(iter(values.values()))) in refusal.value.en


@pytest.mark.parametrize(
    "values", [(0.0, 12, 0.9), (1.0, 0, 0.9), (1.0, 12, -1.0), (float("nan"), 12, 0.9), (9.0, 12, 0.9)]
)
def test_sampling_out_of_range(values: tuple) -> None:
    with pytest.raises(RequestError, match="out of range"):
        TokenSampling(*values)


@pytest.mark.parametrize("guidance", [0.5, 21.0, float("nan")])
@pytest.mark.parametrize("name", ["guidance_scale", "interpolation_guidance_scale"])
def test_guidance_out_of_range(name: str, guidance: float) -> None:
    with pytest.raises(RequestError, match="20"):
        SamplingOptions(**{name: guidance})


@pytest.mark.parametrize("candidates", [0, 17, 2.0, True])
def test_first_frames_to_choose_from_out_of_range(candidates: Any) -> None:
    with pytest.raises(RequestError, match=r"16|int is required"):
        SamplingOptions(best_of=candidates)


@pytest.mark.parametrize("plausibility", [-0.1, 1.1, float("nan")])
def test_plausibility_out_of_range(plausibility: float) -> None:
    with pytest.raises(RequestError, match="from 0 to 1"):
        TokenSampling(1.0, 12, 0.9, plausibility)


def test_rounds_and_rate_follow_from_frames_and_seconds() -> None:
    assert [VideoRequest("一", num_frames=f).rounds for f in (5, 9, 17, 33)] == [0, 1, 2, 3]
    assert VideoRequest("一", num_frames=33, duration=4.0).frames_per_second == 8
    assert VideoRequest("一", num_frames=5, duration=0.5).frames_per_second == 8


def test_presets_know_their_pixels() -> None:
    assert PRESETS["mini"].final_size == (192, 192)
    assert PRESETS["cogvideo"].frame_size == (160, 160)
    assert PRESETS["cogvideo"].final_size == (480, 480)
