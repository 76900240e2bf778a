"""Loading of networks. Tensors that are equal in several backbones are in memory once.

In: a preset's name, or a folder of published checkpoints. Out: `LoadedModels`, in evaluation mode, without gradients.
Networks are created without storage and receive the file's tensors. No random weights are generated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from cogvideo.config import ASSETS, PRESETS, ModelConfig
from cogvideo.messages import message
from cogvideo.models.attention import INIT_STD
from cogvideo.models.base import TokenModel
from cogvideo.models.sat_adapter import Transformer, build_transformer
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.units import format_bytes
from cogvideo.weights import checkpoint, published_format
from cogvideo.weights.catalog import CONVERTED, checkpoint_folder, published_home

Network = Literal["stage1", "stage2", "superres"]
NETWORKS: tuple[Network, ...] = ("stage1", "stage2", "superres")
BACKBONE = "transformer."

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedSizes:
    """Bytes of the networks one by one (`before`), and with a shared backbone (`after`).

    `own_parts`: for each network, the tensors of the backbone that differ from the first network's.
    """

    before: int
    after: int
    own_parts: Mapping[Network, list[str]]

    def sentences(self) -> tuple[str, str]:
        """Return a message about the sizes (zh, en)."""
        sizes = format_bytes(self.after), format_bytes(self.before)
        different = {part: len(names) for part, names in self.own_parts.items() if names}
        if not different:
            return message("loader.backbone_shared", sizes=sizes[0], before=sizes[1])
        counts = ", ".join(f"{part} {count}" for part, count in different.items())
        return message("loader.backbone_partly_shared", counts=counts, sizes=sizes[0], before=sizes[1])


@dataclass(frozen=True)
class LoadedModels:
    """The requested networks. Access to another one raises KeyError."""

    networks: dict[Network, TokenModel]
    message: tuple[str, str] | None = None
    """Message about the files for the user (zh, en)."""

    @property
    def sizes(self) -> LoadedSizes:
        """Bytes in memory, compared with those of the networks one by one."""
        states = {part: network.state_dict() for part, network in self.networks.items()}
        stored = {tensor.data_ptr(): tensor.nbytes for state in states.values() for tensor in state.values()}
        first = next(iter(states.values()))
        own = {
            part: [n for n in first if n.startswith(BACKBONE) and state[n].data_ptr() != first[n].data_ptr()]
            for part, state in states.items()
        }
        return LoadedSizes(
            sum(tensor.nbytes for s in states.values() for tensor in s.values()), sum(stored.values()), own
        )

    @property
    def stage1(self) -> VideoLM:
        return self._video("stage1")

    @property
    def stage2(self) -> VideoLM:
        return self._video("stage2")

    @property
    def superres(self) -> SuperResLM:
        network = self.networks["superres"]
        assert isinstance(network, SuperResLM)
        return network

    def _video(self, part: Network) -> VideoLM:
        network = self.networks[part]
        assert isinstance(network, VideoLM)
        return network


def load(
    preset_name: str,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    parts: Sequence[Network] = NETWORKS,
) -> LoadedModels:
    """Load the networks of a preset. `dtype` None: that of the files, mapped and not copied.

    The files are {backbone,stage1,stage2,superres}.safetensors in `assets/PRESET` or in $SAT_HOME/cogvideo-converted.
    If neither contains a backbone, the published format is read from $SAT_HOME (~/.sat_models).

    Raises WeightsError if files are missing, damaged or of another model.
    """
    config = PRESETS[preset_name].model
    folders = ASSETS / preset_name, published_home() / CONVERTED
    for folder in folders[:1] if preset_name == "mini" else folders:
        if preset_name == "mini" or (folder / "backbone.safetensors").exists():
            return load_safetensors(folder, config, dtype, device, parts)
    return load_published(published_home(), config, dtype, device, parts)


def load_safetensors(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    parts: Sequence[Network] = NETWORKS,
) -> LoadedModels:
    """Load networks from a folder with `transformer.*` in backbone.safetensors and `mixins.*` in each network's file.

    A network's file may contain `transformer.*` as well. They replace the common ones in this network. Raises
    WeightsError.
    """
    path = folder / "backbone.safetensors"
    common = checkpoint.read_safetensors(path)
    first = fill_backbone(config, path, common, dtype, device)
    networks = {}
    for part in parts:
        path = folder / f"{part}.safetensors"
        tensors = checkpoint.MappedTensors({**common, **checkpoint.read_safetensors(path)})
        backbone = _shared_backbone(config, path, tensors, common, first, dtype, device)
        networks[part] = _network(config, part, backbone, path, tensors, dtype, device)
    return LoadedModels(networks)


def load_published(
    directory: Path,
    config: ModelConfig | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    parts: Sequence[Network] = NETWORKS,
) -> LoadedModels:
    """Load networks from the published checkpoints in `directory`.

    `config` None: the sizes in their `model_config.json`. Each file contains a backbone. Tensors that equal the first
    file's are shared with it. Raises WeightsError.
    """
    config = published_format.published_config(directory) if config is None else config
    networks: dict[Network, TokenModel] = {}
    first: tuple[checkpoint.Tensors, Transformer] | None = None
    for part in parts:
        folder = checkpoint_folder(directory, published_format.PUBLISHED[part])
        path, tensors = published_format.checkpoint_file(folder), published_format.read_published(folder)
        if first is None:
            backbone = fill_backbone(config, path, tensors, dtype, device)
            first = (tensors, backbone)
        else:
            backbone = _shared_backbone(config, path, tensors, *first, dtype, device)
        networks[part] = _network(config, part, backbone, path, tensors, dtype, device)
    message = LoadedModels(networks).sizes.sentences()
    LOG.info("%s", message[1])
    return LoadedModels(networks, message)


def fill_backbone(
    config: ModelConfig, path: Path, tensors: checkpoint.Tensors, dtype: torch.dtype | None, device: str | torch.device
) -> Transformer:
    """Build a backbone with the tensors of the file at `path`. Raises WeightsError if they do not fit."""
    transformer = build_transformer(config, "meta")
    required = transformer.state_dict()
    checkpoint.check(path, tensors, {BACKBONE + name: like for name, like in required.items()})
    filled = {name: checkpoint.load_tensor(tensors, BACKBONE + name, device, dtype) for name in required}
    transformer.load_state_dict(filled, assign=True)
    return transformer


def _shared_backbone(
    config: ModelConfig,
    path: Path,
    tensors: checkpoint.Tensors,
    first: checkpoint.Tensors,
    loaded: Transformer,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> Transformer:
    """Return `loaded`, built from `first`, if `tensors` are equal. Otherwise build one that shares equal tensors."""
    shared = loaded.state_dict()
    checkpoint.check(path, tensors, {BACKBONE + name: like for name, like in shared.items()})
    own = [name for name in shared if not checkpoint.tensors_equal(tensors, first, BACKBONE + name)]
    if not own:
        return loaded
    transformer = build_transformer(config, "meta")
    different = {name: checkpoint.load_tensor(tensors, BACKBONE + name, device, dtype) for name in own}
    transformer.load_state_dict(shared | different, assign=True)
    return transformer


def _network(
    config: ModelConfig,
    part: Network,
    backbone: Transformer,
    path: Path,
    tensors: checkpoint.Tensors,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> TokenModel:
    """Build a network on `backbone` with the `mixins.*` of a file. Raises WeightsError."""
    network = _empty(config, part, backbone)
    required = {name: like for name, like in network.state_dict().items() if not name.startswith(BACKBONE)}
    checkpoint.check(path, tensors, required)
    own = {name: checkpoint.load_tensor(tensors, name, device, dtype) for name in required}
    network.load_state_dict(own, strict=False, assign=True)
    return network.eval().requires_grad_(False)


def expected(config: ModelConfig, part: Network) -> checkpoint.Tensors:
    """Return the names and shapes of a network's tensors, without storage."""
    return _empty(config, part, build_transformer(config, "meta")).state_dict()


