"""Layers that are on the device one after the other: a network larger than the card, for passes that are long enough.

In: groups of modules in host memory. Out: the number of each group while it is on the device; the next one is on its
way meanwhile. At any time at most two groups are there. Good for super-resolution, where every layer computes for
longer than it takes to be copied; useless for drawing token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


@contextmanager
def streamed_layers(
    network: nn.Module, groups: Sequence[Sequence[nn.Module]], device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[], Iterator[int]]]:
    """Inside the block all of `network` but `groups` is on `device`, in `dtype`; what is given goes through them.

    Afterwards everything is where it was, whatever happened: nothing is copied back, since nothing has changed. Host
    memory that is pinned is copied while the device computes.
    """
    inside = {id(tensor) for group in groups for tensor in _tensors(group)}
    rest = _TransferredTensors(
        [tensor for tensor in _tensors([network]) if id(tensor) not in inside], device, dtype, None
    )
    try:
        yield lambda: _through(groups, device, dtype)
    finally:
        rest.restore()


def _through(groups: Sequence[Sequence[nn.Module]], device: torch.device, dtype: torch.dtype) -> Iterator[int]:
    aside = torch.cuda.Stream(device) if device.type == "cuda" else None
    lent = [_TransferredTensors(_tensors(groups[0]), device, dtype, aside)] if groups else []
    try:
        for number in range(len(groups)):
            if number + 1 < len(groups):
                lent.append(_TransferredTensors(_tensors(groups[number + 1]), device, dtype, aside))
            lent[0].wait()
            yield number
            lent.pop(0).restore()
    finally:
        for each in lent:
            each.restore()


class _TransferredTensors:
    """Tensors whose storage is on the device for a while. `aside`: the stream that copies; None: the computing one."""

    def __init__(
        self, tensors: Sequence[Tensor], device: torch.device, dtype: torch.dtype, aside: torch.cuda.Stream | None
    ) -> None:
        self._tensors, self._device, self._aside = tensors, device, aside
        self._homes = [tensor.data for tensor in tensors]
        with torch.cuda.stream(aside) if aside is not None else nullcontext():
            for tensor in tensors:
                elsewhere = tensor.device.type == "cpu"  # what is on the device already, shared, is not copied
                wanted = dtype if tensor.is_floating_point() else None
                tensor.data = tensor.data.to(device, wanted, non_blocking=True, copy=elsewhere)

    def wait(self) -> None:
        """Until everything has arrived, as far as what is computed from now on is concerned."""
        if self._aside is None:
            return
        here = torch.cuda.current_stream(self._device)
        here.wait_stream(self._aside)
        for tensor in self._tensors:
            tensor.data.record_stream(here)  # its memory is free again only when this stream is done with it

    def restore(self) -> None:
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            tensor.data = home


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of all of them, each once."""
    found = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return list({id(tensor): tensor for tensor in found}.values())
