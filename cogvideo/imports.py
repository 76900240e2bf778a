"""Makes `sat` and `icetk` importable: both import torchvision, whose wheels do not always fit the torch installed.

In: nothing. Out: nothing; afterwards `import torchvision` works, or torchvision is not installed at all.
"""

from __future__ import annotations

import importlib
import threading

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
_libraries: list[object] = []  # torch drops a library's operators when the object is collected


def prepare() -> None:
    """Call before `import sat` or `import icetk`; costs nothing the second time.

    A torchvision wheel built for CUDA fails beside a CPU torch (and the other way round), because it looks for
    operators that its compiled half could not register. Neither package uses them: declaring their signatures is
    enough for the import to succeed.
    """
    with _lock:
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError:
            return
        except RuntimeError:
            _declare_operators()
            importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, signature in _OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(signature)
    _libraries.append(library)
