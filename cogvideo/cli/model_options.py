"""Options that several commands share: the model, its device and its memory."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any, Final

from cogvideo.config import PRESETS
from cogvideo.runtime.memory_presets import MEMORY_PRESETS

MODEL_OPTIONS: Final = ("model", "device", "memory", "quantization", "offload")


def add_model_options(
    parser: argparse._ActionsContainer,
    only: Collection[str] = MODEL_OPTIONS,
    model: str | None = None,
    device: str | None = None,
) -> None:
    """Add the options in `only`. `model`, `device`: defaults; None if the command chooses by the machine."""
    if "model" in only:
        automatic = "$COGVIDEO_MODEL, else cogvideo if its files and a GPU that fits it are available, else mini"
        parser.add_argument(
            "--model",
            default=model,
            metavar="NAME",
            help=f"{', '.join(PRESETS)}, or the folder of a trained model (default: {model or automatic}) / 模型",
        )
    if "device" in only:
        parser.add_argument(
            "--device",
            default=device,
            metavar="NAME",
            help=f"cpu, cuda, cuda:1 (default: {device or 'cuda if available, else cpu'}) / 计算设备",
        )
    if "memory" in only:
        parser.add_argument(
            "--memory",
            metavar="NAME",
            help=f"memory preset: {', '.join(MEMORY_PRESETS)} (default: $COGVIDEO_MEMORY, else the first preset whose "
            "predicted peak fits; predictions were not measured on a GPU) / 显存预设",
        )
    if "quantization" in only:
        parser.add_argument(
            "--quantization",
            choices=("int8",),
            help="weights in 8 bits: less memory, slower (default: as the memory preset) / 权重量化，省内存但较慢",
        )
        parser.add_argument("--eight-bit", dest="quantization", action="store_const", const="int8", **_hidden())
    if "offload" in only:
        parser.add_argument(
            "--offload",
            action="store_true",
            help="load each weight matrix from CPU memory when it is used: least memory, slowest / "
            "权重逐个从内存载入，最省显存，也最慢",
        )


def add_renamed(parser: argparse._ActionsContainer, name: str, old_name: str, **arguments: Any) -> None:
    """Add the option `name`, and its name in version 0.1 as a hidden alias."""
    action = parser.add_argument(name, **arguments)
    parser.add_argument(old_name, **{**arguments, "dest": action.dest, **_hidden()})


def _hidden() -> dict[str, Any]:
    """Arguments of a hidden alias. Its default must not replace that of the option."""
    return {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
