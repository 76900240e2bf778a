"""What the three networks learn, as one loss: clips of the world -> cross-entropy of each network's tokens.

For a model as small as `mini` the backbone, stage 1, stage 2 and super-resolution learn together (the paper freezes a
large pretrained backbone and trains each `attention_plus` beside it): every step holds single frames (text to image),
stage-1 clips, stage-2 windows and frames at both sizes, so the three share one backbone that suits them all. One that
learns on alone then may have layers of its own: stage 2 of what ships has.
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
from cogvideo.data.synthetic_world import Clip, HeldOut, State, caption, sample_clip, to_shares
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
from cogvideo.training.joint_models import OWN, JointModels, SingleNetwork
from cogvideo.training.vqvae_data import SHOWN

DATA = "training data"
"""Name of the ranges in a profile where clips are drawn and turned into tokens."""

Tokenise = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Frames uint8 [B, H, W, 3] -> tokens int64 [B, N]."""


@dataclass(frozen=True)
class JointTaskOptions:
    """How many sequences of each kind a step holds, and what counts in them."""

    images: int = 16
    clips: int = 20
    windows: int = 6
    superres: int = 2
    stage1_share: float = 2.0
    stage2_share: float = 0.7
    superres_share: float = 0.4
    """Shares of the losses in the sum, beside 1 for single frames: a few frames of super-resolution have a large and
    noisy gradient, which would drown what the shared backbone has to learn of motion."""
    unconditional: float = 0.1
    """Share of stage-1 clips whose prompt is left out, for guidance."""
    background_weight: float = 0.5
    subject_weight: float = 2.5
    """Weights of a token's loss in clips and windows: most tokens are background that never changes."""
    image_subject_weight: float = 0.5
    motion_odds: Sequence[float] | None = None
    """How often each of `MOTIONS` comes, beside the others; None: all alike. What turns or grows is the hardest."""
    size_odds: Sequence[float] | None = None
    """How often each of the world's sizes comes, beside the others; None: mostly the middle one."""
    round_odds: Sequence[float] = (1, 1, 1)
    """How often stage 2 is shown a window of each round of interpolation, from five frames on; a film of 33 frames has
    4, 8 and 16 frames of them."""
    drift_probability: float = 0.2
    """Share of the clips that move freely, with a verb of their own: who is not shown turning is seen turned there."""
    corruption_rate: float = 0.02
    """Mean share of the tokens of clips and windows that are replaced where the networks read them, half by what
    another frame of the clip has there, half by another clip's: what they go on from when drawing has errors too."""
    drawn_alone: float = 0.5
    """Share of super-resolution's small frames with the tokens that the subject has before a plain ground; the others
    have those of the frame as it is."""
    seed: int = 0


@dataclass(frozen=True)
class SingleNetworkOptions(JointTaskOptions):
    """The same of a network that learns alone."""

    freeze_backbone: bool = True
    """False: it gets a backbone of its own, whose layers learn as well; its words keep their embeddings."""


