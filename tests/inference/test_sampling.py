"""Sampling: the distribution is the published one, and the noise is fair, reproducible and independent of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.config import SamplingOptions, TokenSampling
from cogvideo.errors import WeightsError
from cogvideo.inference.sampling import (
    ClusterSampler,
    StageKey,
    TokenSampler,
    distribution,
    exponential_noise,
    noise_keys,
)
from kernels import cpu_sample

GOLDEN = Path(__file__).parents[1] / "golden" / "golden.npz"
OPTIONS = SamplingOptions()


def by_hand(logits: np.ndarray, labels: np.ndarray, options: TokenSampling) -> np.ndarray:
    """The definition, one row, in float64 and plain loops."""
    scaled = logits.astype(np.float64) / options.temperature
    mass = np.exp(scaled - scaled.max())
    totals = {int(c): mass[labels == c].sum() for c in np.unique(labels)}
    kept = sorted(totals, key=lambda c: -totals[c])[: options.top_k]
    out = np.zeros_like(mass)
    for cluster in kept:
        inside = np.where(labels == cluster, scaled / options.within_cluster_temperature, -np.inf)
        inner = np.exp(inside - inside.max())
        out += totals[cluster] / sum(totals[c] for c in kept) * inner / inner.sum()
    return out


@pytest.mark.parametrize("name", ["first_frame", "video", "superres"])
def test_golden_distribution(name: str) -> None:
    golden = np.load(GOLDEN)
    expected = golden["sampling_dsr" if name == "superres" else f"sampling_{name}"]
    options: TokenSampling = getattr(OPTIONS, name)
    ours = distribution(
        torch.from_numpy(golden["sampling_logits"]), options, torch.from_numpy(golden["cluster_labels"])
    )
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("clusters, top_k", [(7, 3), (7, 20), (1, 1), (40, 12)])
def test_distribution_is_the_definition_and_sums_to_one(clusters: int, top_k: int) -> None:
    rng = np.random.default_rng(clusters)
    labels = rng.integers(0, clusters, 60) * 3  # with gaps: cluster numbers need not be dense
    logits = rng.normal(size=(2, 3, 60)).astype(np.float32) * 4
    options = TokenSampling(1.05, top_k, 0.6)
    ours = distribution(torch.from_numpy(logits), options, torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)
    for at in np.ndindex(2, 3):
        np.testing.assert_allclose(ours[at], by_hand(logits[at], labels, options), atol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.full((1, 6), -1e4)
    logits[0, 2] = 1e4
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    probabilities = distribution(logits, TokenSampling(1.0, 3, 0.1), labels)
    assert torch.isfinite(probabilities).all()
    assert probabilities[0, 2] == 1


@pytest.mark.parametrize("way", ["sample", "sample_reference"])
def test_draws_follow_the_distribution(way: str) -> None:
    """Chi-square of 40000 draws, one per (seed, frame, slot), against the closed form; seeds are fixed."""
    labels = torch.arange(24) % 5
    sampler = ClusterSampler(labels)
    logits = torch.randn(24, generator=torch.Generator().manual_seed(3))
    options = TokenSampling(1.05, 4, 0.89)
    keys = noise_keys([1, 2, 3, 4] * 10, 2, [f for f in range(10) for _ in range(4)], 1000).flatten(0, 1)  # [40000, 2]
    drawn = getattr(sampler, way)(logits.expand(len(keys), -1), keys, options)
    expected = sampler.distribution(logits, options) * len(keys)
    counts = torch.bincount(drawn, minlength=24)
    assert counts[expected == 0].sum() == 0
    alive = expected > 0
    chi_square = ((counts - expected)[alive] ** 2 / expected[alive]).sum()
    freedom = int(alive.sum()) - 1
    assert freedom > 10
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_noise_is_exponential_and_uncorrelated() -> None:
    keys = noise_keys([7], 1, [0], 200)[:, 0]  # [200, 2]
    noise = exponential_noise(keys, torch.arange(2000).expand(200, -1))  # neighbours in slot and in id
    assert noise.min() > 0
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 1) < 0.01
    assert abs(noise.var() - 1) < 0.03
    uniform = (-noise).exp()
    histogram = torch.histc(uniform, 64, 0, 1) / uniform.numel() * 64
    assert (histogram - 1).abs().max() < 0.06
    for a, b in [(uniform[1:], uniform[:-1]), (uniform[:, 1:], uniform[:, :-1]), (uniform[1:, 1:], uniform[:-1, :-1])]:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 0.01


def test_every_part_of_the_key_matters() -> None:
    ids = torch.arange(64)[None]
    base = exponential_noise(noise_keys([5], 1, [8], 4)[3], ids)
    others = [([6], 1, [8], 3), ([5], 2, [8], 3), ([5], 1, [9], 3), ([5], 1, [8], 2), ([2**32 - 1], 1, [8], 3)]
    for seeds, stage, frames, slot in others:
        assert not torch.isclose(exponential_noise(noise_keys(seeds, stage, frames, 4)[slot], ids), base).any()


def test_a_draw_does_not_depend_on_its_batch() -> None:
    sampler = ClusterSampler(torch.arange(50) % 9)
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    keys = noise_keys([1, 1, 2, 2, 3, 3], 1, [0, 8] * 3, 10)[4]
    together = sampler.sample(logits, keys, OPTIONS.video)
    alone = torch.cat([sampler.sample(logits[i : i + 1], keys[i : i + 1], OPTIONS.video) for i in range(6)])
    backwards = sampler.sample(logits.flip(0), keys.flip(0), OPTIONS.video).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_keys_are_pinned() -> None:
    """Seeds that people have shared must keep giving the same video: these words may never change."""
    assert noise_keys([7, 0], 1, [0, 32], 2).tolist() == PINNED


PINNED = [[[3821375131, 604666151], [4045843070, 572317609]], [[1383639185, 4217790232], [3374434875, 2841249837]]]


def test_noise_and_the_numbers_of_the_stages_are_pinned() -> None:
    noise = exponential_noise(torch.tensor(PINNED[1]), torch.tensor([[0, 1, 19999], [5, 6, 7]]))
    torch.testing.assert_close(noise, torch.tensor(NOISE), rtol=1e-5, atol=0)
    assert [int(stage) for stage in StageKey] == [1, 2, 3]


NOISE = [[0.4373413, 0.8006352, 0.0358265154], [1.2362739, 2.1684656, 2.7096796]]


def test_a_broken_row_still_draws_a_valid_id() -> None:
    sampler = ClusterSampler(torch.arange(12) % 3)
    drawn = sampler.sample(torch.full((1, 12), torch.nan), noise_keys([1], 1, [0], 1)[0], OPTIONS.video)
    assert 0 <= int(drawn) < 12


def test_seeds_and_frames_must_match() -> None:
    with pytest.raises(ValueError, match="2 seeds for 1 frames"):
        noise_keys([1, 2], 1, [0], 1)


def test_noise_is_positive_and_finite_at_both_ends_of_its_words() -> None:
    # A hash of zeros is 0, and _mix is a bijection: undone, it tells which key ends in the largest word.
    word = 0xFFFFFFFF
    for shift, factor in ((15, 0x735A2D97), (15, 0x21F0AAAD)):
        word ^= word >> shift ^ word >> 2 * shift
        word = word * pow(factor, -1, 2**32) % 2**32
    word ^= word >> 16
    least, most = exponential_noise(torch.tensor([[0, 0], [0, word]]), torch.zeros(2, 1, dtype=torch.long)).flatten()
    assert float(least) == pytest.approx(2**-32, rel=1e-6)
    assert 16 < most < 17


def test_the_members_of_a_cluster_are_in_order_whatever_sorts_them() -> None:
    sampler = ClusterSampler(torch.arange(1000) % 3)
    for row, padding in zip(sampler.members, sampler.padding, strict=True):
        assert torch.equal(row[~padding], row[~padding].sort().values)
    assert [int((~row).sum()) for row in sampler.padding] == [334, 333, 333]
    assert torch.equal(sampler.to("cpu").members, sampler.members)


def test_the_compiled_draw_is_taken_where_it_can_be() -> None:
    sampler, logits = ClusterSampler(torch.arange(12) % 3), torch.zeros(1, 12)
    sampler.sample(logits, noise_keys([1], 1, [0], 1)[0], OPTIONS.video)
    assert (sampler._compiled is None) == bool(cpu_sample.unsupported_reason(logits))


def test_dice_draw_with_the_keys_of_their_frame_and_slot() -> None:
    sampler = ClusterSampler(torch.arange(50) % 9)
    keys = {frame: noise_keys([1, 2], 1, [frame] * 2, 3) for frame in (0, 4)}
    dice = TokenSampler(sampler, OPTIONS.video, keys)
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    for frame in keys:
        for slot in range(3):
            assert torch.equal(dice(logits, frame, slot), sampler.sample(logits, keys[frame][slot], OPTIONS.video))
    dice.check()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_dice_see_that_a_logit_was_no_number(number: float) -> None:
    dice = TokenSampler(ClusterSampler(torch.arange(12) % 3), OPTIONS.video, {0: noise_keys([1], 1, [0], 3)})
    broken = torch.zeros(1, 12)
    broken[0, 5] = number
    dice(torch.zeros(1, 12), 0, 0)
    dice.check()
    dice(broken, 0, 1)
    dice(torch.zeros(1, 12), 0, 2)
    with pytest.raises(WeightsError, match="NaN or infinity"):
        dice.check()


def test_dice_weigh_what_they_drew_and_of_a_slot_drawn_anew_the_last() -> None:
    sampler = ClusterSampler(torch.arange(12) % 3)
    logits = 3 * torch.randn(4, 2, 12, generator=torch.Generator().manual_seed(1))
    dice = TokenSampler(sampler, TokenSampling(2.0, 2, 0.3), {0: noise_keys([1, 2], 1, [0, 0], 3)}, weigh=True)
    drawn = [dice(logits[i], 0, slot) for i, slot in enumerate((0, 1, 1, 2))]
    expected = [
        sum(float(np.log(np.exp(z[ids[row]]) / np.exp(z).sum())) for z, ids in rows)
        for row in range(2)
        for rows in [[(logits[i, row].double().numpy(), drawn[i]) for i in (0, 2, 3)]]
    ]
    assert dice.log_likelihood().tolist() == pytest.approx(expected, abs=1e-5)
