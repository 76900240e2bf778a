"""Losses of the networks of a small model on clips of the synthetic world: all networks together, or one of them.

The paper freezes a large pretrained backbone and trains `attention_plus` of each network beside it. A model as small as
`mini` trains everything together: a step has single frames (text to image), stage-1 clips, stage-2 windows and frames
at both sizes. A network that is trained further by itself can get its own layers, as stage 2 of the shipped model has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from cogvideo.config import Preset
from cogvideo.data.dataset import KEYFRAMES
from cogvideo.data.synthetic_render import COARSE, FINE, PLAIN, background, render_state
from cogvideo.data.synthetic_world import Clip, ClipOdds, HeldOut, State, caption, sample_clip, to_probabilities
from cogvideo.models.base import left_pad
from cogvideo.models.superres_lm import PAD
from cogvideo.models.video_lm import VideoLM
from cogvideo.tokenizers.text import (
    TextTokenizer,
    first_frame_text,
    interpolation_text,
    superres_text,
    unconditional_text,
    video_text,
)
from cogvideo.training.joint_models import OWN_MODULES, JointModels, SingleNetwork
from cogvideo.training.vqvae_data import SUBJECT_OPACITY

DATA = "training data"
"""Name of the ranges in a profile in which clips are rendered and tokenised."""

Tokenise = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Converts frames uint8 [B, H, W, 3] to tokens int64 [B, N]."""


@dataclass(frozen=True)
class JointTaskOptions:
    """Sequences of each kind in a step, and the weights of their losses."""

    images: int = 16
    clips: int = 20
    windows: int = 6
    superres: int = 2
    stage1_share: float = 2.0
    stage2_share: float = 0.7
    superres_share: float = 0.4
    """Weights of the losses in the sum, beside 1 for single frames. Super-resolution has few frames with large, noisy
    gradients, which would dominate the shared backbone."""
    unconditional: float = 0.1
    """Fraction of stage-1 clips whose prompt is left out, for guidance."""
    background_weight: float = 0.5
    subject_weight: float = 2.5
    """Weights of tokens in clips and windows. Most tokens are background that never changes."""
    image_subject_weight: float = 0.5
    """The same as `subject_weight`, for single frames."""
    motion_odds: Sequence[float] | None = None
    """Relative frequency of each of `MOTIONS`; None: uniform. Turning and growing are the hardest."""
    size_odds: Sequence[float] | None = None
    """Relative frequency of each of the world's sizes; None: mostly the middle one."""
    round_odds: Sequence[float] = (1, 1, 1)
    """Relative frequency of stage-2 windows of each round of interpolation. A video of 33 frames gets 4, 8 and 16
    frames in the three rounds."""
    drift_probability: float = 0.2
    """Probability of a movement without a name. Subjects whose turning is held out are seen turned in such clips."""
    corruption_rate: float = 0.02
    """Mean fraction of tokens that are replaced in the networks' input of clips and windows: half by tokens of another
    frame, half by those of another clip. Networks read such errors at generation time."""
    drawn_alone: float = 0.5
    """Fraction of super-resolution's small frames with the tokens that the subject has on a plain ground. The others
    have the tokens of the rendered frame."""
    seed: int = 0


@dataclass(frozen=True)
class SingleNetworkOptions(JointTaskOptions):
    """Options of a network that is trained by itself."""

    freeze_backbone: bool = True
    """False: the network gets its own copy of the backbone's layers, which are trained too. Embeddings stay."""


