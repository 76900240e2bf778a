"""The training loop: a task and options in, checkpoints and scalars out. One process or many, by accelerate.

A step's data depends on the seed, the step and the process alone, and a checkpoint holds weights, optimizer and step,
so that a run that was killed goes on with the same losses. Checkpoints are written to a temporary name, then renamed.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.training.muon import Muon


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast to learn."""

    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup: int = 50
    weight_decay: float = 0.01
    muon_learning_rate: float = 0.0
    """Over 0: matrices inside the layers are trained by Muon at this rate, the rest by AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    average: float = 0.0
    """Decay of the exponential moving average of the weights; 0 switches it off."""
    save_minutes: float = 2.0
    seed: int = 0


class Task(Protocol):
    """What is learnt: a module and the loss of one step."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, step: int, process: int) -> tuple[Tensor, dict[str, float]]: ...


def schedule(step: int, options: RunOptions) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to the final rate."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    floor = options.final_learning_rate / options.learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _is_inner_matrix(name: str, weight: Tensor) -> bool:
    """Matrices that Muon suits: of the layers and of attention_plus, not embeddings, tables, gates or biases."""
    return weight.ndim == 2 and "embedding" not in name and name.endswith("weight")


def make_optimizers(module: nn.Module, options: RunOptions) -> list[torch.optim.Optimizer]:
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

    def __init__(self, task: Task, options: RunOptions, folder: Path) -> None:
        self.task = task
        self.options = options
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator()
        self.module = task.module
        self.optimizers = make_optimizers(self.module, options)
        self.rates = [[float(g["lr"]) for g in o.param_groups] for o in self.optimizers]
        self.average = {n: p.detach().clone() for n, p in self._floats()} if options.average else {}
        self.step = 0

    def _floats(self) -> list[tuple[str, Tensor]]:
        """Weights and buffers to average, a shared one once."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return [(n, t) for n, t in named if t.is_floating_point()]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Load the last checkpoint where there is one."""
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average = state["average"]
        self.step = state["step"]

    def save(self) -> None:
        """Write weights, optimizers and step; complete or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "module": self.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": self.average,
            "step": self.step,
            "options": json.dumps(asdict(self.options)),
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: averaged where averaging is on."""
        return {**self.module.state_dict(), **self.average}

    def _set_rates(self) -> None:
        factor = schedule(self.step, self.options)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _follow_average(self) -> None:
        # Early weights are far from final: the average's reach grows with the run.
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        for name, value in self._floats():
            self.average[name].lerp_(value, 1 - decay)

    def update(self) -> dict[str, float]:
        """One step: loss, gradients, weights. Returns the step's scalars."""
        self._set_rates()
        loss, scalars = self.task.loss(self.step, self.accelerator.process_index)
        self.accelerator.backward(loss)
        trained = [p for p in self.module.parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            for weight in trained:
                weight.grad = self.accelerator.reduce(weight.grad, reduction="mean")
        norm = torch.nn.utils.clip_grad_norm_(trained, self.options.clip)
        if torch.isfinite(norm):  # a step with a broken gradient is skipped, not learnt
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            self._follow_average()
        return {"loss": float(loss.detach()), "norm": float(norm), **scalars}

    def run(self, log_every: int = 20) -> None:
        """Train to the last step; scalars go to `scalars.jsonl` and to the progress bar."""
        self.resume()
        saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        main = self.accelerator.is_main_process
        with (
            tqdm(total=self.options.steps, initial=self.step, disable=not main, mininterval=5) as bar,
            (self.folder / "scalars.jsonl").open("a") as log,
        ):
            while self.step < self.options.steps:
                for name, value in self.update().items():
                    sums.setdefault(name, []).append(value)
                bar.update()
                if self.step % log_every == 0 or self.step == self.options.steps:
                    means = {name: sum(v) / len(v) for name, v in sums.items()}
                    sums.clear()
                    if main:
                        log.write(json.dumps({"step": self.step, **means}) + "\n")
                        log.flush()
                        bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)
                if time.monotonic() - saved > 60 * self.options.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()
