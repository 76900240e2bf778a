"""Cluster sampling: logits [.., V] -> token ids [..], exact in closed form, with noise that is a function of a key.

The image codebook is divided into clusters of similar tokens. A sample keeps the most probable clusters, selects one
of them, and then a token in it. Both steps together are one distribution, which `distribution` returns in closed form.

A token is sampled by an exponential race: argmax of p[token] / e[token], with e ~ Exp(1). That is the Gumbel-max trick
with one logarithm less. The noise e is a hash of (seed, stage, frame, slot, token id). A video is therefore a function
of its seed and prompt alone: batch, sampling order and device do not matter. There is no generator and no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS, TokenSampling
from cogvideo.errors import WeightsError
from cogvideo.messages import message
from kernels import cpu_sample


class StageKey(IntEnum):
    """Number of each stage in its noise keys: stages do not share noise. Renumbering would change every video."""

    KEYFRAMES = 1
    INTERPOLATE = 2
    SUPERRES = 3


_WORD = 0xFFFFFFFF  # hashes are 32-bit words stored in int64, in which no product below overflows
_GOLDEN = 0x1E3779B9  # odd, below 2**31: spreads small counters over all bits
_UNIT = (1.0 - 2.0**-24) * 2.0**-32  # maps 1..2**32 into (0, 1): the largest float32 below 1 is reached, 1 is not


class ClusterSampler:
    """Sampler of image tokens, with the cluster of each token.

    `labels` int [V]: the cluster of every image token, any integers. `threads`: the compiled sampler divides its rows
    among this many.
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
        self.members = members  # [C, M] token ids, each row padded with 0
        self.padding = torch.arange(members.shape[1], device=dense.device) >= sizes[:, None]  # [C, M]
        self._compiled: cpu_sample.NativeClusterSampler | None = None

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def vocabulary(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ClusterSampler:
        """Return this sampler on another device."""
        return ClusterSampler(self.labels.to(device), self._threads)

    def top_clusters(self, logits: Tensor, options: TokenSampling) -> tuple[Tensor, Tensor]:
        """Return the ids [R, K*M] that can be sampled and their probabilities [R, K*M] (0 at the padding).

        logits [R, V]. K = `options.top_k` clusters of at most M tokens.
        """
        scaled = logits.float() / options.temperature  # [R, V]
        # float64: then the order of the additions does not change the result
        mass = (scaled - scaled.amax(1, keepdim=True)).exp_().double()
        clusters = mass.new_zeros(len(scaled), len(self.members))  # [R, C]
        clusters.scatter_add_(1, self.labels.expand_as(mass), mass)
        top_mass, top = clusters.topk(min(options.top_k, len(self.members)), dim=1)  # [R, K]
        outer = top_mass / top_mass.sum(1, keepdim=True)
        ids = self.members[top]  # [R, K, M]
        inner = scaled.gather(1, ids.flatten(1)).view(ids.shape) / options.within_cluster_temperature
        inner = inner.masked_fill(self.padding[top], -torch.inf).softmax(-1)
        return ids.flatten(1), (outer[..., None].float() * inner).flatten(1)

    def distribution(self, logits: Tensor, options: TokenSampling) -> Tensor:
        """Compute the exact probabilities [.., V] of one sample from logits [.., V]."""
        rows = logits.reshape(-1, self.vocabulary)
        ids, probabilities = self.top_clusters(rows, options)
        dense = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        return dense.scatter_add_(1, ids, probabilities).view(logits.shape)

    @torch.inference_mode()
    def sample(self, logits: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
        """Sample token ids [R] from logits [R, V] with keys [R, 2] of `noise_keys`.

        A row that is not finite yields a valid id as well; `TokenSampler.check` reports it.
        """
        if cpu_sample.unsupported_reason(logits) is None:
            if self._compiled is None:
                self._compiled = cpu_sample.NativeClusterSampler(self.labels, self.members, self.padding)
            settings = (options.temperature, options.top_k, options.within_cluster_temperature)
            return self._compiled.sample(logits, keys, *settings, self._threads)
        return self.sample_reference(logits, keys, options)

    def sample_reference(self, logits: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
        """Sample as `sample` does, with PyTorch operations on any device: the reference of the compiled sampler."""
        ids, probabilities = self.top_clusters(logits, options)
        winner = (probabilities / exponential_noise(keys, ids)).argmax(1, keepdim=True)  # [R, 1]
        return ids.gather(1, winner).squeeze(1)


class TokenSampler:
    """The `SampleFn` of one batch: samples the tokens of its frames.

    `frames`: for each frame of the sequence (numbered as in `decoding`) the keys [slots, R, 2] of its R rows.
    `weigh`: whether to record what `log_likelihood` needs.
    """

    def __init__(
        self, sampler: ClusterSampler, options: TokenSampling, frames: Mapping[int, Tensor], weigh: bool = False
    ) -> None:
        self._sampler, self._options = sampler, options
        self._keys = {frame: keys.to(sampler.device) for frame, keys in frames.items()}
        self._sum = torch.zeros((), device=sampler.device)
        self._weigh = weigh
        self._weights: dict[tuple[int, int], Tensor] = {}  # if a slot is sampled again, of its last sample

    def __call__(self, logits: Tensor, frame: int, slot: int) -> Tensor:
        """Sample token ids [R] from logits [R, V] of `slot` of `frame`."""
        self._sum = self._sum + logits.sum()  # finite only if all logits are; checked once a frame
        ids = self._sampler.sample(logits, self._keys[frame][slot], self._options)
        if self._weigh:
            self._weights[frame, slot] = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        return ids

    def log_likelihood(self) -> Tensor:
        """Compute the log-likelihood of each row's tokens, [R] in nats, under the logits before temperature and
        clusters.
        """
        return torch.stack(list(self._weights.values())).double().sum(0)

    def check(self) -> None:
        """Check the logits since the last call. Raises WeightsError if one was not finite."""
        if not bool(torch.isfinite(self._sum)):
            raise non_finite_error()
        self._sum = torch.zeros_like(self._sum)


def non_finite_error() -> WeightsError:
    """Return the error of logits that are not finite."""
    return WeightsError(*message("sampling.not_finite"))


def distribution(logits: Tensor, options: TokenSampling, labels: Tensor) -> Tensor:
    """Compute the exact probabilities [.., V] of one sample from logits [.., V], with cluster labels [V]."""
    return ClusterSampler(labels).distribution(logits, options)


def noise_keys(seeds: Sequence[int], stage: int, frames: Sequence[int], slots: int) -> Tensor:
    """Compute the noise keys of R frames of one stage, int64 [slots, R, 2].

    seeds [R], frames [R] of `noise_frame_indices`. Raises ValueError if their lengths differ.
    """
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
    """Compute Exp(1) noise, float32 [R, K], positive and finite: a hash of keys int64 [R, 2] and ids int64 [R, K]."""
    word = _mix((ids * _GOLDEN & _WORD) ^ keys[:, :1])
    word = _mix(word ^ keys[:, 1:])
    return (word + 1).float().mul_(_UNIT).neg_().log1p_().neg_()


def _mix(word: Tensor) -> Tensor:
    """Apply "lowbias32": a bijection of 32-bit words (in int64) that flips every bit with probability one half."""
    word = (word ^ (word >> 16)) * 0x21F0AAAD & _WORD
    word = (word ^ (word >> 15)) * 0x735A2D97 & _WORD
    return word ^ (word >> 15)


FINEST_FRAME_COUNT: Final = FRAME_COUNTS[-1] - 1
"""Frame steps of the longest video: keyframes have the noise frame indices 0, 8, 16, 24, 32."""


def noise_frame_indices(frames: int) -> list[int]:
    """Return the noise frame index, 0 .. 32, of each of `frames` evenly spaced frames. A single frame has index 0."""
    if frames == 1:
        return [0]
    return [i * FINEST_FRAME_COUNT // (frames - 1) for i in range(frames)]
