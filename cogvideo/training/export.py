"""From training's checkpoints to the files that ship: fp16 safetensors under the published names, the clusters; and
from those to the published format. The way back is `cogvideo/models/convert.py`.

Every file is written to a temporary name and then renamed; a backbone that the networks share is written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.training.vqvae_task import nearest
from cogvideo.weights import checkpoint, published_format

PARTS = ("stage1", "stage2", "superres")
BACKBONE = "transformer."
ITERATION = "1"
"""Name of the only checkpoint in a folder of the published format that is written here."""

Tensors = Mapping[str, Tensor]


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Write floating-point tensors as fp16, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    save_file(_halves(tensors), temporary)
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    os.replace(temporary, path)


def _halves(tensors: Tensors) -> dict[str, Tensor]:
    return {n: t.detach().half().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}


def export_models(tensors: Tensors, folder: Path) -> None:
    """Weights of `WorldModels` by name -> `backbone`, `stage1`, `stage2` and `superres.safetensors` in `folder`."""
    backbone, mixins = (
        select_prefix(tensors, f"{PARTS[0]}.", BACKBONE),
        select_prefix(tensors, f"{PARTS[0]}.", "mixins."),
    )
    others = {part: select_prefix(tensors, f"{part}.") for part in PARTS[1:]}
    export_parts({"backbone": backbone, PARTS[0]: mixins, **others}, folder)


def export_parts(parts: Mapping[str, Tensors], folder: Path) -> None:
    """Weights of `backbone` (`transformer.*`) and of each network (`mixins.*`) -> a file each in `folder`.

    A network that trained the backbone further has `transformer.*` too; those that differ are its own.
    """
    path = folder / "backbone.safetensors"
    if "backbone" in parts:
        write_tensors(parts["backbone"], path)
    common = checkpoint.read_safetensors(path) if path.is_file() else {}
    for part in (name for name in parts if name != "backbone"):
        tensors = _halves(parts[part])
        own = {n: t for n, t in tensors.items() if n not in common or not torch.equal(t, common[n])}
        write_tensors(own, folder / f"{part}.safetensors")


def select_prefix(tensors: Tensors, prefix: str, kind: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and `kind`, without the prefix."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix + kind)}


def to_published(folder: Path, config: ModelConfig, out: Path) -> None:
    """The networks of a model's folder -> `cogvideo-stage1`, `cogvideo-stage2` and `cogview2-dsr` in `out`.

    Each has the backbone in its file, as published. Raises WeightsError.
    """
    backbone = checkpoint.read_safetensors(folder / "backbone.safetensors")
    for part in PARTS:
        own = checkpoint.read_safetensors(folder / f"{part}.safetensors")
        target = out / published_format.PUBLISHED[part]
        (target / ITERATION).mkdir(parents=True, exist_ok=True)
        path = target / ITERATION / "mp_rank_00_model_states.pt"
        temporary = path.with_suffix(".tmp")
        torch.save({"module": backbone | own}, temporary)
        os.replace(temporary, path)
        (target / "model_config.json").write_text(json.dumps(_published_sizes(config, part), indent=1))
        (target / "latest").write_text(ITERATION)


def _published_sizes(config: ModelConfig, part: str) -> dict[str, int | str]:
    """`model_config.json` of a network, with what `weights.published_config` reads of it."""
    text, frame = config.text_length, config.tokens_per_frame
    layout = (text, text + frame, text + config.keyframes * frame)
    extra = config.extra_positions
    if part == "superres":
        text, fine = config.superres_text_length, config.tokens_per_frame * config.upscale**2
        layout, extra = (text, text + frame, text + frame + fine), fine
    return {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocab_size,
        "max_sequence_length": config.base_positions,
        "additional_seqlen": extra,
        "layout": ", ".join(map(str, layout)),
        "window_size": config.window if part == "stage2" else -1,
        "kernel_size": config.fine_window[1],
        "kernel_size2": config.coarse_window[0],
    }


def export_codec(tensors: Tensors, folder: Path) -> None:
    """Weights of the trained HVQVAE -> `codec.safetensors`, without the statistics that only training needs."""
    statistics = ("quantize.cluster_size", "quantize.embed_avg")
    write_tensors({n: t for n, t in tensors.items() if n not in statistics}, folder / "codec.safetensors")


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
