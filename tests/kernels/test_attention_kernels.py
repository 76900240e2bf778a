"""Every kernel equals its reference, in plain PyTorch and in Triton's interpreter, and compiled fits its cards."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import decode_attention as decoding
from kernels import local_attention as door
from kernels import reference, triton_support
from kernels.reference import LocalWindows
from tests.support.interpreter import interpreted, needs_triton


@dataclass(frozen=True)
class Case:
    fine: tuple[int, int]
    coarse: tuple[int, int]
    head: int = 16
    batch: int = 1
    heads: int = 2
    fine_window: tuple[int, int] = (9, 5)
    coarse_window: tuple[int, int] = (5, 5)


CASES = {
    "smaller than a window": Case((6, 6), (2, 2)),
    "several samples, odd head": Case((6, 9), (2, 3), head=7, batch=2),
    "wider than high": Case((9, 15), (3, 5), head=24),
    "more than one tile": Case((12, 21), (4, 7), head=64, heads=1),
    "height and width scaled differently": Case((12, 10), (4, 5)),
    "no scaling, other windows": Case((5, 7), (5, 7), fine_window=(1, 3), coarse_window=(3, 1)),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def tensors(case: Case, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k_fine, v_fine, k_coarse, v_coarse; not contiguous, as a model's fused projection makes them."""
    generator = torch.Generator().manual_seed(1)
    fine, coarse = case.fine[0] * case.fine[1], case.coarse[0] * case.coarse[1]

    def draw(cells: int, count: int) -> list[torch.Tensor]:
        mixed = torch.randn(case.batch, cells, count, case.heads, case.head, generator=generator).to(dtype)
        return [t.transpose(1, 2).detach().requires_grad_() for t in mixed.unbind(2)]

    return [*draw(fine, 3), *draw(coarse, 2)]


