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
    "generate": Command("cogvideo.cli.generate", *message("commands.generate_video_from_chinese_sentence")),
    "serve": Command("cogvideo.cli.serve", *message("commands.open_page_browser")),
    "doctor": Command(
        "cogvideo.cli.doctor",
        *message("commands.check_packages_presets_fit_memory"),
    ),
    "download": Command(
        "cogvideo.cli.download",
        *message("commands.download_published_model_9_4"),
    ),
    "convert": Command(
        "cogvideo.cli.convert",
        *message("commands.convert_published_model_so_loads"),
    ),
    "memory": Command("cogvideo.cli.memory", *message("commands.predict_measure_each_memory_preset")),
    "parity": Command("cogvideo.cli.parity", *message("commands.compare_all_values_2022_release")),
    "prepare": Command("cogvideo.cli.prepare", *message("commands.convert_captioned_videos_training_data")),
    "train": Command("cogvideo.cli.train", *message("commands.train_model_from_recipe_can")),
    "evaluate": Command("cogvideo.cli.evaluate", *message("commands.evaluate_trained_model")),
    "bench": Command("cogvideo.cli.bench", *message("commands.time_each_stage_against_limits")),
    "kernels": Command("kernels.bench", *message("commands.time_fast_kernels_against_plain")),
    "completion": Command("cogvideo.cli.completion", *message("commands.print_completion_script_shell")),
}
