"""What a decoding step on a card is made of: kernels equal their plain forms, and the step draws the same tokens."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cogvideo.config import MAX_IDLE_CACHES, TokenSampling
from cogvideo.inference import decoding
from cogvideo.inference.sampling import ClusterSampler, TokenSampler, noise_keys
from cogvideo.models import attention, cache_pool, cuda_graph, fused_decode, kv_cache
from cogvideo.models.base import cache_fp32_heads
from cogvideo.models.kv_cache import KVCache, TokenSlot
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime import device, placement
from cogvideo.runtime.memory_estimate import cache_pool_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from kernels import sandwich_norm, w8a16
from tests.kernels.test_attention_kernels import shared_memory
from tests.support.interpreter import interpreted, needs_triton
from tests.support.small_lm import CONFIG, random_frames, superres_lm, video_lm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
PRODUCTS = {"one row": (1, 128, 32), "odd sizes": (3, 130, 37), "many rows": (17, 64, 16), "most rows": (64, 20, 5)}
"""Rows, inputs, outputs."""
SANDWICHES = [(2, 1, 64), (3, 2, 100), (1, 33)]


# --- weights in 8 bits ----------------------------------------------------------------------------------------------


def product_difference(function: Callable[..., torch.Tensor], name: str, dtype: torch.dtype) -> float:
    """Largest one, relative to the largest answer, from the product with the unpacked weights in fp64."""
    rows, inputs, outputs = PRODUCTS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    small, scale = w8a16.quantize_rows(torch.randn(outputs, inputs, generator=generator))
    bias = torch.randn(outputs, generator=generator).to(dtype)
    right = F.linear(x.double(), small.double() * scale.double()[:, None], bias.double())
    found = function(x, small, scale, bias)
    assert found.dtype == dtype
    without = function(x, small, scale)
    errors = [(found.double() - right).abs().max(), (without.double() - right + bias.double()).abs().max()]
    return float(max(errors) / right.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_plain_product_equals_that_of_the_unpacked_weights(name: str, dtype: torch.dtype) -> None:
    assert product_difference(w8a16.linear, name, dtype) < TOLERANCE[dtype]


def test_a_weight_is_kept_to_a_254th_of_the_largest_of_its_output() -> None:
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(2))
    weight[4] = 0
    small, scale = w8a16.quantize_rows(weight)
    assert small.dtype == torch.int8
    assert bool(((small * scale[:, None] - weight).abs() <= weight.abs().amax(1, keepdim=True) / 254 * 1.001).all())


def test_the_module_takes_the_place_of_a_linear_layer_of_the_backbone() -> None:
    layer = torch.nn.Linear(40, 9)
    small = w8a16.Int8Linear(layer.weight, layer.bias).half().float()  # scales survive a change of type
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(3))
    assert small.scale.dtype == torch.float32
    assert not list(small.parameters())
    torch.testing.assert_close(attention.linear(small, x), layer(x), rtol=0, atol=0.02)


def test_the_door_says_which_products_it_leaves_to_others() -> None:
    weight = torch.zeros(4, 8, dtype=torch.int8)
    assert "rows" in str(w8a16.unsupported_reason(torch.zeros(65, 8), weight))
    assert "rows" in str(w8a16.unsupported_reason(torch.zeros(0, 8), weight))
    assert "contiguous" in str(w8a16.unsupported_reason(torch.zeros(1, 4), weight.t()))
    assert "gradients" in str(w8a16.unsupported_reason(torch.zeros(1, 8, requires_grad=True), weight))
    assert w8a16.unsupported_reason(torch.zeros(1, 8), weight) is not None  # no card, or no triton


# --- between two products -------------------------------------------------------------------------------------------


def sandwich_differences(
    function: Callable[..., tuple[torch.Tensor, ...]], shape: tuple[int, ...], dtype: torch.dtype
) -> list[float]:
    """Of both answers from the same in fp64."""
    generator = torch.Generator().manual_seed(4)
    x, out = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    after, before = (tuple(torch.randn(shape[-1], generator=generator).to(dtype) for _ in range(2)) for _ in range(2))

    def norm(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, shape[-1:], weight.double(), bias.double(), 1e-5)

    hidden = x.double() + norm(out.double(), *after)
    right = (hidden, norm(hidden, *before))
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(function(x, out, after, before), right)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SANDWICHES)
def test_the_plain_sandwich_is_two_norms_and_a_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert max(sandwich_differences(sandwich_norm.sandwich_norm, shape, dtype)) < TOLERANCE[dtype]


def test_the_sandwich_says_what_it_leaves_to_others() -> None:
    assert "wider" in str(sandwich_norm.unsupported_reason(torch.empty(1, 20000)))
    assert "gradients" in str(sandwich_norm.unsupported_reason(torch.empty(1, 8, requires_grad=True)))
    assert sandwich_norm.unsupported_reason(torch.empty(1, 8)) is not None


# --- the step as a card computes it ---------------------------------------------------------------------------------

TINY = replace(CONFIG, grid=(2, 2), layers=2)
TEXTS = [[51, 52, 53], [54, 55, 56, 57, 58]]
CLIP = random_frames(2, 5, config=TINY)


def tokens(stage: int, fused: bool, rows: int = 2) -> torch.Tensor:
    lm, texts = video_lm(stage, TINY), TEXTS[:rows]
    if fused:
        lm.fuse(compiled=False)
    size, seeds = TINY.tokens_per_frame, list(range(rows))
    keys = {frame: noise_keys(seeds, 1, [frame] * rows, size) for frame in range(5)}
    dice = TokenSampler(ClusterSampler(torch.arange(50) % 9), TokenSampling(1.0, 4, 0.5), keys)
    if stage == 2:
        return decoding.collect(decoding.interpolate(lm, texts, CLIP[:rows, ::2], dice))
    first = decoding.collect(decoding.first_frame(lm, texts, dice))
    others = decoding.keyframes(lm, texts, first[:, 0], dice, unconditional=texts if rows > 1 else None)
    return torch.cat((first, decoding.collect(others)), dim=1)


def tokens_differ(stage: int, fused: bool, rows: int = 2) -> int:
    """How many tokens the step with the kernels draws otherwise than the plain step."""
    found = tokens(stage, fused, rows)
    with mock.patch.object(kv_cache, "unsupported_reason", lambda channels: "for comparison"):
        return int((found != tokens(stage, fused, rows)).sum())


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_slots_found_by_their_numbers_on_the_device_draw_the_same_tokens(
    stage: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    assert tokens_differ(stage, fused) == 0
    assert len(tokens(stage, fused).unique()) > 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_reads_the_same_places_each_time(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a captured step could not follow: another tensor for ids or numbers, or a number that only Python knows.
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    lm, seen = video_lm(1, TINY), set()
    if fused:
        lm.fuse(compiled=False)
    run = lm._step

    def step(held: KVCache, ids: torch.Tensor, guidance: float | None) -> torch.Tensor:
        assert held.numbers is not None
        seen.add((ids.data_ptr(), held.numbers.data_ptr()))
        with mock.patch.object(held, "slots", ()), mock.patch.object(KVCache, "fast", True):
            return run(held, ids, guidance)

    monkeypatch.setattr(lm, "_step", step)
    storage = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    scores = [lm.decode_one(storage, CLIP[:, 1, slot : slot + 1], [TokenSlot(1, slot)]).clone() for slot in range(4)]
    assert len(seen) == 1
    assert len(storage.graphs) == 1
    with mock.patch.object(kv_cache, "unsupported_reason", lambda channels: "for comparison"):
        plain = decoding.prefill(
            video_lm(1, TINY), TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True
        )
        for slot in range(4):
            expected = video_lm(1, TINY).decode_one(plain, CLIP[:, 1, slot : slot + 1], [TokenSlot(1, slot)])
            torch.testing.assert_close(scores[slot], expected, rtol=1e-4, atol=1e-4)


def test_storage_is_freed_with_its_graphs_when_nobody_draws_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    lm = video_lm(1, TINY)
    storage = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    lm.decode_one(storage, CLIP[:, 1, :1], [TokenSlot(1, 0)])
    assert len(storage.graphs) == 1
    gone = weakref.ref(storage)
    gc.disable()
    try:
        del storage
        assert gone() is None
    finally:
        gc.enable()


def drawn_frames(lm: Any, texts: list[list[int]], seed: int = 0) -> torch.Tensor:
    """The first frame and the others, guided."""
    rows, size = len(texts), TINY.tokens_per_frame
    keys = {frame: noise_keys([seed + row for row in range(rows)], 1, [frame] * rows, size) for frame in range(5)}
    dice = TokenSampler(ClusterSampler(torch.arange(50) % 9), TokenSampling(1.0, 4, 0.5), keys)
    first = decoding.collect(decoding.first_frame(lm, texts, dice))
    others = decoding.keyframes(lm, texts, first[:, 0], dice, unconditional=[[59]] * rows)
    return torch.cat((first, decoding.collect(others)), dim=1)


ROOM = 2**30


def keeping(stage: int) -> VideoLM:
    """A network that may keep storage for the next video."""
    lm = video_lm(stage, TINY)
    lm.cache_pool = cache_pool.CachePool(ROOM)
    return lm


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each step that would be captured on a card."""
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    made: list[object] = []
    begin = cuda_graph.CudaGraphStep.__init__

    def noted(self: cuda_graph.CudaGraphStep, *arguments: Any) -> None:
        made.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(cuda_graph.CudaGraphStep, "__init__", noted)
    return made


