"""Losses and samples of joint training in the synthetic world."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES
from cogvideo.data.synthetic_world import place_clip, sample_clip, sample_held_out
from cogvideo.errors import RequestError
from cogvideo.models.loader import NETWORKS
from cogvideo.training.initialization import init_structured
from cogvideo.training.joint_models import JointModels
from cogvideo.training.joint_task import SingleNetworkTask, weighted_loss, window_times
from cogvideo.training.trainer import Trainer
from tests.support.toy_world import OPTIONS, SMALL, needs_font, small_task


@needs_font
def test_joint_training_lowers_every_loss(tmp_path: Path) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    scalars = [trainer.update() for _ in range(OPTIONS.steps)]
    for name in ("image", "stage1", "stage2", "superres"):
        assert scalars[-1][name] < scalars[0][name] - 1.0


def test_weighted_loss_ignores_tokens_of_weight_zero() -> None:
    logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    targets = torch.tensor([[0, 0]])
    good, bad = (
        weighted_loss(logits, targets, torch.tensor([[1.0, 0.0]])),
        weighted_loss(logits, targets, torch.tensor([[0.0, 1.0]])),
    )
    assert good < 0.1 < 3.9 < bad


def test_joint_task_samples_motions_by_their_odds() -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, motion_odds=[0, 0, 1, 0, 0, 0, 0, 0], drift_probability=0.0)
    assert {clip.motion for clip in task._sample(np.random.default_rng(0), 20)} == {2}


def test_window_times_are_those_of_interpolation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        clip = sample_clip(rng, sample_held_out(), 4.0)
        seconds, times = window_times(rng, clip)
        assert seconds in (2.0, 1.0, 0.5)
        assert times[0] % seconds == 0
        assert times[-1] == times[0] + seconds <= clip.duration


@pytest.mark.parametrize(("odds", "seen"), [([0, 0, 1], {0.5}), ([1, 1, 0], {1.0, 2.0})])
def test_window_rounds_follow_their_odds(odds: list[float], seen: set[float]) -> None:
    rng = np.random.default_rng(0)
    assert {window_times(rng, sample_clip(rng, sample_held_out(), 4.0), odds)[0] for _ in range(60)} == seen


def test_unusable_round_odds_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RequestError, match=r"round_odds.*3 numbers"):
        window_times(rng, sample_clip(rng, sample_held_out(), 4.0), [1, 1])


@needs_font
@pytest.mark.parametrize("frames", [[1, 3], [1, 2, 3, 4]])
def test_loss_counts_only_wanted_frames(frames: list[int]) -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, corruption_rate=0.0)
    clips = [sample_clip(np.random.default_rng(0), sample_held_out(), 4.0)]
    rows = task._rows([[5, 6, 7]], clips, [clips[0].frame_times(5)], 2.0)
    network = task.models.stage1
    network.requires_grad_(False)
    logits = network.forward_training(rows.text, rows.text_length, rows.tokens)
    alone = [float(weighted_loss(logits[:, [f]], rows.tokens[:, [f]], rows.weights[:, [f]])) for f in frames]
    loss = float(task._score(network, rows, np.random.default_rng(0), frames))
    assert loss == pytest.approx(np.mean(alone), rel=1e-4)
    assert loss != pytest.approx(float(weighted_loss(logits, rows.tokens, rows.weights)), rel=1e-4)


@needs_font
@pytest.mark.parametrize(("wrong", "accuracy"), [("nothing", 1.0), ("the rest", 1.0), ("the subject", 0.0)])
def test_teacher_forced_accuracy_counts_only_subject_tokens(wrong: str, accuracy: float) -> None:
    task = small_task()
    clips = [place_clip(np.random.default_rng(0), 0, 0, MOTIONS.index("向右"), 4.0)]
    rows = task._rows([[5]], clips, [clips[0].frame_times(5)], 1.0)
    subject = rows.weights > task.options.background_weight
    corrupted = {"nothing": subject & ~subject, "the rest": ~subject, "the subject": subject}[wrong]
    count = SMALL.model.image_tokens

    def predict(text: torch.Tensor, length: torch.Tensor, tokens: torch.Tensor, frames: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(
            torch.where(corrupted, (tokens + 1) % count, tokens)[:, frames], count
        ).float()

    network = SimpleNamespace(forward_training=predict)
    assert task._accuracy(network, rows, range(1, 5)) == accuracy  # type: ignore[arg-type]


@needs_font
@pytest.mark.parametrize("part", ["stage2", "superres"])
@pytest.mark.parametrize("freeze_backbone", [True, False])
def test_single_network_training_changes_no_other_network(
    tmp_path: Path, part: Literal["stage2", "superres"], freeze_backbone: bool
) -> None:
    world = small_task()
    others = [name for name in NETWORKS if name != part]
    shared = world.models.stage1.transformer
    before = {name: copy.deepcopy(getattr(world.models, name).state_dict()) for name in NETWORKS}
    task = SingleNetworkTask(world, part, freeze_backbone)
    trainer = Trainer(task, OPTIONS, tmp_path)
    scalars = trainer.update()
    assert scalars["loss"] == scalars[part]
    after = {name: getattr(world.models, name).state_dict() for name in NETWORKS}
    for name in others:
        assert all(torch.equal(after[name][n], t) for n, t in before[name].items()), name
    moved = {n for n, t in before[part].items() if not torch.equal(after[part][n], t)}
    assert any(n.startswith("mixins.") for n in moved)
    layers = {n for n in moved if n.startswith("transformer.")}
    backbone = getattr(world.models, part).transformer
    assert (backbone is shared) == freeze_backbone
    assert backbone.word_embeddings is shared.word_embeddings
    assert any(".mlp." in n for n in layers) != freeze_backbone
    assert all(n.startswith(("transformer.layers.", "transformer.final_layernorm.")) for n in layers)
    assert set(moved) <= set(task.trainable.state_dict())


def test_similar_codes_get_similar_initial_embeddings() -> None:
    torch.manual_seed(0)
    models = JointModels(SMALL)
    codes = torch.randn(SMALL.model.image_tokens, 8)
    codes[1] = codes[0] + 0.05 * torch.randn(8)
    init_structured(models, codes)
    words = models.stage1.transformer.word_embeddings.weight
    alike, other = (torch.cosine_similarity(words[0], words[i], dim=0) for i in (1, 2))
    assert alike > 0.4
    assert alike > other + 0.2


@needs_font
def test_composed_subject_has_the_same_tokens_in_every_scene() -> None:
    task = small_task()
    clip = sample_clip(np.random.default_rng(4), sample_held_out(), 4.0)
    frames = [(dataclasses.replace(clip, scene=scene), clip.state(0)) for scene in range(len(SCENES))]
    tokens, cells = task._tokenise(frames, synthetic_render.COARSE)
    assert cells.any(1).all()
    assert (tokens[:, cells[0]] == tokens[0, cells[0]]).all()
    assert len(tokens[:, ~cells[0]].unique(dim=0)) == len(SCENES)
    own, _ = task._tokenise(frames, synthetic_render.COARSE, np.zeros(len(frames), bool))
    assert not torch.equal(own, tokens)


def test_corruption_replaces_the_requested_fraction_of_tokens() -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, corruption_rate=0.1)
    tokens = torch.arange(40 * 5 * 64).view(40, 5, 64)
    wrong = task.corrupt(tokens, np.random.default_rng(0)) != tokens
    assert 0.08 < float(wrong.float().mean()) < 0.12
    assert torch.equal(tokens, torch.arange(40 * 5 * 64).view(40, 5, 64))
    task.options = dataclasses.replace(task.options, corruption_rate=0.0)
    assert torch.equal(task.corrupt(tokens, np.random.default_rng(0)), tokens)


@pytest.mark.parametrize("keys", [7, 95])
def test_dense_attention_in_bfloat16_has_gradients_close_to_fp32(keys: int) -> None:
    from kernels.dense_attention import dense_attention

    torch.manual_seed(0)
    exact = [torch.randn(2, 3, n, 32, requires_grad=True) for n in (5, keys, keys)]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    mask = torch.zeros(2, 1, 5, keys).masked_fill_(torch.rand(2, 1, 5, keys) < 0.3, float("-inf"))
    mask[..., 0] = 0.0
    toward = torch.randn(2, 3, 5, 32)
    for inputs in (exact, rough):
        (dense_attention(*inputs, mask) * toward).sum().backward()
    for one, other in zip(exact, rough, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad.float(), one.grad, atol=0.03, rtol=0.03)
