"""Workarounds that make `sat` and `icetk` importable. Call `prepare()` before either import.

Both import torchvision, whose wheels do not always fit the installed torch. sat imports transformers, which looks for
a package called `kernels` and would find this project's folder of that name.
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
    """Apply the workarounds. Required before `import sat` or `import icetk`; further calls return quickly."""
    with _lock:
        _fix_torchvision()
        _hide_kernels()


def _fix_torchvision() -> None:
    """Make `import torchvision` succeed, unless torchvision is not installed.

    A torchvision wheel for CUDA fails beside a CPU torch (and vice versa), because it requires operators that its
    compiled part could not register. sat and icetk do not use them, so declaring their signatures is enough.
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
    """Make transformers treat the Hugging Face package `kernels` as not installed, if it is installed.

    This project's folder of that name comes first on the path and lacks the modules that transformers would import.
    """
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    for name in ("transformers.utils", "transformers.utils.import_utils"):
        setattr(importlib.import_module(name), "is_kernels_available", lambda *_, **__: False)  # noqa: B010
