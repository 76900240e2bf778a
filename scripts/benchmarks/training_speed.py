"""How fast `mini` trains here: tokens a second, and how much of that time and of the processor goes where.

python scripts/benchmarks/training_speed.py [--steps 10] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.profiler import ProfilerActivity, profile

from cogvideo.config import ASSETS, PRESETS
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.training.initialization import make_joint_task
from cogvideo.training.joint_task import DATA, JointTaskOptions
from cogvideo.training.recipe import options_from, read_recipe
from cogvideo.training.trainer import Trainer, TrainerOptions

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "train_mini.toml"


def measure_products(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of the matrix product that the model's widest layer makes, by timing it for `seconds`."""
    sizes = PRESETS["mini"].model
    rows, inner, columns = 4096, sizes.hidden, 4 * sizes.hidden
    x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        torch.nn.functional.linear(x, weight)
        count += 1
    return 2 * rows * inner * columns * count / (time.perf_counter() - begin)


def count_tokens(options: JointTaskOptions) -> int:
    """Image tokens of a step; words come on top."""
    sizes = PRESETS["mini"].model
    frames = options.images + 5 * (options.clips + options.windows) + options.superres
    return frames * sizes.tokens_per_frame + options.superres * sizes.fine_grid[0] * sizes.fine_grid[1]


def measure(steps: int) -> dict[str, float]:
    """Run `steps` steps of the shipped recipe from fresh weights; nothing is kept."""
    recipe = read_recipe(RECIPE)
    options = options_from(JointTaskOptions, recipe["models"].get("data", {}))
    run = replace(options_from(TrainerOptions, recipe["models"]["run"]), preview_every=0)
    preset = PRESETS["mini"]
    task = make_joint_task(preset, ASSETS / "mini", ImageTokenizer.load(preset).model, options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task, run, Path(folder))
        for _ in range(3):
            trainer.update()
        begin = time.perf_counter()
        for _ in range(steps):
            trainer.update()
        step = (time.perf_counter() - begin) / steps
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            trainer.update()
    data = sum(event.cpu_time_total for event in seen.key_averages() if event.key == DATA) / 1e6
    tokens = count_tokens(options)
    layers = sum(p.numel() for p in task.models.stage1.parameters())
    best = measure_products(torch.bfloat16 if run.precision == "bf16" else torch.float32)
    return {
        "seconds_a_step": step,
        "tokens_a_second": tokens / step,
        "data_share": data / step,
        "utilisation": 6 * layers * tokens / step / best,
        "best_gflops": best / 1e9,
    }


def main() -> None:
    """Prints the figures of `measure`, and writes them where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = measure(args.steps)
    for name, value in figures.items():
        print(f"{name:16} {value:12.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