def largest_differences(function: Callable[..., torch.Tensor], case: Case, dtype: torch.dtype) -> list[float]:
    """Between `function` and the oracle in fp32: of the output, then of the five gradients."""
    windows = LocalWindows(case.fine, case.coarse, case.fine_window, case.coarse_window)
    tested = tensors(case, dtype)
    oracle = [t.detach().float().requires_grad_() for t in tested]
    out, right = function(*tested, windows), reference.local_attention_dense(*oracle, windows)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    out.backward(direction)
    right.backward(direction.float())
    pairs = [(out, right), *((a.grad, b.grad) for a, b in zip(tested, oracle))]
    return [(a.float() - b).abs().max().item() for a, b in pairs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_plain_equals_the_oracle(name: str, dtype: torch.dtype) -> None:
    assert max(largest_differences(reference.local_attention, CASES[name], dtype)) < TOLERANCE[dtype]


def test_a_cell_sees_its_windows_and_nothing_else() -> None:
    # With equal keys a query averages what it sees, so the values tell who was seen.
    case = CASES["more than one tile"]
    q, k_fine, v_fine, k_coarse, v_coarse = (torch.zeros_like(t) for t in tensors(case))
    Hf, Wf = case.fine
    y, x = torch.arange(Hf).repeat_interleave(Wf), torch.arange(Wf).repeat(Hf)
    v_fine[..., 0], v_fine[..., 1], v_fine[..., 2] = 1, y, x
    v_coarse[..., 3] = 1
    out = reference.local_attention(q, k_fine, v_fine, k_coarse, v_coarse, LocalWindows(case.fine, case.coarse))[0, 0]
    corner, middle = out[0], out[6 * Wf + 10]
    # corner: rows 0..4, columns 0..2 of the fine grid; rows 0..2, columns 0..2 of the coarse one
    assert corner[:4].tolist() == pytest.approx([15 / 24, 2 * 15 / 24, 1 * 15 / 24, 9 / 24])
    # middle: 9 x 5 fine cells around (6, 10); around coarse cell (2, 3) one of five rows is outside
    assert middle[:4].tolist() == pytest.approx([45 / 65, 6 * 45 / 65, 10 * 45 / 65, 20 / 65])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coarse": (2, 4)}, "not a multiple"),
        ({"fine_window": (8, 5)}, "odd sides"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, tuple[int, int]], words: str) -> None:
    case = Case(**({"fine": (6, 9), "coarse": (2, 3)} | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        reference.local_attention(
            *tensors(case), LocalWindows(case.fine, case.coarse, case.fine_window, case.coarse_window)
        )


def test_a_wrong_tensor_is_named() -> None:
    case = Case((6, 9), (2, 3))
    q, k_fine, v_fine, k_coarse, v_coarse = tensors(case)
    with pytest.raises(ValueError, match="v_coarse has shape"):
        door.local_attention(q, k_fine, v_fine, k_coarse, v_coarse[:, :, :5], LocalWindows(case.fine, case.coarse))


# --- decoding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Some slots of every row: for each channel the arena's capacity and what each slot sees of it."""

    capacity: tuple[int, ...]
    spans: list[list[tuple[int, int]]]
    rows: int = 2
    heads: int = 2
    head: int = 16
    text: int = 0


STEPS = {
    "both channels with text": Step((100, 150), [[(0, 80)], [(37, 150)]], rows=3, text=5),
    "both channels, odd head": Step((70, 9), [[(3, 70)], [(0, 9)]], head=7),
    "one channel": Step((65,), [[(0, 65)]], head=24, text=4),
    "the very first slot": Step((3, 4), [[(2, 3)], [(0, 1)]], rows=1, head=64),
    "two frames at a time": Step((90, 90), [[(0, 20), (50, 90)], [(3, 70), (71, 80)]], text=2),
}


def channels(step: Step, dtype: torch.dtype = torch.float32) -> list[reference.Channel]:
    """As a model's fused projections make them: q, k and v are views of one tensor."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for capacity in step.capacity:
        qkv = (
            torch.randn(step.rows, len(step.spans[0]), 3, step.heads, step.head, generator=generator)
            .to(dtype)
            .permute(2, 0, 3, 1, 4)
        )
        arena = torch.randn(2, step.rows, step.heads, capacity, step.head, generator=generator).to(dtype)
        made.append(reference.Channel(qkv[0], qkv[1:], arena))
    return made


def text_scores(step: Step) -> torch.Tensor | None:
    """Each row has one word more than the row before it; words are boosted, padding is hidden."""
    if not step.text:
        return None
    words = torch.arange(step.rows)[:, None] + 1
    return torch.where(torch.arange(step.text) >= step.text - words, 1.4, float("-inf"))


def decode_differences(function: Callable[..., torch.Tensor], step: Step, dtype: torch.dtype) -> list[float]:
    """Between `function` and the oracle; and whether each arena has the new slot in its place and is else unchanged."""
    given, spans, text = channels(step, dtype), torch.tensor(step.spans, dtype=torch.int32), text_scores(step)
    right = reference.decode_attention_dense(given, spans, text)
    expected = [channel.arena.clone() for channel in given]
    for arena, channel, slots in zip(expected, given, step.spans):
        for slot, (_, end) in enumerate(slots):
            arena[:, :, :, end - 1] = channel.k_v[:, :, :, slot]
    found = function(given, spans, text)
    differences = [(a.float() - b.float()).abs().max().item() for a, b in zip(found, right)]
    return differences + [float(not torch.equal(a.arena, b)) for a, b in zip(given, expected)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_plain_decoding_equals_the_oracle(name: str, dtype: torch.dtype) -> None:
    assert max(decode_differences(decoding.decode_attention, STEPS[name], dtype)) < TOLERANCE[dtype]


def test_decoding_says_why_it_takes_the_plain_path() -> None:
    assert "one or two channels" in str(decoding.unsupported_reason(channels(Step((3,) * 3, [[(0, 1)]] * 3))))
    assert "wider" in str(decoding.unsupported_reason(channels(Step((3,), [[(0, 1)]], head=300))))


# --- the fast kernel ------------------------------------------------------------------------------------------------


@needs_triton
def test_triton_equals_the_oracle_in_its_interpreter() -> None:
    found = interpreted("interpreter_cases.py")
    assert len(found) == (len(CASES) + len(STEPS)) * len(DTYPES)
    for dtype in DTYPES:
        worst = {name: max(errors) for name, errors in found.items() if name.endswith(str(dtype))}
        assert max(worst.values()) < TOLERANCE[dtype], worst


SHARED_MEMORY = {75: 64, 86: 99}
"""KiB that one block may use on a Turing and a consumer Ampere card; larger ones have more."""


@needs_triton
@pytest.mark.parametrize(("capability", "type_name", "head"), [(75, "fp16", 64), (86, "fp32", 64)])
def test_triton_compiles_and_fits_the_card(
    capability: int, type_name: str, head: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Triton compiles for a card that is not there; what remains untested without one is only the speed.
    from kernels import decode_attention_triton
    from kernels import local_attention_triton as fast

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    windows = dict(FINE_Y=4, FINE_X=2, COARSE_Y=2, COARSE_X=2, HALF_Y=4, HALF_X=2)
    constants = windows | fast.tiling(head, 4 if type_name == "fp32" else 2)
    for kernel in (fast._forward, fast._backward_queries, fast._backward_keys):
        assert shared_memory(kernel, constants, type_name, capability) <= SHARED_MEMORY[capability] * 1024, kernel
    decoding = dict(TEXTED=True, BLOCK=decode_attention_triton.BLOCK, D=head)
    assert shared_memory(decode_attention_triton._decode, decoding, type_name, capability) < 16 * 1024


def shared_memory(
    kernel: Any, constants: dict[str, Any], type_name: str, capability: int, others: dict[str, str] | None = None
) -> int:
    """Bytes that a block of a kernel takes, compiled for a card that need not be there.

    By convention of our kernels capitals are pointers: LSE, DELTA and TEXT to fp32, SPANS to int32, others to numbers
    of the model; small letters are integers, but for `scale`. `others`: types of arguments that keep to no such rule.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    special = {"LSE": "*fp32", "DELTA": "*fp32", "TEXT": "*fp32", "SPANS": "*i32", "scale": "fp32"} | (others or {})
    sizes = {"Hf", "Wf", "Hc", "Wc"}
    names = [parameter.name for parameter in kernel.params]

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return special.get(name, f"*{type_name}" if name[0].isupper() and name not in sizes else "i32")

    fixed = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    source = ASTSource(fn=kernel, signature={name: kind(name) for name in names}, constexprs=fixed)
    return int(triton.compile(source, target=GPUTarget("cuda", capability, 32)).metadata.shared)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that take something from the machine, which the door looks at only once."""
    looks = (triton_support._has_triton, triton_support._has_compiler)
    for look in looks:
        look.cache_clear()
    yield monkeypatch
    for look in looks:
        look.cache_clear()


@needs_triton
def test_the_door_says_why_it_takes_the_plain_path() -> None:
    assert "float64" in str(door.unsupported_reason(torch.empty(1, 1, 4, 16, dtype=torch.float64)))
    assert "wider" in str(door.unsupported_reason(torch.empty(1, 1, 4, 65)))
    assert "cpu" in str(door.unsupported_reason(torch.empty(1, 1, 4, 64)))


def test_the_door_works_without_triton(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(door.unsupported_reason(torch.empty(1, 1, 4, 64)))
    assert max(largest_differences(door.local_attention, CASES["wider than high"], torch.float32)) < 5e-6


@needs_triton
def test_the_door_asks_for_a_compiler(bare: pytest.MonkeyPatch) -> None:
    bare.delenv("CC", raising=False)
    bare.setenv("PATH", "")
    assert "no C compiler" in str(door.unsupported_reason(torch.empty(1, 1, 4, 64)))


# --- the benchmark --------------------------------------------------------------------------------------------------


def test_the_benchmark_runs_at_toy_size(capsys: pytest.CaptureFixture[str]) -> None:
    from kernels import bench

    assert bench.main(["--device", "cpu", "--shape", "toy", "--seconds", "0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plain = [row for row in found["rows"] if row["form"] == "plain"]
    fast = [row for row in found["rows"] if row["form"] == "fast"]
    assert [row["milliseconds"] > 0 and row["mebibytes"] > 0 and row["of_floor"] > 0 for row in plain] == [True] * 5
    assert all(row["milliseconds"] is None and row["note"] for row in fast)  # says why it did not run
    assert {row["operation"] for row in fast} == {row["operation"] for row in plain}
    assert plain[1]["mebibytes"] > plain[0]["mebibytes"]  # gradients take memory


def test_the_floor_counts_windows_and_traffic() -> None:
    from kernels import bench

    shape = bench.KernelShape(1, 1, (2, 2), upscale=2, head=8, places=(1, 1), fine_window=(3, 3), coarse_window=(1, 1))
    slow_arithmetic = bench.HardwareLimits(
        "", gigabytes_per_second=1e9, gigaflops=1e-6
    )  # a thousand operations a second
    slow_memory = bench.HardwareLimits("", gigabytes_per_second=1e-6, gigaflops=1e9)  # a thousand bytes a second
    fine, coarse, keys = 16, 4, 10
    assert bench.local_attention_floor(shape, torch.float32, slow_arithmetic, False) == pytest.approx(
        2 * 2 * fine * keys * 8
    )
    assert bench.local_attention_floor(shape, torch.float16, slow_memory, False) == pytest.approx(
        2 * 8 * (4 * fine + 2 * coarse)
    )
