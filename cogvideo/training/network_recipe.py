"""Parts of a recipe that are networks: all together or each by itself, in the world or on the user's clips."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cogvideo.data.dataset import open_tokenizer
from cogvideo.events import Frames
from cogvideo.models.base import TokenModel
from cogvideo.models.loader import BACKBONE, NETWORKS, fill_backbone, load_safetensors
from cogvideo.models.sat_adapter import build_transformer
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.training.codebook_growth import grow_embeddings
from cogvideo.training.codec_recipe import CodecRecipe
from cogvideo.training.export import export_models, export_parts, to_published
from cogvideo.training.initialization import init_structured, make_joint_task
from cogvideo.training.joint_models import SINGLE_NETWORKS, JointModels, SingleNetwork
from cogvideo.training.joint_task import JointTask, JointTaskOptions, SingleNetworkOptions, SingleNetworkTask
from cogvideo.training.network_task import NetworkTask, NetworkTaskOptions
from cogvideo.training.recipe import NETWORK_PARTS, NetworkPart
from cogvideo.training.starting_point import MIXINS, Tensors
from cogvideo.training.training_run import TrainingRun
from cogvideo.weights import checkpoint

EMBEDDINGS = "transformer.word_embeddings.weight"


class NetworkRecipe:
    """Makes and exports the networks of one run."""

    def __init__(self, run: TrainingRun, codec: CodecRecipe) -> None:
        self.run = run
        self.recipe = run.recipe
        self.codec = codec

    def make_joint_models(self) -> None:
        """Train backbone, stage 1, stage 2 and super-resolution together on clips of the world."""
        task = self.joint_task("models")
        if self.run.start.folder is not None:
            self.load_networks(task, self.run.start.folder)
        self.run.train("models", task)

    def make_single(self, part: SingleNetwork) -> None:
        """Train one network on clips of the world, beside finished networks that stay."""
        world = self.joint_task(part)
        if self.run.has_checkpoint("models"):
            world.models.load_weights(self.run.trained_weights("models"))
        else:
            self.load_networks(world, self.run.start.folder or self.run.assets)
        assert isinstance(world.options, SingleNetworkOptions)
        self.run.train(part, SingleNetworkTask(world, part, world.options.freeze_backbone))
        self.run.on_main_process(lambda: export_parts({part: self.run.trained_weights(part)}, self.run.assets))

    def make_network(self, part: NetworkPart) -> None:
        """Train one network on the user's clips; its backbone is frozen unless the recipe says otherwise."""
        options = self.recipe.options(part, NetworkTaskOptions, seed=self.recipe.seed)
        network = self.build(part, options.fresh)
        tokenizer = open_tokenizer(self.run.assets, self.run.preset)
        task = NetworkTask(network, part, self.codec.dataset, self.run.preset, tokenizer, options, self._decode)
        self.run.train(part, task)

    def export(self) -> None:
        """Write the networks of the last checkpoints to the model's folder. Raises WeightsError if none is there."""
        if self.recipe.own_clips:
            export_parts({part: self._weights(part) for part in NETWORK_PARTS}, self.run.assets)
            return
        single = [part for part in SINGLE_NETWORKS if self.run.has_checkpoint(part)]
        if self.run.has_checkpoint("models") or not single:
            export_models(self.run.trained_weights("models"), self.run.assets)
        export_parts({part: self.run.trained_weights(part) for part in single}, self.run.assets)

    def publish(self) -> None:
        """Write the exported networks as three folders in the published format."""
        to_published(self.run.assets, self.run.sizes, self.run.out / "published")

    def joint_task(self, part: str) -> JointTask:
        """Build fresh networks with the task of `part`: "models" or one of `SINGLE_NETWORKS`."""
        kind = SingleNetworkOptions if part in SINGLE_NETWORKS else JointTaskOptions
        options = self.recipe.options(part, kind, seed=self.recipe.seed)
        return make_joint_task(self.run.preset, self.run.assets, self.codec.trained_codec(), options)

    def load_networks(self, world: JointTask, folder: Path) -> None:
        """Load the networks of a model's folder; added codes get the embeddings of their nearest old codes."""
        sizes = self.run.start.sizes if folder == self.run.start.folder else self.run.sizes
        loaded = load_safetensors(folder, sizes)
        tensors: Tensors = {}
        for network in NETWORKS:
            state = self._grow(dict(loaded.networks[network].state_dict()))
            tensors |= {f"{network}.{name}": tensor for name, tensor in state.items()}
        world.models.load_weights(tensors)

    def build(self, part: NetworkPart, fresh: bool) -> TokenModel:
        """Build a network with the weights that training begins with.

        The backbone is this run's or the starting point's. `attention_plus` is the starting point's; without one, or
        if `fresh`, it is a copy of the backbone's attention. Raises WeightsError.
        """
        sizes = self.run.sizes
        backbone = self.start_weights("backbone") if part == "backbone" else self._weights_or_none("backbone")
        if backbone is None:
            transformer = build_transformer(sizes)
        else:
            transformer = fill_backbone(sizes, self.run.assets, backbone, torch.float32, "cpu")
        network: TokenModel
        if part == "superres":
            network = SuperResLM(sizes, transformer)
        else:
            network = VideoLM(sizes, 2 if part == "stage2" else 1, transformer)
        own = None if fresh or part == "backbone" else self.start_weights(part)
        if own is not None:
            wanted = {n: t for n, t in network.state_dict().items() if n in own or n.startswith(MIXINS)}
            checkpoint.check(self.run.assets, own, wanted)
            network.load_state_dict({n: own[n].float() for n in wanted}, strict=False)
        return network.train()

    def _decode(self, tokens: Tensor, grid: tuple[int, int]) -> Frames:
        """Decode tokens [B, N] for previews; the image tokenizer is loaded on first use."""
        return self.codec.image_tokenizer.decode(tokens, grid)

    def start_weights(self, part: NetworkPart) -> Tensors | None:
        """Return the starting point's weights of a network; None if it has none. Raises WeightsError."""
        if self.run.start.is_small:
            return self._small_weights[part]
        tensors = self.run.start.read(part)
        return self._grow(tensors) if tensors is not None and part == "backbone" else tensors

    @cached_property
    def _small_weights(self) -> dict[NetworkPart, Tensors]:
        """Structured starting values of each network: a small model learns motion from them in minutes."""
        models = JointModels(self.run.preset)
        init_structured(models)
        states = {network: dict(getattr(models, network).state_dict()) for network in NETWORKS}
        weights: dict[NetworkPart, Tensors] = {
            network: {n: t for n, t in state.items() if n.startswith(MIXINS)} for network, state in states.items()
        }
        weights["backbone"] = {n: t for n, t in states["stage1"].items() if n.startswith(BACKBONE)}
        return weights

    def _grow(self, tensors: Tensors) -> Tensors:
        """Add an embedding for each code that the recipe adds to the starting point."""
        if "codes" not in self.recipe.parts or len(tensors[EMBEDDINGS]) == self.run.sizes.vocab_size:
            return tensors
        return {**tensors, EMBEDDINGS: grow_embeddings(tensors[EMBEDDINGS], self.codec.codes, self.run.sizes)}

    def _weights(self, part: NetworkPart) -> Tensors:
        weights = self._weights_or_none(part)
        if weights is None:
            raise self.run.missing_checkpoint(part)
        return weights

    def _weights_or_none(self, part: NetworkPart) -> Tensors | None:
        """Return a network's weights of this run, else those of the starting point, else None."""
        return self.run.trained_weights(part) if self.run.has_checkpoint(part) else self.start_weights(part)