def _empty(config: ModelConfig, part: Network, backbone: Transformer) -> TokenModel:
    """Build a network on `backbone`, its own weights without storage."""
    if part == "superres":
        return SuperResLM(config, backbone, "meta")
    return VideoLM(config, 1 if part == "stage1" else 2, backbone, "meta")


@dataclass(frozen=True)
class RandomModels:
    """The three networks with random weights, for benchmarks and tests."""

    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM


def random_models(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> RandomModels:
    """Build networks with random weights, allocated and filled on `device` without passing through host memory."""
    backbone = build_transformer(config, "meta")
    stage1, stage2 = VideoLM(config, 1, backbone, "meta"), VideoLM(config, 2, backbone, "meta")
    superres = SuperResLM(config, backbone, "meta")
    for part in (backbone, stage1.mixins, stage2.mixins, superres.mixins):
        _fill(part, dtype, device)
    for network in (stage1, stage2, superres):
        network.eval().requires_grad_(False)
    return RandomModels(stage1, stage2, superres)


@torch.no_grad()
def _fill(part: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Fill with random values that fp16 can represent, like those of a published checkpoint, in any `dtype`."""
    part.to(dtype).to_empty(device=device)
    for name, weight in part.named_parameters():
        if weight.dim() > 1:
            weight.copy_(weight.normal_(std=INIT_STD).half())
        else:
            weight.fill_(float("layernorm.weight" in name))
