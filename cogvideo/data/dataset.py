"""Clips as tokens, ready to learn from: the interface of a dataset, and the prepared folder on disk.

In: an index. Out: a `TokenClip`, a caption with the image tokens of its frames. To train on something else, write a
class with the two methods of `ClipDataset`; examples/moving_square.py is one.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from cogvideo.config import FRAME_COUNTS, Preset
from cogvideo.errors import RequestError
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.weights.catalog import ICETK_FOLDER

Tokens = npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.uint8]

Frame = TypeVar("Frame", bound=np.generic)

KEYFRAMES = FRAME_COUNTS[0]


@dataclass(frozen=True)
class TokenClip:
    """A caption and F frames that span `seconds` in equal steps, the first and the last included."""

    caption: str
    """Simplified Chinese, without duration or suffix: those are added by whoever trains with it."""
    seconds: float
    """4, 2, 1 or 0.5; the frame-rate token says it."""
    frames: Tokens
    """[F, N], N tokens of the preset's grid row by row; F is 5, 9, 17 or 33."""
    fine: Tokens
    """[5, 9N], the five keyframes on the fine grid; only super-resolution learns from them."""

    @property
    def keyframes(self) -> Tokens:
        """The five frames that stage 1 learns, [5, N]."""
        return keyframes_of(self.frames)


class ClipDataset(Protocol):
    """What training asks of a dataset. Indices come in a shuffled order, each once an epoch, from several processes.

    The same index must give the same clip, or a run that was killed cannot go on as it would have.
    """

    def __len__(self) -> int:
        """How many clips there are, at least one."""

    def __getitem__(self, index: int) -> TokenClip:
        """Clip `index`, 0 <= index < len(self). Called in every step: reading a row is fast enough, decoding is not."""


@dataclass(frozen=True)
class ClipRow:
    """What the index of a prepared folder says of a clip; its tensors are `<name>.frames`, `.fine` and `.pixels`."""

    shard: str
    name: str
    file: str
    caption: str
    seconds: float


@dataclass(frozen=True)
class TokenSizes:
    """What tokens depend on: rows fit a model whose sizes are these."""

    grid: tuple[int, int]
    upscale: int
    image_tokens: int
    cell: int

    @classmethod
    def of(cls, preset: Preset) -> TokenSizes:
        return cls(preset.model.grid, preset.model.upscale, preset.model.image_tokens, preset.patch_size)


INDEX = "index.jsonl"


class PreparedClips:
    """The rows that `python -m cogvideo prepare` wrote. Raises RequestError for a folder that has none, or others."""

    def __init__(self, folder: Path, preset: Preset) -> None:
        try:
            head, *rows = (folder / INDEX).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise RequestError(
                f"{folder} 不是准备好的数据：请先运行 python -m cogvideo prepare 视频文件夹 {folder}。",
                f"{folder} holds no prepared clips: first run python -m cogvideo prepare CLIPS {folder}.",
            ) from error
        if head != json.dumps(asdict(TokenSizes.of(preset))):
            raise RequestError(
                f"{folder} 是为另一种尺寸的模型准备的（{head}）：请用 --model 重新准备。",
                f"{folder} was prepared for a model of other sizes ({head}): prepare it again, with --model.",
            )
        self.folder = folder
        self.rows = [ClipRow(**json.loads(row)) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenClip:
        row = self.rows[index]
        frames, fine = self._read(row, "frames"), self._read(row, "fine")
        return TokenClip(row.caption, row.seconds, frames, fine)

    def pixels(self, index: int) -> Pixels:
        """The keyframes of a clip before they became tokens, uint8 [5, H, W, 3]. Raises RequestError."""
        return self._read(self.rows[index], "pixels")

    def _read(self, row: ClipRow, kind: str) -> npt.NDArray[Any]:
        try:
            with safe_open(self.folder / row.shard, "numpy") as shard:
                return shard.get_tensor(f"{row.name}.{kind}")
        except Exception as error:  # safetensors raises a type of its own, and those of the file system
            raise RequestError(
                f"{self.folder / row.shard} 中读不到 {row.name}.{kind}（{error}）：请重新运行 prepare"
                "（训练 codec 需要加 --pixels）。",
                f"{row.name}.{kind} cannot be read from {self.folder / row.shard} ({error}): run prepare again "
                "(with --pixels where a codec is to be trained).",
            ) from error


def write_index(folder: Path, sizes: TokenSizes, rows: Iterable[ClipRow]) -> None:
    """Write the index, whole or not at all; with it the folder can be trained on."""
    lines = [json.dumps(asdict(sizes)), *(json.dumps(asdict(row), ensure_ascii=False) for row in rows)]
    write_text(folder / INDEX, "\n".join(lines) + "\n")


def write_shard(path: Path, tensors: dict[str, npt.NDArray[Any]], about: dict[str, str]) -> None:
    """Write tensors and what is said of them, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, about)
    os.replace(temporary, path)


def read_about(path: Path) -> dict[str, str]:
    """What `write_shard` was told about the tensors; empty where there is no such file, or none that can be read."""
    try:
        with safe_open(path, "numpy") as shard:
            return dict(shard.metadata() or {})
    except Exception:  # as above; such a shard is made again
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_tokens(
    codec: ImageTokenizer, preset: Preset, pictures: Pixels
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Frames uint8 [F, H, W, 3] of the final size -> tokens int32 [F, N], and fine ones of the keyframes [5, 9N]."""
    fine = codec.encode(keyframes_of(pictures))
    frames = codec.encode(downscale(pictures, preset.model.upscale))
    return frames.cpu().numpy().astype(np.int32), fine.cpu().numpy().astype(np.int32)


def keyframes_of(frames: npt.NDArray[Frame]) -> npt.NDArray[Frame]:
    """The five of 5, 9, 17 or 33 frames [F, ...] that are there before interpolation."""
    return frames[:: (len(frames) - 1) // (KEYFRAMES - 1)]


def downscale(pictures: Pixels, factor: int) -> Pixels:
    """uint8 [F, H, W, 3] -> [F, H / factor, W / factor, 3]: the mean of every square of pixels."""
    count, height, width, _ = pictures.shape
    squares = pictures.reshape(count, height // factor, factor, width // factor, factor, 3)
    return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def open_dataset(where: str, preset: Preset, codec: Callable[[], ImageTokenizer]) -> ClipDataset:
    """A prepared folder, or `file.py:Class` for a class called with (preset, codec). Raises RequestError."""
    file, _, name = where.rpartition(":")
    if not file.endswith(".py"):
        return PreparedClips(Path(where), preset)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        dataset: ClipDataset = getattr(module, name)(preset, codec())
    except (OSError, AttributeError) as error:
        raise RequestError(
            f"无法使用数据集 {where}（{error}）：应为 文件.py:类名。",
            f"The dataset {where} cannot be used ({error}): write it as file.py:Class.",
        ) from error
    return dataset


def open_tokenizer(folder: Path, preset: Preset) -> TextTokenizer:
    """The tokenizer of a model's folder, else the published one. Raises WeightsError."""
    own = folder / "text.model"
    path = own if own.is_file() else ICETK_FOLDER.expanduser() / "ice_text.model"
    return TextTokenizer(path, preset.model.image_tokens)


def epoch_permutation(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The shuffled indices of an epoch."""
    shuffled: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return shuffled
