"""Images and training of the VQ-VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import MOTIONS
from cogvideo.data.synthetic_world import Clip, State, sample_clip, sample_held_out
from cogvideo.errors import RequestError
from cogvideo.training import vqvae_data
from cogvideo.training.trainer import Trainer, TrainerOptions
from cogvideo.training.vqvae_data import sample_clips, sample_world
from cogvideo.training.vqvae_task import VQVAEOptions
from tests.support.toy_model import TOY
from tests.support.toy_training import codec_task
from tests.support.toy_world import needs_font


@needs_font
def test_image_pairs_differ_only_in_the_background() -> None:
    pixels, masks = sample_world(sample_held_out())(
        np.random.default_rng(0), VQVAEOptions(small_frames=8, fine_crops=4)
    )
    assert np.array_equal(masks[:4], masks[4:8])
    inside = masks[:4] > 0.99
    assert inside.any()
    assert np.abs(pixels[:4].astype(int) - pixels[4:8])[inside].max() <= 3
    outside = pixels[4:8][masks[:4] == 0]
    assert (outside == outside[0]).all()


@needs_font
def test_codec_images_follow_motion_and_size_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Clip] = []

    def record(*args: Any) -> Clip:
        clip = sample_clip(*args)
        seen.append(clip)
        return clip

    monkeypatch.setattr(vqvae_data, "sample_clip", record)
    options = VQVAEOptions(small_frames=40, fine_crops=2, motion_odds=[0, 0, 0, 0, 0, 1, 0, 0], size_odds=[1, 0, 0])
    sample_world(sample_held_out())(np.random.default_rng(0), options)
    assert {clip.motion for clip in seen} == {MOTIONS.index("旋转"), -1}  # and movements without a name
    assert {clip.size for clip in seen if clip.motion >= 0} == {2.0}


@needs_font
def test_codec_images_cover_all_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[float] = []

    def record(subject: int, scene: int, variant: int, state: State, cell: int) -> Any:
        angles.append(state.angle)
        return synthetic_render.render_state(subject, scene, variant, state, cell)

    monkeypatch.setattr(vqvae_data, "render_state", record)
    options = VQVAEOptions(small_frames=600, fine_crops=2, motion_odds=[0, 0, 0, 0, 0, 1, 0, 0])
    sample_world(sample_held_out())(np.random.default_rng(0), options)
    turned = np.array([angle for angle in angles if angle])
    quarters = np.bincount((turned // 90).astype(int), minlength=4) / len(turned)
    assert quarters.min() > 0.14  # subjects that drift turn half as fast


def test_odd_number_of_world_frames_is_refused() -> None:
    with pytest.raises(RequestError, match="small_frames"):
        sample_world(sample_held_out())(np.random.default_rng(0), VQVAEOptions(small_frames=3, fine_crops=2))


def test_codec_training_on_prepared_clips_raises_psnr(tmp_path: Path) -> None:
    class Clips:
        def __len__(self) -> int:
            return 3

        def pixels(self, index: int) -> np.ndarray:
            return np.full((5, 96, 96, 3), 40 * index, np.uint8)

    task = codec_task(tmp_path)
    task.sample = sample_clips(Clips(), TOY.model.upscale)  # type: ignore[arg-type]
    trainer = Trainer(task, TrainerOptions(12, 1e-2, warmup=1, preview_every=0), tmp_path)
    scalars = [trainer.update() for _ in range(12)]
    assert scalars[-1]["psnr_small"] > scalars[0]["psnr_small"] + 1
    assert task.preview_image().shape == (2 * 32, 4 * 32, 3)
