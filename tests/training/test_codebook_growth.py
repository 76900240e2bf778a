"""Codes added to a trained codec, and networks that start with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cogvideo.config import ASSETS, PRESETS, load_preset
from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_world import State
from cogvideo.errors import RequestError, WeightsError
from cogvideo.models.loader import load_safetensors
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.training.codebook_growth import (
    CodebookGrowthOptions,
    CodeSearch,
    add_codes,
    grow_codebook,
    grow_embeddings,
)
from cogvideo.training.export import write_tensors
from cogvideo.training.kmeans import nearest
from cogvideo.training.network_recipe import EMBEDDINGS
from cogvideo.training.recipe import NETWORK_PARTS, Recipe, parse_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.vqvae_data import normalise
from cogvideo.training.vqvae_task import encode
from tests.support.toy_training import decoder_task
from tests.support.toy_world import needs_font

MORE = 6


def make_recipe(**parts: Any) -> Recipe:
    """Return a recipe that adds a few codes to mini's."""
    codes = {"data": {"more": MORE, "vectors": 60, "rounds": 2, "small_frames": 8, "fine_crops": 2}}
    return parse_recipe({"preset": "mini", "seed": 3, "start": "mini", "clusters": 16, "codes": codes, **parts})


def distance(vectors: torch.Tensor, codes: torch.Tensor) -> float:
    return float((vectors - codes[nearest(vectors, codes)]).square().sum(1).mean())


def test_new_codes_are_added_where_old_codes_are_far() -> None:
    torch.manual_seed(0)
    codes = torch.randn(40, 4)
    strange = 20 + torch.randn(8, 4)
    vectors = torch.cat([codes.repeat(5, 1), strange.repeat(5, 1)])
    every = add_codes(codes, vectors, 8)
    assert torch.equal(every[:40], codes)
    assert distance(codes, every) == 0
    assert distance(strange, every) < 0.02 * distance(strange, codes)
    assert (every[40:].mean(1) > 10).all()


def test_kmeans_rounds_reduce_the_distance_to_new_codes() -> None:
    torch.manual_seed(0)
    codes, vectors = torch.zeros(1, 4), torch.randn(600, 4)
    moved, drawn = (add_codes(codes, vectors, 12, rounds=rounds) for rounds in (10, 0))
    assert distance(vectors, moved) < 0.95 * distance(vectors, drawn)
    assert torch.equal(moved[0], codes[0])


def test_new_code_gets_the_embedding_of_its_nearest_old_code() -> None:
    torch.manual_seed(0)
    small = PRESETS["mini"].model
    wide = grow_codebook(small, MORE)
    codes = torch.randn(small.image_tokens, 4)
    embeddings = torch.randn(small.vocab_size, 8)
    twins = [5, 1, 9, 7, 100, 2]
    wider = grow_embeddings(embeddings, torch.cat([codes, codes[twins] + 1e-3]), wide)
    assert len(wider) == wide.vocab_size == small.vocab_size + MORE
    assert torch.equal(wider[small.image_tokens : wide.image_tokens], embeddings[twins])
    assert torch.equal(wider[: small.image_tokens], embeddings[: small.image_tokens])
    assert torch.equal(wider[wide.start_of_image], embeddings[small.start_of_image])
    assert torch.equal(wider[wide.image_tokens :], embeddings[small.image_tokens :])


