"""A decoding step with tensors at fixed addresses. On an NVIDIA GPU it is captured as a CUDA graph and replayed.

In: the inputs of the slots. Out: their logits, in a tensor that the next step overwrites. On other devices the same
step runs without a graph, with the same input tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2
"""Steps before the capture, in which libraries may select algorithms and compile kernels."""


def unsupported_reason(ids: Tensor) -> str | None:
    """Return why a step on this device cannot be captured. None if it can."""
    if ids.device.type != "cuda":
        return f"graphs are captured on NVIDIA GPUs only, and the tokens are on {ids.device.type}"
    if torch.cuda.is_current_stream_capturing():
        return "another capture is under way"
    return None


class CudaGraphStep:
    """A step that is captured once and replayed.

    `compute`: ids [samples, Q] -> logits [samples, Q, V]. All its other inputs must be tensors at fixed addresses. It
    must not copy values to the host, and repeating it must give the same result.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], ids: Tensor) -> None:
        self._compute, self._ids = compute, torch.empty_like(ids)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._unsupported_reason = unsupported_reason(ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """Compute the logits. They are valid until the next call."""
        self._ids.copy_(ids)
        if self._unsupported_reason is not None:
            return self._compute(self._ids)
        if self._graph is None or self._logits is None:
            self._graph, self._logits = self._capture()
        self._graph.replay()
        return self._logits

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        current, side = torch.cuda.current_stream(self._ids.device), torch.cuda.Stream(self._ids.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._compute(self._ids)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: only the operations of this thread have to be capturable.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._compute(self._ids)
        return graph, logits
