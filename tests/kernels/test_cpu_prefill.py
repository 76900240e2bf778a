"""Compiled reading keeps what the network's own pass keeps, in any company, with any number of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cogvideo.inference import decoding
from cogvideo.models.kv_cache import KVCache
from cogvideo.models.video_lm import VideoLM
from kernels import cpu_decode, cpu_prefill
from tests.support.small_lm import CONFIG, random_frames, video_lm

REASON = cpu_decode.unsupported_reason(torch.zeros(1))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LARGE = replace(
    CONFIG, hidden=64, heads=2, grid=(6, 12), window=6, base_positions=100, extra_positions=300, image_start=20
)
"""Frames of more tokens than a panel has, heads of 32."""
CONFIGS = {"small": CONFIG, "large": LARGE}
TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58], [59]]


def read(lm: VideoLM, given: tuple[int, ...], texts: list[list[int]]) -> KVCache:
    clip = random_frames(len(texts), 5, config=lm.config)
    known = clip[:, list(given)] if given else None
    return decoding.prefill(
        lm, texts, given, known, text_attention_bias=1.4, use_temporal=bool(given), parallel_frames=1 + (lm.stage == 2)
    )


def kept(cache: KVCache) -> list[torch.Tensor]:
    """Keys and values of each layer and channel at the places that hold some."""
    own = cache.spatial_slots()[1]
    found = [arena.k_v[:, :, :, own] for arena in cache._spatial]
    across = [cache.temporal_slots(layer % 2)[1] for layer in range(len(cache._temporal))]
    return found + [arena.k_v[:, :, :, places] for arena, places in zip(cache._temporal, across, strict=True)]


def network(stage: int, size: str) -> VideoLM:
    lm = video_lm(stage, CONFIGS[size])
    for weight in lm.parameters():
        if weight.ndim > 1:
            weight.data *= 5 / lm.config.hidden**0.5
    for layer, gate in enumerate(lm.get_mixin("attention_plus").attn_distribution):
        torch.nn.init.normal_(gate, std=1.0, generator=torch.Generator().manual_seed(layer))
    return lm


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize(("stage", "given"), [(1, ()), (1, (0,)), (1, (0, 1, 2)), (2, (0, 2, 4))])
def test_what_is_kept_is_what_the_networks_own_pass_keeps(stage: int, given: tuple[int, ...], size: str) -> None:
    lm = network(stage, size)
    expected = kept(read(lm, given, TEXTS))
    lm.fuse()
    own_pass = lm.prefill_fused
    lm.prefill_fused = lambda *_: pytest.fail("the network's own pass was used")  # type: ignore[method-assign]
    found = kept(read(lm, given, TEXTS))
    lm.prefill_fused = own_pass  # type: ignore[method-assign]
    real = torch.arange(5) >= 5 - torch.tensor([len(text) for text in TEXTS])[:, None]  # [B, T]: others see no pads
    for mine, theirs in zip(found, expected, strict=True):
        whole = torch.ones(3, mine.shape[3], dtype=torch.bool)
        whole[:, :5] = real
        seen = whole[None, :, None, :, None]
        torch.testing.assert_close(mine * seen, theirs * seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stage", "given"), [(1, (0,)), (2, (0, 2, 4))])
def test_a_row_is_the_same_to_the_bit_in_any_company_and_with_any_threads(stage: int, given: tuple[int, ...]) -> None:
    lm = network(stage, "large")
    lm.fuse()
    texts = [TEXTS[1]] * 3
    alone = kept(read(lm, given, texts[:1]))
    for threads in (1, 2, 4):
        lm.fuse(threads=threads)
        together = kept(read(lm, given, texts))
        assert all(torch.equal(mine[:, :1], theirs) for mine, theirs in zip(together, alone, strict=True))


def test_what_does_not_fit_the_plan_is_refused() -> None:
    tokens = torch.arange(3)
    sight = cpu_prefill.LayerPattern([cpu_prefill.QueryGroup(tokens, tokens)], torch.stack((tokens, tokens)))
    plan = cpu_prefill.PrefillPlan([sight] * 3, text=3)
    lm = network(1, "small")
    steps = cpu_decode.NativeNetwork([], cpu_decode.Affine(torch.ones(24), torch.zeros(24)), torch.zeros(9, 24), 3, 2)
    arenas = read(lm, (0,), TEXTS).buffers()
    for x, padding in ((torch.zeros(2, 4, 24), [0, 0]), (torch.zeros(2, 3, 24), [0])):
        with pytest.raises(ValueError, match="plan of 3 tokens"):
            cpu_prefill.prefill(steps, x, padding, plan, arenas)