def subject_cells(mask: npt.NDArray[np.float32], patch: int) -> npt.NDArray[np.bool_]:
    """Opacity [H, W] -> which tokens [N] show some of the subject."""
    height, width = (side // patch for side in mask.shape)
    return np.asarray(mask.reshape(height, patch, width, patch).max((1, 3)).reshape(-1) > SHOWN)


def window_times(
    rng: np.random.Generator, clip: Clip, odds: Sequence[float] = (1, 1, 1)
) -> tuple[float, npt.NDArray[np.float64]]:
    """A stage-2 window of `clip`: its duration in seconds and the times of its five frames.

    Round r of interpolation works on windows of duration / 2**r that start at multiples of it; `odds`: how often each
    round comes. Raises RequestError.
    """
    shares = to_shares("round_odds", odds, ("5 -> 9", "9 -> 17", "17 -> 33"))
    round_ = 1 + int(rng.choice(len(shares), p=shares))
    seconds = clip.duration / 2**round_
    start = seconds * int(rng.integers(2**round_))
    return seconds, start + seconds * np.arange(5) / 4


@dataclass(frozen=True)
class TokenRows:
    """Tokens [B, F, N] with the weights of their losses, and the text that goes before them."""

    text: Tensor
    text_length: Tensor
    tokens: Tensor
    weights: Tensor


class JointTask:
    """Loss of all four objectives for the training loop."""

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
        """Nothing: `python -m cogvideo evaluate` shows what this model draws."""

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Sum of the four losses of step `step`, and each of them by name. Every share draws clips of its own."""
        rng = np.random.default_rng((self.options.seed, micro_batch, step))
        losses = {name: objective(rng) for name, objective in self.objectives.items()}
        o = self.options
        portions = {"image": 1.0, "stage1": o.stage1_share, "stage2": o.stage2_share, "superres": o.superres_share}
        total = torch.stack([portions[name] * value for name, value in losses.items()]).sum()
        return total, {name: float(v.detach()) for name, v in losses.items()}

    @property
    def objectives(self) -> dict[str, Callable[[np.random.Generator], Tensor]]:
        """What is learnt, by name: a random generator -> the loss of clips that it draws, in nats a token."""
        return {
            "image": self._image_loss,
            "stage1": self._clip_loss,
            "stage2": self._window_loss,
            "superres": self._superres_loss,
        }

    def _image_loss(self, rng: np.random.Generator) -> Tensor:
        """Text to image, backbone alone: the first frame of a clip."""
        clips = self._sample(rng, self.options.images)
        texts = [first_frame_text(self.tokenizer, self.preset, caption(rng, clip)) for clip in clips]
        rows = self._rows(texts, clips, [[0.0]] * len(clips), self.options.image_subject_weight)
        logits = self.models.stage1.forward_images(rows.text, rows.text_length, rows.tokens[:, 0])
        return weighted_loss(logits, rows.tokens[:, 0], rows.weights[:, 0])

    def _clip_loss(self, rng: np.random.Generator) -> Tensor:
        """Stage 1: frames 2..5 given those before them and the duration."""
        clips = self._sample(rng, self.options.clips)
        texts = [self._clip_text(rng, clip) for clip in clips]
        rows = self._rows(texts, clips, [clip.frame_times(KEYFRAMES) for clip in clips], self.options.subject_weight)
        return self._score(self.models.stage1, rows, rng, range(1, KEYFRAMES))

    def _clip_text(self, rng: np.random.Generator, clip: Clip) -> list[int]:
        if rng.random() < self.options.unconditional:
            return unconditional_text(self.tokenizer, self.preset, clip.duration)
        return video_text(self.tokenizer, self.preset, caption(rng, clip), clip.duration)

    def _window_loss(self, rng: np.random.Generator) -> Tensor:
        """Stage 2: frames 1 and 3 of a window given frames 0, 2 and 4."""
        clips = self._sample(rng, self.options.windows)
        windows = [window_times(rng, clip, self.options.round_odds) for clip in clips]
        texts = [
            interpolation_text(self.tokenizer, caption(rng, c), seconds)
            for c, (seconds, _) in zip(clips, windows, strict=True)
        ]
        rows = self._rows(texts, clips, [times for _, times in windows], self.options.subject_weight)
        return self._score(self.models.stage2, rows, rng, self.models.stage2.layout.generated)

    def _score(self, network: VideoLM, rows: TokenRows, rng: np.random.Generator, wanted: Sequence[int]) -> Tensor:
        """Loss of the `wanted` frames; the others are read, but nothing is computed of what would come there."""
        frames = list(wanted)
        logits = network.forward_training(rows.text, rows.text_length, self.corrupt(rows.tokens, rng), frames)
        return weighted_loss(logits, rows.tokens[:, frames], rows.weights[:, frames])

    @torch.no_grad()
    def teacher_forced_accuracy(self, clips: Sequence[Clip], rng: np.random.Generator) -> float:
        """Share of the tokens of frames 2..5 that stage 1 finds the likeliest, given the true ones before them.

        Those count that stand where the subject is in any frame.
        """
        texts = [video_text(self.tokenizer, self.preset, caption(rng, clip), clip.duration) for clip in clips]
        rows = self._rows(texts, clips, [clip.frame_times(KEYFRAMES) for clip in clips], 1.0)
        return self._known(self.models.stage1, rows, range(1, KEYFRAMES))

    @torch.no_grad()
    def teacher_forced_interpolation_accuracy(
        self, clips: Sequence[Clip], round_: int, rng: np.random.Generator
    ) -> float:
        """The same of stage 2, in windows of one round (1, 2 or 3) of interpolation."""
        odds = [float(number == round_) for number in (1, 2, 3)]
        windows = [window_times(rng, clip, odds) for clip in clips]
        texts = [
            interpolation_text(self.tokenizer, caption(rng, c), s) for c, (s, _) in zip(clips, windows, strict=True)
        ]
        rows = self._rows(texts, clips, [times for _, times in windows], 1.0)
        return self._known(self.models.stage2, rows, self.models.stage2.layout.generated)

    def _known(self, network: VideoLM, rows: TokenRows, wanted: Sequence[int]) -> float:
        frames = list(wanted)
        likeliest = network.forward_training(rows.text, rows.text_length, rows.tokens, frames).argmax(-1)
        subject = rows.weights[:, frames] > self.options.background_weight
        return float((likeliest == rows.tokens[:, frames])[subject].float().mean())

    def corrupt(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Tokens [B, F, N] -> the same with some of them replaced; a clip has up to twice the mean share."""
        clips, frames, _ = tokens.shape
        elsewhere = (
            tokens.roll(int(rng.integers(1, frames)), 1),
            tokens.roll(int(rng.integers(1, max(2, clips))), 0),
        )
        rates = rng.uniform(0, 2 * self.options.corruption_rate, (clips, 1, 1))
        draws = rng.random(tuple(tokens.shape))
        for other, hit in zip(elsewhere, (draws < rates / 2, draws > 1 - rates / 2), strict=True):
            tokens = torch.where(torch.from_numpy(hit).to(tokens.device), other, tokens)
        return tokens

    def _superres_loss(self, rng: np.random.Generator) -> Tensor:
        """Super-resolution: the fine tokens of a frame at any moment, given its coarse tokens."""
        rows = self._pairs(rng)
        coarse, fine = rows.tokens.split((self.preset.model.tokens_per_frame, rows.weights.shape[1]), dim=1)
        return weighted_loss(self.models.superres(rows.text, rows.text_length, coarse), fine, rows.weights)

    @record_function(DATA)
    def _pairs(self, rng: np.random.Generator) -> TokenRows:
        """Frames at both sizes: tokens [B, N + fine tokens], coarse ones first, and weights of the fine ones."""
        clips = self._sample(rng, self.options.superres)
        moments = [float(rng.integers(0, 33)) / 32 * clip.duration for clip in clips]
        texts = [superres_text(self.tokenizer, caption(rng, clip)) for clip in clips]
        text, text_length = left_pad(texts, pad=PAD, device=self._device)
        states = [clip.state(moment) for clip, moment in zip(clips, moments, strict=True)]
        shown = list(zip(clips, states, strict=True))
        cut = np.array([rng.random() < self.options.drawn_alone for _ in clips])
        small, _ = self._tokenise(shown, COARSE, cut)
        large, cells = self._tokenise(shown, FINE)
        weights = self._weigh(cells, self.options.subject_weight)
        return TokenRows(text, text_length, torch.cat((small, large), dim=1).to(self._device), weights)

    def _tokenise(
        self, drawn: Sequence[tuple[Clip, State]], cell: int, cut: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Moments of clips -> tokens [B, N], and which of them show some of the subject.

        A subject has the tokens that it has before a plain ground, in every scene the same: who was never shown in a
        desert looks there as it does elsewhere. Around it are those of the empty scene. `cut`: which frames are put
        together so, and which are tokenised as they are; None: all are put together.
        """
        cut = np.ones(len(drawn), bool) if cut is None else cut
        frames = [
            render_state(c.subject, PLAIN if plain else c.scene, c.variant, state, cell)
            for (c, state), plain in zip(drawn, cut, strict=True)
        ]
        cells = np.stack([subject_cells(mask, self.preset.patch_size) for _, mask in frames])
        tokens = self.tokenise(np.stack([picture for picture, _ in frames]))
        scenes = torch.stack([self._scene_tokens(c.scene, c.variant, cell) for c, _ in drawn])
        return torch.where(torch.from_numpy(cut[:, None] & ~cells).to(tokens.device), scenes, tokens), cells

    def _scene_tokens(self, scene: int, variant: int, cell: int) -> Tensor:
        """Tokens [N] of an empty scene, made once."""
        key = (scene, variant, cell)
        if key not in self._scenes:
            picture = np.rint(background(*key)).astype(np.uint8)
            self._scenes[key] = self.tokenise(picture[None])[0]
        return self._scenes[key]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.models.stage1.transformer.word_embeddings.weight.device
        return device

    def _sample(self, rng: np.random.Generator, count: int) -> list[Clip]:
        o = self.options
        return [
            sample_clip(rng, self.held_out, odds=o.motion_odds, drifting=o.drift_probability, size_odds=o.size_odds)
            for _ in range(count)
        ]

    @record_function(DATA)
    def _rows(
        self,
        texts: list[list[int]],
        clips: Sequence[Clip],
        times: Sequence[Sequence[float] | npt.NDArray[np.float64]],
        subject_weight: float,
    ) -> TokenRows:
        """Render and tokenise the frames of each clip at its times (as many for every clip)."""
        drawn = [(clip, s) for clip, moments in zip(clips, times, strict=True) for s in clip.states(moments)]
        shape = (len(clips), len(times[0]))
        flat, cells = self._tokenise(drawn, COARSE)
        tokens, cells = flat.to(self._device).unflatten(0, shape), cells.reshape(*shape, -1)  # [B, F, N]
        # Where the subject is in any frame counts in all of them: that a place is empty again is what tells of motion,
        # and weighing the subject alone would teach it to appear too early in the order of decoding.
        weights = self._weigh(cells.any(1, keepdims=True).repeat(shape[1], 1), subject_weight)
        text, text_length = left_pad(texts, pad=self.pad, device=self._device)
        return TokenRows(text, text_length, tokens, weights)

    def _weigh(self, cells: npt.NDArray[np.bool_], subject_weight: float) -> Tensor:
        o = self.options
        return torch.from_numpy(np.where(cells, subject_weight, o.background_weight).astype(np.float32)).to(
            self._device
        )


class SingleNetworkTask:
    """One network alone, beside others that stay what they are: its loss for the training loop.

    Learning together, it gets little of a step, and every step of the others moves the backbone under it. What learns
    is its own weights, or, where the backbone is not frozen, the layers of a backbone of its own too.
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
            self.trainable["transformer"] = backbone  # what is its own belongs into its file, frozen or not
        if not freeze_backbone:
            for name in OWN:
                getattr(backbone, name).requires_grad_(True)

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy in nats a token; every share draws as many frames or windows as the options say."""
        rng = np.random.default_rng(
            (self.world.options.seed, micro_batch, step, 1)
        )  # not what they learnt from together
        value = self.world.objectives[self.part](rng)
        return value, {self.part: float(value.detach())}

    def preview_image(self) -> None:
        """Nothing: `python -m cogvideo evaluate` shows what this model draws."""


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of logits [..., V] under weights [...], in nats a token."""
    nll = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    flat = weights.flatten()
    return (nll * flat).sum() / flat.sum()
