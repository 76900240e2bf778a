"""Loss of one network on a `ClipDataset`, a cross-entropy in nats a token.

The backbone learns single frames, stage 1 keyframes, stage 2 frames between given frames, and super-resolution fine
tokens. As in the paper the backbone is frozen by default, and `attention_plus`, its gate and the extra positions are
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cogvideo.config import Preset
from cogvideo.data.dataset import KEYFRAMES, ClipDataset, TokenClip, epoch_permutation
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.models.base import TokenModel, left_pad
from cogvideo.models.superres_lm import PAD, SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.tokenizers.text import (
    TextTokenizer,
    first_frame_text,
    interpolation_text,
    superres_text,
    unconditional_text,
    video_text,
)
from cogvideo.training.recipe import NetworkPart

Decode = Callable[[Tensor, tuple[int, int]], npt.NDArray[np.uint8]]
"""Decodes tokens [B, N] on a grid to frames uint8 [B, H, W, 3], such as `ImageTokenizer.decode`."""


@dataclass(frozen=True)
class NetworkTaskOptions:
    """How one network is trained."""

    batch: int = 16
    """Sequences of a step, over all processes and micro-batches."""
    unconditional: float = 0.1
    """Fraction of stage-1 clips whose caption is left out, for guidance."""
    freeze_backbone: bool = True
    checkpoint_layers: bool = False
    """Gradient checkpointing: recompute activations inside layers. Less memory, a third more time."""
    fresh: bool = False
    """Begin with `attention_plus` as a copy of the backbone's attention, even if the starting point has its own."""
    seed: int = 0


@dataclass(frozen=True)
class NetworkBatch:
    """Texts padded on the left, the tokens in the input, and the tokens to predict."""

    text: Tensor  # [B, T]
    text_length: Tensor  # [B]
    given: Tensor  # [B, N] or [B, F, N]
    wanted: Tensor  # [B, ..., N]


