"""Command `prepare`: videos with Chinese captions become rows of tokens to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cogvideo.cli import console
from cogvideo.cli.model_options import add_model_options
from cogvideo.config import load_preset
from cogvideo.data.dataset import TokenSizes, write_index, write_text
from cogvideo.data.prepare import REJECTED, PrepareOptions, find_clips, prepare
from cogvideo.errors import RequestError
from cogvideo.messages import message

DESCRIPTION = """\
把带中文说明的视频转换为训练数据；可随时中断，再次运行即继续。
Convert videos with Chinese captions to rows of tokens to train on. Can be interrupted and resumed.

CLIPS is a folder, or a .csv or .jsonl file with the columns "file" and "caption". A folder has videos, gifs, or folders
of images, each with a .txt file of the same name beside it. OUT/rejected.jsonl lists clips that cannot be used."""


def main(arguments: Sequence[str]) -> int:
    """Prepare a folder. Raises CogVideoError if no clip can be used."""
    args = parser().parse_args(arguments)
    preset, _ = load_preset(args.model)
    options = PrepareOptions(args.model, args.image_rate, args.pixels, args.device)
    reports = prepare(find_clips(args.clips), args.out, options, args.workers)
    rows = [row for report in reports for row in report.rows]
    rejected = [clip for report in reports for clip in report.rejected]
    lines = [json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in rejected]
    write_text(args.out / REJECTED, "".join(lines))
    if not rows:
        raise RequestError(*message("prepare.all_clips_rejected", num_rejected=len(rejected), out=args.out / REJECTED))
    write_index(args.out, TokenSizes.of(preset), rows)
    print(f"已准备 {len(rows)} 个视频，拒绝 {len(rejected)} 个（{args.out / REJECTED}）。")
    print(f"{len(rows)} clips are ready, {len(rejected)} were rejected ({args.out / REJECTED}).")
    return 0


def parser() -> console.Parser:
    parser = console.Parser("prepare", description=DESCRIPTION)
    parser.add_argument("clips", type=Path, metavar="CLIPS", help="folder, .csv or .jsonl / 文件夹、.csv 或 .jsonl")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder / 输出文件夹")
    add_model_options(parser, ["model", "device"], model="mini")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--image-rate", type=float, default=8.0, help="frames a second of image folders (default: 8)")
    parser.add_argument("--pixels", action="store_true", help="store keyframes too; training of a codec requires them")
    return parser
