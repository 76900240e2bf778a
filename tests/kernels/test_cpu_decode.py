"""The compiled step and draw equal their plain forms, at odd sizes, in any company; without a compiler they say so."""

from __future__ import annotations

import functools
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cogvideo.config import TokenSampling
from cogvideo.inference import decoding
from cogvideo.inference.sampling import ClusterSampler, noise_keys
from cogvideo.models.video_lm import VideoLM
from kernels import cpu_build, cpu_decode
from kernels.cpu_decode import Affine, KVBuffers, PackedMatrix, Precision
from tests.support.small_lm import CONFIG, random_frames, video_lm

REASON = cpu_decode.unsupported_reason(torch.zeros(1))
needs_compiler = pytest.mark.skipif(REASON is not None, reason=str(REASON))
TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]
OTHERS = [[59, 60], [59, 60]]
CLIP = random_frames(2, 5)
SIZES = {"no head of 32 or 64": (24, 3), "heads of 32": (96, 3), "heads of 64": (128, 2)}


def affine(outputs: int, inputs: int) -> Affine:
    generator = torch.Generator().manual_seed(outputs + inputs)
    return Affine(torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator))


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 7), (32, 64), (65, 100)])
def test_a_product_equals_that_of_the_kept_weights(outputs: int, inputs: int, precision: Precision) -> None:
    layer = affine(outputs, inputs)
    scale = layer.weight.abs().amax(1, keepdim=True) / 127
    kept = {
        "fp32": layer.weight,
        "bf16": layer.weight.bfloat16().float(),
        "int8": (layer.weight / scale).round() * scale,
    }
    x = torch.randn(17, inputs, generator=torch.Generator().manual_seed(1))
    for rows in range(1, 18):
        found = PackedMatrix(layer, precision)(x[:rows])
        torch.testing.assert_close(found, F.linear(x[:rows], kept[precision], layer.bias), rtol=1e-5, atol=1e-4)
    small = PackedMatrix(layer, precision).nbytes
    assert small * {"fp32": 1, "bf16": 2, "int8": 4}[precision] == PackedMatrix(layer).nbytes


@needs_compiler
@pytest.mark.parametrize(
    "flags", [(), ("-mno-avx512f", "-mno-f16c"), ("-mno-avx",)], ids=lambda f: " ".join(f) or "all"
)
def test_numbers_that_16_bits_hold_are_kept_so_and_change_nothing(
    elsewhere: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    if flags and platform.machine() != "x86_64":
        pytest.skip("these are names of what x86 processors can do")
    elsewhere.setattr(cpu_build, "FLAGS", (*cpu_build.FLAGS, *flags))
    layer = affine(65, 100)
    layer.weight[0, :6] = torch.tensor([0.0, -0.0, 2.0**-24, -(2.0**-15), 65504.0, 1 / 3])  # subnormal numbers too
    published = Affine(layer.weight.half().float(), layer.bias)
    small, large = PackedMatrix(published), PackedMatrix(published._replace(weight=published.weight * 1.0000001))
    assert (small.stored, large.stored) == ("fp16", "fp32")
    assert small.nbytes * 2 == large.nbytes
    x = torch.randn(11, 100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(small(x)[:, 1:], F.linear(x, *published)[:, 1:], rtol=1e-5, atol=1e-4)
    unit = torch.eye(100)
    exact = PackedMatrix(Affine(published.weight, torch.zeros(65)))
    assert torch.equal(exact(unit), published.weight.t())


@needs_compiler
@pytest.mark.parametrize("largest", [1e5, torch.inf, torch.nan])
def test_what_16_bits_do_not_hold_keeps_its_32(largest: float) -> None:
    weight = torch.zeros(3, 4)
    weight[1, 2] = largest
    assert PackedMatrix(Affine(weight, torch.zeros(3))).stored == "fp32"


@needs_compiler
def test_a_row_is_the_same_to_the_bit_in_any_company() -> None:
    x = torch.randn(19, 50, generator=torch.Generator().manual_seed(1))
    matrix = PackedMatrix(affine(40, 50))
    assert all(
        torch.equal(matrix(x)[at : at + rows], matrix(x[at : at + rows])) for at, rows in ((0, 1), (3, 5), (7, 12))
    )


def networks(stage: int, size: str) -> tuple[VideoLM, VideoLM]:
    hidden, heads = SIZES[size]
    plain, compiled = (video_lm(stage, replace(CONFIG, hidden=hidden, heads=heads)) for _ in range(2))
    for weight in (*plain.parameters(), *compiled.parameters()):
        if weight.ndim > 1:
            weight.data *= 5 / hidden**0.5  # wide networks as tame as small ones
    plain.fuse(compiled=False)
    compiled.fuse()
    return plain, compiled


def scores(lm: VideoLM, unconditional: decoding.Texts | None = None, **options: Any) -> torch.Tensor:
    """Of all slots, by frame and slot, with the tokens of CLIP fed back."""
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def teacher(logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        seen[frame, slot] = logits
        return CLIP[:, frame, slot]

    run, known = (decoding.keyframes, CLIP[:, 0]) if lm.stage == 1 else (decoding.interpolate, CLIP[:, ::2])
    decoding.collect(run(lm, TEXTS, known, teacher, unconditional, decoding.DecodeOptions(**options)))
    return torch.stack([seen[key] for key in sorted(seen)])


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_predicts_what_the_plain_form_predicts(stage: int, size: str) -> None:
    plain, compiled = networks(stage, size)
    torch.testing.assert_close(scores(compiled), scores(plain), rtol=1e-4, atol=1e-4)
    guided: dict[str, Any] = {"unconditional": OTHERS, "guidance_scale": 3.0}
    torch.testing.assert_close(scores(compiled, **guided), scores(plain, **guided), rtol=1e-4, atol=3e-4)


@needs_compiler
@pytest.mark.parametrize("stage", [1, 2])
def test_scores_are_the_same_to_the_bit_however_the_steps_are_cut(stage: int) -> None:
    lm = networks(stage, "heads of 32")[1]
    one_by_one = scores(lm, wavefront=False) if stage == 2 else scores(lm)
    if stage == 2:
        assert torch.equal(scores(lm, wavefront=True), one_by_one)

    kept: dict[tuple[int, int], torch.Tensor] = {}
    cache = decoding.prefill(lm, TEXTS, given(lm), CLIP[:, list(given(lm))], text_attention_bias=1.4, use_temporal=True)

    def teacher(logits: torch.Tensor, frame: int, slot: int) -> torch.Tensor:
        kept[frame, slot] = logits
        return CLIP[:, frame, slot]

    list(decoding.jacobi_decode(lm, cache, 1, teacher, lookahead=7, guess=CLIP[:, 1]))
    assert torch.equal(torch.stack([kept[1, slot] for slot in range(CONFIG.tokens_per_frame)]), one_by_one[: len(kept)])


def given(lm: VideoLM) -> tuple[int, ...]:
    return (0,) if lm.stage == 1 else lm.layout.given


@needs_compiler
@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.05), ("int8", 0.05)])
def test_fewer_bits_predict_nearly_the_same(precision: Precision, near: float) -> None:
    plain, small = networks(1, "heads of 64")[0], video_lm(1, replace(CONFIG, hidden=128, heads=2))
    small.load_state_dict(plain.state_dict())
    small.fuse(precision)
    exact, found = scores(plain).softmax(-1), scores(small).softmax(-1)
    assert 0 < (found - exact).abs().sum(-1).mean() / 2 < near  # how much probability moves elsewhere


