"""Device: the machine's best place is chosen, modules come home, threads are put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_model import toy_models

from cogvideo.device import Place, compress, enough_memory, pick_place, resident, threads, usable_cores
from cogvideo.errors import CapacityError


def test_the_cpu_computes_in_full_precision() -> None:
    assert pick_place("cpu") == Place(torch.device("cpu"), torch.float32)


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_place() == Place(torch.device("cuda"), torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_place().device.type == "cpu"
    with pytest.raises(CapacityError, match="cuda:1"):
        pick_place("cuda:1")


def test_a_module_comes_home_even_after_an_error() -> None:
    module = nn.Linear(2, 2)
    elsewhere = Place(torch.device("meta"), torch.float32)  # stands for another device
    with pytest.raises(RuntimeError, match="broken"), resident(module, elsewhere) as there:
        assert there.weight.device.type == "meta"
        raise RuntimeError("broken")
    assert elsewhere.home.type == "meta"
    assert Place(torch.device("meta"), torch.float32, keep=False).home.type == "cpu"


@pytest.mark.parametrize(
    "error, said",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "graphics memory"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
    ],
)
def test_running_out_of_memory_comes_with_a_remedy(error: Exception, said: str) -> None:
    with pytest.raises(CapacityError, match="fewer frames") as refusal, enough_memory():
        raise error
    assert said in refusal.value.en


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory():
        raise RuntimeError("shapes do not match")


def test_threads_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cores() >= 1


def test_eight_bits_take_a_quarter_of_the_memory_and_draw_nearly_the_same() -> None:
    place = pick_place("cpu", eight_bit=True)
    exact, small = toy_models(), toy_models()
    for network in small:
        compress(network, place)
    text, length = torch.tensor([[70, 71, 72]]), torch.tensor([3])
    frames = torch.arange(5 * 16).view(1, 5, 16) % 64
    for one, other in ((exact.stage1, small.stage1), (exact.stage2, small.stage2)):
        wanted, got = (lm.forward_training(text, length, frames) for lm in (one, other))
        assert not torch.equal(wanted, got)
        assert (wanted - got).abs().mean() < 0.05 * wanted.std()
    matrix = exact.stage1.transformer.layers[0].mlp.dense_h_to_4h.weight
    packed = small.stage1.transformer.layers[0].mlp.dense_h_to_4h.weight
    assert packed.nbytes * 4 == matrix.nbytes
    assert small.stage1.transformer is small.superres.transformer
