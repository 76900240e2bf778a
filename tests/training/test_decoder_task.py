"""Training of the decoder by itself: tokens keep their meaning, and reconstructions improve."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cogvideo.cli.train import main
from cogvideo.config import ASSETS
from cogvideo.tokenizers.image import build_vqvae
from cogvideo.training.recipe import parse_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import Trainer, TrainerOptions
from cogvideo.training.vqvae_data import ImageOptions
from cogvideo.training.vqvae_task import encode, reconstruction_loss, weigh_by_size
from tests.support.toy_training import decoder_task
from tests.support.toy_world import needs_font


def test_decoder_training_raises_psnr_and_changes_only_the_decoder(tmp_path: Path) -> None:
    task = decoder_task(tmp_path)
    shown = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    task.sample = lambda rng, options: (shown, np.zeros(shown.shape[:3], np.float32))
    pixels = torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in task.codec.state_dict().items()}
    vectors = encode(task.codec, pixels)
    trainer = Trainer(task, TrainerOptions(12, 1e-2, warmup=1, preview_every=0), tmp_path / "run")
    assert {id(p) for p in trainer.trainable_parameters} == {id(p) for p in task.codec.decs[1].parameters()}
    scalars = [trainer.update() for _ in range(12)]
    assert scalars[-1]["psnr_small"] > scalars[0]["psnr_small"] + 1
    assert torch.equal(encode(task.codec, pixels), vectors)
    changed = {name for name, value in task.codec.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("decs.1.") for name in changed)
    assert task.preview_image().shape == (3 * 32, 6 * 32, 3)


def test_untrained_context_does_not_change_the_decoder(tmp_path: Path) -> None:
    task = decoder_task(tmp_path)
    codes = torch.randn(2, 8, 4, 4)
    decoder = task.codec.decs[1]
    assert decoder.context is not None
    with_context = decoder(codes)
    torch.nn.init.ones_(decoder.context[-1].weight)
    assert not torch.equal(decoder(codes), with_context)
    decoder.context = None
    assert torch.equal(decoder(codes), with_context)


def test_decoder_corruption_replaces_the_requested_fraction_of_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = torch.randint(0, 64, (200, 8, 8))
    assert torch.equal(decoder_task(tmp_path, corruption_rate=0.0).corrupt(tokens, rng), tokens)
    wrong = decoder_task(tmp_path, corruption_rate=0.2).corrupt(tokens, rng) != tokens
    assert 0.17 < float(wrong.float().mean()) < 0.23


def test_every_other_image_gets_the_plain_twins_tokens(tmp_path: Path) -> None:
    """Four small frames and two crops. The second half of each kind shows the first on a plain ground."""
    task = decoder_task(tmp_path)
    tokens = torch.arange(6)[:, None, None].expand(6, 4, 4)
    shown = torch.zeros_like(tokens, dtype=torch.bool)
    shown[:, 1:3] = True
    cut = task.insert_plain_subjects(tokens, shown)
    assert cut[:, 0, 0].tolist() == [0, 1, 0, 1, 4, 4]  # tokens of the scene around the subject
    assert cut[:, 1, 0].tolist() == [0, 1, 2, 3, 4, 5]  # its own tokens, then the plain twin's
    assert task.repeat_scenes(tokens)[:, 0, 0].tolist() == [0, 1, 0, 1, 4, 4]  # targets


def test_decoder_targets_are_always_in_their_scene(tmp_path: Path) -> None:
    """The decoder never has a plain ground as target. Without marked subjects there are no pairs."""
    task = decoder_task(tmp_path, corruption_rate=0.0)
    frames = np.zeros((6, 32, 32, 3), np.uint8)
    frames[[0, 1, 4]] = 200
    masks = np.zeros(frames.shape[:3], np.float32)
    task.sample = lambda rng, options: (frames, masks)
    targets: list[torch.Tensor] = []

    def record(values: torch.Tensor) -> torch.Tensor:
        targets.append(type(task).repeat_scenes(task, values))
        return targets[-1]

    task.repeat_scenes = record  # type: ignore[method-assign]
    task.loss(0)
    assert targets == []
    masks[:, 8:16] = 1.0
    task.loss(0)
    assert len(targets[0].unique()) == 3  # one value a channel, that of the bright images


def test_size_power_one_weighs_subjects_of_all_sizes_alike() -> None:
    masks = torch.zeros(3, 1, 8, 8)
    masks[0, :, :2, :2] = 1.0  # 4 pixels
    masks[1, :, :4, :4] = 1.0  # 16 pixels; the third picture is empty
    assert torch.equal(weigh_by_size(masks, 0.0), masks)
    small, large, empty = weigh_by_size(masks, 1.0).sum((1, 2, 3)).tolist()
    assert (small, large, empty) == pytest.approx((10.0, 10.0, 0.0))
    small, large, _ = weigh_by_size(masks, 0.5).sum((1, 2, 3)).tolist()
    assert large / small == pytest.approx(2.0)


@pytest.mark.parametrize("part", ["small", "fine"])
def test_size_power_does_not_apply_to_crops(part: str) -> None:
    options = ImageOptions(small_frames=2, fine_crops=2, background_weight=0.0, size_power=1.0)
    masks, decoded = torch.zeros(4, 1, 8, 8), torch.zeros(4, 3, 8, 8)
    masks[[0, 2], :, :2, :2] = 1.0
    masks[[1, 3]] = 1.0
    first = 0 if part == "small" else 2

    def cost(picture: int) -> float:
        wrong = decoded.clone()
        wrong[picture] = 1.0
        return float(reconstruction_loss(wrong, decoded, masks, options)[0])

    assert cost(first + 1) / cost(first) == pytest.approx(1.0 if part == "small" else 16.0)


@needs_font
def test_decoder_recipe_changes_only_the_decoder_of_the_codec_file(tmp_path: Path) -> None:
    for name in ("codec.json", "codec.safetensors"):
        shutil.copy(ASSETS / "mini" / name, tmp_path)
    run = {"steps": 1, "learning_rate": 1e-3, "warmup": 1, "picture_every": 0}
    recipe = {
        "preset": "mini",
        "seed": 0,
        "assets": str(tmp_path),
        "clusters": 256,
        "decoder": {"run": run, "data": {"small_frames": 2, "fine_crops": 2}},
    }
    before = load_file(tmp_path / "codec.safetensors")
    RecipeRunner(parse_recipe(recipe), tmp_path / "run").run_part("decoder")
    after = load_file(tmp_path / "codec.safetensors")
    assert (
        after.keys()
        == before.keys()
        == build_vqvae(tmp_path / "codec.json").state_dict().keys()
        - {
            "quantize.cluster_size",
            "quantize.embed_avg",
        }
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decs.1.") for name in changed)


@needs_font
def test_decoder_recipe_from_mini_copies_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are those of the starting point."""
    monkeypatch.chdir(tmp_path)
    Path("better.toml").write_text(
        'preset = "mini"\nseed = 0\nstart = "mini"\n'
        "[decoder.run]\nsteps = 1\nwarmup = 1\npicture_every = 0\n[decoder.data]\nsmall_frames = 2\nfine_crops = 2\n"
    )
    assert main(["better.toml"]) == 0
    folder = tmp_path / "runs" / "better" / "model"
    for name in ("backbone", "stage1", "stage2", "superres"):
        assert (folder / f"{name}.safetensors").read_bytes() == (ASSETS / "mini" / f"{name}.safetensors").read_bytes()
    codecs = [load_file(path / "codec.safetensors") for path in (folder, ASSETS / "mini")]
    assert any(not torch.equal(value, codecs[1][name]) for name, value in codecs[0].items())
