"""Geometry at many sizes, against definitions written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideo.config import PRESETS, ModelConfig
from cogvideo.token_layout import TokenLayout, Visibility
from tests.support.oracle import same_region, sees
from tests.support.small_lm import CONFIG


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    window = draw(st.sampled_from([1, 2, 3, 4]))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = rows * columns * window * window
    keyframes = draw(st.sampled_from([3, 5, 7]))
    return TokenLayout(
        replace(
            CONFIG,
            grid=(rows * window, columns * window),
            window=window,
            keyframes=keyframes,
            base_positions=CONFIG.image_start + size + 1,
            extra_positions=size * (keyframes - 1),
        )
    )


@given(layouts())
def test_decoding_order_of_stage_2_is_undone_by_its_inverse(layout: TokenLayout) -> None:
    clip = list("abcdefg"[: layout.frames])
    decoding = [clip[i] for i in layout.stage2_order]
    assert [decoding[i] for i in layout.stage2_revert] == clip
    assert decoding[: len(layout.given)] == clip[::2]


@given(layouts())
def test_positions_of_frames_follow_each_other_through_both_tables(layout: TokenLayout) -> None:
    n = layout.tokens_per_frame
    first = layout.frame_rows(0)
    assert first[0] == layout.image_start
    assert first[-1] == layout.image_start + n - 1 < layout.config.base_positions
    later = np.concatenate([layout.frame_rows(frame) for frame in range(1, layout.frames)])
    assert later.tolist() == list(range(n * (layout.frames - 1)))


@given(layouts(), st.integers(0, 3))
def test_windows_are_a_partition_into_equal_parts(layout: TokenLayout, layer: int) -> None:
    windows = layout.windows(layout.shift(layer))
    assert sorted(windows.flatten()) == list(range(layout.tokens_per_frame))
    assert windows.shape[1] == layout.config.window**2
    assert (np.diff(windows, axis=1) > 0).all()


@settings(max_examples=40)
@given(layouts(), st.integers(0, 1))
def test_regions_are_windows_cut_at_the_wrapped_edge(layout: TokenLayout, layer: int) -> None:
    region = layout.regions(layout.shift(layer))
    for cell in range(layout.tokens_per_frame):
        for other in range(layout.tokens_per_frame):
            assert (region[cell] == region[other]) == same_region(layout, layer % 2, cell, other)
    assert list(dict.fromkeys(region.tolist())) == list(range(region.max() + 1))  # numbered as one reads


@given(layouts(), st.integers(0, 1))
def test_a_region_lies_in_one_window(layout: TokenLayout, layer: int) -> None:
    region = layout.regions(layout.shift(layer))
    held = [set(region[cells]) for cells in layout.windows(layout.shift(layer))]
    assert sum(len(some) for some in held) == len(set(region))


@settings(max_examples=40)
@given(layouts(), st.sampled_from([1, 2]), st.integers(0, 2), st.integers(0, 1))
def test_masks_of_one_frame_are_sights_written_out(layout: TokenLayout, stage: int, frame: int, layer: int) -> None:
    cells = range(layout.tokens_per_frame)
    sight = layout.spatial_visibility(1 if stage == 1 else 2, frame)
    spatial = layout.spatial_mask(1 if stage == 1 else 2, frame)
    assert spatial.tolist() == [[sees(sight, cell, other) for other in cells] for cell in cells]
    regions = layout.region_mask(layer)
    assert regions.tolist() == [[same_region(layout, layer, cell, other) for other in cells] for cell in cells]


@settings(max_examples=40)
@given(layouts(), st.integers(0, 1))
def test_window_mask_is_sight_within_the_region(layout: TokenLayout, layer: int) -> None:
    frames = layout.stage2_order
    cells = layout.windows(layout.shift(layer))
    mask = layout.window_mask(layout.shift(layer), frames)
    side = layout.config.window**2
    for window, inside in enumerate(cells):
        for a, frame in enumerate(frames):
            for b, seen in enumerate(frames):
                block = mask[window, a * side : (a + 1) * side, b * side : (b + 1) * side]
                sight = layout.temporal_visibility(2, frame, seen)
                wanted = [[same_region(layout, layer, c, d) and sees(sight, c, d) for d in inside] for c in inside]
                assert block.tolist() == wanted


@settings(max_examples=40)
@given(layouts(), st.sampled_from([1, 2]), st.integers(0, 1), st.integers(0, 5))
def test_a_stretch_of_the_shelf_is_what_a_drawn_slot_sees(
    layout: TokenLayout, stage: int, layer: int, text: int
) -> None:
    shelf = layout.temporal_keys(1 if stage == 1 else 2, layer, text)
    places = {frame: shelf.frame_slots(frame) for frame in range(layout.frames)}
    where = {int(place): (frame, cell) for frame in places for cell, place in enumerate(places[frame])}
    texts = {int(place) for place in shelf.text_slots().flatten()}
    assert len(where) + len(texts) == shelf.capacity  # no two at one place, none left over
    for frame in layout.generated if stage == 2 else range(1, layout.frames):
        for slot, (start, end) in enumerate(shelf.key_ranges(frame)):
            assert set(range(start, start + text)) <= texts
            seen = {where[place] for place in range(start + text, end)}
            assert seen == {
                (other, cell)
                for other in range(layout.frames)
                for cell in range(layout.tokens_per_frame)
                if (stage == 1 or same_region(layout, layer, slot, cell))
                and sees(layout.temporal_visibility(1 if stage == 1 else 2, frame, other), slot, cell)
            }
            assert where[end - 1] == (frame, slot)


@settings(max_examples=40)
@given(layouts())
def test_wavefront_lag_is_the_least_that_finds_every_region_complete(layout: TokenLayout) -> None:
    def complete(lag: int) -> bool:
        """Slot k of a frame is drawn in step k + lag, slot j of the frame before it in step j."""
        return all(
            other < slot + lag
            for slot in range(layout.tokens_per_frame)
            for other in range(layout.tokens_per_frame)
            if same_region(layout, 0, slot, other) or same_region(layout, 1, slot, other)
        )

    assert complete(layout.wavefront_lag)
    assert not complete(layout.wavefront_lag - 1)
    assert layout.wavefront_lag <= layout.tokens_per_frame


def test_published_round_takes_590_steps() -> None:
    layout = TokenLayout(PRESETS["cogvideo"].model)
    assert layout.tokens_per_frame + layout.wavefront_lag == 590


def test_sights_of_the_published_stages() -> None:
    layout = TokenLayout(PRESETS["cogvideo"].model)
    assert [[layout.temporal_visibility(1, a, b).name for b in range(5)] for a in (0, 2)] == [
        ["CAUSAL", "NONE", "NONE", "NONE", "NONE"],
        ["ALL", "ALL", "CAUSAL", "NONE", "NONE"],
    ]
    assert [[layout.temporal_visibility(2, a, b).name for b in range(5)] for a in (0, 1, 2, 3)] == [
        ["ALL", "NONE", "ALL", "NONE", "ALL"],
        ["ALL", "CAUSAL", "ALL", "NONE", "ALL"],
        ["ALL", "NONE", "ALL", "NONE", "ALL"],
        ["ALL", "ALL", "ALL", "CAUSAL", "ALL"],
    ]
    assert [layout.shift(layer) for layer in range(6)] == [0, 5, 0, 5, 0, 5]
    assert [layout.spatial_visibility(2, frame) for frame in range(3)] == [
        Visibility.ALL,
        Visibility.CAUSAL,
        Visibility.ALL,
    ]
    assert layout.superres_positions()[[0, -1]].tolist() == [513, 912]
    assert layout.frame_rows(4)[-1] == 1599


@pytest.mark.parametrize(
    "change", [{"window": 3}, {"grid": (4, 3)}, {"grid": (3, 4)}, {"base_positions": 30}, {"extra_positions": 95}]
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot"):
        TokenLayout(replace(CONFIG, **change))


def test_tables_of_positions_may_be_full_to_the_last_row() -> None:
    rows = CONFIG.image_start + CONFIG.tokens_per_frame + 1  # the last token of a frame is read as well
    TokenLayout(replace(CONFIG, base_positions=rows))
    with pytest.raises(ValueError, match="base positions"):
        TokenLayout(replace(CONFIG, base_positions=rows - 1))


@pytest.mark.parametrize("config", [preset.model for preset in PRESETS.values()])
def test_presets_fit(config: ModelConfig) -> None:
    assert TokenLayout(config).tokens_per_frame == config.tokens_per_frame
    assert TokenLayout(config).fine_tokens == 9 * config.tokens_per_frame


def test_what_every_step_asks_for_is_made_once() -> None:
    layout, frames = TokenLayout(CONFIG), (0, 1)
    assert layout.windows(1) is layout.windows(1)
    assert layout.window_mask(1, frames) is layout.window_mask(1, frames)
    assert layout.temporal_keys(2, 1, 3) is layout.temporal_keys(2, 1, 3)
