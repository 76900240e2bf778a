"""`python -m cogvideo convert DIR OUT`: convert published checkpoints to safetensors, the common backbone once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cogvideo.cli import console
from cogvideo.models.convert import convert
from cogvideo.weights.catalog import CONVERTED, published_home


def main(argv: Sequence[str]) -> int:
    """Convert, print the sizes, and return 0. Raises CogVideoError."""
    options = parser().parse_args(argv)
    folder = options.out or options.directory / CONVERTED
    with console.json_output(options.json):
        converted = convert(options.directory, folder)
        print("\n".join(converted.sentences()))
        print(folder)
        own = dict(converted.own_parts)  # the name of version 0.1
        console.event("result", folder=folder, **asdict(converted), own=own)
    return console.DONE


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser(
        "convert",
        description="把已发布的检查点转换为 safetensors 文件，共用的主干只存一份：加载更快，磁盘占用减半。\n"
        "Convert published checkpoints to safetensors files that share one backbone: faster to load, half the disk.\n"
        f"If $SAT_HOME/{CONVERTED} exists, the model cogvideo is loaded from it.",
    )
    root.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=published_home(),
        metavar="DIR",
        help="folder of cogvideo-stage1, cogvideo-stage2 and cogview2-dsr (default: $SAT_HOME) / 检查点所在文件夹",
    )
    root.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help=f"new folder (default: DIR/{CONVERTED}) / 输出文件夹"
    )
    console.add_json(root)
    return root
