"""Convert: the same tensors and the same numbers in half the bytes, whole or not at all."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cogvideo.cli.main import main
from cogvideo.config import PRESETS, load_preset
from cogvideo.errors import CapacityError, RequestError, WeightsError
from cogvideo.models import convert as module
from cogvideo.models import loader
from cogvideo.models.convert import convert
from cogvideo.weights import checkpoint
from cogvideo.weights.catalog import CONVERTED
from tests.weights.test_checkpoint import edit

GOLDEN = Path(__file__).parents[1] / "golden"
STAGE2 = Path("cogvideo-stage2", "38000", "mp_rank_00_model_states.pt")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(GOLDEN, out)
    return out


def load(folder: Path) -> loader.LoadedModels:
    preset, _ = load_preset(str(folder))
    return loader.load_safetensors(folder, preset.model)


def assert_equal(one: loader.LoadedModels, other: loader.LoadedModels) -> None:
    for part in loader.NETWORKS:
        wanted, got = one.networks[part].state_dict(), other.networks[part].state_dict()
        assert set(wanted) == set(got)
        for name, tensor in wanted.items():
            assert torch.equal(tensor, got[name]), name


def test_every_tensor_is_equal_and_the_backbone_is_one(converted: Path) -> None:
    models = load(converted)
    assert_equal(loader.load_published(GOLDEN), models)
    assert models.stage1.transformer is models.stage2.transformer is models.superres.transformer


def test_the_networks_compute_the_same(converted: Path) -> None:
    before, after = loader.load_published(GOLDEN), load(converted)
    text, length = torch.tensor([[20005, 20006, 20007]]), torch.tensor([3])
    frames = torch.arange(5 * 400).view(1, 5, 400) * 7 % 20000
    with torch.inference_mode():
        wanted, got = (m.stage2.forward_training(text, length, frames) for m in (before, after))
        assert torch.equal(wanted, got)
        wanted, got = (m.superres(text, length, frames[:, 0]) for m in (before, after))
        assert torch.equal(wanted.argmax(-1), got.argmax(-1))
        assert torch.equal(wanted, got)


def test_files_go_layer_by_layer(converted: Path) -> None:
    with (converted / "backbone.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    layers = [checkpoint.layer_number(name) for name in sorted(header, key=lambda name: header[name]["data_offsets"])]
    assert layers == sorted(layers)
    assert layers[-1] == 3
    with safe_open(converted / "backbone.safetensors", "pt") as file:  # what the library thinks of it
        assert set(file.keys()) == set(header)


def test_the_report_says_what_became_smaller(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(published), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    before = sum(path.stat().st_size for path in published.rglob("*.pt"))
    after = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    sizes = re.findall(r"([\d.]+) (kB|MB)", out.splitlines()[1])
    printed = [float(number) * {"kB": 1e3, "MB": 1e6}[unit] for number, unit in sizes]
    assert printed == pytest.approx([after, before], rel=0.05)
    assert "same backbone" in out


def test_what_differs_is_kept_apart(published: Path, tmp_path: Path) -> None:
    edit(published / STAGE2, lambda tensors: tensors["transformer.final_layernorm.bias"].add_(1))
    result = convert(published, tmp_path / "out")
    assert result.own_parts == {"stage1": [], "stage2": ["transformer.final_layernorm.bias"], "superres": []}
    assert "stage2 1" in result.sentences()[1]
    assert_equal(loader.load_published(published), load(tmp_path / "out"))


def test_another_precision_of_the_same_numbers_is_a_difference(published: Path, tmp_path: Path) -> None:
    name = "transformer.final_layernorm.bias"
    edit(published / STAGE2, lambda tensors: tensors.update({name: tensors[name].float() + 2**-20}))
    convert(published, tmp_path / "out")
    assert_equal(loader.load_published(published), load(tmp_path / "out"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    write = checkpoint.write_safetensors

    def interrupted(path: Path, tensors: checkpoint.Tensors) -> None:
        if path.stem == "stage2":
            raise error
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_safetensors", interrupted)
    with pytest.raises(error):
        convert(GOLDEN, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "stage1.safetensors").write_bytes(b"half")
    convert(GOLDEN, tmp_path / "out")
    assert_equal(loader.load_published(GOLDEN), load(tmp_path / "out"))
    assert not (tmp_path / "out.part").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="already exists"):
        convert(GOLDEN, tmp_path / "out")


def test_a_full_disk_and_missing_checkpoints_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="download cogvideo"):
        convert(tmp_path, tmp_path / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(CapacityError, match="Free some space"):
        convert(GOLDEN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_converted_copy_is_preferred(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAT_HOME", str(published))
    assert main(["convert", str(published)]) == 0
    toy, _ = load_preset(str(published / CONVERTED))
    monkeypatch.setitem(PRESETS, "cogvideo", toy)
    for path in published.rglob("*.pt"):
        path.unlink()
    assert_equal(loader.load_published(GOLDEN), loader.load("cogvideo"))
