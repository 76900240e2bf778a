"""The training loop: trains a task in one process or many, and writes checkpoints, scalars and preview images.

The data of a step depends only on seed and step, and a checkpoint has weights, optimizers and step. An interrupted run
therefore resumes with the same losses. Checkpoints are written to a temporary name, then renamed.
"""

from __future__ import annotations

import json
import math
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
from cogvideo.files import atomic_write
from cogvideo.messages import message
from cogvideo.training.muon import Muon

Precision = Literal["", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainerOptions:
    """Length of a run, learning rates, averaging, precision and logging."""

    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup: int = 50
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.01
    muon_learning_rate: float = 0.0
    """If positive, Muon trains matrices and convolutions inside the layers at this rate, and AdamW the rest."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 switches it off."""
    initial_weight_fraction: float = 0.0
    """Fraction of the initial weights in the final ones, 0 to below 1. The model learns a little less, and forgets less
    of what it had learnt (Wortsman et al. 2022, arXiv:2109.01903, section 3)."""
    gradient_accumulation_steps: int = 1
    """Micro-batches that a process computes one after the other for a step. Less memory, the same gradients."""
    precision: Precision = ""
    """Precision of the arithmetic; weights stay fp32. Empty: the setting of `accelerate launch`."""
    save_minutes: float = 2.0
    """Minutes between two checkpoints."""
    log_every: int = 20
    """Steps between two lines of the log."""
    preview_every: int = 500
    """Steps between two preview images; 0: none."""
    seed: int = 0


def export_weights(state: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the final weights: all of `state`, or the averages if there are some.

    Averages have a shared tensor once, under its first name. Its other names in `state` have the last step's values, so
    they are left out.
    """
    counts = {n: t for n, t in state.items() if not t.is_floating_point()}
    return {**counts, **average} if average else dict(state)


class Task(Protocol):
    """Interface of what is trained: its modules, and the loss of a step."""

    @property
    def module(self) -> nn.Module:
        """All modules that compute, frozen ones included. They are moved to the device."""

    @property
    def trainable(self) -> nn.Module:
        """Modules that are trained, all or a part of `module`. Checkpoints have their tensors."""

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of one of the equal micro-batches of a step, and scalars to log."""

    def preview_image(self) -> npt.NDArray[np.uint8] | None:
        """Return a preview image, uint8 [H, W, 3]. Returns None if the task has none."""


class _Step(nn.Module):
    """A task's loss as a forward pass, which accelerate can distribute over processes."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.computing = task.module
        self.task = task

    def forward(self, step: int, micro_batch: int, num_micro_batches: int) -> tuple[Tensor, dict[str, float]]:
        return self.task.loss(step, micro_batch, num_micro_batches)


def learning_rate_factor(step: int, options: TrainerOptions) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine down to the final rate."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    floor = options.final_learning_rate / options.learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _is_muon_weight(name: str, weight: Tensor) -> bool:
    """Whether Muon trains these weights: matrices and convolutions, but no embeddings and no biases."""
    return weight.ndim in (2, 4) and "embedding" not in name and name.endswith("weight")


def make_optimizers(module: nn.Module, options: TrainerOptions) -> list[torch.optim.Optimizer]:
    """Make AdamW for all weights, or Muon for matrices of layers and AdamW for the rest."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if options.muon_learning_rate and _is_muon_weight(n, p)]
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
    """Trains a task from its last checkpoint in `folder` to its last step. Raises RequestError for unusable options."""

    def __init__(self, task: Task, options: TrainerOptions, folder: Path) -> None:
        self.task = task
        self.options = options
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        AcceleratorState._reset_state()  # otherwise all runs of a process would have the precision of the first
        self.accelerator = Accelerator(
            mixed_precision=options.precision or None,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
        )
        self._check_options()
        if self._sharded:  # DeepSpeed counts sequences; to it a micro-batch is one
            self.accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
        optimizers = make_optimizers(task.trainable, options)
        self.rates = [[float(g["lr"]) for g in o.param_groups] for o in optimizers]
        self.model, *self.optimizers = self.accelerator.prepare(_Step(task), *optimizers)
        self.trainable_parameters = [p for p in task.trainable.parameters() if p.requires_grad]
        self.ema_weights = self._copy_weights() if options.ema_decay else {}
        self.initial_weights = self._copy_weights() if options.initial_weight_fraction else {}
        self.step = 0

    @property
    def _sharded(self) -> bool:
        """Whether DeepSpeed shards the optimizer over the processes."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _check_options(self) -> None:
        """Raise RequestError for values out of range and for options that exclude each other."""
        if not 0.0 <= self.options.initial_weight_fraction < 1.0:
            raise RequestError(
                *message(
                    "trainer.invalid_weight_fraction", initial_weight_fraction=self.options.initial_weight_fraction
                )
            )
        averages = self.options.ema_decay or self.options.initial_weight_fraction
        scaled = self._sharded or self.accelerator.mixed_precision == "fp16"
        if scaled and (self.options.muon_learning_rate or (self._sharded and averages)):
            raise RequestError(*message("trainer.incompatible_options"))

    def _floats(self) -> list[tuple[str, Tensor]]:
        """Return weights and buffers to average; a shared tensor occurs once."""
        named = [*self.task.trainable.named_parameters(), *self.task.trainable.named_buffers()]
        return [(n, t) for n, t in named if t.is_floating_point()]

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._floats()}

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Load the last checkpoint if there is one."""
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
        self.ema_weights = {n: t.to(self.accelerator.device) for n, t in state["average"].items()}
        self.step = state["step"]

    def save(self) -> None:
        """Write weights, optimizers and step. Every process must call it; the file is complete or not there."""
        pieces = f"pieces-{self.step}"
        if self._sharded:
            self.accelerator.save_state(str(self.folder / pieces), exclude_frozen_parameters=True)
        if not self.accelerator.is_main_process:
            return
        state = {
            "module": self.task.trainable.state_dict(),
            "optimizers": [] if self._sharded else [o.state_dict() for o in self.optimizers],
            "average": self.ema_weights,
            "step": self.step,
            "options": json.dumps(asdict(self.options)),
            "pieces": pieces,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with atomic_write(self.checkpoint) as temporary:
            torch.save(state, temporary)
        for old in self.folder.glob("pieces-*"):
            if old.name != pieces:
                shutil.rmtree(old)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that a finished run exports."""
        return export_weights(self.task.trainable.state_dict(), self.ema_weights)

    def _set_rates(self) -> None:
        factor = learning_rate_factor(self.step, self.options)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Early weights are far from the final ones, so the average is short at first.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self._floats():
            self.ema_weights[name].lerp_(value, 1 - decay)

    def update(self) -> dict[str, float]:
        """Train one step: loss, gradients, weights. Returns the mean scalars of this process's micro-batches."""
        self._set_rates()
        count = self.options.gradient_accumulation_steps
        first = self.accelerator.process_index * count
        num_micro_batches = self.accelerator.num_processes * count
        means: dict[str, float] = defaultdict(float)
        for micro_batch in range(first, first + count):
            with self.accelerator.accumulate(self.model):
                loss, scalars = self.model(self.step, micro_batch, num_micro_batches)
                self.accelerator.backward(loss)
                for name, value in {"loss": float(loss.detach()), **scalars}.items():
                    means[name] += value / count
                if self.accelerator.sync_gradients:
                    means["norm"] = self._optimizer_step()
        self.step += 1
        if self.ema_weights:
            self._update_ema()
        return dict(means)

    def _optimizer_step(self) -> float:
        """Clip the gradients and update the weights; returns the gradients' norm before clipping."""
        clipped = self.accelerator.clip_grad_norm_(self.trainable_parameters, self.options.max_grad_norm)
        norm = 0.0 if clipped is None else float(clipped)
        # A step with a gradient that is not finite is skipped; the scaler of fp16 skips such steps itself.
        for optimizer in self.optimizers if math.isfinite(norm) or self.accelerator.scaler is not None else ():
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def run(self) -> None:
        """Train to the last step. Scalars go to the progress bar, to `scalars.jsonl` and to TensorBoard's files."""
        self.resume()
        if self.step >= self.options.steps:
            return
        saved = time.monotonic()
        log = _RunLog(self.folder, self.options, self.step) if self.accelerator.is_main_process else None
        try:
            while self.step < self.options.steps:
                scalars = self.update()
                if log:
                    log.add(self.step, scalars)
                    if self.options.preview_every and self.step % self.options.preview_every == 0:
                        log.add_image(self.step, self.task.preview_image())
                is_due = time.monotonic() - saved > 60 * self.options.save_minutes
                if self._main_process_decision(is_due and self.step < self.options.steps):
                    self.save()
                    saved = time.monotonic()
        finally:
            if log:
                log.close()
        self._mix_in_initial_weights()
        self.save()

    @torch.no_grad()
    def _mix_in_initial_weights(self) -> None:
        """Interpolate the final weights towards the initial ones."""
        final = self.ema_weights or dict(self._floats())
        if self.initial_weights:
            fraction = self.options.initial_weight_fraction
            self.ema_weights = {n: final[n].lerp(value, fraction) for n, value in self.initial_weights.items()}

    def _main_process_decision(self, is_due: bool) -> bool:
        """Return the main process's value if all processes must act on it, else this process's."""
        if not self._sharded:
            return is_due
        return bool(broadcast(torch.tensor(int(is_due), device=self.accelerator.device)))


class _RunLog:
    """Log of a run: a progress bar with the time left, lines of JSON, TensorBoard's files, and preview images."""

    def __init__(self, folder: Path, options: TrainerOptions, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder
        self.options = options
        self.bar = tqdm(total=options.steps, initial=step, mininterval=5, desc=folder.name)
        self.lines = (folder / "scalars.jsonl").open("a")
        # An interrupted run may have logged steps after its checkpoint; they are hidden, since they are logged again.
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
                self.board.add_scalar(name, np.asarray(value), step)  # an array: tensorboardX 2.6 fails on floats
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)

    def add_image(self, step: int, image: npt.NDArray[np.uint8] | None) -> None:
        if image is not None:
            folder = self.folder / "pictures"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{step:07}.png")
            self.board.add_image("picture", image, step, dataformats="HWC")

    def close(self) -> None:
        self.bar.close()
        self.lines.close()
        self.board.close()
