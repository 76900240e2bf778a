"""Layer streaming: layers are copied to the device one after the other, for networks larger than GPU memory.

In: groups of modules in host memory. Out: the number of each group while it is on the device. Meanwhile the next group
is copied, so that at most two are there. It suits super-resolution, whose layers compute longer than their copy
takes. It does not suit token-by-token decoding.
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
    """Hold all of `network` but `groups` on `device`, in `dtype`, during the block; yield a function that streams them.

    The function returns an iterator over the numbers of the groups. Afterwards all tensors have their original storage,
    even after an error: nothing is copied back, since weights do not change. Copies of pinned host memory overlap with
    computation.
    """
    streamed = {id(tensor) for group in groups for tensor in _tensors(group)}
    rest = _TransferredTensors(
        [tensor for tensor in _tensors([network]) if id(tensor) not in streamed], device, dtype, None
    )
    try:
        yield lambda: _stream(groups, device, dtype)
    finally:
        rest.restore()


def _stream(groups: Sequence[Sequence[nn.Module]], device: torch.device, dtype: torch.dtype) -> Iterator[int]:
    copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    transferred = [_TransferredTensors(_tensors(groups[0]), device, dtype, copy_stream)] if groups else []
    try:
        for number in range(len(groups)):
            if number + 1 < len(groups):
                transferred.append(_TransferredTensors(_tensors(groups[number + 1]), device, dtype, copy_stream))
            transferred[0].wait()
            yield number
            transferred.pop(0).restore()
    finally:
        for group in transferred:
            group.restore()


class _TransferredTensors:
    """Tensors whose storage is temporarily on the device.

    `copy_stream`: the CUDA stream of the copies. None: the current stream.
    """

    def __init__(
        self, tensors: Sequence[Tensor], device: torch.device, dtype: torch.dtype, copy_stream: torch.cuda.Stream | None
    ) -> None:
        self._tensors, self._device, self._copy_stream = tensors, device, copy_stream
        self._originals = [tensor.data for tensor in tensors]
        with torch.cuda.stream(copy_stream) if copy_stream is not None else nullcontext():
            for tensor in tensors:
                on_host = tensor.device.type == "cpu"  # shared tensors on the device already are not copied
                target = dtype if tensor.is_floating_point() else None
                tensor.data = tensor.data.to(device, target, non_blocking=True, copy=on_host)

    def wait(self) -> None:
        """Make the current stream wait for the copies."""
        if self._copy_stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._copy_stream)
        for tensor in self._tensors:
            tensor.data.record_stream(current)  # its memory must not be reused before this stream has finished with it

    def restore(self) -> None:
        """Give all tensors their original storage again."""
        for tensor, original in zip(self._tensors, self._originals, strict=True):
            tensor.data = original


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of all `modules`, each once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return list({id(tensor): tensor for tensor in tensors}.values())