@needs_compiler
@pytest.mark.parametrize(("vocabulary", "clusters"), [(50, 9), (1000, 40), (1003, 1003)])
def test_a_draw_equals_the_plain_draw(vocabulary: int, clusters: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    sampler = ClusterSampler(torch.randint(clusters, (vocabulary,), generator=generator))
    logits = torch.randn(300, 2, vocabulary, generator=generator)[:, 1] * 3  # rows that do not follow each other
    keys = noise_keys([5] * 300, 1, range(300), 1)[0]
    for options in (TokenSampling(1.05, 12, 0.89), TokenSampling(0.5, 2000, 0.3), TokenSampling(1.0, 1, 1.0)):
        drawn = sampler.sample(logits, keys, options)
        assert torch.equal(drawn, sampler.sample_reference(logits, keys, options))
        assert len(drawn.unique()) > 5


@needs_compiler
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_draw_a_token(value: float) -> None:
    sampler, keys = ClusterSampler(torch.arange(50) % 9), noise_keys([1] * 4, 1, [0] * 4, 1)[0]
    drawn = sampler.sample(torch.full((4, 50), value), keys, TokenSampling(1.0, 4, 0.5))
    assert all(0 <= token < 50 for token in drawn.tolist())


@needs_compiler
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        KVBuffers([[torch.zeros(2, 1, 2, 8, 4).transpose(2, 3)]])
    with pytest.raises(ValueError, match="keys"):
        ClusterSampler(torch.arange(50) % 9).sample(
            torch.zeros(3, 50), torch.zeros(2, 2).long(), TokenSampling(1, 4, 1)
        )


# --- where it cannot be compiled ------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine on which nothing has been compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_build, "_load", functools.cache(cpu_build._load.__wrapped__))
    return monkeypatch


def test_without_a_compiler_the_plain_form_computes(elsewhere: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere.delenv("CC", raising=False)
    elsewhere.setenv("PATH", str(tmp_path))
    assert "no C compiler" in str(cpu_decode.unsupported_reason(torch.zeros(1)))
    lm = video_lm(1)
    expected = scores(lm)
    lm.fuse()
    torch.testing.assert_close(scores(lm), expected, rtol=1e-4, atol=1e-4)


def test_a_compiler_that_fails_is_quoted(elsewhere: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no space left >&2\nexit 1\n")
    compiler.chmod(0o755)
    elsewhere.setenv("CC", str(compiler))
    assert "no space left" in str(cpu_build.unsupported_reason("decode_cpu.c"))
    with pytest.raises(RuntimeError, match="no space left"):
        cpu_build.library("decode_cpu.c")


def test_a_switch_keeps_everything_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGVIDEO_COMPILE", "0")
    assert "COGVIDEO_COMPILE" in str(cpu_decode.unsupported_reason(torch.zeros(1)))


def test_other_devices_and_precisions_are_left_to_others() -> None:
    assert "float16" in str(cpu_decode.unsupported_reason(torch.zeros(1, dtype=torch.float16)))
    assert "meta" in str(cpu_decode.unsupported_reason(torch.zeros(1, device="meta")))


@needs_compiler
def test_it_is_compiled_once_and_kept(elsewhere: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cpu_build.unsupported_reason("decode_cpu.c") is None
    kept = list((tmp_path / "cache" / "cogvideo").iterdir())
    assert [path.suffix for path in kept] == [".so"]
    elsewhere.setattr(cpu_build, "_run", lambda *command: pytest.fail("compiled again"))
    assert cpu_build.unsupported_reason("decode_cpu.c") is None
