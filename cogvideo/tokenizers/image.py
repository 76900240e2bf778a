"""Conversion of pixels uint8 [B, H, W, 3] to image tokens [B, N] and back, with icetk's hierarchical VQ-VAE.

It uses level 1 of the VQ-VAE: a token covers 8 x 8 pixels. The published codec is icetk's own configuration with
`ice_image.pt`. A small codec is a JSON file with HVQVAE's arguments and a safetensors file with its weights, under the
same names. A codec is an instance, never icetk's global one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cogvideo import compat
from cogvideo.config import ASSETS, Preset
from cogvideo.errors import WeightsError
from cogvideo.messages import message
from cogvideo.weights.catalog import ICETK_FOLDER

MEAN: Final = (0.79093, 0.76271, 0.75340)
"""Mean of the pixels (0 to 1, RGB) that the codec was trained with."""
STD: Final = (0.30379, 0.32279, 0.32800)

LEVEL: Final = 1
"""Level of the VQ-VAE: 0 has 4 pixels a token, 1 has 8, 2 has 16."""

CLASS_MODULE: Final = "cogvideo.models.vqvae."
OLD_CLASS_MODULE: Final = "cogvideo.models.codec."
"""Module of the same classes before version 0.2. Old model folders contain it in codec.json."""

Pixels = npt.NDArray[np.uint8]


class ImageTokenizer:
    """Tokenizer of frames. `model` is an HVQVAE.

    `tokens_per_pass`: maximum tokens of a pass (at least one frame). The default is four upscaled frames of the
    published model.
    """

    def __init__(self, model: nn.Module, tokens_per_pass: int = 4 * 60 * 60) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokens_per_pass = tokens_per_pass

    @classmethod
    def load(
        cls,
        preset: Preset,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
    ) -> ImageTokenizer:
        """Load the preset's codec from `folder` (default: its assets, else icetk's folder). Raises WeightsError."""
        folder = folder or ASSETS / preset.name
        if (folder / "codec.json").is_file():
            model, path = build_vqvae(folder / "codec.json", device="meta"), folder / "codec.safetensors"
            tensors = _read(path, load_file)
        else:
            model, path = _published_codec(), ICETK_FOLDER.expanduser() / "ice_image.pt"
            tensors = _read(path, _read_pickle)
        _keep_level(model)
        _fill(model, tensors, path)
        return cls(model.to(device, dtype, memory_format=torch.channels_last))  # faster convolutions of few frames

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Tensor:
        """Encode uint8 [B, H, W, 3], with H and W divisible by 8, to int64 [B, H/8 * W/8] in row-major order."""
        _, height, width, _ = pixels.shape
        batch_size = self._frames_per_pass(height // 8 * (width // 8))
        return torch.cat([self._encode(pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size)])

    @torch.inference_mode()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Pixels:
        """Decode int [B, h*w] on a grid (h, w) to uint8 [B, 8h, 8w, 3]."""
        codes = tokens.to(self._embedding.device, torch.long).unflatten(1, grid)  # [B, h, w]
        return np.concatenate([self._decode(part) for part in codes.split(self._frames_per_pass(grid[0] * grid[1]))])

    def decode_upscaled(self, fine: Tensor, coarse: Tensor, preset: Preset) -> Pixels:
        """Decode upscaled tokens [B, fine tokens] of the coarse tokens [B, N] to uint8 [B, H, W, 3]."""
        large, strength = self.decode(fine, preset.model.fine_grid), preset.back_projection
        return back_project(large, self.decode(coarse, preset.model.grid), strength) if strength else large

    def decode_partial(self, tokens: Tensor, grid: tuple[int, int]) -> Pixels:
        """Decode the first k tokens [k] of a frame, k >= w, to uint8 [8h, 8w, 3]. Missing rows have the mean colour."""
        height, width = grid
        rows = len(tokens) // width
        present = tokens[: rows * width]
        # Repeat the last row, so that the decoder produces no seam.
        filled = torch.cat([present, present[-width:].repeat(height - rows)])
        frame = self.decode(filled[None], grid)[0]
        edge = rows * frame.shape[0] // height
        frame[edge:] = frame[:edge].mean((0, 1)).round().astype(np.uint8)
        return frame

    def _frames_per_pass(self, tokens: int) -> int:
        return max(1, self.tokens_per_pass // tokens)

    @property
    def _embedding(self) -> Tensor:
        weight: Tensor = self.model.quantize.embed.weight
        return weight

    def _encode(self, pixels: Pixels) -> Tensor:
        like = self._embedding
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(like.device).permute(0, 3, 1, 2).float() / 255
        mean, std = _constants(like.device)
        _, _, codes = self.model.single_encode(((values - mean) / std).to(like.dtype), LEVEL)  # [B, h, w]
        return codes.flatten(1)

    def _decode(self, codes: Tensor) -> Pixels:
        mean, std = _constants(codes.device)
        values = self.model.single_decode_code(codes, LEVEL).float() * std + mean  # [B, 3, H, W]
        bytes_ = values.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
        return bytes_.contiguous().cpu().numpy()


def back_project(large: Pixels, small: Pixels, share: float) -> Pixels:
    """Correct upscaled frames uint8 [F, kH, kW, 3] towards the small frames [F, H, W, 3] that they came from.

    The difference between the small frames and the averages over k x k pixels is enlarged and added. Detail remains,
    and misplaced content fades (Irani and Peleg 1991, "Improving resolution by image registration"). `share`, 0 to 1:
    fraction of the difference to add.
    """
    if not share:
        return large
    factor = large.shape[1] // small.shape[1]
    upscaled, original = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() for frames in (large, small))
    difference = original - F.avg_pool2d(upscaled, factor)  # [F, 3, H, W]
    upscaled += share * F.interpolate(difference, scale_factor=factor, mode="bicubic", align_corners=False)
    return upscaled.clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def build_vqvae(config: Path, device: torch.device | str = "cpu") -> Any:
    """Build an untrained HVQVAE from a JSON file with its arguments. Raises WeightsError."""
    compat.prepare()
    from icetk.vqvae import HVQVAE

    try:
        arguments = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(config, str(error)) from error
    with torch.device(device):
        return HVQVAE(**_current_class_paths(arguments))


def _current_class_paths(value: Any) -> Any:
    """Replace the class paths of older versions in the content of a codec.json. The file is not changed."""
    if isinstance(value, dict):
        return {name: _current_class_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_current_class_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(OLD_CLASS_MODULE):
        return CLASS_MODULE + value.removeprefix(OLD_CLASS_MODULE)
    return value


def _published_codec() -> Any:
    compat.prepare()
    from icetk.vqvae import load_default_HVQVAE

    with torch.device("meta"):
        return load_default_HVQVAE()


def _keep_level(model: Any) -> None:
    """Remove the parts that level 1 does not use: other decoders and samplers, training statistics of the codebook."""
    for number in range(len(model.decs)):
        if number != 2 - LEVEL:  # numbered as in HVQVAE.single_decode_code
            model.decs[number] = nn.Identity()
    model.down_samplers = model.down_samplers[:LEVEL]
    for name in ("cluster_size", "embed_avg"):
        if hasattr(model.quantize, name):
            delattr(model.quantize, name)


def _fill(model: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    required: dict[str, Tensor] = model.state_dict()
    for name, like in required.items():
        if name not in tensors:
            raise _damaged(path, f"{name} is missing")
        if tensors[name].shape != like.shape:
            raise _damaged(path, f"{name} is {tuple(tensors[name].shape)}, not {tuple(like.shape)}")
    model.load_state_dict({name: tensors[name].float() for name in required}, assign=True)


def _read(path: Path, reader: Any) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise WeightsError(*message("image.weights_missing", path=path))
    try:
        tensors: Mapping[str, Tensor] = reader(path)
    except Exception as error:  # each file format raises its own exceptions
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return tensors


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Read icetk's checkpoint, a state dict under `module`. Files from before torch 1.6 cannot be mapped."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        content = torch.load(path, map_location="cpu", weights_only=True)
    tensors: Mapping[str, Tensor] = content["module"]
    return tensors


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(*message("image.file_damaged", path=path, reason=reason))


def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the pixels, [3, 1, 1] each."""
    return torch.tensor(MEAN, device=device)[:, None, None], torch.tensor(STD, device=device)[:, None, None]
