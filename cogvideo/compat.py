"""Workarounds that make `sat` and `icetk` importable. Call `prepare()` before either import.

Both import torchvision, whose wheels do not always fit the installed torch. sat imports transformers, which looks for
a package called `kernels` and would find this project's folder of that name. icetk contains a module generated for
protobuf 3, which fails with protobuf 4 and newer.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from types import ModuleType
from typing import Any

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_ICETK_MODULE = "icetk.sentencepiece_model_pb2"
_lock = threading.Lock()
_libraries: list[object] = []  # torch drops a library's operators when the object is collected


def prepare() -> None:
    """Apply the workarounds. Required before `import sat` or `import icetk`; further calls return quickly."""
    with _lock:
        _fix_torchvision()
        _hide_kernels()
        _fix_icetk()


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


def _fix_icetk() -> None:
    """Replace icetk's `sentencepiece_model_pb2` by a module of this project if protobuf is version 4 or newer.

    icetk's module raises "Descriptors cannot be created directly" there. The only effect on the process is one entry
    of `sys.modules` under that name. protobuf, its default pool and other packages are not changed. If icetk was
    imported before, its module remains.
    """
    import google.protobuf

    if _ICETK_MODULE in sys.modules or int(google.protobuf.__version__.split(".")[0]) < 4:
        return
    module = ModuleType(_ICETK_MODULE, "The part of SentencePiece's model file that icetk reads.")
    vars(module)["ModelProto"] = _model_class()
    sys.modules[_ICETK_MODULE] = module


def _model_class() -> Any:
    """Build the protobuf class `ModelProto` with the fields that icetk's TextTokenizer uses.

    All other fields of a file (types of pieces, normalization, extensions) are unknown fields, which protobuf preserves
    on writing. The pool is a new one, because other packages register the same names in the default pool.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="icetk.proto", package="sentencepiece", syntax="proto2")
    model = file.message_type.add(name="ModelProto")
    piece = model.nested_type.add(name="SentencePiece")
    piece.field.add(name="piece", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    piece.field.add(name="score", number=2, label=field.LABEL_OPTIONAL, type=field.TYPE_FLOAT)
    name = ".sentencepiece.ModelProto.SentencePiece"
    model.field.add(name="pieces", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE, type_name=name)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindMessageTypeByName("sentencepiece.ModelProto")
    if hasattr(message_factory, "GetMessageClass"):
        make = message_factory.GetMessageClass
    else:  # before protobuf 4.22
        make = message_factory.MessageFactory(pool).GetPrototype
    model_class = make(descriptor)
    if not hasattr(model_class, "SentencePiece"):  # the pure Python protobuf does not create nested classes
        model_class.SentencePiece = make(descriptor.nested_types_by_name["SentencePiece"])
    return model_class
