"""k-means against a plain reference in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cogvideo.training.kmeans import (
    SeedingOptions,
    add_seeds,
    cluster_sums,
    lloyd,
    nearest,
    sample_seeds,
    squared_distances,
)

Array = npt.NDArray[np.float64]


def random_vectors(count: int, seed: int = 0) -> Tensor:
    """Vectors in multiples of 1/4, so that sums are exact in any order."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-40, 40, (count, 3)) / 4).float()


def reference_lloyd(vectors: Array, centres: Array, rounds: int, fixed: int = 0) -> Array:
    """Lloyd's algorithm with one loop over the centres; an empty cluster keeps its centre."""
    for _ in range(rounds):
        labels = ((vectors[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        moved = centres.copy()
        for number in range(fixed, len(centres)):
            if (labels == number).any():
                moved[number] = vectors[labels == number].mean(0)
        centres = moved
    return centres


@pytest.mark.parametrize("fixed", [0, 3])
@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_lloyd_matches_the_reference(rounds: int, fixed: int) -> None:
    vectors, centres = random_vectors(300), random_vectors(12, seed=1)
    expected = reference_lloyd(vectors.double().numpy(), centres.double().numpy(), rounds, fixed)
    moved = lloyd(vectors, centres, rounds, fixed)
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-4)
    assert torch.equal(moved[:fixed], centres[:fixed])


def test_empty_cluster_keeps_its_centre() -> None:
    vectors = random_vectors(50)
    centres = torch.cat([vectors[:2], torch.full((1, 3), 1e3)])
    moved = lloyd(vectors, centres, 3)
    assert torch.equal(moved[2], centres[2])
    assert not torch.equal(moved[:2], centres[:2])


def test_nearest_matches_the_reference_beyond_one_piece() -> None:
    vectors, centres = random_vectors(5000), random_vectors(40, seed=1).unique(dim=0)
    distances = ((vectors[:, None] - centres[None]) ** 2).sum(2)
    chosen = distances.gather(1, nearest(vectors, centres)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1))  # ties may go to either centre
    torch.testing.assert_close(squared_distances(vectors, centres), distances.amin(1))


def test_reduced_halves_give_the_centres_of_the_whole() -> None:
    """Two processes that share the vectors; the hook adds what the other process has."""
    vectors, centres = random_vectors(200), random_vectors(8, seed=1)
    halves = vectors.split(100)

    def adding(other: Tensor, current: list[Tensor]) -> Callable[[Tensor], Tensor]:
        def reduce(values: Tensor) -> Tensor:
            counts, sums = cluster_sums(other, nearest(other, current[0]), len(current[0]))
            return values + (counts if values.ndim == 1 else sums)

        return reduce

    current = [centres]
    for _ in range(4):
        first, second = (
            lloyd(half, current[0], 1, reduce=adding(other, current)) for half, other in zip(halves, halves[::-1])
        )
        assert torch.equal(first, second)
        current[0] = first
    assert torch.equal(current[0], lloyd(vectors, centres, 4))


def test_cluster_sums_match_the_reference() -> None:
    vectors = random_vectors(60)
    ids = torch.arange(60) % 5
    counts, sums = cluster_sums(vectors, ids, 7)
    assert counts.tolist() == [12.0] * 5 + [0.0] * 2
    for number in range(7):
        assert torch.equal(sums[number], vectors[ids == number].sum(0))


def test_sampled_seeds_are_different_vectors() -> None:
    vectors = random_vectors(50).unique(dim=0)
    seeds = sample_seeds(vectors, 20, torch.Generator().manual_seed(3))
    assert len(seeds.unique(dim=0)) == 20
    assert (squared_distances(seeds, vectors) == 0).all()
    assert torch.equal(seeds, sample_seeds(vectors, 20, torch.Generator().manual_seed(3)))


def test_sampled_seeds_repeat_if_vectors_are_too_few() -> None:
    vectors = torch.eye(3)
    seeds = sample_seeds(vectors, 7, torch.Generator().manual_seed(0))
    assert seeds.shape == (7, 3)
    assert len(seeds.unique(dim=0)) == 3


def test_added_seeds_follow_known_centres_and_skip_covered_vectors() -> None:
    """A vector on a centre has nearly no probability, so all seeds come from the far vectors."""
    known = torch.zeros(1, 3)
    far = 10 + random_vectors(6, seed=2).unique(dim=0)
    vectors = torch.cat([known.repeat(500, 1), far])
    seeded = add_seeds(vectors, known, len(far), torch.Generator().manual_seed(0))
    assert torch.equal(seeded[:1], known)
    assert torch.equal(seeded[1:].unique(dim=0), far.unique(dim=0))


def test_outlier_cap_lets_seeds_come_from_the_many() -> None:
    """Without a cap one outlier has nearly all of the probability; with a low cap it has a small part."""
    known, many, outlier = torch.zeros(1, 3), random_vectors(400).sign(), torch.full((1, 3), 1e4)
    vectors = torch.cat([many[many.any(1)], outlier])

    def draws_of_outlier(cap: float) -> int:
        options = SeedingOptions(batches=1, outlier=cap)
        chosen = [add_seeds(vectors, known, 1, torch.Generator().manual_seed(n), options)[1] for n in range(40)]
        return sum(torch.equal(one, outlier[0]) for one in chosen)

    assert draws_of_outlier(1e9) == 40
    assert draws_of_outlier(1e-6) < 10
