"""The tutorial's own commands, at toy size: a folder of clips becomes a film of a newly trained model."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from cogvideo.cli import main as cli
from cogvideo.cli.train import main
from cogvideo.config import PRESETS, load_preset
from cogvideo.data.dataset import open_dataset
from cogvideo.media.metadata import read_metadata
from cogvideo.models.loader import load_safetensors
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.training.codebook_growth import CodebookGrowthOptions
from cogvideo.training.decoder_task import DecoderOptions
from cogvideo.training.frame_classifier import FrameClassifierOptions
from cogvideo.training.joint_task import JointTaskOptions, SingleNetworkOptions
from cogvideo.training.network_task import NetworkTaskOptions
from cogvideo.training.recipe import read_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import TrainerOptions
from cogvideo.training.vqvae_task import VQVAEOptions
from tests.support.toy_clips import write_clips

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = "docs/training.md", "docs/training_zh.md"
TOY_SIZES = "\n[model]\nlayers = 1\nhidden = 64\nheads = 2\n"


def commands(name: str) -> list[list[str]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def toy_recipe(name: str) -> str:
    """A shipped recipe with two steps and few sequences for each part."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    small = {"steps": 2, "batch": 2, "small_frames": 4, "fine_crops": 2, "warmup_steps": 1}
    for option, value in small.items():
        text = re.sub(rf"^{option} = \d+", f"{option} = {value}", text, flags=re.M)
    return text + TOY_SIZES


def test_both_languages_have_the_same_commands_and_files() -> None:
    assert commands(ENGLISH) == commands(CHINESE)
    for name, other in ((ENGLISH, "training.md"), (CHINESE, "training_zh.md")):
        links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8"))
        assert other not in links
        assert len(links) > 4
        assert all((ROOT / "docs" / link).exists() for link in links)


def test_the_commands_make_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clips(tmp_path / "clips")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "train_own.toml").write_text(toy_recipe("train_own.toml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for python, module, package, *words in commands(ENGLISH):
        assert (python, module, package) == ("python", "-m", "cogvideo")
        extra = ["--workers", "1"] if words[0] == "prepare" else []
        assert cli.main([*words, *extra]) == 0, words
    assert read_metadata(Path("panda.mp4"))["frames"] == 5
    # The film came from the new codec and networks, and the files are the published ones' equals.
    assert load_preset("runs/own/model")[0].model.hidden == 64
    assert cli.main(["train", "examples/train_own.toml", "--part", "published"]) == 0
    again = Path("again.toml")
    again.write_text(
        toy_recipe("train_more.toml")
        .replace("runs/more/data", "runs/own/data")
        .replace('start = "mini"', 'start = "runs/own/published"')
    )
    runner = RecipeRunner(read_recipe(again), tmp_path / "again")
    expected = load_safetensors(Path("runs/own/model"), runner.run.sizes)
    network = runner.networks.build("stage1", fresh=False)
    for name, value in expected.stage1.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_a_class_of_ones_own_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "moving_square.py", tmp_path / "examples")
    where = "examples/moving_square.py:MovingSquares"
    recipe = toy_recipe("train_own.toml").replace("runs/own/data", where)
    Path("squares.toml").write_text(recipe, encoding="utf-8")
    assert main(["squares.toml", "--part", "stage1"]) == 0
    state = torch.load("runs/squares/stage1/checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert {name.split(".")[0] for name in state["module"]} == {"mixins"}
    preset = PRESETS["mini"]
    data = open_dataset(where, preset, lambda: ImageTokenizer.load(preset))
    assert len(data) == 12
    assert data[5].frames.shape == (9, 64)
    assert data[5].fine.shape == (5, 576)
    assert (data[5].frames[0] != data[5].frames[-1]).any()


def test_going_on_from_a_model_begins_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(ROOT / "examples" / "train_more.toml")
    runner = RecipeRunner(recipe, tmp_path / "run")
    network = runner.networks.build("stage1", fresh=False)
    expected = load_safetensors(ROOT / "assets" / "mini", PRESETS["mini"].model, parts=["stage1"]).stage1
    for name, value in expected.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    fresh = runner.networks.build("stage1", fresh=True)
    own = fresh.get_mixin("attention_plus").query_key_value[3].weight
    assert torch.equal(own, fresh.transformer.layers[3].attention.query_key_value.weight)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("train_*.toml")))
def test_recipes_fit_their_options(name: str) -> None:
    recipe = read_recipe(ROOT / "examples" / name)
    networks = NetworkTaskOptions if recipe.own_clips else SingleNetworkOptions
    kinds = {
        "codec": VQVAEOptions,
        "codes": CodebookGrowthOptions,
        "decoder": DecoderOptions,
        "judge": FrameClassifierOptions,
        "models": JointTaskOptions,
        **dict.fromkeys(("backbone", "stage1", "stage2", "superres"), networks),
    }
    for part in set(recipe.parts) - {"tokenizer"}:
        if part != "codes":
            assert recipe.run_options(part, TrainerOptions).steps > 0
        recipe.options(part, kinds[part])


def test_published_recipe_shares_its_batch_evenly() -> None:
    recipe = tomllib.loads((ROOT / "examples" / "train_published.toml").read_text(encoding="utf-8"))
    processes = int(re.search(r"num_processes: (\d+)", (ROOT / "examples" / "zero2.yaml").read_text())[1])
    for part in ("stage1", "stage2", "superres"):
        assert recipe[part]["data"]["batch"] % (processes * recipe[part]["run"]["gradient_accumulation_steps"]) == 0
