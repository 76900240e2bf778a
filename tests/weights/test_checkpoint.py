"""Files that are whole are read once and shared; files that are not say so, with their name and the remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogvideo.config import ModelConfig
from cogvideo.errors import WeightsError
from cogvideo.models import loader
from cogvideo.models.convert import convert
from cogvideo.units import format_bytes
from cogvideo.weights import published_format
from tests.support.small_lm import CONFIG, superres_lm, video_lm

GOLDEN = Path(__file__).parents[1] / "golden"
STAGE1 = Path("cogvideo-stage1", "27000", "mp_rank_00_model_states.pt")


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder as training writes it."""
    stage1, stage2, superres = video_lm(1), video_lm(2), superres_lm()
    for name, lm in (("stage1", stage1), ("stage2", stage2), ("superres", superres)):
        own = {key: value.half() for key, value in lm.state_dict().items() if key.startswith("mixins.")}
        save_file(own, tmp_path / f"{name}.safetensors")
    backbone = {key: value.half() for key, value in stage1.state_dict().items() if key.startswith("transformer.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    return tmp_path


def refused(call: Callable[[], object], *words: str) -> None:
    """`call` raises a WeightsError that names all `words` in both languages."""
    with pytest.raises(WeightsError) as caught:
        call()
    for word in words:
        assert word in caught.value.zh
        assert word in caught.value.en


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    loaded = torch.load(path, weights_only=True)
    change(loaded["module"])
    torch.save(loaded, path)


def test_shipped_files_share_one_backbone_and_need_no_gradients(shipped: Path) -> None:
    models = loader.load_safetensors(shipped, CONFIG)
    assert models.stage1.transformer is models.stage2.transformer is models.superres.transformer
    wanted = video_lm(1).state_dict()
    for name, tensor in models.stage1.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, wanted[name].half().float(), rtol=0, atol=0)
    assert not any(weight.requires_grad or weight.is_meta for weight in models.superres.parameters())
    assert not models.stage2.training


def test_only_the_parts_asked_for_are_read(shipped: Path) -> None:
    (shipped / "superres.safetensors").unlink()
    models = loader.load_safetensors(shipped, CONFIG, parts=("stage2",))
    assert set(models.networks) == {"stage2"}
    refused(lambda: loader.load_safetensors(shipped, CONFIG), str(shipped / "superres.safetensors"))


def test_sizes_of_published_checkpoints_come_from_their_files(published: Path) -> None:
    config = published_format.published_config(published)
    assert config == ModelConfig(
        layers=4, hidden=32, heads=2, vocab_size=20064, image_tokens=20000, start_of_image=20061
    )
    path = published / "cogvideo-stage1" / "model_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 150010}))
    assert published_format.published_config(published).start_of_image == 150000


def test_equal_backbones_of_published_checkpoints_are_one(published: Path) -> None:
    models = loader.load_published(published)
    assert models.stage1.transformer is models.stage2.transformer is models.superres.transformer


def test_a_backbone_that_differs_shares_what_is_equal(published: Path) -> None:
    path = published / "cogvideo-stage2" / "38000" / "mp_rank_00_model_states.pt"
    name = "transformer.final_layernorm.bias"
    edit(path, lambda tensors: tensors[name].add_(1))
    models = loader.load_published(published)
    first, second = models.stage1.state_dict(), models.stage2.state_dict()
    assert models.superres.transformer is models.stage1.transformer
    torch.testing.assert_close(second[name], first[name] + 1, rtol=0, atol=1e-2)
    different = {n for n in first if n.startswith("transformer.") and first[n].data_ptr() != second[n].data_ptr()}
    assert different == {name}


def test_what_sharing_saves_is_told(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    models = loader.load_published(published)
    sizes = models.sizes
    unique = {p.data_ptr(): p.nbytes for network in models.networks.values() for p in network.parameters()}
    assert sizes.after == sum(unique.values())
    assert sizes.before == sum(p.nbytes for network in models.networks.values() for p in network.parameters())
    assert "same backbone" in caplog.text and format_bytes(sizes.after) in caplog.text
    path = published / "cogvideo-stage2" / "38000" / "mp_rank_00_model_states.pt"
    edit(path, lambda tensors: tensors["transformer.final_layernorm.bias"].add_(1))
    sizes = loader.load_published(published).sizes
    assert sizes.own_parts == {"stage1": [], "stage2": ["transformer.final_layernorm.bias"], "superres": []}


LOAD = """
import sys, torch
from pathlib import Path
from cogvideo.weights.published_format import published_config
from cogvideo.models import loader

def kilobytes(word):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(word))

dtype = getattr(torch, sys.argv[2])
torch.randn(8).to(dtype)
open("/proc/self/clear_refs", "w").write("5")  # forget the highest point so far
before = kilobytes("VmRSS")
folder = Path(sys.argv[1])
if sys.argv[3] == "converted":
    models = loader.load_safetensors(folder / "converted", published_config(folder), dtype=dtype)
else:
    models = loader.load_published(folder, dtype=dtype)
print((kilobytes("VmHWM") - before) * 1024, models.sizes.after)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "form"), [("float32", "published"), ("float16", "published"), ("float32", "converted")]
)
def test_loading_takes_what_stays_and_little_more(published: Path, dtype: str, form: str) -> None:
    for name in published_format.PUBLISHED.values():
        path = published / name / "model_config.json"
        sizes = {"num_layers": 24, "hidden_size": 256, "num_attention_heads": 4}
        path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    config = published_format.published_config(published)
    common: dict[str, torch.Tensor] = {}
    for part in loader.NETWORKS:
        for name, like in loader.expected(config, part).items():
            common[name] = torch.full(like.shape, 0.5, dtype=torch.float16)
        path = published_format.checkpoint_file(published / published_format.PUBLISHED[part])
        torch.save({"module": {name: common[name] for name in loader.expected(config, part)}}, path)
    if form == "converted":
        convert(published, published / "converted")
    words = [sys.executable, "-c", LOAD, str(published), dtype, form]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    peak, stays = map(int, answer.stdout.split())
    largest = common["transformer.word_embeddings.weight"].nbytes
    assert peak < stays + largest + 2**24


def test_without_latest_the_only_checkpoint_is_taken(published: Path) -> None:
    (published / "cogvideo-stage1" / "latest").unlink()
    assert published_format.checkpoint_file(published / "cogvideo-stage1") == published / STAGE1


@pytest.mark.parametrize("name", ["cogvideo-stage2/model_config.json", str(STAGE1)])
def test_missing_files_are_named(published: Path, name: str) -> None:
    (published / name).unlink()
    refused(lambda: loader.load_published(published), str(published / name))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
        lambda path: torch.save({"something": 1}, path),
        lambda path: torch.save([1, 2], path),
    ],
    ids=["cut", "beginning only", "empty", "web page", "other content", "a list"],
)
def test_damaged_published_files_are_named(published: Path, spoil: Callable[[Path], object]) -> None:
    spoil(published / STAGE1)
    refused(lambda: loader.load_published(published), str(published / STAGE1))


@pytest.mark.parametrize("text", ["{", "[]", '{"num_layers": 4}'])
def test_damaged_sizes_are_named(published: Path, text: str) -> None:
    path = published / "cogvideo-stage1" / "model_config.json"
    path.write_text(text)
    refused(lambda: published_format.published_config(published), str(path))


def test_a_missing_tensor_is_named(published: Path) -> None:
    name = "transformer.layers.3.mlp.dense_4h_to_h.bias"
    edit(published / STAGE1, lambda tensors: tensors.pop(name))
    refused(lambda: loader.load_published(published), str(published / STAGE1), name)


def test_a_tensor_of_another_shape_is_named(published: Path) -> None:
    name = "mixins.attention_plus.attn_distribution.2"
    edit(published / STAGE1, lambda tensors: tensors.update({name: torch.zeros(33)}))
    refused(lambda: loader.load_published(published), str(published / STAGE1), name, "[33]", "[32]")


def test_a_tensor_of_whole_numbers_is_named(published: Path) -> None:
    name = "transformer.word_embeddings.weight"
    edit(published / STAGE1, lambda tensors: tensors.update({name: tensors[name].long()}))
    refused(lambda: loader.load_published(published), str(published / STAGE1), name, "int64")


def test_another_networks_file_is_named(published: Path) -> None:
    superres = published / "cogview2-dsr" / "20000" / "mp_rank_00_model_states.pt"
    shutil.copy(superres, published / STAGE1)
    refused(lambda: loader.load_published(published), str(published / STAGE1), "mixins.")


class Payload:
    """What a pickle would call while it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("called"),)  # type: ignore[return-value]


def test_code_in_a_file_never_runs(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"module": {"weight": Payload()}}, published / STAGE1)
    refused(lambda: loader.load_published(published), str(published / STAGE1))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_damaged_safetensors_are_named(shipped: Path, keep: int) -> None:
    path = shipped / "stage1.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(lambda: loader.load_safetensors(shipped, CONFIG), str(path))


def test_published_checkpoints_are_looked_for_where_sat_keeps_them(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "nowhere"))
    refused(lambda: loader.load("cogvideo"), str(tmp_path / "nowhere" / "cogvideo-stage1"))
    monkeypatch.setenv("SAT_HOME", str(published))
    refused(lambda: loader.load("cogvideo"), str(published / STAGE1), "[150010, 3072]", "[20064, 32]")
