"""Logits [.., V] -> token ids [..]: "cluster" sampling, exact in closed form; its noise is a pure function of a key.

The image codebook is split into clusters of similar tokens. A draw keeps the most probable clusters, draws one of
them and then a token inside it; both steps together are one distribution, which `distribution` gives in closed form.

A token is drawn by an exponential race: argmax of p[token] / e[token], where e ~ Exp(1). That is the Gumbel-max trick
with one logarithm less. The noise e is a hash of (seed, stage, frame, slot, token id), so a video is a function of its
seed and prompt alone, whatever the batch, the order of the draws or the device. No generator, no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS, TokenSampling
from cogvideo.errors import WeightsError
from kernels import cpu_sample


class StageKey(IntEnum):
    """The word that each stage puts into its noise keys, so that no two share their noise. Never renumber."""

    KEYFRAMES = 1
    INTERPOLATE = 2
    SUPERRES = 3


_WORD = 0xFFFFFFFF  # hashes are 32-bit words kept in int64, where no product below overflows
_GOLDEN = 0x1E3779B9  # odd, below 2**31: spreads small counters over all bits
_UNIT = (1.0 - 2.0**-24) * 2.0**-32  # maps 1..2**32 into (0, 1): the largest float32 below 1 is reached, 1 is not


class ClusterSampler:
    """Draws image tokens; knows which token belongs to which cluster.

    `labels` int [V]: the cluster of every image token, any integers. Empty clusters do not matter. `threads`: among
    so many the compiled draw divides its rows.
    """

    def __init__(self, labels: Tensor, threads: int = 1) -> None:
        self._threads = threads
        used, dense = torch.unique(labels.long(), return_inverse=True)  # [C], [V]
        sizes = torch.bincount(dense, minlength=len(used))  # [C]
        order = torch.argsort(dense, stable=True)  # [V], cluster by cluster
        column = torch.arange(len(dense), device=dense.device) - (sizes.cumsum(0) - sizes)[dense[order]]
        members = torch.zeros(len(used), int(sizes.max()), dtype=torch.long, device=dense.device)
        members[dense[order], column] = order
        self.labels: Tensor = dense
        self.members = members  # [C, M] token ids, each row padded with 0 ...
        self.padding = torch.arange(members.shape[1], device=dense.device) >= sizes[:, None]  # ... where this is True
        self._compiled: cpu_sample.NativeClusterSampler | None = None

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def vocabulary(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ClusterSampler:
        """The same sampler on another device."""
        return ClusterSampler(self.labels.to(device), self._threads)

    def top_clusters(self, logits: Tensor, options: TokenSampling) -> tuple[Tensor, Tensor]:
        """logits [R, V] -> token ids [R, K*M] that may be drawn and their probabilities [R, K*M] (0 at the padding)."""
        scaled = logits.float() / options.temperature  # [R, V]
        mass = (
            (scaled - scaled.amax(1, keepdim=True)).exp_().double()
        )  # float64: the order of adding drowns in rounding
        clusters = mass.new_zeros(len(scaled), len(self.members))  # [R, C]
        clusters.scatter_add_(1, self.labels.expand_as(mass), mass)
        kept, top = clusters.topk(min(options.top_k, len(self.members)), dim=1)  # [R, K]
        outer = kept / kept.sum(1, keepdim=True)
        ids = self.members[top]  # [R, K, M]
        inner = scaled.gather(1, ids.flatten(1)).view(ids.shape) / options.within_cluster_temperature
        inner = inner.masked_fill(self.padding[top], -torch.inf).softmax(-1)
        return ids.flatten(1), (outer[..., None].float() * inner).flatten(1)

    def distribution(self, logits: Tensor, options: TokenSampling) -> Tensor:
        """logits [.., V] -> the exact probabilities [.., V] of one draw."""
        rows = logits.reshape(-1, self.vocabulary)
        ids, probabilities = self.top_clusters(rows, options)
        dense = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        return dense.scatter_add_(1, ids, probabilities).view(logits.shape)

    @torch.inference_mode()
    def sample(self, logits: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
        """logits [R, V], keys [R, 2] of `noise_keys` -> token ids [R]. A row that is not finite draws a valid id."""
        if cpu_sample.unsupported_reason(logits) is None:
            if self._compiled is None:
                self._compiled = cpu_sample.NativeClusterSampler(self.labels, self.members, self.padding)
            how = (options.temperature, options.top_k, options.within_cluster_temperature)
            return self._compiled.sample(logits, keys, *how, self._threads)
        return self.sample_reference(logits, keys, options)

    def sample_reference(self, logits: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
        """The same in PyTorch's operations, on any device: what `draw` must equal."""
        ids, probabilities = self.top_clusters(logits, options)
        winner = (probabilities / exponential_noise(keys, ids)).argmax(1, keepdim=True)  # [R, 1]
        return ids.gather(1, winner).squeeze(1)


