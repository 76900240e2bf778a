"""The training loop: resuming, checkpoints, averages and learning rates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cogvideo.errors import RequestError
from cogvideo.training.trainer import Trainer, TrainerOptions, learning_rate_factor
from tests.support.toy_world import OPTIONS, needs_font, small_task


@needs_font
def test_interrupted_run_resumes_with_the_same_losses(tmp_path: Path) -> None:
    whole = Trainer(small_task(), OPTIONS, tmp_path / "whole")
    expected = [whole.update()["loss"] for _ in range(4)]
    first = Trainer(small_task(), OPTIONS, tmp_path / "killed")
    assert [first.update()["loss"] for _ in range(2)] == expected[:2]
    first.save()
    second = Trainer(small_task(seed=99), OPTIONS, tmp_path / "killed")
    second.resume()
    assert [second.update()["loss"] for _ in range(2)] == pytest.approx(expected[2:], rel=1e-5)


@needs_font
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_initial_weight_fraction_is_mixed_in_after_resuming(tmp_path: Path, ema_decay: float) -> None:
    options = dataclasses.replace(OPTIONS, steps=3, ema_decay=ema_decay, initial_weight_fraction=0.25)
    began = {n: t.detach().clone() for n, t in small_task().models.named_parameters()}
    plain, whole, killed = (
        Trainer(small_task(), o, tmp_path / n)
        for n, o in (
            ("plain", dataclasses.replace(options, initial_weight_fraction=0.0)),
            ("whole", options),
            ("killed", options),
        )
    )
    plain.run()
    whole.run()
    killed.update()
    killed.save()
    Trainer(small_task(), options, tmp_path / "killed").run()
    trained, mixed_once, resumed = (
        torch.load(trainer.checkpoint, weights_only=True) for trainer in (plain, whole, killed)
    )
    for name, value in began.items():
        mixed = 0.25 * value + 0.75 * {**trained["module"], **trained["average"]}[name]
        torch.testing.assert_close(mixed_once["average"][name], mixed)
        torch.testing.assert_close(resumed["average"][name], mixed)
    assert any(not torch.equal(mixed_once["average"][name], value) for name, value in began.items())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_initial_weight_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(RequestError, match="initial_weight_fraction"):
        Trainer(small_task(), dataclasses.replace(OPTIONS, initial_weight_fraction=fraction), tmp_path)


@needs_font
def test_failed_save_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    trainer.save()
    before = trainer.checkpoint.read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        trainer.save()
    assert trainer.checkpoint.read_bytes() == before


def test_ema_has_shared_weights_once(tmp_path: Path) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    names = list(trainer.ema_weights)
    assert sum(name.endswith("word_embeddings.weight") for name in names) == 1


def test_learning_rate_rises_then_falls_to_the_final_rate() -> None:
    options = TrainerOptions(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup=10)
    rates = [learning_rate_factor(step, options) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
