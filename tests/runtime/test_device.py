"""Device: the best place is chosen, parts come and go, memory that ends is a sentence, threads are put back."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from cogvideo.errors import CapacityError, OutOfMemoryError, RequestError
from cogvideo.runtime.device import DevicePlacement, default_placement, torch_threads, usable_cores
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, PlacementOptions
from cogvideo.runtime.oom import free_memory, translate_oom
from cogvideo.runtime.placement import on_device
from tests.support.toy_model import CONFIG, toy_models

CPU = DevicePlacement(torch.device("cpu"), torch.float32)


def test_the_cpu_computes_in_full_precision() -> None:
    assert default_placement("cpu") == DevicePlacement(torch.device("cpu"), torch.float32)


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_placement() == DevicePlacement(torch.device("cuda"), torch.float16, MEMORY_PRESETS["48g"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_placement().device.type == "cpu"
    with pytest.raises(CapacityError, match="cuda:1"):
        default_placement("cuda:1")


def test_two_ways_by_hand_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="memory 16g"):
        PlacementOptions("cpu", quantization="int8", offload="layers")


def test_a_networks_own_part_comes_and_goes_and_the_backbone_stays() -> None:
    elsewhere = DevicePlacement(
        torch.device("meta"), torch.float32, replace(MEMORY_PRESETS["cpu"], swap_networks=True)
    )  # for another device
    lm = toy_models().stage1
    before = {name: tensor.data_ptr() for name, tensor in lm.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken"), on_device(lm, elsewhere) as there:
        kinds = {name.split(".")[0]: tensor.device.type for name, tensor in there.state_dict().items()}
        assert kinds == {"transformer": "cpu", "mixins": "meta"}
        raise RuntimeError("broken")
    assert {name: tensor.data_ptr() for name, tensor in lm.state_dict().items()} == before  # not even copied back


def out_of_memory(error: Exception, place: DevicePlacement = CPU) -> OutOfMemoryError:
    with pytest.raises(OutOfMemoryError, match="fewer frames") as refusal, translate_oom(CONFIG, place):
        raise error
    return refusal.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_running_out_of_memory_names_the_next_smaller_preset(error: Exception) -> None:
    refusal = out_of_memory(error)
    row = MEMORY_PRESETS[str(refusal.next_preset)]
    assert peak_bytes(CONFIG, row, "cpu") < peak_bytes(CONFIG, CPU.memory, "cpu")
    for sentence in (refusal.zh, refusal.en):
        assert f"--memory {row.name}" in sentence
    assert "the same seed" in refusal.en


def test_where_nothing_is_smaller_none_is_named() -> None:
    refusal = out_of_memory(MemoryError(), DevicePlacement(torch.device("cpu"), torch.float32, MEMORY_PRESETS["8g"]))
    assert refusal.next_preset is None
    assert "--memory" not in refusal.en


def test_tensors_of_a_failed_call_are_let_go_of() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemoryError) as refusal, translate_oom(CONFIG, CPU):
        work()
    assert held[0]() is None and refusal.value.next_preset


def test_what_a_server_has_set_aside_is_let_go_of_too() -> None:
    module = torch.nn.Linear(3, 3)
    holder: list[object] = [module]
    holder.append(holder)  # only a search for garbage finds that nobody else holds it
    left = weakref.ref(module)
    gc.freeze()
    del module, holder
    free_memory(CPU)
    assert left() is None


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), translate_oom(CONFIG, CPU):
        raise RuntimeError("shapes do not match")


def test_threads_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cores() >= 1
