"""From training's checkpoints to the files that ship: fp16 safetensors under the published names, and the clusters.

Every file is written to a temporary name and then renamed; the three networks' backbone is written once.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from cogvideo.training.codec import nearest

PARTS = ("stage1", "stage2", "superres")


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write floating-point tensors as fp16, whole or not at all."""
    halves = {n: t.detach().half().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(halves, temporary)
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    os.replace(temporary, path)


def export_models(weights: dict[str, Tensor], folder: Path) -> None:
    """Weights of `WorldModels` by name -> `backbone`, `stage1`, `stage2` and `superres.safetensors` in `folder`."""
    for part in PARTS:
        own = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n.startswith(f"{part}.mixins.")}
        write_tensors(own, folder / f"{part}.safetensors")
    prefix = f"{PARTS[0]}.transformer."
    backbone = {n.removeprefix(f"{PARTS[0]}."): t for n, t in weights.items() if n.startswith(prefix)}
    write_tensors(backbone, folder / "backbone.safetensors")


def export_codec(weights: dict[str, Tensor], folder: Path) -> None:
    """Weights of the trained HVQVAE -> `codec.safetensors`, without the statistics that only training needs."""
    statistics = ("quantize.cluster_size", "quantize.embed_avg")
    write_tensors({n: t for n, t in weights.items() if n not in statistics}, folder / "codec.safetensors")


def cluster_codes(codes: Tensor, clusters: int, seed: int = 0, rounds: int = 30) -> npt.NDArray[np.int16]:
    """Codebook [n, z] -> label of each code's cluster, [n], by k-means: codes of a cluster look alike when decoded."""
    generator = torch.Generator().manual_seed(seed)
    centres = codes[torch.randperm(len(codes), generator=generator)[:clusters]].clone()
    labels = nearest(codes, centres)
    for _ in range(rounds):
        counts = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, labels, codes)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
        labels = nearest(codes, centres)
    _, compact = labels.unique(return_inverse=True)
    return np.asarray(compact.numpy(), dtype=np.int16)


def export_clusters(codes: Tensor, clusters: int, folder: Path) -> None:
    """Write `cluster_labels.npy`, int16 [image tokens]."""
    temporary = folder / "cluster_labels.tmp"
    with temporary.open("wb") as file:
        np.save(file, cluster_codes(codes.float(), clusters))
    os.replace(temporary, folder / "cluster_labels.npy")
