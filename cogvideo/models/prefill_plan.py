"""What text and given frames see of each other, and where their keys and values are kept: plans for `kernels.cpu_prefill`.

In: a cache that nothing has been read into. Out: the plan; tokens are numbered text first, then frames in time order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cogvideo.models.kv_cache import Cache
from cogvideo.token_layout import Layout, Sight
from kernels import cpu_prefill
from kernels.cpu_prefill import Group, Plan


def plan(cache: Cache) -> Plan:
    """For the frames that are given to `cache`; without any for the text alone."""
    own = cpu_prefill.Sight([_text(cache), *_own(cache)], cache.spatial_places())
    across = [cpu_prefill.Sight(list(_across(cache, parity)), cache.temporal_places(parity)) for parity in (0, 1)]
    return Plan([own, *across], cache.text)


def _text(cache: Cache) -> Group:
    text = torch.arange(cache.text)
    return Group(text, text)


def _own(cache: Cache) -> Iterable[Group]:
    """Each frame sees the text and itself."""
    for number, frame in enumerate(cache.given):
        tokens = _tokens(cache, number)
        causal = cache.layout.spatial_sight(cache.stage, frame) is Sight.CAUSAL
        yield Group(tokens, _after_text(cache, [tokens]), cache.text if causal else None, cache.boost)


def _across(cache: Cache, parity: int) -> Iterable[Group]:
    """Each frame sees the text and other frames, or of them what is in its region; those that see the same together."""
    for cells in _regions(cache.layout, parity) if cache.stage == 2 else [slice(None)]:
        parts = [_tokens(cache, number)[cells] for number in range(len(cache.given))]
        alike: list[int] = []
        for number, frame in enumerate(cache.given):
            sights = [cache.layout.temporal_sight(cache.stage, frame, seen) for seen in cache.given]
            if sights == [Sight.ALL] * len(sights):
                alike.append(number)
                continue
            seen = [part for part, sight in zip(parts, sights) if sight is not Sight.NONE]  # its own is the last
            before = cache.text + sum(map(len, seen[:-1]))
            yield Group(parts[number], _after_text(cache, seen), before)
        if alike:
            yield Group(torch.cat([parts[number] for number in alike]), _after_text(cache, parts))


def _regions(layout: Layout, parity: int) -> list[Tensor]:
    """Cells of each region."""
    regions = torch.as_tensor(layout.regions(layout.shift(parity)))
    return [(regions == region).nonzero().flatten() for region in regions.unique()]


def _tokens(cache: Cache, number: int) -> Tensor:
    size = cache.layout.tokens_per_frame
    return cache.text + number * size + torch.arange(size)


def _after_text(cache: Cache, parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.arange(cache.text), *parts])
