"""Preparation of training data: videos with Chinese captions become rows of tokens.

Clips are grouped into shards of `SHARD`. One process makes a shard, which is complete or not there. Shards are kept if
the same clips are prepared again with the same codec and options. Clips that cannot be used are reported, not raised.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from cogvideo.config import load_preset
from cogvideo.data.dataset import (
    ClipRow,
    keyframes_of,
    open_tokenizer,
    read_metadata,
    to_tokens,
    write_shard,
)
from cogvideo.data.video_reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_clip
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.messages import message
from cogvideo.runtime.device import default_placement, usable_cores
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.prompt import check_prompt

SHARD: Final = 32
"""Clips in a shard."""
REJECTED: Final = "rejected.jsonl"


@dataclass(frozen=True)
class ClipSource:
    """A clip that was found: a video file or a folder of images, and its caption, empty if there is none."""

    path: Path
    caption: str


@dataclass(frozen=True)
class PrepareOptions:
    """How rows are made."""

    model: str
    """Preset or model folder whose codec and sizes are used."""
    image_rate: float
    """Frames a second of folders of images."""
    pixels: bool
    """Whether keyframes are stored too, which training of a codec requires."""
    device: str | None
    """Device of the codec; None: CUDA if there is one, else CPU."""


@dataclass(frozen=True)
class ClipShard:
    """Clips whose rows one process makes."""

    path: Path
    sources: tuple[ClipSource, ...]
    options: PrepareOptions

    @property
    def key(self) -> str:
        """Hash of everything that the rows depend on: clips, options and codec."""
        _, folder = load_preset(self.options.model)
        codec = folder / "codec.safetensors"
        inputs = [(str(s.path), s.caption, _stamp(s.path)) for s in self.sources]
        return hashlib.sha256(repr((inputs, asdict(self.options), _digest(codec, _stamp(codec)))).encode()).hexdigest()


@dataclass(frozen=True)
class RejectedClip:
    """A clip that cannot be used, and the reason in Chinese and English."""

    file: str
    zh: str
    en: str


@dataclass(frozen=True)
class ShardReport:
    """Rows of a shard, and its clips that cannot be used."""

    rows: list[ClipRow]
    rejected: list[RejectedClip]

    @classmethod
    def from_json(cls, text: str) -> ShardReport:
        """Read a report from a shard's metadata."""
        content = json.loads(text)
        return cls([ClipRow(**row) for row in content["rows"]], [RejectedClip(**clip) for clip in content["rejected"]])


def find_clips(where: Path) -> list[ClipSource]:
    """Return all clips of a folder or a list, in order. Raises RequestError if there is none."""
    if where.is_dir():
        sources = [ClipSource(path, _caption_beside(path)) for path in _clips_in(where)]
    else:
        sources = [ClipSource(where.parent / file, caption) for file, caption in _listed(where)]
    if not sources:
        raise RequestError(
            *message(
                "prepare.no_clips",
                where=where,
                video_suffixes_zh="、".join(sorted(VIDEO_SUFFIXES)),
                video_suffixes_en=", ".join(sorted(VIDEO_SUFFIXES)),
            )
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
    """Read file and caption of every line of a .csv or .jsonl file. Raises RequestError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            table = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            table = list(csv.DictReader(StringIO(text)))
        return iter([(str(row["file"]), str(row["caption"] or "")) for row in table])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RequestError(*message("prepare.clip_list_unreadable", path=path, error=error)) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file. A folder's change if images are added or removed."""
    if not path.exists():
        return (0, 0)
    status = path.stat()
    return (status.st_size, status.st_mtime_ns)


@lru_cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    """Return the SHA-256 of a file with this stamp; empty if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def prepare(sources: Sequence[ClipSource], out: Path, options: PrepareOptions, workers: int = 0) -> list[ShardReport]:
    """Make the shards that are missing in `workers` processes (0: one per core); returns all reports in order."""
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    pieces = [tuple(sources[i : i + SHARD]) for i in range(0, len(sources), SHARD)]
    shards = [ClipShard(out / f"rows-{n:05}.safetensors", piece, options) for n, piece in enumerate(pieces)]
    missing = [shard for shard in shards if read_metadata(shard.path).get("key") != shard.key]
    for old in set(out.glob("rows-*.safetensors")) - {shard.path for shard in shards}:
        old.unlink()
    workers = min(workers or usable_cores(), len(missing))
    with tqdm(total=len(shards), initial=len(shards) - len(missing), unit="shard") as bar:
        for _ in _make_shards(missing, workers):
            bar.update()
    return [ShardReport.from_json(read_metadata(shard.path)["report"]) for shard in shards]


def _make_shards(shards: list[ClipShard], workers: int) -> Iterator[None]:
    """Make shards in `workers` processes, or in this process if one is enough."""
    if workers <= 1:
        yield from map(make_shard, shards)
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's locks but not its threads
    with ProcessPoolExecutor(workers, context, _one_thread) as pool:
        yield from pool.map(make_shard, shards)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def make_shard(shard: ClipShard) -> None:
    """Decode and tokenise a shard's clips, and write them with the report."""
    logging.getLogger("imageio_ffmpeg").setLevel(logging.CRITICAL)  # the report has its messages on broken files
    encoder = _ClipEncoder(shard.options)
    tensors: dict[str, npt.NDArray[Any]] = {}
    report = ShardReport([], [])
    for number, source in enumerate(shard.sources):
        name = f"{number:02}"
        try:
            clip = encoder.encode(source)
        except CogVideoError as error:
            report.rejected.append(RejectedClip(str(source.path), error.zh, error.en))
            continue
        tensors |= {f"{name}.{kind}": array for kind, array in clip.arrays.items()}
        report.rows.append(ClipRow(shard.path.name, name, str(source.path), clip.caption, clip.seconds))
    metadata = {"key": shard.key, "report": json.dumps(asdict(report), ensure_ascii=False)}
    write_shard(shard.path, tensors, metadata)


@dataclass(frozen=True)
class _EncodedClip:
    """Caption, duration, and arrays by kind: `frames`, `fine` and, if wanted, `pixels`."""

    caption: str
    seconds: float
    arrays: Mapping[str, npt.NDArray[Any]]


class _ClipEncoder:
    """Encodes clips with the text tokenizer and the image tokenizer of a model."""

    def __init__(self, options: PrepareOptions) -> None:
        self.options = options
        self.preset, folder = load_preset(options.model)
        self.tokenizer = open_tokenizer(folder, self.preset)
        placement = default_placement(options.device)
        self.codec = ImageTokenizer.load(self.preset, placement.device, placement.dtype, folder)

    def encode(self, source: ClipSource) -> _EncodedClip:
        """Read and encode a clip. Raises RequestError if it cannot be used."""
        caption = check_prompt(source.caption, self.tokenizer, self.preset).text
        pixels, seconds = read_clip(source.path, self.preset.final_size, self.options.image_rate)
        frames, fine = to_tokens(self.codec, self.preset, pixels)
        arrays: dict[str, npt.NDArray[Any]] = {"frames": frames, "fine": fine}
        if self.options.pixels:
            arrays["pixels"] = keyframes_of(pixels).copy()
        return _EncodedClip(caption, seconds, arrays)
