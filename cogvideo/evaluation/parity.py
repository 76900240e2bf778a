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
"""Id of `<n>`, which follows the duration, counted from the first text id."""

EXCLAMATION = 20013
"""Last id of the golden training texts and of `stage2_plain`."""

NOT_FOLLOWED = {
    "stage2_plain_original": "the release omits the region mask when it reads the given frames",
    "stage2_unguided": "the same",
    "stage2_guided": "the same",
}
"""Arrays with a known fault of the release, and the reason. `*_masked` and `stage2_plain` are compared instead: they
use the mask as the release's training does."""

Arrays = dict[str, npt.NDArray[Any]]


def read_golden(path: Path) -> Arrays:
    """Read all arrays of the golden file. Raises WeightsError if it is missing or damaged."""
    checkpoint.require(path)
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise checkpoint.damaged(path, error) from error


class Parity:
    """Computes the arrays of a golden file and compares them."""

    def __init__(self, models: LoadedModels, golden: Arrays) -> None:
        self.models = models
        self.golden = golden
        self.frames = torch.from_numpy(golden["frames"]).long()  # [samples, F, N]; stage 2: given ones first
        self.prefix: list[str | Sequence[int]] = ["duration", [models.stage1.config.image_tokens + NEWLINE]]

    def differences(self) -> Iterator[tuple[str, float]]:
        """Yield (name, largest absolute difference) of every array, in the order of computation.

        Raises ValueError if an array has another shape.
        """
        for compute in (self._first_frame, self._stage1, self._stage2, self._training, self._superres, self._sampling):
            for name, value in compute():
                wanted = self.golden[name]
                if value.shape != wanted.shape:
                    raise ValueError(f"{name}: computed {value.shape}, golden {wanted.shape}")
                yield name, float(np.abs(value.astype(np.float64) - wanted).max())

    # -- through the KV cache ------------------------------------------------------------------------------------

    def _first_frame(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm, tokens = self.models.stage1, self.frames
        texts = self._texts("text", "image_suffix")
        yield "stage1_first_frame", self._teacher_forced(tokens, lambda sample: decoding.first_frame(lm, texts, sample))

    def _stage1(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm, tokens = self.models.stage1, self.frames
        texts, others = self._texts(*self.prefix, "text", "video_suffix"), self._texts(*self.prefix, "guidance_text")
        yield (
            "stage1_guided",
            self._teacher_forced(
                tokens, lambda sample: decoding.keyframes(lm, texts, tokens[:, 0], sample, unconditional=others)
            ),
        )
        plain = self._texts(*self.prefix, "text")
        yield (
            "stage1_unguided",
            self._teacher_forced(tokens, lambda sample: decoding.keyframes(lm, plain, tokens[:, 0], sample)),
        )

    def _stage2(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        lm = self.models.stage2
        tokens = self._in_time_order(lm)
        given = tokens[:, list(lm.layout.given)]
        texts, others = self._texts(*self.prefix, "text", "video_suffix"), self._texts(*self.prefix, "guidance_text")
        plain = self._texts(*self.prefix, "text", [EXCLAMATION])
        yield (
            "stage2_plain",
            self._teacher_forced(
                tokens,
                lambda sample: decoding.interpolate(
                    lm, plain, given, sample, options=DecodeOptions(text_attention_bias=0.0)
                ),
            ),
        )
        yield (
            "stage2_guided_masked",
            self._teacher_forced(
                tokens, lambda sample: decoding.interpolate(lm, texts, given, sample, unconditional=others)
            ),
        )
        yield (
            "stage2_unguided_masked",
            self._teacher_forced(tokens, lambda sample: decoding.interpolate(lm, texts, given, sample)),
        )

    def _teacher_forced(
        self, tokens: Tensor, run: Callable[[decoding.SampleFn], Iterator[decoding.DecodedTokens]]
    ) -> npt.NDArray[Any]:
        """Run a decoder with `tokens` [samples, F, N] in place of its samples; returns summaries of its logits."""
        summaries: dict[tuple[int, int], Tensor] = {}

        def sample(logits: Tensor, frame: int, slot: int) -> Tensor:
            summaries[frame, slot] = self._summary(logits)
            return tokens[:, frame, slot]

        decoding.collect(run(sample))
        return torch.stack([summaries[place] for place in sorted(summaries)], dim=1).numpy()

    # -- in one pass ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _training(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        texts = self._texts(*self.prefix, "text", [EXCLAMATION])
        for lm in (self.models.stage1, self.models.stage2):
            text, text_length = left_pad(texts, lm.config.text_length)
            tokens = self.frames if lm.stage == 1 else self._in_time_order(lm)
            logits = lm.forward_training(text, text_length, tokens)
            losses = F.cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none").view(tokens.shape)
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
        for name, sampling in (
            ("sampling_first_frame", published.first_frame),
            ("sampling_video", published.video),
            ("sampling_dsr", published.superres),
        ):
            yield name, distribution(logits, sampling, labels).numpy()

    # -- inputs and summaries ------------------------------------------------------------------------------------

    def _in_time_order(self, lm: VideoLM) -> Tensor:
        """Return stage 2's golden frames, which are stored with the given ones first, in time order."""
        return self.frames[:, list(lm.layout.stage2_revert)]

    def _texts(self, *parts: str | Sequence[int]) -> list[list[int]]:
        """Join arrays of the golden file and literal ids to a text, the same for every sample."""
        ids = [int(i) for part in parts for i in (self.golden[part] if isinstance(part, str) else part)]
        return [ids] * len(self.frames)

    def _summary(self, logits: Tensor) -> Tensor:
        """Return the columns `sub_vocab` of logits [..., image tokens], and the log-sum-exp over all columns."""
        columns = torch.from_numpy(self.golden["sub_vocab"])
        return torch.cat((logits[..., columns], logits.logsumexp(-1, keepdim=True)), dim=-1)
