"""How much memory computing takes: the most bytes of tensors that were made inside a block and lived at the same time.

In: work. Out: bytes. On a GPU the allocator counts; on a CPU every operator's results are followed until they are gone,
which sees all tensors and not what a library uses within one operator.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """While it is entered: `now` and `most` bytes of tensors made since, on any device but "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}  # storages, by identity; None once they are gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, made=True)
        return result

    def _meet(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # the same as long as any tensor has it
        if key in self._known:
            return
        size = storage.nbytes() if made else 0

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


class Peak:
    """What `peak` found, once its block has ended."""

    bytes: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """The most memory that the block takes besides what was there before."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with PeakBytes() as counted:
        yield found
    found.bytes = counted.most


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all weights of `modules`, those that several share once; what is on no device ("meta") not at all."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if not tensor.is_meta
    }
    return sum(tensors.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_meta)
