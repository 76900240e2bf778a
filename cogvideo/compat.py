"""Makes `sat` and `icetk` importable: in nothing, out nothing; call `prepare()` before importing either.

Both import torchvision, whose wheels do not always fit the torch installed, and sat imports transformers, which looks
for a package called `kernels` and must not take this project's folder for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import threading

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
_libraries: list[object] = []  # torch drops a library's operators when the object is collected


def prepare() -> None:
    """Call before `import sat` or `import icetk`; costs nothing the second time."""
    with _lock:
        _mend_torchvision()
        _hide_kernels()


def _mend_torchvision() -> None:
    """Afterwards `import torchvision` works, or torchvision is not installed at all.

    A torchvision wheel built for CUDA fails beside a CPU torch (and the other way round), because it looks for
    operators that its compiled half could not register. Neither package uses them: declaring their signatures is
    enough for the import to succeed.
    """
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


def _hide_kernels() -> None:
    """Where the Hugging Face package `kernels` is installed too, tells transformers that it is not.

    This project's folder of that name comes first on the path, and nothing that transformers would import is in it.
    """
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    for name in ("transformers.utils", "transformers.utils.import_utils"):
        setattr(importlib.import_module(name), "is_kernels_available", lambda *_, **__: False)  # noqa: B010
