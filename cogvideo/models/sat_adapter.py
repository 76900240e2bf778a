"""Adapter of `sat` (SwissArmyTransformer): the only module that imports it, and the workarounds for its side effects.

As released, building a model opens a process group on a TCP port, which conflicts with other uses of
torch.distributed. It also fills all weights with random numbers before a file is read. Here a model is built for one
process without torch.distributed, and optionally without storage, to receive a file's tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from cogvideo import compat
from cogvideo.config import ModelConfig

_lock = threading.RLock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress sat's warnings about missing accelerators, which concern its own trainer, and about its imports."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            yield
    finally:
        logging.disable(previous)


with _quiet():
    compat.prepare()
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer
    from sat.mpu import initialize as _mpu
    from sat.mpu import layers as _mpu_layers

if TYPE_CHECKING:
    Transformer = torch.nn.Module
else:
    Transformer = BaseTransformer

__all__ = ["BaseMixin", "BaseModel", "Transformer", "build_transformer", "sat_arguments"]


class _Alone:
    """A process group of one process, with the methods that sat calls."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Make sat build its layers for one process, regardless of the state of torch.distributed."""
    with _lock:
        if not _mpu.model_parallel_is_initialized():
            # Not restored: sat's layers read the group's size in every forward and backward pass.
            _mpu._MODEL_PARALLEL_GROUP = _mpu._DATA_PARALLEL_GROUP = _Alone()
        rank = _mpu_layers.get_model_parallel_rank
        _mpu_layers.get_model_parallel_rank = lambda: 0
        try:
            yield
        finally:
            _mpu_layers.get_model_parallel_rank = rank


def build_transformer(config: ModelConfig, device: str | torch.device = "cpu") -> Transformer:
    """Build the backbone in fp32 with sat's random weights. The state of torch's generator is restored.

    With device "meta" there is no storage and no initialization: `load_state_dict(..., assign=True)` fills it.
    """
    device = torch.device(device)
    # sat creates its position table on the default device and initializes it even with skip_init: hence both contexts.
    with _one_process(), torch.random.fork_rng(devices=[]), device:
        return BaseTransformer(
            **_sizes(config),
            layernorm_epsilon=1e-5,
            parallel_output=True,
            skip_init=device.type == "meta",
            device=device,
        )


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Return the sizes of a transformer under sat's names."""
    return {
        "num_layers": config.layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "max_sequence_length": config.base_positions,
        "layernorm_order": "sandwich",
    }


def sat_arguments(config: ModelConfig) -> Any:
    """Return the namespace that sat's BaseModel requires besides an existing transformer."""
    return argparse.Namespace(
        **_sizes(config),
        model_parallel_size=1,
        skip_init=False,
    )
