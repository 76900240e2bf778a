"""The training loop: a task and options in, checkpoints, scalars and pictures out. One process or many, by accelerate.

A step's data depends on the seed and the step alone, and a checkpoint holds weights, optimizer and step, so that a run
that was killed goes on with the same losses. Checkpoints are written to a temporary name, then renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.errors import RequestError
from cogvideo.training.muon import Muon

Precision = Literal["", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainerOptions:
    """How long and how fast to learn."""

    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup: int = 50
    weight_decay: float = 0.01
    muon_learning_rate: float = 0.0
    """Over 0: matrices and convolutions inside the layers are trained by Muon at this rate, the rest by AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 switches it off."""
    initial_weight_fraction: float = 0.0
    """Share of the weights that training began with in those that it leaves, 0 to below 1: a little less is learnt, and
    less of what was known is lost (Wortsman et al. 2022, arXiv:2109.01903, section 3)."""
    gradient_accumulation_steps: int = 1
    """Shares that a process cuts its part of a step into, one after the other: less memory, the same gradients."""
    precision: Precision = ""
    """Of the arithmetic; weights stay fp32. Empty: what `accelerate launch` was told."""
    save_minutes: float = 2.0
    log_every: int = 20
    preview_every: int = 500
    """Steps between two pictures of what the model makes of its data; 0: none."""
    seed: int = 0


def export_weights(state: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what training holds, what it leaves: all of `state`, or, where averaging is on, the averages.

    These hold a tensor that has several names once, under its first one: the others would be what the last step left.
    """
    counts = {n: t for n, t in state.items() if not t.is_floating_point()}
    return {**counts, **average} if average else dict(state)


class Task(Protocol):
    """What is learnt: the modules that compute, those of them that learn, and the loss of one step."""

    @property
    def module(self) -> nn.Module:
        """Everything that computes, frozen parts included: it is moved to the device."""

    @property
    def trainable(self) -> nn.Module:
        """What training changes, a part of `module` or all of it: a checkpoint holds its tensors."""

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """The loss of one of the equal `shares` of a step's data, and scalars to log."""

    def preview_image(self) -> npt.NDArray[np.uint8] | None:
        """Something to look at, uint8 [H, W, 3]; None where there is nothing to show."""


