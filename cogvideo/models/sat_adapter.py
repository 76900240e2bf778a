"""The only door to `sat` (SwissArmyTransformer). What it does to a process is contained here.

As released, building a model opens a process group on a TCP port, which then stands in the way of every other user
of torch.distributed, and draws all weights at random before a file is read. Here a model is built for one process
without touching torch.distributed, and on request without storage, so that a file's tensors can be put in place.
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
    """Without sat's remarks on missing accelerators, which concern its own trainer, and on its own imports."""
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
    """What sat asks of a process group, for a process that is alone."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Let sat build its layers for one process, whatever torch.distributed is doing."""
    with _lock:
        if not _mpu.model_parallel_is_initialized():
            # Kept afterwards: sat's layers ask for the group's size in every forward and backward pass.
            _mpu._MODEL_PARALLEL_GROUP = _mpu._DATA_PARALLEL_GROUP = _Alone()
        rank = _mpu_layers.get_model_parallel_rank
        _mpu_layers.get_model_parallel_rank = lambda: 0
        try:
            yield
        finally:
            _mpu_layers.get_model_parallel_rank = rank


def build_transformer(config: ModelConfig, device: str | torch.device = "cpu") -> Transformer:
    """The backbone in fp32, with sat's random weights (from torch's generator, whose state is left as it was).

    With device "meta" there is no storage and nothing is drawn: `load_state_dict(..., assign=True)` fills it.
    """
    device = torch.device(device)
    # sat makes its position table on the default device and draws it even with skip_init: hence both contexts.
    with _one_process(), torch.random.fork_rng(devices=[]), device:
        return BaseTransformer(
            **_sizes(config),
            layernorm_epsilon=1e-5,
            parallel_output=True,
            skip_init=device.type == "meta",
            device=device,
        )


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """What sat calls the sizes of a transformer."""
    return {
        "num_layers": config.layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "max_sequence_length": config.base_positions,
        "layernorm_order": "sandwich",
    }


def sat_arguments(config: ModelConfig) -> Any:
    """The namespace that sat's BaseModel wants beside a ready transformer."""
    return argparse.Namespace(
        **_sizes(config),
        model_parallel_size=1,
        skip_init=False,
    )
