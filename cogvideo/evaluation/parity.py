"""Comparison of three checkpoints with the outputs of the 2022 release, array by array.

Sampling steps are computed through the cached decoder, one token at a time, with the golden tokens fed back.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import SamplingOptions
from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodeOptions
from cogvideo.inference.sampling import distribution
from cogvideo.models.base import left_pad
from cogvideo.models.loader import LoadedModels
from cogvideo.models.video_lm import VideoLM
from cogvideo.weights import checkpoint

TOLERANCE = 1e-4
"""Largest absolute difference allowed, in fp32."""

NEWLINE = 4
"""`<n>`, which follows the duration: this many ids after the image tokens."""

EXCLAMATION = 20013
"""The id that the golden training texts and `stage2_plain` end with."""

NOT_FOLLOWED = {
    "stage2_plain_original": "the release forgets the region mask when it reads the given frames",
    "stage2_unguided": "the same",
    "stage2_guided": "the same",
}
"""Arrays of the release's known fault: we follow training, so `*_masked` and `stage2_plain` are the ones to equal."""

Arrays = dict[str, npt.NDArray[Any]]


def read_golden(path: Path) -> Arrays:
    """All arrays of the golden file. Raises WeightsError."""
    checkpoint.require(path)
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise checkpoint.damaged(path, error) from error


class Parity:
    """Computes every array of a golden file with our code."""

    def __init__(self, models: LoadedModels, golden: Arrays) -> None:
        self.models = models
        self.golden = golden
        self.frames = torch.from_numpy(golden["frames"]).long()  # [samples, F, N]; stage 2: given ones first
        self.prefix: list[str | Sequence[int]] = ["duration", [models.stage1.config.image_tokens + NEWLINE]]

    def differences(self) -> Iterator[tuple[str, float]]:
        """(name, largest absolute difference) of every array that we follow, in the order of the work."""
        for compute in (self._first_frame, self._stage1, self._stage2, self._training, self._superres, self._sampling):
            for name, value in compute():
                wanted = self.golden[name]
                if value.shape != wanted.shape:
                    raise ValueError(f"{name}: computed {value.shape}, golden {wanted.shape}")
                yield name, float(np.abs(value.astype(np.float64) - wanted).max())

    # -- drawn through the cache ---------------------------------------------------------------------------------

    def _first_frame(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm, clip = self.models.stage1, self.frames
        texts = self._texts("text", "image_suffix")
        yield "stage1_first_frame", self._taught(clip, lambda draw: decoding.first_frame(lm, texts, draw))

    def _stage1(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm, clip = self.models.stage1, self.frames
        texts, others = self._texts(*self.prefix, "text", "video_suffix"), self._texts(*self.prefix, "guidance_text")
        yield (
            "stage1_guided",
            self._taught(clip, lambda draw: decoding.keyframes(lm, texts, clip[:, 0], draw, unconditional=others)),
        )
        plain = self._texts(*self.prefix, "text")
        yield "stage1_unguided", self._taught(clip, lambda draw: decoding.keyframes(lm, plain, clip[:, 0], draw))

    def _stage2(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm = self.models.stage2
        clip = self._clip(lm)
        given = clip[:, list(lm.layout.given)]
        texts, others = self._texts(*self.prefix, "text", "video_suffix"), self._texts(*self.prefix, "guidance_text")
        plain = self._texts(*self.prefix, "text", [EXCLAMATION])
        yield (
            "stage2_plain",
            self._taught(
                clip,
                lambda draw: decoding.interpolate(
                    lm, plain, given, draw, options=DecodeOptions(text_attention_bias=0.0)
                ),
            ),
        )
        yield (
            "stage2_guided_masked",
            self._taught(clip, lambda draw: decoding.interpolate(lm, texts, given, draw, unconditional=others)),
        )
        yield (
            "stage2_unguided_masked",
            self._taught(clip, lambda draw: decoding.interpolate(lm, texts, given, draw)),
        )

    def _taught(
        self, clip: Tensor, run: Callable[[decoding.SampleFn], Iterator[decoding.DecodedTokens]]
    ) -> npt.NDArray[Any]:
        """Run a decoder that draws the tokens of `clip` [samples, F, N] whatever it predicts -> its summaries."""
        seen: dict[tuple[int, int], Tensor] = {}

        def draw(logits: Tensor, frame: int, slot: int) -> Tensor:
            seen[frame, slot] = self._summary(logits)
            return clip[:, frame, slot]

        decoding.collect(run(draw))
        return torch.stack([seen[place] for place in sorted(seen)], dim=1).numpy()

    # -- in one pass ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _training(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        texts = self._texts(*self.prefix, "text", [EXCLAMATION])
        for lm in (self.models.stage1, self.models.stage2):
            text, text_length = left_pad(texts, lm.config.text_length)
            clip = self.frames if lm.stage == 1 else self._clip(lm)
            logits = lm.forward_training(text, text_length, clip)
            losses = F.cross_entropy(logits.flatten(0, 2), clip.flatten(), reduction="none").view(clip.shape)
            predicted = list(range(1, lm.layout.frames)) if lm.stage == 1 else list(lm.layout.generated)
            yield f"train{lm.stage}_logits", self._summary(logits).flatten(1, 2).numpy()
            yield f"train{lm.stage}_nll", losses.flatten(1).numpy()
            yield f"train{lm.stage}_loss", losses[:, predicted].mean().numpy()

    @torch.inference_mode()
    def _superres(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm = self.models.superres
        text, text_length = left_pad(self._texts("text"), lm.config.superres_text_length)
        yield "dsr", self._summary(lm(text, text_length, self.frames[:, 0])).numpy()

    def _sampling(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        logits = torch.from_numpy(self.golden["sampling_logits"])
        labels = torch.from_numpy(self.golden["cluster_labels"]).long()
        published = SamplingOptions()
        for name, how in (
            ("sampling_first_frame", published.first_frame),
            ("sampling_video", published.video),
            ("sampling_dsr", published.superres),
        ):
            yield name, distribution(logits, how, labels).numpy()

    # -- private -----------------------------------------------------------------------------------------------

    def _clip(self, lm: VideoLM) -> Tensor:
        """Stage 2: the golden frames, which come given ones first, in time order."""
        return self.frames[:, list(lm.layout.stage2_revert)]

    def _texts(self, *parts: str | Sequence[int]) -> list[list[int]]:
        """The same text for every sample, joined from arrays of the golden file and literal ids."""
        ids = [int(i) for part in parts for i in (self.golden[part] if isinstance(part, str) else part)]
        return [ids] * len(self.frames)

    def _summary(self, logits: Tensor) -> Tensor:
        """[..., image_tokens] -> the columns `sub_vocab`, then the log-sum-exp over all."""
        columns = torch.from_numpy(self.golden["sub_vocab"])
        return torch.cat((logits[..., columns], logits.logsumexp(-1, keepdim=True)), dim=-1)
