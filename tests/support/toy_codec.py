"""A VQ-VAE of a few thousand parameters for tests, built as the shipped one is: icetk's HVQVAE from a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cogvideo.tokenizers.image import ImageTokenizer, build_vqvae

CONFIG: dict[str, Any] = {
    "levels": 2,
    "embedding_dim": 8,
    "enc_config": {"target": "cogvideo.models.vqvae.PatchEncoder", "params": {"channels": 8}},
    "down_sampler_configs": [
        {"target": "cogvideo.models.vqvae.PatchMerge", "params": {"in_channels": 8, "out_channels": 16}}
    ],
    "quantize_config": {
        "target": "icetk.vqvae.VectorQuantizeEMA",
        "params": {"hidden_dim": 16, "embedding_dim": 8, "n_embed": 64, "training_loc": False},
    },
    "dec_configs": [
        {"target": "torch.nn.Identity"},
        {
            "target": "cogvideo.models.vqvae.ShuffleDecoder",
            "params": {"z_channels": 8, "channels": [16, 8, 8], "blocks": [1, 1, 1]},
        },
    ],
}


def write_codec(folder: Path, image_tokens: int = 64) -> None:
    """`codec.json` and `codec.safetensors` with random weights."""
    config = json.loads(json.dumps(CONFIG))
    config["quantize_config"]["params"]["n_embed"] = image_tokens
    (folder / "codec.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = build_vqvae(folder / "codec.json")
    model.quantize.embed.weight.data.normal_()
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "codec.safetensors")


def toy_codec(folder: Path, image_tokens: int = 64) -> ImageTokenizer:
    from cogvideo.config import PRESETS

    write_codec(folder, image_tokens)
    return ImageTokenizer.load(PRESETS["mini"], folder=folder)
