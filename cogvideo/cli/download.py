"""`python -m cogvideo download cogvideo`: download the published files and verify them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.messages import message
from cogvideo.weights.catalog import COGVIDEO, WeightPaths
from cogvideo.weights.download import Download
from cogvideo.weights.progress import Transfer

DESCRIPTION = """\
下载 94 亿参数的已发布模型 CogVideo：约 43 GB，解压时需要约 59 GB 可用磁盘空间。中断后再次运行即从断点继续。
Download the published CogVideo model of 9.4 billion parameters: about 43 GB. Unpacking requires about 59 GB of free
disk. Interrupted downloads resume if the command runs again.

Hugging Face first (with HF_ENDPOINT and HF_TOKEN), then the authors' other addresses. Every file is verified by format,
size and, if known, SHA-256. Files are stored in $SAT_HOME (~/.sat_models) and ~/.icetk_models."""


def main(argv: Sequence[str]) -> int:
    """Download missing files and return 0. Raises CogVideoError."""
    options = parser().parse_args(argv)
    with console.json_output(options.json):
        if options.model == "mini":
            console.notice(*message("download.mini_included"))
        else:
            paths, report = WeightPaths.usual(), _TransferEvents() if options.json else None
            Download(paths, COGVIDEO, options.source, options.keep_archives, report=report, notify=console.notice).run()
            print(f"模型已就绪：{paths.sat}\nThe model is ready: {paths.sat}")
        console.event("result", model=options.model)
    return console.DONE


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("download", description=DESCRIPTION)
    root.add_argument("model", choices=("cogvideo", "mini"), help="mini is included and needs no download")
    root.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="use files of this folder (archives, unpacked folders, icetk's files), download only the rest / "
        "优先使用此文件夹中已有的文件",
    )
    root.add_argument("--keep-archives", action="store_true", help="keep archives after unpacking / 解压后保留压缩包")
    console.add_json(root)
    return root


class _TransferEvents(console.Percent):
    """Prints transfers as progress events."""

    def __call__(self, transfer: Transfer) -> None:
        if transfer.total:
            self.progress(transfer.name, transfer.done, transfer.total)
