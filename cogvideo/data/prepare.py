"""Videos with Chinese captions -> rows of tokens to train on, in shards of 32 clips.

One process makes a shard and writes it whole. An existing shard of the same clips, codec and options is kept.
`rejected.jsonl` lists the clips that cannot be used.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

from cogvideo.config import load_preset
from cogvideo.data.dataset import (
    ClipRow,
    keyframes_of,
    open_tokenizer,
    read_about,
    to_tokens,
    write_shard,
)
from cogvideo.data.video_reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_clip
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.runtime.device import default_placement, usable_cores
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.prompt import check_prompt

SHARD = 32
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class ClipSource:
    """A clip as it was found: a file or a folder of pictures, and its caption, empty where there is none."""

    path: Path
    caption: str


@dataclass(frozen=True)
class PrepareOptions:
    """How rows are made."""

    model: str
    image_rate: float
    pixels: bool
    device: str | None


@dataclass(frozen=True)
class ClipShard:
    """What one process makes: the rows of a few clips."""

    path: Path
    sources: tuple[ClipSource, ...]
    options: PrepareOptions

    @property
    def key(self) -> str:
        """Changes with anything that the rows depend on."""
        _, folder = load_preset(self.options.model)
        codec = folder / "codec.safetensors"
        inputs = [(str(s.path), s.caption, _stamp(s.path)) for s in self.sources]
        return hashlib.sha256(repr((inputs, asdict(self.options), _digest(codec, _stamp(codec)))).encode()).hexdigest()


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's clips."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, str]]


def find_clips(where: Path) -> list[ClipSource]:
    """All clips of a folder or a list, in order. Raises RequestError where there is none."""
    if where.is_dir():
        sources = [ClipSource(path, _caption_beside(path)) for path in _clips_in(where)]
    else:
        sources = [ClipSource(where.parent / file, caption) for file, caption in _listed(where)]
    if not sources:
        raise RequestError(
            f"{where} 中没有片段：支持 {'、'.join(sorted(VIDEO_SUFFIXES))} 和图片文件夹。",
            f"There are no clips in {where}: {', '.join(sorted(VIDEO_SUFFIXES))} and folders of pictures are known.",
        )
    return sources


def _clips_in(folder: Path) -> Iterator[Path]:
    entries = sorted(folder.iterdir())
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in entries):
        yield folder
        return
    for path in entries:
        if path.is_dir():
            yield from _clips_in(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def _caption_beside(path: Path) -> str:
    beside = path.with_name(f"{path.name if path.is_dir() else path.stem}.txt")
    return beside.read_text(encoding="utf-8-sig", errors="replace") if beside.is_file() else ""


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """File and caption of every line of a .csv or .jsonl. Raises RequestError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            table = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            table = list(csv.DictReader(StringIO(text)))
        return iter([(str(row["file"]), str(row["caption"] or "")) for row in table])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RequestError(
            f"无法读取片段列表 {path}（{error!r}）：应为含 file、caption 两列的 .csv 或 .jsonl（UTF-8），或文件夹。",
            f"The list of clips {path} cannot be read ({error!r}): it should be a .csv or .jsonl in UTF-8 with the "
            'columns "file" and "caption", or a folder.',
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; a folder's changes when pictures come or go."""
    if not path.exists():
        return (0, 0)
    about = path.stat()
    return (about.st_size, about.st_mtime_ns)


@lru_cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    """What is in a file that has this stamp."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def prepare(sources: Sequence[ClipSource], out: Path, options: PrepareOptions, workers: int = 0) -> list[ShardReport]:
    """Make the shards that are missing; the reports of all, in order."""
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    pieces = [tuple(sources[i : i + SHARD]) for i in range(0, len(sources), SHARD)]
    shards = [ClipShard(out / f"rows-{n:05}.safetensors", piece, options) for n, piece in enumerate(pieces)]
    todo = [shard for shard in shards if read_about(shard.path).get("key") != shard.key]
    for old in set(out.glob("rows-*.safetensors")) - {shard.path for shard in shards}:
        old.unlink()
    workers = min(workers or usable_cores(), len(todo))
    with tqdm(total=len(shards), initial=len(shards) - len(todo), unit="shard") as bar:
        for _ in _spread(todo, workers):
            bar.update()
    return [ShardReport(**json.loads(read_about(shard.path)["report"])) for shard in shards]


def _spread(shards: list[ClipShard], workers: int) -> Iterator[None]:
    """Make shards in `workers` processes; in this one where one is enough."""
    if workers <= 1:
        yield from map(make_shard, shards)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, which stand still in it
    with ProcessPoolExecutor(workers, context, _one_thread) as pool:
        yield from pool.map(make_shard, shards)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def make_shard(shard: ClipShard) -> None:
    """Decode and tokenise a shard's clips and write them, with the list of those that cannot be used."""
    logging.getLogger("imageio_ffmpeg").setLevel(logging.CRITICAL)  # what it says of broken files is in the report
    maker = _Maker(shard.options)
    tensors: dict[str, Any] = {}
    report = ShardReport([], [])
    for number, source in enumerate(shard.sources):
        name = f"{number:02}"
        try:
            caption, seconds, arrays = maker.make(source)
        except CogVideoError as error:
            report.rejected.append({"file": str(source.path), "zh": error.zh, "en": error.en})
            continue
        tensors |= {f"{name}.{kind}": array for kind, array in arrays.items()}
        report.rows.append(asdict(ClipRow(shard.path.name, name, str(source.path), caption, seconds)))
    about = {"key": shard.key, "report": json.dumps(asdict(report), ensure_ascii=False)}
    write_shard(shard.path, tensors, about)


class _Maker:
    """What turns clips into rows: the tokenizer and the codec of a model."""

    def __init__(self, options: PrepareOptions) -> None:
        self.options = options
        self.preset, folder = load_preset(options.model)
        self.tokenizer = open_tokenizer(folder, self.preset)
        place = default_placement(options.device)
        self.codec = ImageTokenizer.load(self.preset, place.device, place.dtype, folder)

    def make(self, source: ClipSource) -> tuple[str, float, dict[str, Any]]:
        """Caption, seconds and arrays of a clip. Raises RequestError for one that cannot be used."""
        caption = check_prompt(source.caption, self.tokenizer, self.preset).text
        pictures, seconds = read_clip(source.path, self.preset.final_size, self.options.image_rate)
        frames, fine = to_tokens(self.codec, self.preset, pictures)
        arrays: dict[str, Any] = {"frames": frames, "fine": fine}
        if self.options.pixels:
            arrays["pixels"] = keyframes_of(pictures).copy()
        return caption, seconds, arrays
