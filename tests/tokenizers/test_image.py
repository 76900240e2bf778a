"""Frames: the codec's numbers are icetk's own, its files are checked, and parts can be shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.config import PRESETS
from cogvideo.errors import WeightsError
from cogvideo.tokenizers import image
from cogvideo.tokenizers.image import ImageTokenizer
from tests.support.toy_codec import toy_codec, write_codec

MINI = PRESETS["mini"]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ImageTokenizer:
    return toy_codec(tmp_path_factory.mktemp("codec"))


def picture(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_encode_is_icetk_with_its_normalisation(codec: ImageTokenizer) -> None:
    from torchvision.transforms import Normalize

    pixels = picture(3)
    normalise = Normalize([0.79093, 0.76271, 0.75340], [0.30379, 0.32279, 0.32800])
    _, _, codes = codec.model.single_encode(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255), 1)
    assert torch.equal(codec.encode(pixels), codes.view(3, 24))
    assert codec.encode(pixels).dtype == torch.int64


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_enlarged_frames_are_brought_back_to_their_small_ones(codec: ImageTokenizer, share: float) -> None:
    tokens = torch.randint(0, 64, (2, 16 + 144), generator=torch.Generator().manual_seed(2))
    coarse, fine = tokens.split((16, 144), dim=1)
    small, large = codec.decode(coarse, (4, 4)), codec.decode(fine, (12, 12))
    sizes = dataclasses.replace(MINI.model, grid=(4, 4))
    seen = codec.decode_upscaled(fine, coarse, dataclasses.replace(MINI, model=sizes, back_projection=share))
    assert seen.shape == large.shape

    def apart(frames: np.ndarray) -> float:
        """How far the averages over 3 x 3 pixels are from the small frames."""
        averages = frames.reshape(2, 32, 3, 32, 3, 3).mean((2, 4))
        return float(np.abs(averages - small).mean())

    assert np.array_equal(seen, large) == (share == 0)
    assert apart(seen) <= (1 - 0.5 * share) * apart(large)


def test_detail_of_enlarged_frames_stays() -> None:
    """What a small frame cannot hold, it has no say in: fine stripes around the small frame's grey."""
    stripes = np.zeros((1, 24, 24, 3), np.uint8)
    stripes[:, :, ::3], stripes[:, :, 1::3], stripes[:, :, 2::3] = 150, 120, 90
    grey = np.full((1, 8, 8, 3), 120, np.uint8)
    assert np.array_equal(image.back_project(stripes, grey, 1.0), stripes)
    assert image.back_project(stripes, grey + np.uint8(20), 0.0) is stripes
    lighter = image.back_project(stripes, grey + np.uint8(20), 1.0)
    assert np.array_equal(lighter, stripes + np.uint8(20))


def test_decode_is_icetk_denormalised_and_clamped(codec: ImageTokenizer) -> None:
    tokens = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    out = codec.model.single_decode_code(tokens.view(2, 4, 6), 1)
    out = out * torch.tensor([0.30379, 0.32279, 0.32800]).view(1, 3, 1, 1)
    out = (out + torch.tensor([0.79093, 0.76271, 0.75340]).view(1, 3, 1, 1)).clamp(0, 1)
    pixels = codec.decode(tokens, (4, 6))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 32, 48, 3)
    np.testing.assert_allclose(pixels, out.permute(0, 2, 3, 1) * 255, atol=0.51)


@pytest.mark.parametrize("tokens_per_pass", [1, 12, 35])
def test_passes_change_nothing(codec: ImageTokenizer, tokens_per_pass: int) -> None:
    tokens = torch.randint(0, 64, (7, 12), generator=torch.Generator().manual_seed(2))
    parts = ImageTokenizer(codec.model, tokens_per_pass)
    np.testing.assert_allclose(parts.decode(tokens, (3, 4)), codec.decode(tokens, (3, 4)), atol=1)
    assert torch.equal(parts.encode(picture(5)), codec.encode(picture(5)))


