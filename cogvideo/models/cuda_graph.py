"""A decoding step whose tensors never move: on an NVIDIA card captured once, as a CUDA graph, and replayed per token.

In: what the slots hold. Out: their scores, in a tensor that the next step writes anew. Elsewhere the same step is
computed as it is, through the same unmoving tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2
"""Steps before the capture, which may choose algorithms and compile kernels."""


def unsupported_reason(ids: Tensor) -> str | None:
    """Why a step on this device cannot be captured, in words; None where it can."""
    if ids.device.type != "cuda":
        return f"graphs are captured on NVIDIA cards, and the tokens are on {ids.device.type}"
    if torch.cuda.is_current_stream_capturing():
        return "another capture is under way"
    return None


class CudaGraphStep:
    """`compute`: ids [samples, Q] -> scores [samples, Q, V]. It must find all else in tensors that stay where they are,
    ask the device for no number, and give the same when it is repeated.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], ids: Tensor) -> None:
        self._compute, self._ids = compute, torch.empty_like(ids)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._scores: Tensor | None = None
        self._why_not = unsupported_reason(ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """The scores, until the next call."""
        self._ids.copy_(ids)
        if self._why_not is not None:
            return self._compute(self._ids)
        if self._graph is None or self._scores is None:
            self._graph, self._scores = self._capture()
        self._graph.replay()
        return self._scores

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        here, aside = torch.cuda.current_stream(self._ids.device), torch.cuda.Stream(self._ids.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._compute(self._ids)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the card meanwhile: only what this one does must fit into the graph.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            scores = self._compute(self._ids)
        return graph, scores
