"""The three networks of a small model on one backbone, as one module that learns together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from cogvideo.config import Preset
from cogvideo.models.loader import BACKBONE, NETWORKS
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.training.export import select_prefix

SingleNetwork = Literal["stage2", "superres"]
SINGLE_NETWORKS: tuple[SingleNetwork, ...] = ("stage2", "superres")
"""Networks that can be trained further by themselves after joint training."""
OWN_MODULES = ("layers", "final_layernorm")
"""Modules of the backbone of which a network gets a copy if its backbone is not frozen. Embeddings stay shared."""


class JointModels(nn.Module):
    """Stage 1, stage 2 and super-resolution on one backbone; the latter two can get layers that are not shared."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.config = preset.model
        self.stage1 = VideoLM(preset.model, 1)
        self.stage2 = VideoLM(preset.model, 2, transformer=self.stage1.transformer)
        self.superres = SuperResLM(preset.model, transformer=self.stage1.transformer)

    def give_own_backbone(self, part: SingleNetwork, modules: Collection[str] = OWN_MODULES) -> None:
        """Give a network copies of these modules of the backbone; it shares the other modules.

        A network that has its own backbone keeps it.
        """
        network = getattr(self, part)
        shared = self.stage1.transformer
        if network.transformer is not shared:
            return
        own = SuperResLM(self.config) if part == "superres" else VideoLM(self.config, 2)
        own.load_state_dict(network.state_dict())
        for name, module in shared.named_children():
            if name not in modules:
                setattr(own.transformer, name, module)
        setattr(self, part, own)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors with names such as `stage1.transformer.*`.

        A network whose backbone differs from stage 1's gets its own. It may lack tensors that it shares with stage 1.
        Raises RuntimeError if other tensors are missing.
        """
        networks = {name: select_prefix(tensors, f"{name}.") for name in NETWORKS}
        common = {n: t for n, t in networks["stage1"].items() if n.startswith(BACKBONE)}
        for part in SINGLE_NETWORKS:
            read = {n: t for n, t in networks[part].items() if n.startswith(BACKBONE)}
            different = {n.split(".")[1] for n, t in read.items() if not torch.equal(t, common[n])}
            if different:
                self.give_own_backbone(part, different.union(OWN_MODULES))
        for name, own in networks.items():
            getattr(self, name).load_state_dict({**common, **own})