class TokenSampler:
    """Draws the frames of one batch: what `decode` calls for every token.

    `frames`: for each frame of the sequence (as `decode` numbers it) the keys [slots, R, 2] of its R rows' draws.
    `weigh`: whether `log_likelihood` will be asked for.
    """

    def __init__(
        self, sampler: ClusterSampler, options: TokenSampling, frames: Mapping[int, Tensor], weigh: bool = False
    ) -> None:
        self._sampler, self._options = sampler, options
        self._keys = {frame: keys.to(sampler.device) for frame, keys in frames.items()}
        self._sum = torch.zeros((), device=sampler.device)
        self._weigh = weigh
        self._weights: dict[tuple[int, int], Tensor] = {}  # of a slot that is drawn anew, the last draw's

    def __call__(self, logits: Tensor, frame: int, slot: int) -> Tensor:
        """logits [R, V] of `slot` of `frame` -> token ids [R]."""
        self._sum = self._sum + logits.sum()  # finite as long as all logits were; looked at once a frame
        ids = self._sampler.sample(logits, self._keys[frame][slot], self._options)
        if self._weigh:
            self._weights[frame, slot] = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        return ids

    def log_likelihood(self) -> Tensor:
        """How likely all that each row drew was, [R] in nats, by the logits as they came: neither temperature nor
        clusters count.
        """
        return torch.stack(list(self._weights.values())).double().sum(0)

    def check(self) -> None:
        """Raises WeightsError where a logit was not a finite number since the last check."""
        if not bool(torch.isfinite(self._sum)):
            raise non_finite_error()
        self._sum = torch.zeros_like(self._sum)


def non_finite_error() -> WeightsError:
    return WeightsError(
        "模型算出了无效数值（NaN 或无穷大）：权重文件可能已损坏，或当前精度不够；请重新下载权重，或改用 cpu。",
        "The model computed values that are no numbers (NaN or infinity): its weights may be damaged, or the precision "
        "too low; download the weights again, or use cpu.",
    )


def distribution(logits: Tensor, options: TokenSampling, labels: Tensor) -> Tensor:
    """logits [.., V], labels [V] -> the exact probabilities [.., V] of one draw."""
    return ClusterSampler(labels).distribution(logits, options)


def noise_keys(seeds: Sequence[int], stage: int, frames: Sequence[int], slots: int) -> Tensor:
    """The keys int64 [slots, R, 2] of every draw of R frames: seeds [R], frames [R] (index in the clip), one stage."""
    if len(seeds) != len(frames):
        raise ValueError(f"{len(seeds)} seeds for {len(frames)} frames")
    counters = [
        torch.tensor(seeds, dtype=torch.long)[None, :, None],
        torch.tensor([[[stage]]]),
        torch.tensor(frames, dtype=torch.long)[None, :, None],
        torch.arange(slots)[:, None, None],
    ]
    key = torch.tensor([[[0x2545F491, 0x6C8E9CF5]]])  # two words, each with its own start: 64-bit keys
    for counter in counters:
        key = _mix((key + (counter & _WORD) * _GOLDEN) & _WORD)
    return key  # [slots, R, 2]


def exponential_noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Exp(1) noise, float32 [R, K], positive and finite: a hash of keys int64 [R, 2] and ids int64 [R, K]."""
    word = _mix((ids * _GOLDEN & _WORD) ^ keys[:, :1])
    word = _mix(word ^ keys[:, 1:])
    return (word + 1).float().mul_(_UNIT).neg_().log1p_().neg_()


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words (in int64) that changes every bit with probability one half ("lowbias32")."""
    word = (word ^ (word >> 16)) * 0x21F0AAAD & _WORD
    word = (word ^ (word >> 15)) * 0x735A2D97 & _WORD
    return word ^ (word >> 15)


FINEST_FRAME_COUNT: Final = FRAME_COUNTS[-1] - 1
"""Steps of the clock: keyframes stand at 0, 8, 16, 24, 32."""


def noise_frame_indices(frames: int) -> list[int]:
    """Where `frames` evenly spaced frames stand on the clock; one alone stands at its beginning."""
    if frames == 1:
        return [0]
    return [i * FINEST_FRAME_COUNT // (frames - 1) for i in range(frames)]
