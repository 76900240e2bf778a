"""Networks that learn together on one backbone, and a single network that learns alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from cogvideo.config import Preset
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.training.export import BACKBONE, PARTS, select_prefix

SingleNetwork = Literal["stage2", "superres"]
ALONE: tuple[SingleNetwork, ...] = ("stage2", "superres")
"""Networks that may learn on alone when all have learnt together."""
OWN = ("layers", "final_layernorm")
"""What a network has of the backbone for itself where that is not frozen: words and places stay everybody's."""


class JointModels(nn.Module):
    """The three networks on one backbone; stage 2 and super-resolution may come to have one of their own."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.config = preset.model
        self.stage1 = VideoLM(preset.model, 1)
        self.stage2 = VideoLM(preset.model, 2, transformer=self.stage1.transformer)
        self.superres = SuperResLM(preset.model, transformer=self.stage1.transformer)

    def give_own_backbone(self, part: SingleNetwork, modules: Collection[str] = OWN) -> None:
        """What this network learns of these modules of the backbone stays its own from now on; the others are shared.

        A network that has its own already keeps it.
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
        """Tensors `stage1.transformer.*` and so on; who has other numbers in its backbone than stage 1 gets its own.

        A network may lack what it shares with stage 1. Raises RuntimeError where something else is missing.
        """
        networks = {name: select_prefix(tensors, f"{name}.") for name in PARTS}
        common = {n: t for n, t in networks["stage1"].items() if n.startswith(BACKBONE)}
        for part in ALONE:
            read = {n: t for n, t in networks[part].items() if n.startswith(BACKBONE)}
            different = {n.split(".")[1] for n, t in read.items() if not torch.equal(t, common[n])}
            if different:
                self.give_own_backbone(part, different.union(OWN))
        for name, own in networks.items():
            getattr(self, name).load_state_dict({**common, **own})
