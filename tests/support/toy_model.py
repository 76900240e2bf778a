"""Toy networks of a few thousand weights, and a preset of their size, for tests of the whole way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cogvideo.config import PRESETS, ModelConfig, Preset, SamplingOptions
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.runtime.device import DevicePlacement
from tests.support.toy_codec import write_codec
from tests.support.toy_text import train_text_model

IMAGE_TOKENS = 64

CONFIG = ModelConfig(
    layers=2,
    hidden=16,
    heads=2,
    vocab_size=IMAGE_TOKENS + 100,
    image_tokens=IMAGE_TOKENS,
    start_of_image=IMAGE_TOKENS + 97,
    grid=(4, 4),
    text_length=32,
    image_start=40,
    base_positions=60,
    extra_positions=70,
    window=2,
    superres_text_length=32,
    fine_window=(3, 3),
    coarse_window=(3, 3),
)

TOY: Preset = dataclasses.replace(
    PRESETS["mini"], name="toy", model=CONFIG, sampling=SamplingOptions(), back_projection=0.0
)


class ToyModels(NamedTuple):
    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM


def toy_models(seed: int = 0) -> ToyModels:
    """Random networks that share a backbone; scores spread enough for draws to matter."""
    torch.manual_seed(seed)
    stage1 = VideoLM(CONFIG, 1)
    backbone = stage1.transformer
    models = ToyModels(stage1, VideoLM(CONFIG, 2, backbone), SuperResLM(CONFIG, backbone))
    for model in models:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)
        model.eval().requires_grad_(False)
    return models


def flat_models() -> ToyModels:
    """Networks that give every token the same score: what is drawn depends on the noise alone.

    A draw then chooses among at least 36 tokens alike (12 of 17 clusters), so that two seeds agree in n tokens with
    a probability below 36 ** -n: below 1e-24 for a frame of 16.
    """
    models = toy_models()
    for parameter in models.stage1.transformer.final_layernorm.parameters():
        parameter.zero_()
    return models


def write_toy(folder: Path) -> None:
    """Everything a preset's folder holds besides the networks."""
    train_text_model(folder)
    write_codec(folder, IMAGE_TOKENS)
    np.save(folder / "cluster_labels.npy", (np.arange(IMAGE_TOKENS) % 17).astype(np.int16))
    (folder / "world.json").write_text('{"subjects": ["熊猫", "小猫"]}', encoding="utf-8")


def toy_pipeline(folder: Path) -> CogVideoPipeline:
    """The real pipeline with toy networks; what else it reads is written to `folder`."""
    write_toy(folder)
    models = toy_models()
    return CogVideoPipeline(TOY, DevicePlacement(torch.device("cpu"), torch.float32), folder, lambda *_: models)
