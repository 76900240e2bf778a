"""Files of a finished model: fp16 safetensors under the published names, code clusters, and the published format.

Every file is written to a temporary name and then renamed. `cogvideo/models/convert.py` reads the published format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.files import atomic_write
from cogvideo.models.loader import BACKBONE, NETWORKS
from cogvideo.training.kmeans import lloyd, nearest, sample_seeds
from cogvideo.weights import checkpoint, published_format

ITERATION = "1"
"""Name of the checkpoint in a folder of the published format."""
KMEANS_ROUNDS = 30

Tensors = Mapping[str, Tensor]


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Write tensors, floating-point ones as fp16. The file is complete or not there."""
    with atomic_write(path) as temporary:
        save_file(_halves(tensors), temporary)
        temporary.chmod(0o644)  # safetensors creates files that only their owner may read


def _halves(tensors: Tensors) -> dict[str, Tensor]:
    return {n: t.detach().half().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}


def export_models(tensors: Tensors, folder: Path) -> None:
    """Write weights of `JointModels` as `backbone`, `stage1`, `stage2` and `superres.safetensors` in `folder`."""
    first, *others = NETWORKS
    parts: dict[str, Tensors] = {
        "backbone": select_prefix(tensors, f"{first}.", BACKBONE),
        first: select_prefix(tensors, f"{first}.", "mixins."),
        **{part: select_prefix(tensors, f"{part}.") for part in others},
    }
    export_parts(parts, folder)


def export_parts(parts: Mapping[str, Tensors], folder: Path) -> None:
    """Write a file in `folder` for the backbone (`transformer.*`) and for each network (`mixins.*`).

    A network may have `transformer.*` too. Its file gets those that differ from the backbone's file.
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
    """Return the tensors whose names begin with `prefix` and `kind`, without the prefix."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix + kind)}


def to_published(folder: Path, config: ModelConfig, out: Path) -> None:
    """Write the networks of a model's folder as `cogvideo-stage1`, `cogvideo-stage2` and `cogview2-dsr` in `out`.

    Each file includes the backbone. Raises WeightsError if a file of the model is missing or damaged.
    """
    backbone = checkpoint.read_safetensors(folder / "backbone.safetensors")
    for part in NETWORKS:
        own = checkpoint.read_safetensors(folder / f"{part}.safetensors")
        target = out / published_format.PUBLISHED[part]
        (target / ITERATION).mkdir(parents=True, exist_ok=True)
        path = target / ITERATION / "mp_rank_00_model_states.pt"
        with atomic_write(path) as temporary:
            torch.save({"module": backbone | own}, temporary)
        (target / "model_config.json").write_text(json.dumps(_published_sizes(config, part), indent=1))
        (target / "latest").write_text(ITERATION)


def _published_sizes(config: ModelConfig, part: str) -> dict[str, int | str]:
    """Return the content of a network's `model_config.json`, as `published_config` reads it."""
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
    """Write `codec.safetensors` without the statistics of the codebook, which only training needs."""
    statistics = ("quantize.cluster_size", "quantize.embed_avg")
    write_tensors({n: t for n, t in tensors.items() if n not in statistics}, folder / "codec.safetensors")


def cluster_codes(codes: Tensor, clusters: int, seed: int = 0) -> npt.NDArray[np.int16]:
    """Cluster a codebook [n, z] by k-means: labels [n] from 0, without gaps. Codes of a cluster look alike."""
    centres = sample_seeds(codes, clusters, torch.Generator().manual_seed(seed))
    labels = nearest(codes, lloyd(codes, centres, KMEANS_ROUNDS))
    _, compact = labels.unique(return_inverse=True)
    return np.asarray(compact.numpy(), dtype=np.int16)


def export_clusters(codes: Tensor, clusters: int, folder: Path) -> None:
    """Write `cluster_labels.npy`, int16 [image tokens]."""
    with atomic_write(folder / "cluster_labels.npy") as temporary, temporary.open("wb") as file:
        np.save(file, cluster_codes(codes.float(), clusters))
