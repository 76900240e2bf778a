"""`python -m cogvideo download cogvideo`: the published files, checked, into the folders where the loader looks.

In: nothing but the rows of `cogvideo.weights.catalog`. Out: whole files and folders; what is not finished stays in
$SAT_HOME/.download and is gone on with by the next call. Several processes may ask for the same file: one fetches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.weights.catalog import COGVIDEO, WeightPaths
from cogvideo.weights.download import Download
from cogvideo.weights.progress import Transfer

DESCRIPTION = """\
下载已发布的 94 亿参数 CogVideo 模型：约 43 GB，需要约 59 GB 可用磁盘空间。中断后再次运行即从断点继续。
Fetches the published CogVideo model of 9.4 billion parameters: about 43 GB, which takes about 59 GB of free disk
while it is unpacked. Interrupted, the same command goes on where it ended.

Hugging Face first (HF_ENDPOINT and HF_TOKEN count), then the authors' other addresses. What is downloaded is checked
by format, size and, where it is known, SHA-256. Files go to $SAT_HOME (~/.sat_models) and ~/.icetk_models."""


def main(arguments: Sequence[str]) -> int:
    """Fetches what is missing and returns 0. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    with console.json_output(options.json):
        if options.model == "mini":
            console.notice(
                "mini 随仓库附带，无需下载。", "mini comes with the repository: there is nothing to download."
            )
        else:
            places, report = WeightPaths.usual(), _Told() if options.json else None
            Download(
                places, COGVIDEO, options.source, options.keep_archives, report=report, notify=console.notice
            ).run()
            print(f"模型已就绪：{places.sat}\nThe model is there: {places.sat}")
        console.event("done", model=options.model)
    return console.DONE


def _parser() -> console.Parser:
    parser = console.Parser("download", description=DESCRIPTION)
    parser.add_argument("model", choices=("cogvideo", "mini"), help="cogvideo; mini is there already")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take what this folder has (archives, unpacked folders, icetk's files) and fetch only the rest / "
        "优先使用此文件夹中已有的文件",
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="do not delete an archive once it is unpacked / 解压后保留压缩包"
    )
    console.add_json(parser)
    return parser


class _Told(console.Percent):
    """Tells a program how far a transfer is."""

    def __call__(self, transfer: Transfer) -> None:
        if transfer.total:
            self.progress(transfer.name, transfer.done, transfer.total)
