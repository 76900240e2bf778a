"""Checkpoint files: found, read and checked name by name, with errors that contain the file and the remedy.

In: paths. Out: dictionaries of tensors on the CPU, mapped from the file and not copied.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cogvideo.errors import WeightsError
from cogvideo.files import atomic_write

Tensors = dict[str, Tensor]
SAFETENSORS_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

COMPARE_CHUNK = 2**22
"""Numbers that are compared at a time."""


class MappedTensors(dict[str, Tensor]):
    """Tensors of a file that is mapped: what is read of them can be dropped from memory and read again."""


def load_tensor(tensors: Tensors, name: str, device: str | torch.device, dtype: torch.dtype | None) -> Tensor:
    """One of `tensors` as it is wanted: itself, or a copy; then what the file's takes in memory is dropped.

    `dtype` None: as in the file.
    """
    tensor = tensors[name]
    taken = tensor.to(device=device, dtype=dtype)
    if taken is not tensor and isinstance(tensors, MappedTensors):
        _drop(tensor)
    return taken


def tensors_equal(some: Tensors, others: Tensors, name: str) -> bool:
    """Whether both files have the same numbers under `name`. Of mapped files little more than a piece is in memory."""
    one, other = some[name], others[name]
    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    for pair in zip(one.reshape(-1).split(COMPARE_CHUNK), other.reshape(-1).split(COMPARE_CHUNK), strict=True):
        same = torch.equal(*pair)
        for tensors, piece in zip((some, others), pair, strict=True):
            if isinstance(tensors, MappedTensors):
                _drop(piece)
        if not same:
            return False
    return True


def _drop(tensor: Tensor) -> None:
    """Give back the memory that reading a mapped file's tensor took; whoever reads it again gets it from the file.

    On Linux, where it is a promise that nothing was written to it; elsewhere the system does so when it needs room.
    """
    if not sys.platform.startswith("linux"):
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only
    size = tensor.data_ptr() + tensor.nbytes - begin
    if size >= mmap.PAGESIZE:
        size -= size % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_DONTNEED))


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a file. Raises WeightsError where it is missing or damaged."""
    require(path)
    try:
        return MappedTensors(load_file(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged header brings up whatever it can
        raise damaged(path, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file with `tensors` layer after layer, each written as it is read: the library would gather all of them first.

    Whole or not at all. The format: the length of a JSON header, the header, the bytes of the tensors without gaps.
    """
    order = sorted(tensors, key=lambda name: (layer_number(name), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": SAFETENSORS_TYPES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            out.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


def layer_number(name: str) -> int:
    """The number in a name such as transformer.layers.3.mlp; -1 for what belongs to no layer."""
    return next((int(word) for word in name.split(".") if word.isdigit()), -1)


def check(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """All of `wanted` (names and shapes count) are in `tensors`. Raises WeightsError naming the first that is not."""
    for name, like in wanted.items():
        if name not in tensors:
            raise WeightsError(
                f"权重文件 {path} 缺少张量 {name}：文件不完整或属于别的模型。请删除后重新获取。",
                f"The weights file {path} lacks the tensor {name}: it is incomplete or belongs to another model. "
                "Delete it and fetch it again.",
            )
        if tensors[name].dtype not in SAFETENSORS_TYPES:
            raise damaged(path, f"{name}: {tensors[name].dtype}")
        if tensors[name].shape != like.shape:
            found, expected = list(tensors[name].shape), list(like.shape)
            raise WeightsError(
                f"权重文件 {path} 中张量 {name} 的形状为 {found}，应为 {expected}：属于别的模型。请换成匹配的文件。",
                f"In the weights file {path} the tensor {name} has shape {found} where {expected} is wanted: "
                "it belongs to another model. Put the matching file in its place.",
            )


def require(path: Path) -> None:
    """Raises WeightsError where `path` is no file."""
    if not path.is_file():
        raise WeightsError(
            f"找不到权重文件 {path}。mini：请重新克隆本项目；cogvideo：请运行 python -m cogvideo download cogvideo。",
            f"The weights file {path} is missing. For mini clone the project again; for cogvideo run "
            "python -m cogvideo download cogvideo.",
        )


def damaged(path: Path, reason: object) -> WeightsError:
    """The error for a file that is there but cannot be read."""
    return WeightsError(
        f"权重文件 {path} 已损坏或下载不完整（{reason}）。请删除后重新获取。",
        f"The weights file {path} is damaged or incomplete ({reason}). Delete it and fetch it again.",
    )
