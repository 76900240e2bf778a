"""Steps with weights laid side by side predict what the unfolded network predicts, in fewer operator calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cogvideo.benchmarks.stages import count_calls
from cogvideo.config import PRESETS
from cogvideo.inference import decoding
from cogvideo.models.fused_decode import should_fuse
from cogvideo.models.kv_cache import TokenSlot
from cogvideo.models.video_lm import VideoLM
from tests.support.small_lm import CONFIG, random_frames, video_lm

TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]
OTHERS = [[59, 60], [59, 60]]
CLIP = random_frames(2, 5)
GUIDED: dict[str, Any] = {"unconditional": OTHERS, "guidance_scale": 3.0}
GUIDANCE = [{}, GUIDED, GUIDED | {"plausibility": 0.5}]


def networks(stage: int, compiled: bool = False) -> tuple[VideoLM, VideoLM]:
    plain, fused = video_lm(stage), video_lm(stage)
    for lm in (plain, fused):
        for layer, gate in enumerate(lm.get_mixin("attention_plus").attn_distribution):
            torch.nn.init.normal_(gate, std=1.0, generator=torch.Generator().manual_seed(layer))
    fused.fuse(compiled=compiled)
    return plain, fused


def draw(lm: VideoLM, unconditional: decoding.Texts | None = None, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all steps, with the tokens of CLIP fed back, and shapes they came in."""
    seen = []

    def teacher(logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        seen.append(logits)
        return CLIP[:, frame, slot]

    run = decoding.keyframes if lm.stage == 1 else decoding.interpolate
    known = CLIP[:, 0] if lm.stage == 1 else CLIP[:, ::2]
    tokens = decoding.collect(run(lm, TEXTS, known, teacher, unconditional, decoding.DecodeOptions(**options)))
    return torch.stack(seen), tokens


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", GUIDANCE)
def test_scores_are_those_of_the_unfolded_network(stage: int, compiled: bool, options: dict[str, Any]) -> None:
    plain, fused = networks(stage, compiled)
    expected, _ = draw(plain, **options)
    scores, _ = draw(fused, **options)
    assert scores.shape[1:] == (2, CONFIG.image_tokens)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_frame_is_the_backbones_alone(compiled: bool) -> None:
    plain, fused = networks(1, compiled)
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for lm, which in ((plain, False), (fused, True)):

        def teacher(logits: torch.Tensor, frame: int, slot: int, which: bool = which) -> torch.Tensor:
            seen[which].append(logits)
            return CLIP[:, frame, slot]

        decoding.collect(decoding.first_frame(lm, TEXTS, teacher))
    torch.testing.assert_close(torch.stack(seen[True]), torch.stack(seen[False]), rtol=1e-4, atol=1e-4)


def test_what_is_saved_and_trained_stays_unfolded() -> None:
    plain, fused = networks(1)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_step_takes_fewer_calls_and_never_more_as_it_goes_on() -> None:
    calls = []
    for lm in networks(1):
        cache = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=0.0, use_temporal=True)
        ids = CLIP[:, :1, 0]
        counts = [
            count_calls(lambda s=slot: decoding.decode_one(lm, cache, ids, [TokenSlot(1, s)]), ids.device)[0]  # noqa: B023
            for slot in range(4)
        ]
        assert len(set(counts[1:])) == 1
        calls.append(counts[1])
    assert calls[1] < calls[0]


@pytest.mark.parametrize(("free", "copied"), [(60 * 10**9, True), (30 * 10**9, False)])
def test_large_networks_are_copied_on_cards_with_room(free: int, copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 10**9))
    assert should_fuse(PRESETS["cogvideo"].model, torch.device("cuda")) == copied


def test_only_small_networks_on_a_cpu_are_copied() -> None:
    assert should_fuse(PRESETS["mini"].model, torch.device("cpu"))
    assert not should_fuse(PRESETS["mini"].model, torch.device("meta"))
    assert not should_fuse(PRESETS["cogvideo"].model, torch.device("cpu"))
    assert not should_fuse(replace(CONFIG, layers=10**6), torch.device("cpu"))
