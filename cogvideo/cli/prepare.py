"""`python -m cogvideo prepare CLIPS OUT`: videos with Chinese captions -> rows of tokens to train on.

Clips are cut into shards of 32; every shard is made by one process, written whole, and kept when the command is run
again with the same clips, codec and options. What cannot be used is named in `rejected.jsonl`; the rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.config import load_preset
from cogvideo.data.dataset import (
    ClipRow,
    TokenSizes,
    write_index,
    write_text,
)
from cogvideo.data.prepare import REJECTED, PrepareOptions, find_clips, prepare
from cogvideo.errors import RequestError

DESCRIPTION = """\
把带中文说明的视频变成可以训练的数据；可随时中断并继续。
Turns videos with Chinese captions into rows to train on; may be stopped and resumed.

CLIPS is a folder (videos, gifs, or folders of pictures, each with a .txt of the same name beside it), or a .csv or
.jsonl file with the columns "file" and "caption". What cannot be used is named in OUT/rejected.jsonl."""


def main(arguments: Sequence[str]) -> int:
    """Prepare a folder. Raises CogVideoError where nothing can be prepared at all."""
    args = _parser().parse_args(arguments)
    preset, _ = load_preset(args.model)
    options = PrepareOptions(args.model, args.image_rate, args.pixels, args.device)
    reports = prepare(find_clips(args.clips), args.out, options, args.workers)
    rows = [ClipRow(**row) for report in reports for row in report.rows]
    rejected = [item for report in reports for item in report.rejected]
    write_text(args.out / REJECTED, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected))
    if not rows:
        raise RequestError(
            f"没有可用的片段：{len(rejected)} 个全部被拒绝，原因见 {args.out / REJECTED}。",
            f"No clip can be used: all {len(rejected)} were rejected, see {args.out / REJECTED} for the reasons.",
        )
    write_index(args.out, TokenSizes.of(preset), rows)
    print(f"{len(rows)} 个片段已准备好，{len(rejected)} 个被拒绝（{args.out / REJECTED}）。")
    print(f"{len(rows)} clips are ready, {len(rejected)} were rejected ({args.out / REJECTED}).")
    return 0


def _parser() -> console.Parser:
    parser = console.Parser("prepare", description=DESCRIPTION)
    parser.add_argument("clips", type=Path, metavar="CLIPS", help="folder, .csv or .jsonl / 文件夹、.csv 或 .jsonl")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write / 输出文件夹")
    parser.add_argument("--model", default="mini", help="whose codec and sizes: a preset or a trained model's folder")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--image-rate", type=float, default=8.0, help="frames a second of folders of pictures")
    parser.add_argument("--pixels", action="store_true", help="keep the keyframes too, to train a codec on")
    parser.add_argument("--device", help="where the codec computes: cpu, cuda (default: cuda where there is one)")
    return parser
