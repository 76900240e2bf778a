"""A toy task of every network, and runs of it in processes of their own: `python toy_training.py FOLDER STEPS [asked]`.

A process prints the number of every finished step; with `asked` it continues after a line of input.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideo.data.dataset import TokenClip
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.training.decoder_task import DecoderOptions, DecoderTask
from cogvideo.training.network_task import NetworkTask, NetworkTaskOptions
from cogvideo.training.recipe import NetworkPart
from cogvideo.training.trainer import Trainer, TrainerOptions
from cogvideo.training.vqvae_data import ImageOptions
from cogvideo.training.vqvae_task import VQVAEOptions, VQVAETask
from tests.support.toy_codec import CONFIG as CODEC
from tests.support.toy_model import CONFIG, TOY, toy_models
from tests.support.toy_text import train_text_model

CODEC_OPTIONS = VQVAEOptions(small_frames=3, fine_crops=1, warmup_steps=1, restart_every=2)


class ToyClips:
    """Six clips of random tokens, 33 frames each."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> TokenClip:
        rng = np.random.default_rng(index)
        size = CONFIG.tokens_per_frame
        frames, fine = (
            rng.integers(0, CONFIG.image_tokens, (count, length)) for count, length in ((33, size), (5, 9 * size))
        )
        return TokenClip(f"一只{'熊猫小猫'[index % 2 * 2 :][:2]}在草地上向右跑", 4.0, frames, fine)


def part_task(folder: Path, part: NetworkPart, **options: object) -> NetworkTask:
    path = folder / "text.model"
    tokenizer = TextTokenizer(path if path.exists() else train_text_model(folder), CONFIG.image_tokens)
    models = toy_models()
    network = models.stage1 if part == "backbone" else getattr(models, part)
    chosen = NetworkTaskOptions(**{"batch": 4, **options})  # type: ignore[arg-type]
    return NetworkTask(network.train(), part, ToyClips(), TOY, tokenizer, chosen)


def random_images(rng: np.random.Generator, options: ImageOptions) -> tuple[np.ndarray, np.ndarray]:
    count = options.small_frames + options.fine_crops
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.zeros((count, 32, 32), np.float32)


def codec_task(folder: Path) -> VQVAETask:
    return VQVAETask(_toy_codec(folder), random_images, CODEC_OPTIONS, seed=0)


def decoder_task(folder: Path, **options: float) -> DecoderTask:
    chosen = DecoderOptions(small_frames=4, fine_crops=2, **options)  # type: ignore[arg-type]
    return DecoderTask(_toy_codec(folder, context=1, context_channels=8), random_images, chosen, seed=0)


def _toy_codec(folder: Path, **decoder: int) -> Any:
    import json

    from cogvideo.tokenizers.image import build_vqvae

    config = json.loads(json.dumps(CODEC))
    config["dec_configs"][1]["params"].update(decoder)
    path = folder / "codec.json"
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    return build_vqvae(path)


def stage1_run(folder: Path, steps: int, accumulate: int = 1) -> Trainer:
    """A run that saves after every step."""
    folder.mkdir(parents=True, exist_ok=True)
    options = TrainerOptions(
        steps, 1e-2, warmup=1, ema_decay=0.9, gradient_accumulation_steps=accumulate, save_minutes=0.0, preview_every=0
    )
    return Trainer(part_task(folder, "stage1"), options, folder)


def main() -> None:
    folder, steps, asked = Path(sys.argv[1]), int(sys.argv[2]), "asked" in sys.argv[3:]
    torch.set_num_threads(1)
    trainer = stage1_run(folder, steps)
    process = trainer.accelerator.process_index
    update = trainer.update

    def report_step() -> dict[str, float]:
        scalars = update()
        print(trainer.step, flush=True)
        if asked:
            sys.stdin.readline()
        return scalars

    trainer.update = report_step  # type: ignore[method-assign]
    trainer.run()
    codec = codec_task(folder)
    run = Trainer(codec, TrainerOptions(6, preview_every=0), folder / "codec")
    for _ in range(6):
        run.update()
    torch.save(codec.module.state_dict(), folder / f"codec-{process}.pt")
    run.accelerator.end_training()


if __name__ == "__main__":
    main()
