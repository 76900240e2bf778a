"""Table of the commands: name, module and help."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogvideo.cli import console
from cogvideo.messages import message

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class Command:
    """A command and its module, which has `main(argv)` and `parser()` and is imported on first use."""

    module: str
    zh: str
    en: str

    def main(self, argv: Sequence[str]) -> int:
        """Run the command and return its exit status."""
        return importlib.import_module(self.module).main(argv) or console.DONE

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its arguments."""
        parser: argparse.ArgumentParser = importlib.import_module(self.module).parser()
        return parser


COMMANDS = {
    "generate": Command("cogvideo.cli.generate", *message("commands.generate")),
    "serve": Command("cogvideo.cli.serve", *message("commands.serve")),
    "doctor": Command("cogvideo.cli.doctor", *message("commands.doctor")),
    "download": Command("cogvideo.cli.download", *message("commands.download")),
    "convert": Command("cogvideo.cli.convert", *message("commands.convert")),
    "memory": Command("cogvideo.cli.memory", *message("commands.memory")),
    "parity": Command("cogvideo.cli.parity", *message("commands.parity")),
    "prepare": Command("cogvideo.cli.prepare", *message("commands.prepare")),
    "train": Command("cogvideo.cli.train", *message("commands.train")),
    "evaluate": Command("cogvideo.cli.evaluate", *message("commands.evaluate")),
    "bench": Command("cogvideo.cli.bench", *message("commands.bench")),
    "kernels": Command("kernels.bench", *message("commands.kernels")),
    "completion": Command("cogvideo.cli.completion", *message("commands.completion")),
}