def test_what_was_captured_for_one_video_serves_the_next(captures: list[object]) -> None:
    lm, others = keeping(1), [[[60, 61]], [[51, 52, 53, 54, 55, 56, 57]], [[58]]]
    drawn_frames(lm, TEXTS[:1])
    assert len(captures) == 2  # of the first frame and of the others
    for seed, texts in enumerate(others):
        found = drawn_frames(lm, texts, seed)
        assert len(captures) == 2
        lm.cache_pool.clear()
        assert torch.equal(found, drawn_frames(lm, texts, seed))  # nothing of the earlier video is seen
        del captures[2:]
    drawn_frames(lm, TEXTS)
    assert len(captures) == 4  # two rows are another shape


def test_storage_that_is_being_drawn_with_is_nobody_elses(captures: list[object]) -> None:
    lm = keeping(1)
    one = decoding.first_frame(lm, TEXTS[:1], lambda logits, *_: logits.argmax(-1))
    other = decoding.first_frame(lm, TEXTS[1:], lambda logits, *_: logits.argmax(-1))
    together = [(a.ids, b.ids) for a, b in zip(one, other)]
    apart = [
        [token.ids for token in decoding.first_frame(lm, [text], lambda logits, *_: logits.argmax(-1))]
        for text in TEXTS
    ]
    assert together == list(zip(*apart))
    begun = len(captures)
    unfinished = decoding.first_frame(lm, TEXTS[:1], lambda logits, *_: logits.argmax(-1))
    assert isinstance(unfinished, Generator)
    next(unfinished)
    unfinished.close()  # stopped on the way: what was captured stays useful
    next(decoding.first_frame(lm, TEXTS[:1], lambda logits, *_: logits.argmax(-1)))
    assert len(captures) == begun