@pytest.mark.parametrize(("tokens_per_pass", "passes"), [(1, [1] * 7), (35, [2, 2, 2, 1]), (84, [7])])
def test_a_pass_holds_as_many_frames_as_fit(
    codec: ImageTokenizer, monkeypatch: pytest.MonkeyPatch, tokens_per_pass: int, passes: list[int]
) -> None:
    seen: list[int] = []
    decode = codec.model.single_decode_code
    monkeypatch.setattr(codec.model, "single_decode_code", lambda c, level: seen.append(len(c)) or decode(c, level))
    ImageTokenizer(codec.model, tokens_per_pass).decode(torch.zeros(7, 12, dtype=torch.long), (3, 4))
    assert seen == passes


def test_partial_frames_show_what_is_there_and_a_plain_rest(codec: ImageTokenizer) -> None:
    tokens = torch.randint(0, 64, (24,), generator=torch.Generator().manual_seed(3))
    whole = codec.decode(tokens[None], (4, 6))[0]
    part = codec.decode_partial(tokens[:15], (4, 6))  # two rows and a half
    assert part.shape == whole.shape
    np.testing.assert_allclose(part[:8].astype(int), whole[:8], atol=8)  # a row away from the edge little differs
    assert (part[16:] == part[16, 0]).all()
    np.testing.assert_array_equal(codec.decode_partial(tokens, (4, 6)), whole)


def test_unused_levels_need_no_weights(tmp_path: Path) -> None:
    write_codec(tmp_path)
    model = ImageTokenizer.load(MINI, folder=tmp_path).model
    names = set(model.state_dict())
    assert not any("cluster_size" in name or "embed_avg" in name for name in names)
    assert all(value.device.type == "cpu" for value in model.state_dict().values())
    assert not any(p.requires_grad for p in model.parameters())


def test_missing_and_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codec(tmp_path)
    weights = tmp_path / "codec.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"codec\.safetensors"):
        ImageTokenizer.load(MINI, folder=tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"codec\.safetensors.*missing"):
        ImageTokenizer.load(MINI, folder=tmp_path)
    (tmp_path / "codec.json").write_text("{")
    with pytest.raises(WeightsError, match=r"codec\.json"):
        ImageTokenizer.load(MINI, folder=tmp_path)


def test_weights_of_another_codec_are_refused(tmp_path: Path) -> None:
    write_codec(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_codec(other, image_tokens=65)
    (other / "codec.safetensors").rename(tmp_path / "codec.safetensors")
    with pytest.raises(WeightsError, match=r"quantize\.embed\.weight"):
        ImageTokenizer.load(MINI, folder=tmp_path)


def test_the_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ice_image.pt` holds the whole state dict under `module`; here a small configuration stands for icetk's."""
    write_codec(tmp_path)
    expected = ImageTokenizer.load(MINI, folder=tmp_path)
    full = image.build_vqvae(tmp_path / "codec.json")
    full.load_state_dict({**full.state_dict(), **expected.model.state_dict()})
    monkeypatch.setattr(image, "ICETK_FOLDER", tmp_path)
    monkeypatch.setattr(image, "_published_codec", lambda: image.build_vqvae(tmp_path / "codec.json", "meta"))
    empty = tmp_path / "empty"
    with pytest.raises(WeightsError, match=r"ice_image\.pt.*missing"):
        ImageTokenizer.load(MINI, folder=empty)
    for zipped in (True, False):  # with and without memory mapping
        torch.save({"module": full.state_dict()}, tmp_path / "ice_image.pt", _use_new_zipfile_serialization=zipped)
        pixels = picture(2)
        assert torch.equal(ImageTokenizer.load(MINI, folder=empty).encode(pixels), expected.encode(pixels))


def test_the_published_configuration_has_the_level_we_use() -> None:
    model = image._published_codec()
    image._keep_level(model)
    names = set(model.state_dict())
    assert model.quantize.embed.weight.shape == (20000, 256)
    assert {name.split(".")[1] for name in names if name.startswith("decs.")} == {"1"}
    assert {name.split(".")[1] for name in names if name.startswith("down_samplers.")} == {"0"}
