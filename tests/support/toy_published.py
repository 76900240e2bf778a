"""A toy in the published model's formats: three zips of checkpoints, cluster labels and icetk's two files.

Sizes are a toy's, names and structure the release's; the image codec is icetk's own at full size, with random weights.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideo.config import ModelConfig
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.tokenizers.image import _keep_level, _published_codec
from tests.support.small_lm import randomise
from tests.support.toy_text import train_text_model

MODEL = ModelConfig(
    layers=2,
    hidden=16,
    heads=2,
    vocab_size=20100,
    image_tokens=20000,
    start_of_image=20097,
    grid=(4, 4),
    text_length=32,
    window=2,
    superres_text_length=32,
    fine_window=(5, 3),
    coarse_window=(3, 3),
)

ITERATIONS = {"cogvideo-stage1": "27000", "cogvideo-stage2": "38000", "cogview2-dsr": "20000"}


def write_archives(folder: Path) -> None:
    """All six files; the archive of stage 2 has the prefix that some archives have."""
    torch.manual_seed(0)
    stage1 = VideoLM(MODEL, 1)
    networks = (stage1, VideoLM(MODEL, 2, stage1.transformer), SuperResLM(MODEL, stage1.transformer))
    for (name, iteration), network in zip(ITERATIONS.items(), networks):
        randomise(network)
        prefix = "sharefs/cogview-new/" if name == "cogvideo-stage2" else ""
        weights = folder / "weights.pt"
        torch.save({"module": {key: value.half() for key, value in network.state_dict().items()}}, weights)
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as packed:
            packed.writestr(f"{prefix}{name}/latest", iteration)
            packed.writestr(f"{prefix}{name}/model_config.json", json.dumps(_config(name)))
            packed.write(weights, f"{prefix}{name}/{iteration}/mp_rank_00_model_states.pt")
        weights.unlink()
    np.save(folder / "cluster_label2.npy", np.arange(20000) % 500)
    train_text_model(folder).rename(folder / "ice_text.model")
    _write_codec(folder / "ice_image.pt")


def rows(folder: Path, url: str, hub: tuple[str, ...]) -> list[dict[str, Any]]:
    """What `cogvideo.weights.catalog` would say of these files; those in `hub` are also on Hugging Face."""
    named = []
    for name, form in (
        *((f"{name}.zip", "zip") for name in ITERATIONS),
        ("cluster_label2.npy", "npy"),
        ("ice_text.model", "sentencepiece"),
        ("ice_image.pt", "torch"),
    ):
        row: dict[str, Any] = {"name": name, "format": form, "urls": [f"{url}/{name}"], "icetk": name.startswith("ice")}
        if not row["icetk"]:
            data = (folder / name).read_bytes()
            row |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        named.append(row | {"hub": ["THUDM/CogVideo"] if name in hub else []})
    return named


def model() -> dict[str, Any]:
    return asdict(MODEL)


def _config(name: str) -> dict[str, Any]:
    """As the release writes it, which says nothing of image tokens."""
    text, frame = MODEL.text_length, MODEL.tokens_per_frame
    config: dict[str, Any] = {
        "num_layers": MODEL.layers,
        "hidden_size": MODEL.hidden,
        "num_attention_heads": MODEL.heads,
        "vocab_size": MODEL.vocab_size,
        "max_sequence_length": MODEL.base_positions,
        "layout": f"{text}, {text + frame}, {text + 5 * frame}",
        "additional_seqlen": MODEL.extra_positions,
        "window_size": MODEL.window if name == "cogvideo-stage2" else -1,
    }
    if name == "cogview2-dsr":
        config |= {"kernel_size": 3, "kernel_size2": 3, "layout": f"32,48,{48 + 9 * frame}"}
    return config


def _write_codec(path: Path) -> None:
    codec = _published_codec()
    _keep_level(codec)
    tensors = {
        name: like.new_empty(like.shape, device="cpu", dtype=torch.half) for name, like in codec.state_dict().items()
    }
    for tensor in tensors.values():
        tensor.uniform_(-0.05, 0.05)
    torch.save({"module": tensors}, path)