def test_new_weights_keep_nothing_and_the_oldest_go_first(captures: list[object]) -> None:
    lm = keeping(1)
    drawn_frames(lm, TEXTS[:1])
    lm.fuse(compiled=False)
    drawn_frames(lm, TEXTS[:1])
    assert len(captures) == 4
    shelf, shape = cache_pool.CachePool(ROOM), kv_cache.CacheKey(1, 1, 16, (), False, 0.0, 1, False)
    for number in range(MAX_IDLE_CACHES + 2):
        storage = lm.acquire_cache(1, 3, (), False, float(number), 1)
        shelf.release(shape._replace(text_attention_bias=float(number)), storage)
    assert [shelf.acquire(shape._replace(text_attention_bias=float(n))) is None for n in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert shelf.acquire(shape._replace(text_attention_bias=2.0)) is None


def storage_there() -> int:
    """Bytes of all that exists, kept or drawn with."""
    return sum(thing.nbytes for thing in gc.get_objects() if type(thing) is KVCache and not thing.like.is_meta)


def test_storage_that_is_kept_takes_no_more_than_the_largest_batch(captures: list[object]) -> None:
    memory = replace(MEMORY_PRESETS["cpu"], max_batch_rows=4)
    networks = SimpleNamespace(stage1=video_lm(1, TINY), stage2=video_lm(2, TINY), superres=superres_lm(TINY))
    models = placement.place_models(networks, device.DevicePlacement(torch.device("cpu"), torch.float32, memory))
    gc.collect()  # what other tests left
    taken, counts, others = [], [], storage_there()
    for rows in (1, 1, 2, 4, 2):
        before = len(captures)
        for lm, frames in ((models.stage1, 0), (models.stage2, slice(None, None, 2))):
            run, known = (decoding.keyframes, decoding.interpolate)[lm.stage - 1], CLIP[:1, frames]
            texts, known = TEXTS[:1] * rows, known.repeat(rows, *[1] * (known.dim() - 1))
            tokens = run(lm, texts, known, lambda logits, *_: logits.argmax(-1))
            next(tokens)
            taken.append(storage_there() - others)
            assert list(tokens)
        counts.append(len(captures) - before)
    limit = cache_pool_bytes(TINY, memory, "cpu")
    assert limit / 2 < max(taken) <= limit
    assert counts[0] and not counts[1]  # what was captured serves the second


@pytest.mark.parametrize("swap", [False, True])
def test_weights_that_take_turns_end_what_was_captured(captures: list[object], swap: bool) -> None:
    lm, other = video_lm(1, TINY), video_lm(2, TINY)
    place = device.DevicePlacement(
        torch.device("cpu"), torch.float32, replace(MEMORY_PRESETS["cpu"], swap_networks=swap)
    )
    placement.place_models(SimpleNamespace(stage1=lm, stage2=other, superres=superres_lm(TINY)), place)
    for _ in range(2):
        drawn_frames(lm, TEXTS[:1])
    assert len(captures) == (4 if swap else 2)


def test_nothing_is_kept_where_nothing_is_captured() -> None:
    lm = keeping(1)
    drawn_frames(lm, TEXTS[:1])
    assert not lm.cache_pool._idle


def test_a_slot_that_looks_ahead_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    lm = video_lm(1, TINY)
    storage = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    storage.select_slots([TokenSlot(1, 0), TokenSlot(1, 1)])
    assert not storage.fast
    storage.select_slots([TokenSlot(1, 0)])
    assert storage.fast


def test_steps_are_captured_on_nvidia_cards_only() -> None:
    assert "cpu" in str(cuda_graph.unsupported_reason(torch.zeros(1)))


# --- in Triton ------------------------------------------------------------------------------------------------------


@needs_triton
def test_kernels_of_a_step_in_tritons_interpreter() -> None:
    found = interpreted("interpreter_steps.py")
    assert len(found["errors"]) == (len(PRODUCTS) + len(SANDWICHES)) * len(DTYPES)
    for dtype in DTYPES:
        worst = {name: error for name, error in found["errors"].items() if name.endswith(str(dtype))}
        assert max(worst.values()) < TOLERANCE[dtype], worst
    assert list(found["wired"].values()) == [0, 0]


@needs_triton
@pytest.mark.parametrize("rows", [16, 64])
def test_kernels_of_a_step_compile_and_fit_the_card(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import sandwich_norm_triton, w8a16_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict(BIASED=True, ROWS=rows, OUTPUTS=w8a16_triton.OUTPUTS, INPUTS=w8a16_triton.INPUTS)
    special = {"WEIGHTS": "*i8", "SCALE": "*fp32"}
    assert shared_memory(w8a16_triton._product, constants, "fp16", 75, special) <= 64 * 1024
    assert shared_memory(sandwich_norm_triton._sandwich, dict(D=4096), "fp16", 75, {"epsilon": "fp32"}) <= 64 * 1024


# --- what a step asks the host for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_no_token_of_a_video_asks_a_card_for_a_number(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the device "meta" there are shapes and no numbers: whoever wants one fails.
    meta, size = torch.device("meta"), TINY.tokens_per_frame
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)

    def attend(channels: list[Any], spans: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        assert spans.is_meta and text.is_meta
        q = channels[0].q
        return q.new_empty(q.shape[0], q.shape[2], len(channels), q.shape[1], q.shape[3])

    monkeypatch.setattr(kv_cache, "decode_attention", attend)
    sampler = ClusterSampler(torch.arange(50) % 9)
    for name in ("labels", "members", "padding"):
        setattr(sampler, name, getattr(sampler, name).to(meta))
    dice = TokenSampler(
        sampler, TokenSampling(1.0, 4, 0.5), {f: noise_keys([3, 4], 1, [f] * 2, size) for f in range(5)}
    )
    drawn = 0
    for stage, frames in ((1, 0), (2, slice(None, None, 2))):
        lm = video_lm(stage, TINY).to(meta)
        if fused:
            lm.fuse(compiled=False)
        run = decoding.keyframes if stage == 1 else decoding.interpolate
        for token in run(lm, TEXTS, CLIP[:, frames].to(meta), dice, unconditional=TEXTS):
            assert token.ids.is_meta
            drawn += 1
    assert drawn == (4 + 2) * size
    with pytest.raises((RuntimeError, NotImplementedError)):
        token.ids.tolist()


def test_a_card_is_a_few_steps_behind_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    waited: list[int] = []

    class Event:
        def record(self, stream: object) -> None:
            begun.append(self)

        def synchronize(self) -> None:
            assert len(begun) - begun.index(self) > 1  # not the last one: the card still has something to do
            waited.append(len(begun) - 1 - begun.index(self))

    class OnACard(decoding.StepThrottle):
        def __init__(self, device: torch.device) -> None:
            super().__init__(torch.device("cuda"))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(decoding, "StepThrottle", OnACard)
    lm = video_lm(1, TINY)
    size = len(list(decoding.keyframes(lm, TEXTS, CLIP[:, 0], lambda logits, *_: logits.argmax(-1))))
    assert len(begun) == size
    assert waited == [decoding.MAX_QUEUED_STEPS] * (size - decoding.MAX_QUEUED_STEPS)


@pytest.mark.parametrize("fused", [False, True])
def test_the_head_is_not_cast_at_every_step(fused: bool) -> None:
    lm, cast = video_lm(1, TINY).half(), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten.to and found.data_ptr() != args[0].data_ptr():
                cast.append(found.shape)
            return found

    def step() -> torch.Tensor:
        storage = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
        with Casts():
            return lm.decode_one(storage, CLIP[:, 1, :1], [TokenSlot(1, 0)])

    before = step()
    assert torch.Size((50, 24)) in cast
    cast.clear()
    cache_fp32_heads([lm, other := video_lm(2, TINY).half()])
    assert lm.full_head is not other.full_head  # they share no backbone
    if fused:
        lm.fuse(compiled=False)
    torch.testing.assert_close(step(), before, rtol=0.02, atol=0.02)
    assert cast and torch.Size((50, 24)) not in cast


# --- how many launches ----------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts the operations that would start a kernel: those that compute, and no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            name = func.overloadpacket.__name__
            self.names.append("product" if name in ("linear", "addmm") else name)
        return func(*args, **(kwargs or {}))


def launches(layers: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of one step of stage 1 with the kernels in place, which are counted by their doors."""
    monkeypatch.setattr(kv_cache, "unsupported_reason", lambda channels: None)
    lm = video_lm(1, replace(TINY, layers=layers))
    lm.fuse(compiled=False)
    storage = decoding.prefill(lm, TEXTS, (0,), CLIP[:, :1], text_attention_bias=1.4, use_temporal=True)
    lm.decode_one(storage, CLIP[:, 1, :1], [TokenSlot(1, 0)])
    seen, called = torch.zeros(2, 1, 2, TINY.heads, TINY.head_size), Counter[str]()

    def attend(*_: object) -> torch.Tensor:
        called["decode_attention"] += 1
        return seen

    def sandwich(x: torch.Tensor, out: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        called["sandwich_norm"] += 1
        return x, out

    monkeypatch.setattr(kv_cache, "decode_attention", attend)
    monkeypatch.setattr(fused_decode, "sandwich_norm", sandwich)
    with Launches() as counted:
        lm.decode_one(storage, CLIP[:, 1, 1:2], [TokenSlot(1, 1)])
    monkeypatch.undo()
    return called + Counter(counted.names)


def test_a_layer_is_eight_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    few, more = launches(2, monkeypatch), launches(3, monkeypatch)
    assert more - few == {"product": 4, "gelu": 1, "decode_attention": 1, "sandwich_norm": 2}
    assert sum(more.values()) - sum(few.values()) == 8
