"""k-means over vectors: the codebook of the VQ-VAE, codes added to it, and clusters of its codes.

Vectors are float [m, z], centres float [n, z]. Distances are Euclidean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, such as `all_reduce_sum` of `vqvae_task`."""


@dataclass(frozen=True)
class SeedingOptions:
    """How k-means++ chooses centres."""

    batches: int = 6
    """Batches in which the centres are chosen. Each batch sees the distances that the ones before it left."""
    outlier: float = 4.0
    """Multiple of the mean squared distance at which the probability of a vector is capped."""


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the closest centre of every vector, int64 [m]. Works in pieces that stay in the cache."""
    half = 0.5 * centres.square().sum(1)
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cat([(part @ centres.t() - half).argmax(1) for part in vectors.split(2048)])


def squared_distances(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the squared distance of every vector to its closest centre, float [m]."""
    return (vectors - centres[nearest(vectors, centres)]).square().sum(1)


def cluster_sums(vectors: Tensor, ids: Tensor, count: int, reduce: Reduce | None = None) -> tuple[Tensor, Tensor]:
    """Return how many vectors each of `count` clusters has, float [count], and their sums, float [count, z].

    `ids` [m] are the clusters of the vectors. `reduce` adds up what several processes have.
    """
    counts = torch.bincount(ids, minlength=count).float()
    sums = vectors.new_zeros(count, vectors.shape[1]).index_add_(0, ids, vectors)
    return (counts, sums) if reduce is None else (reduce(counts), reduce(sums))


def lloyd(vectors: Tensor, centres: Tensor, rounds: int, fixed: int = 0, reduce: Reduce | None = None) -> Tensor:
    """Move centres to the means of the vectors that are closest to them, `rounds` times; returns [n, z].

    The first `fixed` centres take part in the assignment but stay. An empty cluster keeps its centre. With `reduce`
    several processes share the vectors.
    """
    kept = centres[:fixed]
    for _ in range(rounds):
        counts, sums = cluster_sums(vectors, nearest(vectors, centres), len(centres), reduce)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        moved = torch.where(counts.unsqueeze(1) > 0, means, centres)
        centres = torch.cat([kept, moved[fixed:]])
    return centres


def sample_seeds(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` different vectors, float [count, z]; vectors repeat if there are fewer than `count`."""
    order = torch.randperm(max(count, len(vectors)), generator=generator)[:count] % len(vectors)
    return vectors[order.to(vectors.device)].clone()


def add_seeds(
    vectors: Tensor, centres: Tensor, count: int, generator: torch.Generator, options: SeedingOptions | None = None
) -> Tensor:
    """Return `centres` and `count` vectors after them, float [n + count, z], chosen by k-means++.

    The probability of a vector grows with its squared distance to the centres (Arthur and Vassilvitskii 2007). Several
    are chosen at once, and outliers are capped.
    """
    options = options or SeedingOptions()
    for batch in torch.arange(count).chunk(options.batches):
        distances = squared_distances(vectors, centres)
        odds = distances.clamp(max=options.outlier * float(distances.mean())) + 1e-12
        chosen = torch.multinomial(odds.cpu(), len(batch), generator=generator)
        centres = torch.cat([centres, vectors[chosen]])
    return centres