def subject_cells(mask: npt.NDArray[np.float32], patch: int) -> npt.NDArray[np.bool_]:
    """Return which tokens [N] show a part of the subject, from its opacity [H, W]."""
    height, width = (side // patch for side in mask.shape)
    return np.asarray(mask.reshape(height, patch, width, patch).max((1, 3)).reshape(-1) > SUBJECT_OPACITY)


def window_times(
    rng: np.random.Generator, clip: Clip, odds: Sequence[float] = (1, 1, 1)
) -> tuple[float, npt.NDArray[np.float64]]:
    """Sample a stage-2 window of `clip`: its duration in seconds and the times of its five frames.

    Windows of round r last duration / 2**r and start at multiples of that. `odds` are the relative frequencies of the
    rounds. Raises RequestError.
    """
    probabilities = to_probabilities("round_odds", odds, ("5 -> 9", "9 -> 17", "17 -> 33"))
    round_ = 1 + int(rng.choice(len(probabilities), p=probabilities))
    seconds = clip.duration / 2**round_
    start = seconds * int(rng.integers(2**round_))
    return seconds, start + seconds * np.arange(5) / 4


@dataclass(frozen=True)
class TokenRows:
    """Tokens [B, F, N], the weights of their losses, and the text before them."""

    text: Tensor
    text_length: Tensor
    tokens: Tensor
    weights: Tensor


class JointTask:
    """Loss of all four objectives for the training loop. `held_out`: pairs that are never sampled."""

    def __init__(
        self,
        models: JointModels,
        preset: Preset,
        tokenizer: TextTokenizer,
        tokenise: Tokenise,
        held_out: HeldOut,
        options: JointTaskOptions,
    ) -> None:
        self.models = models
        self.preset = preset
        self.tokenizer = tokenizer
        self.pad = tokenizer.token("<pad>")
        self.tokenise = tokenise
        self.held_out = held_out
        self.options = options
        self._scenes: dict[tuple[int, int, int], Tensor] = {}

    @property
    def module(self) -> nn.Module:
        return self.models

    @property
    def trainable(self) -> nn.Module:
        return self.models

    def preview_image(self) -> None:
        """Return None: `python -m cogvideo evaluate` writes images of this model."""

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the weighted sum of the four losses of step `step`; each loss by name for the log.

        Every micro-batch samples as many sequences as the options say.
        """
        rng = np.random.default_rng((self.options.seed, micro_batch, step))
        losses = {name: objective(rng) for name, objective in self.objectives.items()}
        o = self.options
        weights = {"image": 1.0, "stage1": o.stage1_share, "stage2": o.stage2_share, "superres": o.superres_share}
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return total, {name: float(v.detach()) for name, v in losses.items()}

    @property
    def objectives(self) -> dict[str, Callable[[np.random.Generator], Tensor]]:
        """Objectives by name. Each one samples clips from a generator and returns their loss in nats a token."""
        return {
            "image": self._image_loss,
            "stage1": self._clip_loss,
            "stage2": self._window_loss,
            "superres": self._superres_loss,
        }

    def _image_loss(self, rng: np.random.Generator) -> Tensor:
        """Text to image, with the backbone only: the first frame of a clip."""
        clips = self._sample(rng, self.options.images)
        texts = [first_frame_text(self.tokenizer, self.preset, caption(rng, clip)) for clip in clips]
        rows = self._rows(texts, clips, [[0.0]] * len(clips), self.options.image_subject_weight)
        logits = self.models.stage1.forward_images(rows.text, rows.text_length, rows.tokens[:, 0])
        return weighted_loss(logits, rows.tokens[:, 0], rows.weights[:, 0])

    def _clip_loss(self, rng: np.random.Generator) -> Tensor:
        """Stage 1: frames 2..5, given the frames before them and the duration."""
        clips = self._sample(rng, self.options.clips)
        texts = [self._clip_text(rng, clip) for clip in clips]
        rows = self._rows(texts, clips, [clip.frame_times(KEYFRAMES) for clip in clips], self.options.subject_weight)
        return self._score(self.models.stage1, rows, rng, range(1, KEYFRAMES))

    def _clip_text(self, rng: np.random.Generator, clip: Clip) -> list[int]:
        if rng.random() < self.options.unconditional:
            return unconditional_text(self.tokenizer, self.preset, clip.duration)
        return video_text(self.tokenizer, self.preset, caption(rng, clip), clip.duration)

    def _window_loss(self, rng: np.random.Generator) -> Tensor:
        """Stage 2: frames 1 and 3 of a window, given frames 0, 2 and 4."""
        clips = self._sample(rng, self.options.windows)
        windows = [window_times(rng, clip, self.options.round_odds) for clip in clips]
        texts = [
            interpolation_text(self.tokenizer, caption(rng, c), seconds)
            for c, (seconds, _) in zip(clips, windows, strict=True)
        ]
        rows = self._rows(texts, clips, [times for _, times in windows], self.options.subject_weight)
        return self._score(self.models.stage2, rows, rng, self.models.stage2.layout.generated)

    def _score(self, network: VideoLM, rows: TokenRows, rng: np.random.Generator, wanted: Sequence[int]) -> Tensor:
        """Compute the loss of the `wanted` frames from corrupted input."""
        frames = list(wanted)
        logits = network.forward_training(rows.text, rows.text_length, self.corrupt(rows.tokens, rng), frames)
        return weighted_loss(logits, rows.tokens[:, frames], rows.weights[:, frames])

    @torch.no_grad()
    def teacher_forced_accuracy(self, clips: Sequence[Clip], rng: np.random.Generator) -> float:
        """Return the fraction of tokens of frames 2..5 that stage 1 predicts, given the true tokens before them.

        Only tokens at places that the subject covers in any frame count.
        """
        texts = [video_text(self.tokenizer, self.preset, caption(rng, clip), clip.duration) for clip in clips]
        rows = self._rows(texts, clips, [clip.frame_times(KEYFRAMES) for clip in clips], 1.0)
        return self._accuracy(self.models.stage1, rows, range(1, KEYFRAMES))

    @torch.no_grad()
    def teacher_forced_interpolation_accuracy(
        self, clips: Sequence[Clip], round_: int, rng: np.random.Generator
    ) -> float:
        """Return the same fraction for stage 2, in windows of one round (1, 2 or 3) of interpolation."""
        odds = [float(number == round_) for number in (1, 2, 3)]
        windows = [window_times(rng, clip, odds) for clip in clips]
        texts = [
            interpolation_text(self.tokenizer, caption(rng, c), s) for c, (s, _) in zip(clips, windows, strict=True)
        ]
        rows = self._rows(texts, clips, [times for _, times in windows], 1.0)
        return self._accuracy(self.models.stage2, rows, self.models.stage2.layout.generated)

    def _accuracy(self, network: VideoLM, rows: TokenRows, wanted: Sequence[int]) -> float:
        frames = list(wanted)
        predicted = network.forward_training(rows.text, rows.text_length, rows.tokens, frames).argmax(-1)
        is_subject = rows.weights[:, frames] > self.options.background_weight
        return float((predicted == rows.tokens[:, frames])[is_subject].float().mean())

    def corrupt(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Replace some tokens [B, F, N]. A clip has up to twice the mean fraction."""
        clips, frames, _ = tokens.shape
        others = (
            tokens.roll(int(rng.integers(1, frames)), 1),
            tokens.roll(int(rng.integers(1, max(2, clips))), 0),
        )
        rates = rng.uniform(0, 2 * self.options.corruption_rate, (clips, 1, 1))
        draws = rng.random(tuple(tokens.shape))
        for other, replaced in zip(others, (draws < rates / 2, draws > 1 - rates / 2), strict=True):
            tokens = torch.where(torch.from_numpy(replaced).to(tokens.device), other, tokens)
        return tokens

    def _superres_loss(self, rng: np.random.Generator) -> Tensor:
        """Super-resolution: the fine tokens of a frame at any time, given its coarse tokens."""
        rows = self._pairs(rng)
        coarse, fine = rows.tokens.split((self.preset.model.tokens_per_frame, rows.weights.shape[1]), dim=1)
        return weighted_loss(self.models.superres(rows.text, rows.text_length, coarse), fine, rows.weights)

    @record_function(DATA)
    def _pairs(self, rng: np.random.Generator) -> TokenRows:
        """Sample frames at both sizes: tokens [B, N + fine tokens], coarse first, and weights of the fine tokens."""
        clips = self._sample(rng, self.options.superres)
        moments = [float(rng.integers(0, 33)) / 32 * clip.duration for clip in clips]
        texts = [superres_text(self.tokenizer, caption(rng, clip)) for clip in clips]
        text, text_length = left_pad(texts, pad=PAD, device=self._device)
        states = [clip.state(moment) for clip, moment in zip(clips, moments, strict=True)]
        frames = list(zip(clips, states, strict=True))
        plain = np.array([rng.random() < self.options.drawn_alone for _ in clips])
        small, _ = self._tokenise(frames, COARSE, plain)
        large, cells = self._tokenise(frames, FINE)
        weights = self._weigh(cells, self.options.subject_weight)
        return TokenRows(text, text_length, torch.cat((small, large), dim=1).to(self._device), weights)

    def _tokenise(
        self, frames: Sequence[tuple[Clip, State]], cell: int, plain: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Render and tokenise frames of clips: tokens [B, N], and which of them show a part of the subject.

        Frames that are `plain` (None: all) are composed: the subject's tokens are those on a plain ground, the same in
        every scene, with tokens of the empty scene around them. A subject then looks alike in scenes that training
        never showed it in. Other frames are tokenised as rendered.
        """
        plain = np.ones(len(frames), bool) if plain is None else plain
        rendered = [
            render_state(c.subject, PLAIN if is_plain else c.scene, c.variant, state, cell)
            for (c, state), is_plain in zip(frames, plain, strict=True)
        ]
        cells = np.stack([subject_cells(mask, self.preset.patch_size) for _, mask in rendered])
        tokens = self.tokenise(np.stack([pixels for pixels, _ in rendered]))
        scenes = torch.stack([self._scene_tokens(c.scene, c.variant, cell) for c, _ in frames])
        return torch.where(torch.from_numpy(plain[:, None] & ~cells).to(tokens.device), scenes, tokens), cells

    def _scene_tokens(self, scene: int, variant: int, cell: int) -> Tensor:
        """Return the tokens [N] of an empty scene, computed once."""
        key = (scene, variant, cell)
        if key not in self._scenes:
            pixels = np.rint(background(scene, variant, cell)).astype(np.uint8)
            self._scenes[key] = self.tokenise(pixels[None])[0]
        return self._scenes[key]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.models.stage1.transformer.word_embeddings.weight.device
        return device

    def _sample(self, rng: np.random.Generator, count: int) -> list[Clip]:
        o = self.options
        odds = ClipOdds(o.motion_odds, o.size_odds, o.drift_probability)
        return [sample_clip(rng, self.held_out, odds=odds) for _ in range(count)]

    @record_function(DATA)
    def _rows(
        self,
        texts: list[list[int]],
        clips: Sequence[Clip],
        times: Sequence[Sequence[float] | npt.NDArray[np.float64]],
        subject_weight: float,
    ) -> TokenRows:
        """Render and tokenise the frames of each clip at its times, of which every clip has as many."""
        frames = [(clip, state) for clip, moments in zip(clips, times, strict=True) for state in clip.states(moments)]
        shape = (len(clips), len(times[0]))
        flat, cells = self._tokenise(frames, COARSE)
        tokens, cells = flat.to(self._device).unflatten(0, shape), cells.reshape(*shape, -1)  # [B, F, N]
        # A place that the subject covers in any frame counts in all frames: motion also empties places.
        # With the weight on the subject only, the network would generate it too early in decoding order.
        weights = self._weigh(cells.any(1, keepdims=True).repeat(shape[1], 1), subject_weight)
        text, text_length = left_pad(texts, pad=self.pad, device=self._device)
        return TokenRows(text, text_length, tokens, weights)

    def _weigh(self, cells: npt.NDArray[np.bool_], subject_weight: float) -> Tensor:
        o = self.options
        return torch.from_numpy(np.where(cells, subject_weight, o.background_weight).astype(np.float32)).to(
            self._device
        )


class SingleNetworkTask:
    """Loss of one network for the training loop, beside other networks that stay.

    In joint training a network gets a small part of each step, and all networks move the backbone. Here only its own
    weights are trained and, if the backbone is not frozen, its own copy of the backbone's layers.
    """

    def __init__(self, world: JointTask, part: SingleNetwork, freeze_backbone: bool = True) -> None:
        self.world = world
        self.part = part
        if not freeze_backbone:
            world.models.give_own_backbone(part)
        self.module: nn.Module = world.models.requires_grad_(False)
        network = getattr(world.models, part)
        backbone = network.transformer
        self.trainable: nn.Module = nn.ModuleDict({"mixins": network.mixins.requires_grad_(True)})
        if backbone is not world.models.stage1.transformer:
            self.trainable["transformer"] = backbone  # its own layers are exported, frozen or not
        if not freeze_backbone:
            for name in OWN_MODULES:
                getattr(backbone, name).requires_grad_(True)

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the cross-entropy in nats a token. Every micro-batch has as many sequences as the options say."""
        rng = np.random.default_rng((self.world.options.seed, micro_batch, step, 1))  # other clips than in `JointTask`
        value = self.world.objectives[self.part](rng)
        return value, {self.part: float(value.detach())}

    def preview_image(self) -> None:
        """Return None: `python -m cogvideo evaluate` writes images of this model."""


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [..., V] under weights [...], in nats a token."""
    nll = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    flat = weights.flatten()
    return (nll * flat).sum() / flat.sum()