class _Step(nn.Module):
    """A task's loss as a forward pass, the form in which accelerate spreads work over processes."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.computing = task.module
        self.task = task

    def forward(self, step: int, micro_batch: int, num_micro_batches: int) -> tuple[Tensor, dict[str, float]]:
        return self.task.loss(step, micro_batch, num_micro_batches)


def schedule(step: int, options: TrainerOptions) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to the final rate."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    floor = options.final_learning_rate / options.learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _is_inner_matrix(name: str, weight: Tensor) -> bool:
    """Weights that Muon suits: of layers, of attention_plus and of convolutions, not embeddings, tables or biases."""
    return weight.ndim in (2, 4) and "embedding" not in name and name.endswith("weight")


def make_optimizers(module: nn.Module, options: TrainerOptions) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if options.muon_learning_rate and _is_inner_matrix(n, p)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    decayed = [p for p in rest if p.ndim > 1]
    plain = [p for p in rest if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas)]
    if inner:
        optimizers.append(Muon(inner, lr=options.muon_learning_rate, weight_decay=options.weight_decay))
    return optimizers


class Trainer:
    """Runs a task to its last step, from wherever the last checkpoint stands."""

    def __init__(self, task: Task, options: TrainerOptions, folder: Path) -> None:
        self.task = task
        self.options = options
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        AcceleratorState._reset_state()  # or a second run of the same process could not have a precision of its own
        self.accelerator = Accelerator(
            mixed_precision=options.precision or None,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
        )
        self._refuse_what_does_not_mix()
        if self._sharded:  # DeepSpeed counts in sequences; a share is one to it, whatever it holds
            self.accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
        optimizers = make_optimizers(task.trainable, options)
        self.rates = [[float(g["lr"]) for g in o.param_groups] for o in optimizers]
        self.model, *self.optimizers = self.accelerator.prepare(_Step(task), *optimizers)
        self.trained = [p for p in task.trainable.parameters() if p.requires_grad]
        self.average = {n: p.detach().clone() for n, p in self._floats()} if options.ema_decay else {}
        self.began = {n: p.detach().clone() for n, p in self._floats()} if options.initial_weight_fraction else {}
        self.step = 0

    @property
    def _sharded(self) -> bool:
        """Whether DeepSpeed holds the optimizer, a piece in every process."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _refuse_what_does_not_mix(self) -> None:
        if not 0.0 <= self.options.initial_weight_fraction < 1.0:
            raise RequestError(
                f"start_share {self.options.initial_weight_fraction} 超出范围：应不小于 0 且小于 1。",
                f"start_share {self.options.initial_weight_fraction} is out of range: give a number from 0 to below 1.",
            )
        averages = self.options.ema_decay or self.options.initial_weight_fraction
        scaled = self._sharded or self.accelerator.mixed_precision == "fp16"
        if scaled and (self.options.muon_learning_rate or (self._sharded and averages)):
            raise RequestError(
                "Muon 不能与 fp16 或 DeepSpeed 同用，权重平均（average、start_share）不能与 DeepSpeed 同用："
                "请从训练配置中去掉。",
                "Muon does not go with fp16 or DeepSpeed, nor average or start_share with DeepSpeed: take them out of "
                "the recipe.",
            )

    def _floats(self) -> list[tuple[str, Tensor]]:
        """Weights and buffers to average, a shared one once."""
        named = [*self.task.trainable.named_parameters(), *self.task.trainable.named_buffers()]
        return [(n, t) for n, t in named if t.is_floating_point()]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Load the last checkpoint where there is one."""
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.task.trainable.load_state_dict(state["module"])
        if self._sharded:
            self.accelerator.load_state(str(self.folder / state["pieces"]), load_module_strict=False)
        else:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.average = {n: t.to(self.accelerator.device) for n, t in state["average"].items()}
        self.step = state["step"]

    def save(self) -> None:
        """Write weights, optimizers and step; complete or not at all. Every process must call it."""
        pieces = f"pieces-{self.step}"
        if self._sharded:
            self.accelerator.save_state(str(self.folder / pieces), exclude_frozen_parameters=True)
        if not self.accelerator.is_main_process:
            return
        state = {
            "module": self.task.trainable.state_dict(),
            "optimizers": [] if self._sharded else [o.state_dict() for o in self.optimizers],
            "average": self.average,
            "step": self.step,
            "options": json.dumps(asdict(self.options)),
            "pieces": pieces,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        for old in self.folder.glob("pieces-*"):
            if old.name != pieces:
                shutil.rmtree(old)

    def weights(self) -> dict[str, Tensor]:
        """The weights to keep."""
        return export_weights(self.task.trainable.state_dict(), self.average)

    def _set_rates(self) -> None:
        factor = schedule(self.step, self.options)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Early weights are far from final: the average's reach grows with the run.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self._floats():
            self.average[name].lerp_(value, 1 - decay)

    def update(self) -> dict[str, float]:
        """One step: loss, gradients, weights. Returns the step's scalars, as this process sees them."""
        self._set_rates()
        count = self.options.gradient_accumulation_steps
        first, shares = self.accelerator.process_index * count, self.accelerator.num_processes * count
        sums: dict[str, float] = defaultdict(float)
        for share in range(first, first + count):
            with self.accelerator.accumulate(self.model):
                loss, scalars = self.model(self.step, share, shares)
                self.accelerator.backward(loss)
                for name, value in {"loss": float(loss.detach()), **scalars}.items():
                    sums[name] += value / count
                if self.accelerator.sync_gradients:
                    sums["norm"] = self._learn()
        self.step += 1
        if self.average:
            self._update_ema()
        return dict(sums)

    def _learn(self) -> float:
        """Move the weights along their gradients; returns the gradients' norm before clipping."""
        clipped = self.accelerator.clip_grad_norm_(self.trained, self.options.max_grad_norm)
        norm = 0.0 if clipped is None else float(clipped)
        # A step with a broken gradient is skipped, not learnt; fp16's scaler sees to that itself.
        for optimizer in self.optimizers if math.isfinite(norm) or self.accelerator.scaler is not None else ():
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def run(self) -> None:
        """Train to the last step; scalars go to the progress bar, to `scalars.jsonl` and to TensorBoard's files."""
        self.resume()
        if self.step >= self.options.steps:
            return
        saved = time.monotonic()
        log = _Log(self.folder, self.options, self.step) if self.accelerator.is_main_process else None
        try:
            while self.step < self.options.steps:
                scalars = self.update()
                if log:
                    log.add(self.step, scalars)
                    if self.options.preview_every and self.step % self.options.preview_every == 0:
                        log.show(self.step, self.task.preview_image())
                late = time.monotonic() - saved > 60 * self.options.save_minutes
                if self._agree(late and self.step < self.options.steps):
                    self.save()
                    saved = time.monotonic()
        finally:
            if log:
                log.close()
        self._mix_in_initial_weights()
        self.save()

    @torch.no_grad()
    def _mix_in_initial_weights(self) -> None:
        """What is left at the end holds a share of what training began with."""
        left = self.average or dict(self._floats())
        if self.began:
            self.average = {
                n: left[n].lerp(value, self.options.initial_weight_fraction) for n, value in self.began.items()
            }

    def _agree(self, late: bool) -> bool:
        """The main process's answer, where all have to act on it."""
        if not self._sharded:
            return late
        return bool(broadcast(torch.tensor(int(late), device=self.accelerator.device)))


class _Log:
    """Where a run tells how it goes: a progress bar with the time left, lines of JSON, TensorBoard, pictures."""

    def __init__(self, folder: Path, options: TrainerOptions, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder
        self.options = options
        self.bar = tqdm(total=options.steps, initial=step, mininterval=5, desc=folder.name)
        self.lines = (folder / "scalars.jsonl").open("a")
        # A run that was killed wrote past its checkpoint: what it will write again is hidden.
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self.sums: dict[str, list[float]] = defaultdict(list)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.sums[name].append(value)
        self.bar.update()
        if step % self.options.log_every == 0 or step == self.options.steps:
            means = {name: sum(v) / len(v) for name, v in self.sums.items()}
            self.sums.clear()
            self.lines.write(json.dumps({"step": step, **means}) + "\n")
            self.lines.flush()
            for name, value in means.items():
                self.board.add_scalar(name, np.asarray(value), step)  # an array: tensorboardX 2.6 trips over floats
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)

    def show(self, step: int, picture: npt.NDArray[np.uint8] | None) -> None:
        if picture is not None:
            folder = self.folder / "pictures"
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f"{step:07}.png")
            self.board.add_image("picture", picture, step, dataformats="HWC")

    def close(self) -> None:
        self.bar.close()
        self.lines.close()
        self.board.close()