class NetworkTask:
    """Loss of one network for the training loop. `decode` makes preview images; None: no previews."""

    def __init__(
        self,
        network: TokenModel,
        part: NetworkPart,
        dataset: ClipDataset,
        preset: Preset,
        tokenizer: TextTokenizer,
        options: NetworkTaskOptions,
        decode: Decode | None = None,
    ) -> None:
        self.module: nn.Module = network
        self.network, self.part, self.dataset = network, part, dataset
        self.preset, self.tokenizer, self.options, self.decode = preset, tokenizer, options, decode
        self.pad = PAD if part == "superres" else tokenizer.token("<pad>")
        self.trainable: nn.Module = self._freeze()
        if options.checkpoint_layers:
            checkpoint_layers(network)

    def _freeze(self) -> nn.Module:
        """Freeze what is not trained, and return what is, under its published names."""
        self.network.requires_grad_(False)
        if self.part == "backbone":
            trainable = nn.ModuleDict({"transformer": self.network.transformer})
        elif self.options.freeze_backbone:
            trainable = nn.ModuleDict({"mixins": self.network.mixins})
        else:
            trainable = nn.ModuleDict({"transformer": self.network.transformer, "mixins": self.network.mixins})
        return trainable.requires_grad_(True)

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean cross-entropy of one of the equal micro-batches of a step.

        Raises RequestError if the step's sequences cannot be divided into them.
        """
        count = self.options.batch
        if count % num_micro_batches:
            raise RequestError(
                *message("network_task.batch_not_divisible", count=count, num_micro_batches=num_micro_batches)
            )
        batch = self.batch(range(step * count + micro_batch, (step + 1) * count, num_micro_batches))
        logits = self._logits(batch)
        value = F.cross_entropy(logits.flatten(0, -2), batch.wanted.flatten())
        return value, {}

    def batch(self, numbers: Sequence[int]) -> NetworkBatch:
        """Return the sequences with these numbers, counted from the start of training, on the network's device."""
        rows = [self._sequence(number) for number in numbers]
        device = self.network.transformer.word_embeddings.weight.device
        superres = self.part == "superres"
        slots = self.preset.model.superres_text_length if superres else self.preset.model.text_length
        text, text_length = left_pad([row.text for row in rows], slots, self.pad, device)
        given, wanted = (
            torch.from_numpy(np.stack(arrays).astype(np.int64)).to(device)
            for arrays in ([row.given for row in rows], [row.wanted for row in rows])
        )
        return NetworkBatch(text, text_length, given, wanted)

    def _sequence(self, number: int) -> _Sequence:
        """Make sequence `number`: the epoch's permutation gives its clip, a generator of its own everything else."""
        epoch, place = divmod(number, len(self.dataset))
        clip = self.dataset[_cached_permutation(len(self.dataset), self.options.seed, epoch)[place]]
        rng = np.random.default_rng((self.options.seed, number))
        return _SEQUENCES[self.part](self, clip, rng)

    def _backbone_sequence(self, clip: TokenClip, rng: np.random.Generator) -> _Sequence:
        frame = clip.keyframes[rng.integers(KEYFRAMES)]
        return _Sequence(first_frame_text(self.tokenizer, self.preset, clip.caption), frame, frame)

    def _stage1_sequence(self, clip: TokenClip, rng: np.random.Generator) -> _Sequence:
        if rng.random() < self.options.unconditional:
            text = unconditional_text(self.tokenizer, self.preset, clip.seconds)
        else:
            text = video_text(self.tokenizer, self.preset, clip.caption, clip.seconds)
        return _Sequence(text, clip.keyframes, clip.keyframes[1:])

    def _stage2_sequence(self, clip: TokenClip, rng: np.random.Generator) -> _Sequence:
        frames, seconds = sample_window(clip, rng)
        return _Sequence(interpolation_text(self.tokenizer, clip.caption, seconds), frames, frames[[1, 3]])

    def _superres_sequence(self, clip: TokenClip, rng: np.random.Generator) -> _Sequence:
        at = int(rng.integers(KEYFRAMES))
        return _Sequence(superres_text(self.tokenizer, clip.caption), clip.keyframes[at], clip.fine[at])

    def _logits(self, batch: NetworkBatch) -> Tensor:
        """Compute the logits of the wanted tokens, [B, ..., N, image tokens]."""
        if isinstance(self.network, SuperResLM):
            return self.network(batch.text, batch.text_length, batch.given)
        assert isinstance(self.network, VideoLM)
        if self.part == "backbone":
            return self.network.forward_images(batch.text, batch.text_length, batch.given)
        frames = (1, 3) if self.part == "stage2" else range(1, KEYFRAMES)
        return self.network.forward_training(batch.text, batch.text_length, batch.given, tuple(frames))

    @torch.no_grad()
    def preview_image(self) -> npt.NDArray[np.uint8] | None:
        """Return the true frames of two sequences above the predicted ones, uint8 [H, W, 3].

        Each token is the most likely one, given the true tokens before it. Returns None without a decoder.
        """
        if self.decode is None:
            return None
        batch = self.batch(range(2))
        model = self.preset.model
        grid = model.fine_grid if self.part == "superres" else model.grid
        rows = []
        for tokens in (batch.wanted, self._logits(batch).argmax(-1)):
            frames = self.decode(tokens.reshape(-1, grid[0] * grid[1]).cpu(), grid)  # [B * F, H, W, 3]
            rows.append(np.concatenate(list(frames), axis=1))
        return np.concatenate(rows)


@dataclass(frozen=True)
class _Sequence:
    """A row of a batch before padding."""

    text: list[int]
    given: npt.NDArray[np.integer]
    wanted: npt.NDArray[np.integer]


_SEQUENCES: dict[NetworkPart, Callable[[NetworkTask, TokenClip, np.random.Generator], _Sequence]] = {
    "backbone": NetworkTask._backbone_sequence,
    "stage1": NetworkTask._stage1_sequence,
    "stage2": NetworkTask._stage2_sequence,
    "superres": NetworkTask._superres_sequence,
}

_cached_permutation = lru_cache(maxsize=4)(epoch_permutation)


def sample_window(clip: TokenClip, rng: np.random.Generator) -> tuple[npt.NDArray[np.integer], float]:
    """Sample a stage-2 window: five frames and their duration in seconds.

    Windows of round r last duration / 2**r and start at multiples of that. A clip of five frames is one window.
    """
    rounds = ((len(clip.frames) - 1) // (KEYFRAMES - 1)).bit_length() - 1
    chosen = int(rng.integers(1, rounds + 1)) if rounds else 0
    steps = (len(clip.frames) - 1) >> chosen
    start = steps * int(rng.integers(2**chosen))
    return clip.frames[start : start + steps + 1 : steps // (KEYFRAMES - 1)], clip.seconds / 2**chosen


def checkpoint_layers(network: TokenModel) -> None:
    """Make every layer store only its input and recompute its activations in the backward pass."""
    for layer in network.transformer.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
