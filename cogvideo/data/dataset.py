"""Clips as tokens: the interface of a dataset, and the folder that `prepare` writes.

A dataset returns a `TokenClip`, a caption and the image tokens of its frames, for an index. To train on other data,
write a class with the two methods of `ClipDataset`, such as the one in examples/moving_square.py.
"""

from __future__ import annotations

import importlib.util
import json
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
from cogvideo.events import Frames
from cogvideo.files import atomic_write
from cogvideo.messages import message
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.weights.catalog import ICETK_FOLDER

Tokens = npt.NDArray[np.integer[Any]]

Frame = TypeVar("Frame", bound=np.generic)

KEYFRAMES = FRAME_COUNTS[0]


@dataclass(frozen=True)
class TokenClip:
    """A caption and F frames that span `seconds` in equal steps, first and last included."""

    caption: str
    """Simplified Chinese, without duration or suffix, which training adds."""
    seconds: float
    """4, 2, 1 or 0.5. Training encodes it in the frame-rate token."""
    frames: Tokens
    """[F, N]: N tokens of the preset's grid, row by row. F is 5, 9, 17 or 33."""
    fine: Tokens
    """[5, 9N]: the five keyframes on the fine grid, for super-resolution."""

    @property
    def keyframes(self) -> Tokens:
        """The five frames of stage 1, [5, N]."""
        return keyframes_of(self.frames)


class ClipDataset(Protocol):
    """Interface that training requires. Several processes read indices in shuffled order, each once an epoch.

    An index must always return the same clip; otherwise an interrupted run cannot resume with the same losses.
    """

    def __len__(self) -> int:
        """Return the number of clips, at least 1."""

    def __getitem__(self, index: int) -> TokenClip:
        """Return clip `index`, 0 <= index < len(self). Called in every step, so it must not decode videos."""


@dataclass(frozen=True)
class ClipRow:
    """A clip in the index of a prepared folder. Its tensors are `<name>.frames`, `<name>.fine` and `<name>.pixels`."""

    shard: str
    name: str
    file: str
    caption: str
    seconds: float


@dataclass(frozen=True)
class TokenSizes:
    """Sizes that tokens depend on. Rows fit only models with the same sizes."""

    grid: tuple[int, int]
    upscale: int
    image_tokens: int
    cell: int

    @classmethod
    def of(cls, preset: Preset) -> TokenSizes:
        """Return the sizes of a preset."""
        return cls(preset.model.grid, preset.model.upscale, preset.model.image_tokens, preset.patch_size)


INDEX = "index.jsonl"


class PreparedClips:
    """Dataset in a folder that `python -m cogvideo prepare` wrote.

    Raises RequestError if the folder has no rows, or rows of other sizes.
    """

    def __init__(self, folder: Path, preset: Preset) -> None:
        try:
            head, *rows = (folder / INDEX).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise RequestError(*message("dataset.no_prepared_clips", folder=folder)) from error
        if head != json.dumps(asdict(TokenSizes.of(preset))):
            raise RequestError(*message("dataset.wrong_model_sizes", folder=folder, head=head))
        self.folder = folder
        self.rows = [ClipRow(**json.loads(row)) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenClip:
        row = self.rows[index]
        frames, fine = self._read(row, "frames"), self._read(row, "fine")
        return TokenClip(row.caption, row.seconds, frames, fine)

    def pixels(self, index: int) -> Frames:
        """Return the keyframes of a clip, uint8 [5, H, W, 3]. Raises RequestError if they were not stored."""
        return self._read(self.rows[index], "pixels")

    def _read(self, row: ClipRow, kind: str) -> npt.NDArray[Any]:
        try:
            with safe_open(self.folder / row.shard, "numpy") as shard:
                return shard.get_tensor(f"{row.name}.{kind}")
        except Exception as error:  # safetensors raises SafetensorError and errors of the file system
            raise RequestError(
                *message(
                    "dataset.file_unreadable", folder=self.folder / row.shard, name=row.name, kind=kind, error=error
                )
            ) from error


def write_index(folder: Path, sizes: TokenSizes, rows: Iterable[ClipRow]) -> None:
    """Write the index of a prepared folder. It is complete or not there, and training requires it."""
    lines = [json.dumps(asdict(sizes)), *(json.dumps(asdict(row), ensure_ascii=False) for row in rows)]
    write_text(folder / INDEX, "\n".join(lines) + "\n")


def write_shard(path: Path, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write tensors and metadata. The file is complete or not there."""
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a shard. Returns {} if the file is missing or damaged."""
    try:
        with safe_open(path, "numpy") as shard:
            return dict(shard.metadata() or {})
    except Exception:  # as above; the caller makes such a shard again
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. It is complete or not there."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_tokens(
    codec: ImageTokenizer, preset: Preset, frames: Frames
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Encode frames uint8 [F, H, W, 3] of the final size: tokens int32 [F, N], and fine tokens of keyframes [5, 9N]."""
    fine = codec.encode(keyframes_of(frames))
    coarse = codec.encode(downscale(frames, preset.model.upscale))
    return coarse.cpu().numpy().astype(np.int32), fine.cpu().numpy().astype(np.int32)


def keyframes_of(frames: npt.NDArray[Frame]) -> npt.NDArray[Frame]:
    """Return the five keyframes of 5, 9, 17 or 33 frames [F, ...]."""
    return frames[:: (len(frames) - 1) // (KEYFRAMES - 1)]


def downscale(frames: Frames, factor: int) -> Frames:
    """Average squares of pixels: uint8 [F, H, W, 3] -> [F, H / factor, W / factor, 3]."""
    count, height, width, _ = frames.shape
    squares = frames.reshape(count, height // factor, factor, width // factor, factor, 3)
    return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def open_dataset(where: str, preset: Preset, codec: Callable[[], ImageTokenizer]) -> ClipDataset:
    """Open a prepared folder, or make `file.py:Class`, called with (preset, codec). Raises RequestError."""
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
        raise RequestError(*message("dataset.custom_dataset_unusable", where=where, error=error)) from error
    return dataset


def open_tokenizer(folder: Path, preset: Preset) -> TextTokenizer:
    """Open the tokenizer of a model's folder, else the published one. Raises WeightsError."""
    own = folder / "text.model"
    path = own if own.is_file() else ICETK_FOLDER.expanduser() / "ice_text.model"
    return TextTokenizer(path, preset.model.image_tokens)


def epoch_permutation(count: int, seed: int, epoch: int) -> Sequence[int]:
    """Return the shuffled indices 0 to `count` - 1 of an epoch."""
    shuffled: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return shuffled
