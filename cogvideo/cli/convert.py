"""`python -m cogvideo convert DIR OUT`: published checkpoints -> our safetensors files, the common backbone once.

In: a folder with the three checkpoints as published. Out: OUT/{backbone,stage1,stage2,superres}.safetensors and
preset.json, layer after layer, all at once or not at all. Tensors go from the mapped file to the new one, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cogvideo.cli import console
from cogvideo.models.convert import convert
from cogvideo.weights.catalog import CONVERTED, published_home


def main(arguments: Sequence[str]) -> int:
    """Converts, says what became smaller, and returns 0. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    out = options.out or options.directory / CONVERTED
    with console.json_output(options.json):
        converted = convert(options.directory, out)
        print("\n".join(converted.sentences()))
        print(out)
        console.event("done", folder=out, **asdict(converted))
    return console.DONE


def _parser() -> console.Parser:
    parser = console.Parser(
        "convert",
        description="把已发布的检查点转换为 safetensors，相同的主干只存一份。\n"
        "Published checkpoints become safetensors files, the common backbone once: faster to load, half the disk.\n"
        f"A copy at $SAT_HOME/{CONVERTED} is what the model cogvideo is then read from.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=published_home(),
        metavar="DIR",
        help="where cogvideo-stage1, cogvideo-stage2 and cogview2-dsr are (default: $SAT_HOME) / 检查点所在文件夹",
    )
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help=f"a new folder (default: DIR/{CONVERTED}) / 输出文件夹"
    )
    console.add_json(parser)
    return parser
