"""Keyframes of a film as a file, so that stage 2 can go on from them another day: NAME.safetensors.

It holds one tensor, `keyframes`, int32 [5, N] in time order, and as metadata `model`, the preset's name, and `request`,
a JSON object with the fields of `VideoRequest`. Reading such a file runs no code, whoever it came from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cogvideo.config import CLIP_FRAMES, VideoRequest
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.jobs.state import request_from_dict, request_to_dict
from cogvideo.token_frames import TokenFrames

MOST: Final = 2**16 - 1
"""The largest token that `TokenFrames` can hold; whether a model has it is seen when the request is checked."""
LARGEST: Final = 2**20
"""Bytes. Keyframes of the published model take 8 kB; a file of weights is no file of keyframes."""


def write_keyframes(path: Path, keyframes: Tensor, model: str, request: VideoRequest) -> None:
    """`keyframes` [5, N], which `model` drew for `request`, as the file `path`, whole or not at all. Raises OSError."""
    about = {"model": model, "request": json.dumps(request_to_dict(request), ensure_ascii=False)}
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(save({"keyframes": keyframes.to(torch.int32).contiguous()}, about))
    draft.replace(path)


def read_keyframes(path: Path) -> tuple[str, VideoRequest]:
    """The model's name, and the request with the keyframes as its `clip`. Raises RequestError naming the file."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        with safe_open(path, framework="pt") as opened:
            about, keyframes = opened.metadata() or {}, opened.get_tensor("keyframes")
        if keyframes.dtype != torch.int32 or keyframes.ndim != 2 or len(keyframes) != CLIP_FRAMES[0]:
            raise ValueError(f"{keyframes.dtype} {list(keyframes.shape)}")
        if int(keyframes.min()) < 0 or int(keyframes.max()) > MOST:
            raise ValueError("tokens out of range")
        request = request_from_dict(json.loads(about["request"]))
        if not isinstance(request.prompt, str):
            raise ValueError(f"the prompt {request.prompt!r}")
        clip = TokenFrames.of(keyframes.tolist())
        return about["model"], replace(request, frames=CLIP_FRAMES[0], clip=clip, superres=False)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, CogVideoError) as error:
        raise RequestError(
            f"{path} 不是可用的关键帧文件（{error}）：请用 --stage-1 重新生成。",
            f"{path} is no usable file of keyframes ({error}): make it again with --stage-1.",
        ) from error
