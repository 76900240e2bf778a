"""What the judge's classifier says of drawings that nobody trained it on just so: blurred, patched, empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import SCENES, SUBJECTS
from cogvideo.data.synthetic_world import State
from cogvideo.errors import WeightsError
from cogvideo.training import frame_classifier
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import Trainer, TrainerOptions

pytestmark = pytest.mark.skipif(
    not any(path.exists() for path in synthetic_render.FONT_PATHS),
    reason="fonts-noto-color-emoji is needed to draw the world",
)
PAIRS = [(subject, scene) for subject in range(len(SUBJECTS)) for scene in range(len(SCENES))]


def draw(cell: int = synthetic_render.COARSE, size: float = 3.0) -> np.ndarray:
    """Every subject in every scene, uint8 [144, H, W, 3]."""
    return np.stack([synthetic_render.render_state(*pair, 0, State(4.5, 3.5, size, 0.0), cell)[0] for pair in PAIRS])


@pytest.mark.parametrize("cell", [synthetic_render.COARSE, synthetic_render.FINE])
def test_drawings_are_named(cell: int) -> None:
    right = [seen == meant for seen, meant in zip(frame_classifier.classify_frames(draw(cell)), PAIRS, strict=True)]
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("size", [2.0, 3.0, 4.0])
def test_turned_drawings_are_named_at_every_angle_of_a_film(size: float) -> None:
    steps = np.linspace(0, 360, 64, endpoint=False)  # of two seconds, which turn halfway round in 33 frames
    shown = [
        (subject, number % len(SCENES), angle) for subject in range(len(SUBJECTS)) for number, angle in enumerate(steps)
    ]
    frames = [synthetic_render.render_state(s, scene, 0, State(4, 4, size, angle))[0] for s, scene, angle in shown]
    right = [
        seen == pair[:2] for seen, pair in zip(frame_classifier.classify_frames(np.stack(frames)), shown, strict=True)
    ]
    assert np.mean(right) >= 0.993


def test_blurred_drawings_are_named() -> None:
    blurred = [np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(0.8))) for f in draw(size=4.0)]
    right = [
        seen == meant for seen, meant in zip(frame_classifier.classify_frames(np.stack(blurred)), PAIRS, strict=True)
    ]
    assert np.mean(right) >= 0.95


def test_a_subject_made_of_two_is_none() -> None:
    drawn = draw(size=4.0)
    board = (np.indices((8, 8)).sum(0) % 2 == 0).repeat(8, 0).repeat(8, 1)[..., None]
    mixed = np.where(board, drawn, np.roll(drawn, 5 * len(SCENES), axis=0))
    assert np.mean([subject == -1 for subject, _ in frame_classifier.classify_frames(mixed)]) >= 0.8


def test_an_empty_scene_shows_nobody() -> None:
    empty = [
        np.rint(synthetic_render.background(scene, v, synthetic_render.COARSE))
        for scene in range(len(SCENES))
        for v in (0, 1)
    ]
    seen = frame_classifier.classify_frames(np.stack(empty).astype(np.uint8))
    assert seen == [(-1, scene) for scene in range(len(SCENES)) for _ in (0, 1)]


def test_it_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = frame_classifier.FrameClassifierTask(frame_classifier.FrameClassifierOptions(batch=16), seed=0)
    trainer = Trainer(task, TrainerOptions(15, 3e-3, warmup=1, preview_every=0), tmp_path)
    losses = [trainer.update()["loss"] for _ in range(15)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    assert task.preview_image().shape == (2 * 64, 8 * 64, 3)


def test_the_recipe_writes_what_evaluate_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"steps": 1, "learning_rate": 1e-3, "warmup": 1, "picture_every": 0}
    recipe = {"preset": "mini", "seed": 0, "assets": str(tmp_path / "mini"), "clusters": 256}
    (tmp_path / "mini").mkdir()
    RecipeRunner(recipe | {"judge": {"run": run, "data": {"batch": 4}}}, tmp_path / "run").run_part("judge")
    monkeypatch.setattr(frame_classifier, "ASSETS", tmp_path)
    frame_classifier._shipped.cache_clear()
    try:
        assert len(frame_classifier.classify_frames(draw()[:2])) == 2
    finally:
        frame_classifier._shipped.cache_clear()


def test_without_its_weights_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_classifier, "ASSETS", tmp_path)
    frame_classifier._shipped.cache_clear()
    with pytest.raises(WeightsError, match="--part judge"):
        frame_classifier.classify_frames(draw()[:1])
