"""How fast the converted copy becomes networks, beside plain reading of the same files. Prints a table.

python scripts/benchmarks/load_speed.py [--layers 8 --hidden 1536] [--folder DIR] [--model NAME] [--runs 3] [--json
FILE]

Without DIR a copy with random numbers is written as `convert` writes it, with the published model's vocabulary. Each
run begins with files that are not in memory: on Linux their pages are dropped, elsewhere the figures say they are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogvideo.benchmarks.report import processor  # noqa: E402
from cogvideo.config import PRESETS, ModelConfig, load_preset  # noqa: E402
from cogvideo.models import loader  # noqa: E402
from cogvideo.weights import checkpoint  # noqa: E402

BLOCK = 2**24

BLOCKS_OF_THE_SYSTEM = 512


class Cost(NamedTuple):
    """What a run took."""

    seconds: float
    processor: float
    """Seconds that this process computed: what is left of the others is waiting for the disk."""
    megabytes: float
    """Read from the disk."""


@dataclass(frozen=True)
class Copy:
    """A folder as `convert` writes it, and the sizes of its networks."""

    folder: Path
    model: ModelConfig

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def read(copy: Copy) -> None:
    """The files from beginning to end, as a program reads that has nothing else to do."""
    buffer = bytearray(BLOCK)
    for file in copy.files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def as_in_files(copy: Copy) -> None:
    """Networks in the type of their files, all numbers of which are copied once, piece by piece: as to a card."""
    networks = loader.load_safetensors(copy.folder, copy.model, dtype=None).networks
    tensors = {t.data_ptr(): t for network in networks.values() for t in network.state_dict().values()}
    buffer = torch.empty(BLOCK // 2, dtype=torch.float16)
    for tensor in tensors.values():
        for piece in tensor.reshape(-1).split(len(buffer)):
            buffer[: len(piece)].copy_(piece)


def for_a_cpu(copy: Copy) -> None:
    """Networks in full precision."""
    loader.load_safetensors(copy.folder, copy.model, dtype=torch.float32)


WAYS: dict[str, Callable[[Copy], None]] = {
    "plain reading": read,
    "networks, as in the files": as_in_files,
    "networks, in full precision": for_a_cpu,
}


def forget(copy: Copy) -> bool:
    """Drops the files' pages from memory; False where the system has no way to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in copy.files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def best(copy: Copy, runs: int) -> dict[str, Cost]:
    """Of each way the quickest run, since other programs only ever slow one down; the ways take turns."""
    taken: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name, way in WAYS.items():
            gc.collect()  # what is still mapped cannot be dropped
            forget(copy)
            start, before, blocks = time.perf_counter(), time.process_time(), _blocks()
            way(copy)
            spent, computed = time.perf_counter() - start, time.process_time() - before
            taken[name].append(Cost(spent, computed, (_blocks() - blocks) * BLOCKS_OF_THE_SYSTEM / 1e6))
    return {name: min(costs) for name, costs in taken.items()}


def _blocks() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def write(folder: Path, model: ModelConfig) -> Copy:
    """Random numbers under the names of the networks."""
    block = torch.randn(BLOCK // 2).half()

    def numbers(part: loader.Network, common: bool) -> checkpoint.Tensors:
        return {
            name: block.repeat(-(-like.numel() // len(block)))[: like.numel()].view(like.shape)
            for name, like in loader.expected(model, part).items()
            if name.startswith(loader.BACKBONE) == common
        }

    checkpoint.write_safetensors(folder / "backbone.safetensors", numbers("stage1", common=True))
    for part in loader.NETWORKS:
        checkpoint.write_safetensors(folder / f"{part}.safetensors", numbers(part, common=False))
    return Copy(folder, model)


def main() -> None:
    """Measures, prints a line for each way of loading, and writes the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1536, help="divisible by 64")
    parser.add_argument("--folder", type=Path, help="a converted copy that is there: its files are only read")
    parser.add_argument("--model", default="cogvideo", help="whose sizes DIR has (default: cogvideo)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT) as made:
        if options.folder:
            copy = Copy(options.folder, load_preset(options.model)[0].model)
        else:
            sizes = {"layers": options.layers, "hidden": options.hidden, "heads": options.hidden // 64}
            copy = write(Path(made), replace(PRESETS["cogvideo"].model, **sizes))
        cold = forget(copy)
        taken = best(copy, options.runs)
        megabytes = copy.bytes / 1e6
    print(f"{megabytes / 1000:.2f} GB, {'not in memory before' if cold else 'perhaps in memory before'}; {processor()}")
    for name, cost in taken.items():
        speed = f"{cost.seconds:>8.2f} s{megabytes / cost.seconds:>8.0f} MB/s"
        print(f"{name:<30}{speed}{cost.processor:>8.2f} s of the processor{cost.megabytes:>8.0f} MB from the disk")
    if options.json:
        described = {
            "command": " ".join(["python scripts/benchmarks/load_speed.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": processor(),
            "megabytes": megabytes,
            "cold": cold,
            "ways": {
                n: cost._asdict() | {"megabytes_per_second": megabytes / cost.seconds} for n, cost in taken.items()
            },
        }
        options.json.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
