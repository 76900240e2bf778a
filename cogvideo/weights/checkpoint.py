"""Reading, checking and writing of safetensors files. Tensors are on the CPU, mapped from the file, not copied."""

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
from cogvideo.messages import message

Tensors = dict[str, Tensor]
SAFETENSORS_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

COMPARE_CHUNK = 2**22
"""Numbers that are compared in one step."""


class MappedTensors(dict[str, Tensor]):
    """Tensors of a memory-mapped file. Pages that were read can be dropped and read again."""


def load_tensor(tensors: Tensors, name: str, device: str | torch.device, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor on `device` with `dtype` (None: as in the file), itself or a copy.

    If it was copied, the mapped file's pages are dropped from memory.
    """
    tensor = tensors[name]
    loaded = tensor.to(device=device, dtype=dtype)
    if loaded is not tensor and isinstance(tensors, MappedTensors):
        _drop(tensor)
    return loaded


def tensors_equal(some: Tensors, others: Tensors, name: str) -> bool:
    """Return whether both files have equal tensors `name`. Of mapped files, about one chunk is in memory at a time."""
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
    """Drop the pages of a mapped tensor from memory; a later read loads them from the file again.

    Linux only: other systems drop pages themselves if memory is low. The tensor must not have been modified.
    """
    if not sys.platform.startswith("linux"):
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only
    size = tensor.data_ptr() + tensor.nbytes - begin
    if size >= mmap.PAGESIZE:
        size -= size % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_DONTNEED))


def read_safetensors(path: Path) -> Tensors:
    """Return all tensors of a file. Raises WeightsError if it is missing or damaged."""
    require(path)
    try:
        return MappedTensors(load_file(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged header may raise anything
        raise damaged(path, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file one by one, in layer order. The library would copy all to memory first.

    Format: the length of a JSON header, the header, and the bytes of the tensors without gaps.
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
    text += b" " * (-len(text) % 8)  # aligns tensors to 8 bytes
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            out.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


def layer_number(name: str) -> int:
    """Return the layer in a name such as transformer.layers.3.mlp; -1 for tensors outside of layers."""
    return next((int(word) for word in name.split(".") if word.isdigit()), -1)


def check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with `expected`. Raises WeightsError for the first tensor that differs."""
    for name, like in expected.items():
        if name not in tensors:
            raise WeightsError(*message("checkpoint.tensor_missing", path=path, name=name))
        if tensors[name].dtype not in SAFETENSORS_TYPES:
            raise damaged(path, f"{name}: {tensors[name].dtype}")
        if tensors[name].shape != like.shape:
            found, correct = list(tensors[name].shape), list(like.shape)
            raise WeightsError(
                *message("checkpoint.wrong_tensor_shape", path=path, name=name, found=found, correct=correct)
            )


def require(path: Path) -> None:
    """Raise WeightsError if `path` is not a file."""
    if not path.is_file():
        raise WeightsError(*message("checkpoint.file_missing", path=path))


def damaged(path: Path, reason: object) -> WeightsError:
    """Return the error for a file that exists but cannot be read."""
    return WeightsError(*message("checkpoint.file_damaged", path=path, reason=reason))
