"""Training of single networks: what is trained, micro-batches, several processes, and resuming."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.data.dataset import TokenClip
from cogvideo.errors import RequestError
from cogvideo.models.loader import NETWORKS, load_published, load_safetensors
from cogvideo.models.video_lm import VideoLM
from cogvideo.training import export
from cogvideo.training.network_task import sample_window
from cogvideo.training.recipe import NETWORK_PARTS, NetworkPart
from cogvideo.training.trainer import Precision, Trainer, TrainerOptions
from tests.support.ports import free_port
from tests.support.toy_model import CONFIG, toy_models
from tests.support.toy_training import ToyClips, part_task, stage1_run

ROOT = Path(__file__).resolve().parents[2]
TOY_TRAINING = str(ROOT / "tests" / "support" / "toy_training.py")
RUN = TrainerOptions(12, 5e-2, warmup=1, preview_every=0)


@pytest.mark.parametrize("part", NETWORK_PARTS)
def test_network_training_lowers_the_loss_and_changes_only_trainable_weights(tmp_path: Path, part: NetworkPart) -> None:
    task = part_task(tmp_path, part)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    trainer = Trainer(task, RUN, tmp_path / "run")
    first = float(task.loss(0)[0].detach())
    for _ in range(RUN.steps):
        trainer.update()
    assert float(task.loss(0)[0].detach()) < first - 0.5
    moved = {name for name, value in task.module.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"transformer" if part == "backbone" else "mixins"}
    assert set(trainer.weights()) == {
        n for n in before if n.startswith("transformer" if part == "backbone" else "mixins")
    }


def test_unfrozen_backbone_is_trained_and_exported(tmp_path: Path) -> None:
    task = part_task(tmp_path, "stage1", freeze_backbone=False)
    name = "transformer.layers.0.attention.query_key_value.weight"
    before = task.module.state_dict()[name].clone()
    trainer = Trainer(task, RUN, tmp_path / "run")
    trainer.update()
    assert not torch.equal(before, task.module.state_dict()[name])
    assert set(trainer.weights()) == set(task.module.state_dict())


def test_attention_plus_begins_as_a_copy_of_the_backbones_attention() -> None:
    backbone = toy_models().stage1.transformer
    lm = VideoLM(CONFIG, 1, backbone)
    for own, layer in zip(lm.get_mixin("attention_plus").query_key_value, backbone.layers, strict=True):
        assert torch.equal(own.weight, layer.attention.query_key_value.weight)


@pytest.mark.parametrize("part", NETWORK_PARTS)
def test_mean_loss_of_micro_batches_equals_that_of_the_step(tmp_path: Path, part: NetworkPart) -> None:
    task = part_task(tmp_path, part)
    whole = task.loss(3)[0]
    parts = [task.loss(3, micro_batch, 4)[0] for micro_batch in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    with pytest.raises(RequestError, match="batch"):
        task.loss(0, 0, 3)


def test_epoch_reads_every_clip_once(tmp_path: Path) -> None:
    read: list[int] = []

    class RecordingClips(ToyClips):
        def __getitem__(self, index: int) -> TokenClip:
            read.append(index)
            return super().__getitem__(index)

    task = part_task(tmp_path, "superres")
    task.dataset = RecordingClips()
    task.batch(range(12))
    assert sorted(read[:6]) == sorted(read[6:]) == list(range(6))
    assert read[:6] != read[6:]


def test_sampled_windows_are_those_of_interpolation() -> None:
    numbers = np.arange(33)[:, None].repeat(CONFIG.tokens_per_frame, 1)
    seen = set()
    for seed in range(100):
        frames, seconds = sample_window(TokenClip("", 4.0, numbers, numbers), np.random.default_rng(seed))
        first, step = int(frames[0, 0]), int(frames[1, 0] - frames[0, 0])
        assert frames[:, 0].tolist() == list(range(first, first + 5 * step, step))
        assert seconds == step / 2
        assert first % (4 * step) == 0
        seen.add((seconds, first))
    assert len(seen) == 2 + 4 + 8
    frames, seconds = sample_window(TokenClip("", 2.0, numbers[:5], numbers), np.random.default_rng(0))
    assert (frames[:, 0].tolist(), seconds) == ([0, 1, 2, 3, 4], 2.0)


def gradients(folder: Path, **options: object) -> list[torch.Tensor]:
    task = part_task(folder, "stage2", freeze_backbone=False, **options)
    task.loss(0)[0].backward()
    return [p.grad for p in task.trainable.parameters() if p.grad is not None]


def test_checkpointed_layers_have_the_same_gradients(tmp_path: Path) -> None:
    for plain, again in zip(gradients(tmp_path), gradients(tmp_path, checkpoint_layers=True), strict=True):
        torch.testing.assert_close(plain, again)


def test_gradient_accumulation_gives_the_weights_of_one_batch(tmp_path: Path) -> None:
    weights = []
    for count in (1, 4):
        run = stage1_run(tmp_path / str(count), steps=3, accumulate=count)
        for _ in range(3):
            run.update()
        weights.append(run.weights())
    same_weights(*weights)


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        # A bias of keys does not change attention. Its gradient is rounding noise, which Adam scales to full steps.
        if not re.search(r"query_key_value\.\d+\.bias", name):
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_training_lowers_the_loss(tmp_path: Path, precision: Precision) -> None:
    options = TrainerOptions(6, 2e-2, warmup=1, precision=precision, preview_every=0)
    trainer = Trainer(part_task(tmp_path, "stage1"), options, tmp_path)
    losses = [trainer.update()["loss"] for _ in range(options.steps)]
    assert losses[-1] < losses[0] - 0.5


def test_two_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    alone = stage1_run(tmp_path / "one", steps=3)
    alone.run()
    port = free_port()
    (tmp_path / "two").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    launch += [TOY_TRAINING, str(tmp_path / "two"), "3"]
    answer = subprocess.run(launch, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("3") == 2  # both processes trained
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("one", "two")]
    same_weights(states[0]["module"], states[1]["module"])
    same_weights(states[0]["average"], states[1]["average"])
    codecs = [torch.load(tmp_path / "two" / f"codec-{process}.pt", weights_only=True) for process in range(2)]
    for name, value in codecs[0].items():
        assert torch.equal(value, codecs[1][name]), name


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def test_muon_with_fp16_is_refused(tmp_path: Path) -> None:
    options = TrainerOptions(6, muon_learning_rate=1e-2, precision="fp16")
    with pytest.raises(RequestError, match="Muon"):
        Trainer(part_task(tmp_path, "stage1"), options, tmp_path)


@pytest.mark.parametrize("killed_after", [1, 4])
def test_killed_run_resumes_to_the_same_weights(tmp_path: Path, killed_after: int) -> None:
    whole = stage1_run(tmp_path / "whole", steps=6)
    whole.run()
    (tmp_path / "killed").mkdir()
    words = [sys.executable, TOY_TRAINING, str(tmp_path / "killed"), "6", "asked"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline().strip() != str(killed_after):
            assert process.poll() is None
            process.stdin.write("\n")
            process.stdin.flush()
        process.kill()  # between this step and its checkpoint
    again = stage1_run(tmp_path / "killed", steps=6)
    again.resume()
    assert again.step == killed_after - 1
    again.run()
    same_weights(whole.weights(), again.weights())


def test_published_format_round_trip_keeps_all_weights(tmp_path: Path) -> None:
    models = toy_models()
    parts = {part: dict(getattr(models, part).state_dict()) for part in NETWORKS}
    own = {p: {n: t for n, t in w.items() if n.startswith("mixins.")} for p, w in parts.items()}
    backbone = {n: t for n, t in parts["stage1"].items() if n.startswith("transformer.")}
    changed = "transformer.layers.1.mlp.dense_h_to_4h.bias"
    own["stage2"][changed] = backbone[changed] + 1.0  # a network that trained its backbone further
    export.export_parts({"backbone": backbone, **own}, tmp_path)
    export.to_published(tmp_path, CONFIG, tmp_path / "published")
    there = load_published(tmp_path / "published", CONFIG)
    for part in NETWORKS:
        expected = load_safetensors(tmp_path, CONFIG).networks[part].state_dict()
        for name, value in there.networks[part].state_dict().items():
            assert torch.equal(value, expected[name]), (part, name)
    assert there.stage2.state_dict()[changed].ne(there.stage1.state_dict()[changed]).all()
