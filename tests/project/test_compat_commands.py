"""What the command line of the build 0a8de33 made and understood is still opened, continued and accepted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cogvideo.cli.commands import COMMANDS
from cogvideo.cli.main import main
from cogvideo.cli.output_dir import read_keyframes
from cogvideo.config import load_preset
from cogvideo.data.dataset import PreparedClips
from cogvideo.data.synthetic_render import FONT_PATHS
from cogvideo.events import RoundCompleted
from cogvideo.inference.generation import GeneratedVideo
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.training.codebook_growth import CodebookGrowthOptions
from cogvideo.training.decoder_task import DecoderOptions
from cogvideo.training.frame_classifier import FrameClassifierOptions
from cogvideo.training.joint_task import JointTaskOptions, SingleNetworkOptions
from cogvideo.training.network_task import NetworkTaskOptions
from cogvideo.training.recipe import options_from
from cogvideo.training.trainer import TrainerOptions, export_weights
from cogvideo.training.vqvae_task import VQVAEOptions
from tests.support.compat_data import DATA, read

SPOKEN: dict[str, Any] = read("commands/events.json")
FLAGS: dict[str, Any] = read("commands/flags.json")
RECIPE: dict[str, type] = {
    "run": TrainerOptions,
    "network of one's own clips": NetworkTaskOptions,
    "network of the world": SingleNetworkOptions,
    "models": JointTaskOptions,
    "codec": VQVAEOptions,
    "codes": CodebookGrowthOptions,
    "decoder": DecoderOptions,
    "judge": FrameClassifierOptions,
}


# --- models, training -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was trained and of the folders of films; commands run in `batch`."""
    for name in ("training", "batch"):
        shutil.copytree(DATA / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "batch")
    return tmp_path


def test_old_model_folder_draws_the_keyframes_that_it_drew(folder: Path) -> None:
    pipeline = CogVideoPipeline.from_pretrained(str(folder / "training/run/model"), device="cpu")
    paths = sorted((folder / "batch/keyframes").glob("*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        model, request = read_keyframes(path)
        assert model == pipeline.preset.name
        drawn = [
            event.tokens
            for event in pipeline.stream(replace(request, initial_tokens=None))
            if isinstance(event, RoundCompleted)
        ]
        assert request.initial_tokens is not None and drawn[-1] is not None
        np.testing.assert_array_equal(drawn[-1][0], request.initial_tokens.rows())


def test_old_prepared_clips_are_read(folder: Path) -> None:
    preset, _ = load_preset(str(folder / "training/run/model"))
    clips = PreparedClips(folder / "training/prepared", preset)
    (clip,) = (clips[index] for index in range(len(clips)))
    assert (clip.caption, clip.seconds) == ("一只小猫在草地上向右跑", 4.0)
    assert clip.frames.shape == (33, 16)
    assert clip.fine.shape == (5, 144)


def test_old_training_is_resumed_as_it_would_have_gone_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "training")
    recipe = Path("recipe.toml").read_text(encoding="utf-8")
    Path("recipe.toml").write_text(recipe.replace("steps = 2", "steps = 4"), encoding="utf-8")
    before = load_file("run/model/stage1.safetensors")
    assert main(["train", "recipe.toml", "--out", "run", "--threads", "1", "--part", "stage1"]) == 0
    state = torch.load("run/stage1/checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    steps = [json.loads(line)["step"] for line in Path("run/stage1/scalars.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    weights, expected = export_weights(state["module"], state["average"]), load_file("resumed.safetensors")
    assert set(weights) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name].float(), value.float(), atol=2e-3, rtol=2e-3)
    assert max(float((expected[name].float() - value.float()).abs().max()) for name, value in before.items()) > 5e-3


@pytest.mark.parametrize("kind", RECIPE)
def test_old_recipe_options_are_understood(kind: str) -> None:
    table = read("interfaces.json")["recipe"][kind]
    needed = {field.name: 3 for field in fields(RECIPE[kind]) if field.default is field.default_factory is MISSING}
    usual = options_from(RECIPE[kind], needed)
    for name, value in table.items():
        changed = value if isinstance(value, str | list | None) else not value if value is True else value + 1
        read_back = options_from(RECIPE[kind], needed | {name: changed})
        if isinstance(value, bool | int | float):
            assert read_back != usual, name


# --- folders of films -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "left"), [("both", 4), ("keyframes", 1)])
def test_old_folder_of_films_is_completed_without_drawing_one_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, left: int
) -> None:
    films = folder / "batch" / name
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in films.iterdir() if path.suffix in KEPT}
    index = (films / "index.tsv").read_text(encoding="utf-8")
    drawn: list[GeneratedVideo] = []
    draw = CogVideoPipeline.generate_batch

    def counted(*given: Any, **options: Any) -> Iterator[Any]:
        for event in draw(*given, **options):
            drawn.extend([event] if isinstance(event, GeneratedVideo) else [])
            yield event

    monkeypatch.setattr(CogVideoPipeline, "generate_batch", counted)
    words = read("batch/commands.json")[name]
    assert main(words) == 0
    assert len(drawn) == left
    assert len(list(films.glob("*.mp4"))) == 2 + left
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert (films / "index.tsv").read_text(encoding="utf-8").startswith(index)
    assert main(words) == 0
    assert len(drawn) == left


KEPT = (".mp4", ".safetensors")


def test_old_keyframes_become_films(folder: Path) -> None:
    words = [word for word in read("batch/commands.json")["keyframes"] if word != "--stage-1"]
    Path("prompts.txt").write_text("一只熊猫在草地上向右跑\n一只汽车在雪地上旋转\n", encoding="utf-8")
    assert main([*words, "--stage-2", "--frames", "9"]) == 0
    assert len(list(Path("keyframes").glob("*.mp4"))) == 4


# --- commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", FLAGS)
def test_old_words_are_accepted_and_matter(command: str) -> None:
    parser, old = COMMANDS[command].parser(), FLAGS[command]
    usual = parser.parse_args(old["positional"])
    for option in old["options"]:
        read_back = parser.parse_args([*old["positional"], *option["words"]])
        assert not option["matters"] or read_back != usual, option


def keys(value: Any, before: str = "") -> Iterator[str]:
    """All keys; those within other objects follow a dot."""
    if isinstance(value, list):
        for each in value:
            yield from keys(each, before)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield f"{before}{name}"
            yield from keys(each, f"{before}{name}.")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", SPOKEN)
def test_old_json_keys_are_still_printed(capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name == "evaluate" and not any(path.exists() for path in FONT_PATHS):
        pytest.skip("the judge draws with fonts-noto-color-emoji")
    shutil.copytree(DATA.parent / "golden", Path("published"))
    assert main(SPOKEN[name]["argv"]) == (2 if "refused" in name else 0)
    out = capsys.readouterr().out
    texts = [Path("memory.json").read_text()] if name == "memory" else [out] if name == "kernels" else out.splitlines()
    found: dict[str, set[str]] = {}
    for value in map(json.loads, texts):
        found.setdefault(value.get("event", "") if isinstance(value, dict) else "", set()).update(keys(value))
    missing = {event: set(old) - found.get(event, set()) for event, old in SPOKEN[name]["events"].items()}
    assert not any(missing.values()), missing
