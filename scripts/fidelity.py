"""What each memory preset costs in fidelity: scores and tokens beside those of the exact networks in full precision.

In: `mini`, and small networks with random weights. Out: a table in both READMEs (`--write`), or on the screen. Every
network is shown the same tokens; at each place its scores are compared with the exact ones, and what both would draw
with the same noise. All of it in full precision: what half precision costs is not
included. Less than two minutes:

    OMP_NUM_THREADS=1 python scripts/fidelity.py --write
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cogvideo import decode  # noqa: E402
from cogvideo.config import MEMORY, PRESETS, MemoryPreset, ModelConfig, Preset, TokenSampling  # noqa: E402
from cogvideo.device import Place, enlarging, resident, settle, threads  # noqa: E402
from cogvideo.memory import peak_bytes  # noqa: E402
from cogvideo.models import loader  # noqa: E402
from cogvideo.models.random_weights import random_models  # noqa: E402
from cogvideo.models.token_model import left_pad  # noqa: E402
from cogvideo.rehearse import rehearse  # noqa: E402
from cogvideo.sampling import ClusterSampler, noise_keys  # noqa: E402

CPU = torch.device("cpu")
START, END = "<!-- presets: scripts/fidelity.py -->", "<!-- /presets -->"

TOY = replace(
    PRESETS["mini"].model, layers=4, hidden=128, heads=4, vocab_size=1110, image_tokens=1000, start_of_image=1100
)

HEAD = {
    "README.md": "| preset | card | how | peak, predicted | scores off, `mini` / toy | same tokens, `mini` / toy "
    "| one core, `mini` | on its card |",
    "README_zh.md": "| 预设 | 显卡 | 方式 | 预测峰值 | 分数偏差 `mini` / toy | 相同 token `mini` / toy "
    "| 单核 CPU，`mini` | 在该显卡上 |",
}
UNKNOWN = {"README.md": "not measured yet", "README_zh.md": "尚未测量"}


@dataclass(frozen=True)
class Cost:
    """Distance of the scores as part of their spread, and how often the same token is drawn."""

    off: float
    same: float


def main() -> None:
    """Compare, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into both READMEs")
    options = parser.parse_args()
    with threads(1):
        toy = compare(replace(PRESETS["mini"], model=TOY), _toy())
        mini = compare(PRESETS["mini"], loader.load("mini"))
        seconds = {name: _seconds(name) for name in MEMORY}
    for readme, head in HEAD.items():
        lines = [head, "|---" * (head.count("|") - 1) + "|"]
        lines += [_row(row, mini[row.name], toy[row.name], seconds[row.name], readme) for row in MEMORY.values()]
        if options.write:
            _write(ROOT / readme, "\n".join(lines))
        else:
            print("\n".join(lines))


def compare(preset: Preset, models: Any) -> dict[str, Cost]:
    """The cost of every memory preset."""
    exact = scores(preset.model, models, Place(CPU, torch.float32))
    sampler, options = ClusterSampler(torch.arange(preset.model.image_tokens) % 200), preset.sampling.video
    wanted = _drawn(exact, sampler, options)
    costs = {}
    for name, memory in MEMORY.items():
        got = scores(preset.model, copy.deepcopy(models), _place(memory))
        spread = exact - exact.mean(-1, keepdim=True)
        same = (_drawn(got, sampler, options) == wanted).float().mean()
        costs[name] = Cost(float((got - exact).norm() / spread.norm()), float(same))
    return costs


@torch.inference_mode()
def scores(model: ModelConfig, models: Any, place: Place) -> Tensor:
    """Of all three networks, where a fixed clip is shown to them, [places, image tokens] fp32."""
    settled = settle(models, place)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(model.image_tokens, (1, 5, model.tokens_per_frame), generator=generator)
    text = [model.image_tokens + i for i in range(12)]
    seen: list[Tensor] = []

    def teacher(logits: Tensor, frame: int, slot: int) -> Tensor:
        seen.append(logits.float())
        return clip[:, frame, slot]

    with resident(settled.stage1, place) as lm:
        drawn = decode.keyframes(lm, [text], clip[:, 0], teacher, unconditional=[text[:3]], guidance=1.5)
        list(islice(drawn, model.tokens_per_frame))  # the second keyframe
    with resident(settled.stage2, place) as lm:
        drawn = decode.interpolate(lm, [text], clip[:, ::2], teacher, text_boost=0.0)
        list(islice(drawn, model.tokens_per_frame))
    lm = settled.superres
    with enlarging(lm, place) as layers:
        at = lm.begin(*left_pad([text]), clip[0, :1])
        for number in layers() if layers else range(model.layers):
            at = lm.layer(number, at)
        fine = lm.scores(lm.finish(at)[0])
    return torch.cat([*seen, fine.float()])


def _drawn(logits: Tensor, sampler: ClusterSampler, options: TokenSampling) -> Tensor:
    keys = noise_keys([0], 1, [0], len(logits))[:, 0]
    return torch.cat([sampler.draw(some, key, options) for some, key in zip(logits.split(128), keys.split(128))])


def _toy() -> Any:
    torch.manual_seed(0)
    return random_models(TOY, torch.float32, CPU)


def _place(memory: MemoryPreset) -> Place:
    return Place(CPU, torch.float32, memory)


def _seconds(name: str) -> float:
    """Of processor time, for a video of 33 frames with super-resolution, in the precision of a CPU."""
    place = Place(CPU, torch.float32, MEMORY[name])
    return sum(phase.seconds for phase in rehearse(loader.load("mini"), place, 12, time.process_time, 2).values())


def _row(memory: MemoryPreset, mini: Cost, toy: Cost, seconds: float, readme: str) -> str:
    chinese = readme.endswith("_zh.md")
    model = PRESETS["cogvideo"].model
    card = f"{memory.card} GB" if memory.card else "—"
    cells: Sequence[str] = (
        f"`{memory.name}`",
        card,
        memory.zh if chinese else memory.en,
        f"{peak_bytes(model, memory) / 1e9:.1f} GB",
        f"{mini.off:.2%} / {toy.off:.2%}",
        f"{mini.same:.1%} / {toy.same:.1%}",
        f"{seconds:.1f} s",
        UNKNOWN[readme] if memory.card else "—",
    )
    return "| " + " | ".join(cells) + " |"


def _write(path: Path, table: str) -> None:
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    path.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
