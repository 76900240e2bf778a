"""The frame classifier on rendered frames: plain, turned, blurred, mixed and empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import SCENES, SUBJECTS
from cogvideo.data.synthetic_world import State
from cogvideo.errors import WeightsError
from cogvideo.training import frame_classifier
from cogvideo.training.recipe import parse_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import Trainer, TrainerOptions
from tests.support.toy_world import needs_font

pytestmark = needs_font
PAIRS = [(subject, scene) for subject in range(len(SUBJECTS)) for scene in range(len(SCENES))]


def draw(cell: int = synthetic_render.COARSE, size: float = 3.0) -> np.ndarray:
    """Every subject in every scene, uint8 [144, H, W, 3]."""
    return np.stack([synthetic_render.render_state(*pair, 0, State(4.5, 3.5, size, 0.0), cell)[0] for pair in PAIRS])


@pytest.mark.parametrize("cell", [synthetic_render.COARSE, synthetic_render.FINE])
def test_rendered_frames_are_classified(cell: int) -> None:
    right = [seen == meant for seen, meant in zip(frame_classifier.classify_frames(draw(cell)), PAIRS, strict=True)]
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("size", [2.0, 3.0, 4.0])
def test_frames_are_classified_at_every_angle(size: float) -> None:
    steps = np.linspace(0, 360, 64, endpoint=False)  # of two seconds, which turn halfway round in 33 frames
    shown = [
        (subject, number % len(SCENES), angle) for subject in range(len(SUBJECTS)) for number, angle in enumerate(steps)
    ]
    frames = [synthetic_render.render_state(s, scene, 0, State(4, 4, size, angle))[0] for s, scene, angle in shown]
    right = [
        seen == pair[:2] for seen, pair in zip(frame_classifier.classify_frames(np.stack(frames)), shown, strict=True)
    ]
    assert np.mean(right) >= 0.993


def test_blurred_frames_are_classified() -> None:
    blurred = [np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(0.8))) for f in draw(size=4.0)]
    right = [
        seen == meant for seen, meant in zip(frame_classifier.classify_frames(np.stack(blurred)), PAIRS, strict=True)
    ]
    assert np.mean(right) >= 0.95


def test_mixture_of_two_subjects_is_no_subject() -> None:
    drawn = draw(size=4.0)
    board = (np.indices((8, 8)).sum(0) % 2 == 0).repeat(8, 0).repeat(8, 1)[..., None]
    mixed = np.where(board, drawn, np.roll(drawn, 5 * len(SCENES), axis=0))
    assert np.mean([subject == -1 for subject, _ in frame_classifier.classify_frames(mixed)]) >= 0.8


def test_empty_scene_has_no_subject() -> None:
    empty = [
        np.rint(synthetic_render.background(scene, v, synthetic_render.COARSE))
        for scene in range(len(SCENES))
        for v in (0, 1)
    ]
    seen = frame_classifier.classify_frames(np.stack(empty).astype(np.uint8))
    assert seen == [(-1, scene) for scene in range(len(SCENES)) for _ in (0, 1)]


def test_classifier_training_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = frame_classifier.FrameClassifierTask(frame_classifier.FrameClassifierOptions(batch=16), seed=0)
    trainer = Trainer(task, TrainerOptions(15, 3e-3, warmup=1, preview_every=0), tmp_path)
    losses = [trainer.update()["loss"] for _ in range(15)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    assert task.preview_image().shape == (2 * 64, 8 * 64, 3)


def test_judge_recipe_writes_the_weights_that_evaluate_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"steps": 1, "learning_rate": 1e-3, "warmup": 1, "picture_every": 0}
    recipe: dict[str, Any] = {"preset": "mini", "seed": 0, "assets": str(tmp_path / "mini"), "clusters": 256}
    (tmp_path / "mini").mkdir()
    recipe["judge"] = {"run": run, "data": {"batch": 4}}
    RecipeRunner(parse_recipe(recipe), tmp_path / "run").run_part("judge")
    monkeypatch.setattr(frame_classifier, "ASSETS", tmp_path)
    frame_classifier._shipped.cache_clear()
    try:
        assert len(frame_classifier.classify_frames(draw()[:2])) == 2
    finally:
        frame_classifier._shipped.cache_clear()


def test_missing_weights_error_names_the_training_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_classifier, "ASSETS", tmp_path)
    frame_classifier._shipped.cache_clear()
    with pytest.raises(WeightsError, match="--part judge"):
        frame_classifier.classify_frames(draw()[:1])
