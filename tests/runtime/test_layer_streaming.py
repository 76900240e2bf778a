"""Layers that come and go compute what resident ones compute, and everything is at home afterwards."""

from __future__ import annotations

import pytest
import torch

from cogvideo.config import TokenSampling
from cogvideo.errors import Cancelled
from cogvideo.inference import super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.inference.super_resolution import UpscaleOptions
from cogvideo.models.base import left_pad
from cogvideo.runtime.layer_streaming import streamed_layers
from tests.support.small_lm import CONFIG, random_frames, superres_lm

CPU = torch.device("cpu")
TEXT = [51, 52, 53]
SAMPLER, OPTIONS = ClusterSampler(torch.arange(50) % 9), TokenSampling(1.0, 4, 0.6)


def test_a_pass_in_pieces_is_the_pass_that_trains() -> None:
    lm, coarse = superres_lm(), random_frames(2)
    text = left_pad([TEXT, [54]])
    at = lm.begin(*text, coarse)
    for number in range(CONFIG.layers):
        at = lm.layer(number, at)
    pieces = lm.logits(lm.finish(at).flatten(0, 1)).unflatten(0, (2, -1))
    with torch.no_grad():
        torch.testing.assert_close(pieces, lm(*text, coarse), rtol=1e-4, atol=1e-5)


def homes(lm: torch.nn.Module) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in lm.named_parameters()}


@pytest.mark.parametrize("frames_per_pass", [2, 5])
def test_streamed_layers_draw_the_same_frames(frames_per_pass: int) -> None:
    lm, clip = superres_lm(), random_frames(5)
    before = homes(lm)
    wish = (clip, TEXT, SAMPLER, OPTIONS, 7)
    resident = list(super_resolution.upscale(lm, *wish, UpscaleOptions(frames_per_pass)))
    with streamed_layers(lm, lm.layer_modules(), CPU, torch.float32) as layers:
        found = list(super_resolution.upscale(lm, *wish, UpscaleOptions(frames_per_pass, layers)))
    assert [part.first for part in found] == [part.first for part in resident] == list(range(0, 5, frames_per_pass))
    assert torch.equal(torch.cat([part.tokens for part in found]), torch.cat([part.tokens for part in resident]))
    assert homes(lm) == before


def test_two_layers_at_most_are_away_from_home_and_the_rest_is_there() -> None:
    lm = superres_lm()
    before = homes(lm)
    layers = [{id(weight) for module in group for weight in module.parameters()} for group in lm.layer_modules()]
    in_layers = set.union(*layers)

    def away() -> set[int]:
        return {id(weight) for name, weight in lm.named_parameters() if weight.data_ptr() != before[name]}

    with streamed_layers(lm, lm.layer_modules(), CPU, torch.float32) as numbers:
        rest = {id(weight) for weight in lm.parameters()} - in_layers
        assert away() == rest
        for number in numbers():
            assert away() - rest == set.union(*layers[number : number + 2])
        assert away() == rest
    assert homes(lm) == before


def test_whoever_stops_leaves_everything_at_home() -> None:
    lm = superres_lm()
    before, answers = homes(lm), iter([False] * 4 + [True])
    wish = (random_frames(3), TEXT, SAMPLER, OPTIONS, 7)
    with pytest.raises(Cancelled), streamed_layers(lm, lm.layer_modules(), CPU, torch.float32) as layers:
        list(super_resolution.upscale(lm, *wish, UpscaleOptions(1, layers, lambda: next(answers))))
    assert homes(lm) == before