def test_code_search_uses_only_subjects_on_a_plain_ground(tmp_path: Path) -> None:
    """Two small frames and a crop, each with its twin. Without marked subjects every patch counts."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    masks = np.zeros(frames.shape[:3], np.float32)
    masks[:, 8:16, 16:24] = 1.0  # one patch of 8 pixels
    options = CodebookGrowthOptions(small_frames=4, fine_crops=2, more=3, vectors=3)
    search = CodeSearch(decoder_task(tmp_path).codec, lambda rng, options: (frames, masks), options, 0)
    every = encode(search.codec, normalise(frames)).permute(0, 2, 3, 1)  # [6, 4, 4, z]
    assert torch.equal(search.vectors(), every[[2, 3, 5], 1, 2])
    masks[:] = 0.0
    search.options = CodebookGrowthOptions(small_frames=4, fine_crops=2, more=3, vectors=6 * 16)
    assert torch.equal(search.vectors(), every.flatten(0, 2))


@needs_font
def test_recipe_with_codes_grows_codec_clusters_and_embeddings(tmp_path: Path) -> None:
    recipe = make_recipe(stage2={"run": {"steps": 1, "warmup": 1}, "data": {"windows": 1}})
    RecipeRunner(recipe, tmp_path).run_part("codes")
    preset, folder = load_preset(str(tmp_path / "model"))
    assert preset.model == grow_codebook(PRESETS["mini"].model, MORE)
    before, after = (load_file(home / "codec.safetensors") for home in (ASSETS / "mini", folder))
    old = len(before["quantize.embed.weight"])
    assert torch.equal(after["quantize.embed.weight"][:old], before["quantize.embed.weight"])
    assert len(after["quantize.embed.weight"]) == old + MORE
    others = [name for name in before if name != "quantize.embed.weight"]
    assert all(torch.equal(after[name], before[name]) for name in others)
    labels = np.load(folder / "cluster_labels.npy")
    assert len(labels) == old + MORE
    assert len(set(labels.tolist())) == 16

    RecipeRunner(recipe, tmp_path).run_part("stage2")
    networks = load_safetensors(ASSETS / "mini", PRESETS["mini"].model)
    known = networks.stage2.state_dict()[EMBEDDINGS]
    grown = RecipeRunner(recipe, tmp_path).networks.start_weights("backbone")
    assert grown is not None
    assert torch.equal(grown[EMBEDDINGS][:old].float(), known[:old])
    assert torch.equal(grown[EMBEDDINGS][old + MORE :].float(), known[old:])

    frames = synthetic_render.render_state(0, 0, 0, State(4.0, 4.0, 3.0, 0.0))[0][None]
    codec = ImageTokenizer.load(preset, folder=folder)
    with_new = codec.encode(frames)
    codec = ImageTokenizer.load(PRESETS["mini"])
    changed = with_new != codec.encode(frames)
    assert (with_new[changed] >= old).all()  # a token stays, or becomes a new code


@needs_font
def test_networks_read_new_codes_as_their_nearest_old_codes(tmp_path: Path) -> None:
    """Logits of old tokens stay, and a new code has those of its nearest old code."""
    recipe = make_recipe(stage2={"run": {"steps": 1}, "data": {"windows": 1}})
    runner = RecipeRunner(recipe, tmp_path)
    runner.run_part("codes")
    world = runner.networks.joint_task("stage2")
    runner.networks.load_networks(world, ASSETS / "mini")
    known = load_safetensors(ASSETS / "mini", PRESETS["mini"].model).stage1
    text = torch.tensor([[4, 5, 6]]) + PRESETS["mini"].model.image_tokens
    tokens = torch.arange(64)[None]
    length = torch.tensor([3])
    with torch.no_grad():
        before = known.forward_images(text, length, tokens)
        after = world.models.stage1.eval().forward_images(text + MORE, length, tokens)
    old = PRESETS["mini"].model.image_tokens
    assert torch.allclose(before[..., :old], after[..., :old], atol=1e-4)
    codes = runner.codec.trained_codec().quantize.embed.weight
    twins = nearest(codes[old:], codes[:old])
    assert torch.allclose(after[..., old : old + MORE], before[..., twins], atol=1e-4)


@needs_font
def test_model_with_added_codes_can_be_grown_again(tmp_path: Path) -> None:
    once = make_recipe(stage2={"run": {"steps": 1, "warmup": 1}, "data": {"windows": 1}})
    RecipeRunner(once, tmp_path / "once").run_part("codes")
    folder = tmp_path / "once" / "model"
    for name in NETWORK_PARTS:
        part = RecipeRunner(once, tmp_path / "once").networks.start_weights(name)
        assert part is not None
        write_tensors(part, folder / f"{name}.safetensors")
    again = make_recipe(start=str(folder), stage2=once.parts["stage2"])
    for part in ("codes", "stage2"):
        RecipeRunner(again, tmp_path / "again").run_part(part)
    preset, grown = load_preset(str(tmp_path / "again" / "model"))
    assert preset.model == grow_codebook(PRESETS["mini"].model, 2 * MORE)
    codes = [load_file(home / "codec.safetensors")["quantize.embed.weight"] for home in (folder, grown)]
    assert torch.equal(codes[1][:-MORE], codes[0])


@needs_font
def test_finished_codes_are_not_made_again(tmp_path: Path) -> None:
    RecipeRunner(make_recipe(), tmp_path).run_part("codes")
    made = (tmp_path / "model" / "codec.safetensors").stat().st_mtime_ns
    RecipeRunner(make_recipe(), tmp_path).run_part("codes")
    assert (tmp_path / "model" / "codec.safetensors").stat().st_mtime_ns == made


@needs_font
def test_interrupted_codes_are_made_again(tmp_path: Path) -> None:
    """The description is written last. The old description means that codes are missing."""
    RecipeRunner(make_recipe(), tmp_path).run_part("codes")
    folder = tmp_path / "model"
    whole = load_file(folder / "codec.safetensors")
    (folder / "codec.json").write_bytes((ASSETS / "mini" / "codec.json").read_bytes())
    RecipeRunner(make_recipe(), tmp_path).run_part("codes")
    again = load_file(folder / "codec.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    codec = ImageTokenizer.load(load_preset(str(folder))[0], folder=folder)
    newest = torch.full((1, 64), len(whole["quantize.embed.weight"]) - 1)
    assert codec.decode(newest, PRESETS["mini"].model.grid).shape == (1, 64, 64, 3)


def test_networks_without_their_codes_are_refused(tmp_path: Path) -> None:
    recipe = make_recipe(models={"run": {"steps": 1}})
    with pytest.raises(WeightsError, match="--part codes"):
        RecipeRunner(recipe, tmp_path).run_part("models")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"start": "nothing"}, "nothing"),
        ({"start": "small"}, "small"),
        ({"codec": {"run": {"steps": 1}}}, "codec"),
        ({"codes": {"data": {"more": 0}}}, "more"),
        ({"codes": {"data": {"more": 9, "vectors": 5}}}, "vectors"),
    ],
)
def test_unusable_codes_are_refused_before_any_file_is_written(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(RequestError, match=named):
        RecipeRunner(make_recipe(**change), tmp_path)
    assert not (tmp_path / "model").exists()
