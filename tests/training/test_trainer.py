"""Training at toy size: losses fall, a killed run goes on as if it had not been, weights find their way into files."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from cogvideo.config import ASSETS, PRESETS, Preset
from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES
from cogvideo.data.synthetic_world import Clip, State, place_clip, sample_clip, sample_held_out
from cogvideo.errors import RequestError, WeightsError
from cogvideo.models.loader import load_safetensors
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.training import export
from cogvideo.training.initialization import init_structured
from cogvideo.training.joint_models import JointModels
from cogvideo.training.joint_task import JointTask, JointTaskOptions, SingleNetworkTask, weighted_loss, window_times
from cogvideo.training.muon import Muon, orthogonalise
from cogvideo.training.recipe import options_from, read_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import Trainer, TrainerOptions, make_optimizers, schedule

needs_font = pytest.mark.skipif(
    not any(path.exists() for path in synthetic_render.FONT_PATHS),
    reason="fonts-noto-color-emoji is needed to draw the world",
)
SMALL: Preset = dataclasses.replace(
    PRESETS["mini"], model=dataclasses.replace(PRESETS["mini"].model, layers=2, hidden=64, heads=2)
)
RECIPE = Path(__file__).parents[2] / "examples" / "train_mini.toml"


def brightness_tokens(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """A codec simple enough to be right: each patch's mean brightness, in 64 steps."""
    count, height, width = pixels.shape[:3]
    patches = pixels.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4, 5))
    return torch.from_numpy((patches.reshape(count, -1) / 4).astype(np.int64))


def small_task(seed: int = 0) -> JointTask:
    torch.manual_seed(seed)
    models = JointModels(SMALL)
    init_structured(models)
    tokenizer = TextTokenizer(ASSETS / "mini" / "text.model", SMALL.model.image_tokens)
    options = JointTaskOptions(images=4, clips=2, windows=2, superres=1)
    return JointTask(models, SMALL, tokenizer, brightness_tokens, sample_held_out(), options)


OPTIONS = TrainerOptions(
    steps=12, learning_rate=3e-3, muon_learning_rate=5e-3, warmup=2, ema_decay=0.9, save_minutes=0.0
)


@needs_font
def test_loss_of_every_objective_falls(tmp_path: Path) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    scalars = [trainer.update() for _ in range(OPTIONS.steps)]
    for name in ("image", "stage1", "stage2", "superres"):
        assert scalars[-1][name] < scalars[0][name] - 1.0


@needs_font
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    whole = Trainer(small_task(), OPTIONS, tmp_path / "whole")
    expected = [whole.update()["loss"] for _ in range(4)]
    first = Trainer(small_task(), OPTIONS, tmp_path / "killed")
    assert [first.update()["loss"] for _ in range(2)] == expected[:2]
    first.save()
    second = Trainer(small_task(seed=99), OPTIONS, tmp_path / "killed")
    second.resume()
    assert [second.update()["loss"] for _ in range(2)] == pytest.approx(expected[2:], rel=1e-5)


@needs_font
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_share_of_the_start_is_left_even_of_a_killed_run(tmp_path: Path, average: float) -> None:
    options = dataclasses.replace(OPTIONS, steps=3, ema_decay=average, initial_weight_fraction=0.25)
    began = {n: t.detach().clone() for n, t in small_task().models.named_parameters()}
    plain, whole, killed = (
        Trainer(small_task(), o, tmp_path / n)
        for n, o in (
            ("plain", dataclasses.replace(options, initial_weight_fraction=0.0)),
            ("whole", options),
            ("killed", options),
        )
    )
    plain.run()
    whole.run()
    killed.update()
    killed.save()
    Trainer(small_task(), options, tmp_path / "killed").run()
    learnt, left, again = (torch.load(trainer.checkpoint, weights_only=True) for trainer in (plain, whole, killed))
    for name, value in began.items():
        mixed = 0.25 * value + 0.75 * {**learnt["module"], **learnt["average"]}[name]
        torch.testing.assert_close(left["average"][name], mixed)
        torch.testing.assert_close(again["average"][name], mixed)
    assert any(not torch.equal(left["average"][name], value) for name, value in began.items())


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_learnt_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(RequestError, match="start_share"):
        Trainer(small_task(), dataclasses.replace(OPTIONS, initial_weight_fraction=share), tmp_path)


@needs_font
def test_checkpoint_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    trainer.save()
    before = trainer.checkpoint.read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        trainer.save()
    assert trainer.checkpoint.read_bytes() == before


@needs_font
def test_weights_that_ship_are_the_ones_that_were_trained(tmp_path: Path) -> None:
    task = small_task()
    trainer = Trainer(task, OPTIONS, tmp_path / "run")
    trainer.update()
    export.export_models(dict(task.models.state_dict()), tmp_path)
    loaded = load_safetensors(tmp_path, SMALL.model)
    for part in export.PARTS:
        trained = dict(getattr(task.models, part).state_dict())
        for name, value in getattr(loaded, part).state_dict().items():
            assert torch.equal(value, trained[name].half().float()), name


def test_average_includes_shared_weights_once(tmp_path: Path) -> None:
    trainer = Trainer(small_task(), OPTIONS, tmp_path)
    names = list(trainer.average)
    assert sum(name.endswith("word_embeddings.weight") for name in names) == 1


def test_weighted_loss_counts_what_weighs() -> None:
    logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    targets = torch.tensor([[0, 0]])
    good, bad = (
        weighted_loss(logits, targets, torch.tensor([[1.0, 0.0]])),
        weighted_loss(logits, targets, torch.tensor([[0.0, 1.0]])),
    )
    assert good < 0.1 < 3.9 < bad


def test_training_shows_motions_by_its_odds() -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, motion_odds=[0, 0, 1, 0, 0, 0, 0, 0], drift_probability=0.0)
    assert {clip.motion for clip in task._sample(np.random.default_rng(0), 20)} == {2}


@pytest.mark.parametrize("odds", [[1, 2], [1] * 9, [0] * 8, [-1, 2, 1, 1, 1, 1, 1, 1], [float("nan")] * 8])
def test_odds_that_cannot_be_used_are_named(odds: list[float]) -> None:
    with pytest.raises(RequestError, match="8 numbers"):
        sample_clip(np.random.default_rng(0), sample_held_out(), odds=odds)


def test_windows_are_those_of_interpolation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        clip = sample_clip(rng, sample_held_out(), 4.0)
        seconds, times = window_times(rng, clip)
        assert seconds in (2.0, 1.0, 0.5)
        assert times[0] % seconds == 0
        assert times[-1] == times[0] + seconds <= clip.duration


@pytest.mark.parametrize(("odds", "seen"), [([0, 0, 1], {0.5}), ([1, 1, 0], {1.0, 2.0})])
def test_windows_come_from_rounds_by_their_odds(odds: list[float], seen: set[float]) -> None:
    rng = np.random.default_rng(0)
    assert {window_times(rng, sample_clip(rng, sample_held_out(), 4.0), odds)[0] for _ in range(60)} == seen


def test_rounds_that_cannot_be_weighed_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RequestError, match=r"round_odds.*3 numbers"):
        window_times(rng, sample_clip(rng, sample_held_out(), 4.0), [1, 1])


@needs_font
@pytest.mark.parametrize("frames", [[1, 3], [1, 2, 3, 4]])
def test_only_frames_that_are_wanted_count(frames: list[int]) -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, corruption_rate=0.0)
    clips = [sample_clip(np.random.default_rng(0), sample_held_out(), 4.0)]
    rows = task._rows([[5, 6, 7]], clips, [clips[0].frame_times(5)], 2.0)
    network = task.models.stage1
    network.requires_grad_(False)
    logits = network.forward_training(rows.text, rows.text_length, rows.tokens)
    alone = [float(weighted_loss(logits[:, [f]], rows.tokens[:, [f]], rows.weights[:, [f]])) for f in frames]
    loss = float(task._score(network, rows, np.random.default_rng(0), frames))
    assert loss == pytest.approx(np.mean(alone), rel=1e-4)
    assert loss != pytest.approx(float(weighted_loss(logits, rows.tokens, rows.weights)), rel=1e-4)


@needs_font
@pytest.mark.parametrize(("wrong", "known"), [("nothing", 1.0), ("the rest", 1.0), ("the subject", 0.0)])
def test_only_tokens_of_the_subject_count_as_known(wrong: str, known: float) -> None:
    task = small_task()
    clips = [place_clip(np.random.default_rng(0), 0, 0, MOTIONS.index("向右"), 4.0)]
    rows = task._rows([[5]], clips, [clips[0].frame_times(5)], 1.0)
    subject = rows.weights > task.options.background_weight
    spoilt = {"nothing": subject & ~subject, "the rest": ~subject, "the subject": subject}[wrong]
    count = SMALL.model.image_tokens

    def predict(text: torch.Tensor, length: torch.Tensor, tokens: torch.Tensor, frames: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.where(spoilt, (tokens + 1) % count, tokens)[:, frames], count).float()

    network = SimpleNamespace(forward_training=predict)
    assert task._known(network, rows, range(1, 5)) == known  # type: ignore[arg-type]


def test_orthogonalise_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.3
        assert float(values.max()) < 1.4


def test_muon_solves_a_least_squares_problem() -> None:
    torch.manual_seed(0)
    inputs, wanted = torch.randn(64, 12), torch.randn(8, 12)
    weight = nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([weight], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(200):
        loss = (inputs @ (weight - wanted).T).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]


def test_muon_takes_a_convolution_for_a_matrix() -> None:
    torch.manual_seed(0)
    convolution, matrix = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.empty(6, 27))
    matrix.data = convolution.detach().flatten(1).clone()
    gradient = torch.randn(6, 27)
    convolution.grad, matrix.grad = gradient.view(6, 3, 3, 3), gradient
    Muon([convolution, matrix], lr=0.1).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_muon_trains_matrices_and_convolutions_and_adamw_the_rest() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "layer": nn.Linear(4, 4), "filter": nn.Conv2d(4, 4, 3)})
    adamw, muon = make_optimizers(module, TrainerOptions(1, muon_learning_rate=1e-2))
    names = {id(p): n for n, p in module.named_parameters()}
    rest, inner = ({names[id(p)] for g in o.param_groups for p in g["params"]} for o in (adamw, muon))
    assert inner == {"layer.weight", "filter.weight"}
    assert rest == {"embedding.weight", "layer.bias", "filter.bias"}


def test_schedule_rises_then_falls_to_its_floor() -> None:
    options = TrainerOptions(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup=10)
    rates = [schedule(step, options) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_shipped_recipe_fits_its_options() -> None:
    recipe = read_recipe(RECIPE)
    for part in ("models", "superres"):
        options_from(TrainerOptions, recipe[part]["run"])
        options_from(JointTaskOptions, recipe[part]["data"])
    options_from(TrainerOptions, recipe["codec"]["run"])


@needs_font
@pytest.mark.parametrize("part", ["stage2", "superres"])
@pytest.mark.parametrize("freeze_backbone", [True, False])
def test_nothing_else_learns_when_a_network_learns_alone(
    tmp_path: Path, part: Literal["stage2", "superres"], freeze_backbone: bool
) -> None:
    world = small_task()
    others = [name for name in export.PARTS if name != part]
    shared = world.models.stage1.transformer
    before = {name: copy.deepcopy(getattr(world.models, name).state_dict()) for name in export.PARTS}
    task = SingleNetworkTask(world, part, freeze_backbone)
    trainer = Trainer(task, OPTIONS, tmp_path)
    said = trainer.update()
    assert said["loss"] == said[part]
    after = {name: getattr(world.models, name).state_dict() for name in export.PARTS}
    for name in others:
        assert all(torch.equal(after[name][n], t) for n, t in before[name].items()), name
    moved = {n for n, t in before[part].items() if not torch.equal(after[part][n], t)}
    assert any(n.startswith("mixins.") for n in moved)
    layers = {n for n in moved if n.startswith("transformer.")}
    backbone = getattr(world.models, part).transformer
    assert (backbone is shared) == freeze_backbone
    assert backbone.word_embeddings is shared.word_embeddings
    assert any(".mlp." in n for n in layers) != freeze_backbone
    assert all(n.startswith(("transformer.layers.", "transformer.final_layernorm.")) for n in layers)
    assert set(moved) <= set(task.trainable.state_dict())


@needs_font
def test_a_network_with_a_backbone_of_its_own_keeps_it(tmp_path: Path) -> None:
    """It ships in the network's own file, without what is shared, and whatever learns later begins with it."""
    data = {"images": 1, "clips": 1, "windows": 1, "superres": 1}

    def learn(start: Path | str, out: str, part: str, rate: float, **options: Any) -> Path:
        run = {"steps": 2, "learning_rate": rate, "final_learning_rate": rate, "warmup": 1, "picture_every": 0}
        recipe = {"preset": "mini", "seed": 0, "start": str(start), part: {"run": run, "data": {**data, **options}}}
        workshop = RecipeRunner(recipe, tmp_path / out)
        for name in (part, "export"):
            workshop.run_part(name)
        return tmp_path / out / "model"

    def backbone(folder: Path, part: str) -> dict[str, Tensor]:
        own = load_file(folder / f"{part}.safetensors")
        return {n: t.float() for n, t in own.items() if n.startswith("transformer.")}

    free = learn("mini", "free", "stage2", 1e-2, freeze_backbone=False)
    own, common = backbone(free, "stage2"), backbone(free, "backbone")
    assert {n.split(".")[1] for n in own} == {"layers", "final_layernorm"}
    assert any(float((t - common[n]).abs().max()) > 1e-3 for n, t in own.items())
    loaded = load_safetensors(free, PRESETS["mini"].model)
    assert torch.equal(
        dict(loaded.stage2.state_dict())["transformer.layers.0.mlp.dense_h_to_4h.weight"],
        own["transformer.layers.0.mlp.dense_h_to_4h.weight"],
    )

    frozen = learn(free, "frozen", "stage2", 1e-2)
    again = backbone(frozen, "stage2")
    assert again.keys() == own.keys()
    assert all(torch.equal(again[n], t) for n, t in own.items())
    together = learn(free, "together", "models", 1e-5)
    assert not backbone(together, "superres")
    moved = backbone(together, "stage2")
    assert moved.keys() == own.keys()  # words stay everybody's
    nearer = [(moved[n] - t).abs().mean() < (common[n] - t).abs().mean() for n, t in own.items() if t.ndim == 2]
    assert all(nearer)  # it went on from its own


@needs_font
def test_a_network_learns_alone_beside_the_averaged_backbone(tmp_path: Path) -> None:
    """Which is the one that ships: what the last step left is seen in no file."""
    run = {"steps": 3, "learning_rate": 1e-2, "warmup": 1, "average": 0.9, "picture_every": 0}
    data = {"images": 1, "clips": 1, "windows": 1, "superres": 1}
    recipe = {"preset": "mini", "seed": 0, "start": "mini"}
    recipe |= {name: {"run": run, "data": data} for name in ("models", "superres")}
    workshop = RecipeRunner(recipe, tmp_path)
    workshop.run_part("models")
    seen: list[dict[str, Tensor]] = []

    class Listening(RecipeRunner):
        def _train(self, part: str, task: Any) -> None:
            models = task.world.models
            assert models.superres.transformer is models.stage1.transformer
            seen.append(copy.deepcopy(dict(models.stage1.state_dict())))
            super()._train(part, task)

    Listening(recipe, tmp_path).run_part("superres")
    state = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    for name, value in seen[0].items():
        assert torch.equal(value, state["average"][f"stage1.{name}"]), name


@needs_font
def test_super_resolution_learns_on_beside_the_shipped_networks(tmp_path: Path) -> None:
    """From the files that ship, and only its own file changes; a model's export then keeps what it learnt."""
    shutil.copytree(ASSETS / "mini", tmp_path / "mini")
    run = {"steps": 1, "learning_rate": 1e-3, "warmup": 1, "picture_every": 0}
    recipe = {
        "preset": "mini",
        "seed": 0,
        "assets": str(tmp_path / "mini"),
        "clusters": 256,
        "superres": {"run": run, "data": {"superres": 1}},
    }
    before = {path.name: path.read_bytes() for path in (tmp_path / "mini").iterdir()}
    workshop = RecipeRunner(recipe, tmp_path / "run")
    workshop.run_part("superres")
    after = {path.name: path.read_bytes() for path in (tmp_path / "mini").iterdir()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"superres.safetensors"}
    learnt = load(after["superres.safetensors"])
    old = load(before["superres.safetensors"])
    assert learnt.keys() == old.keys()
    assert max(float((learnt[n].float() - old[n].float()).abs().max()) for n in old) < 0.1  # further, not anew
    together = Trainer(small_task(), OPTIONS, tmp_path / "run" / "models")
    together.save()
    workshop.run_part("export")
    assert (tmp_path / "mini" / "superres.safetensors").read_bytes() == after["superres.safetensors"]


@needs_font
@pytest.mark.parametrize("part", ["models", "stage2", "superres"])
def test_going_on_in_the_world_begins_with_the_model_that_ships(tmp_path: Path, part: str) -> None:
    """And writes to a folder of its own, which has all that a model needs."""
    run = {"steps": 1, "learning_rate": 1e-6, "muon_learning_rate": 1e-6, "warmup": 1, "picture_every": 0}
    data = {"images": 1, "clips": 1, "windows": 1, "superres": 1}
    recipe = {"preset": "mini", "seed": 0, "start": "mini", part: {"run": run, "data": data}}
    workshop = RecipeRunner(recipe, tmp_path)
    workshop.run_part(part)
    workshop.run_part("export")
    names = ("backbone", "stage1", "stage2", "superres") if part == "models" else (part,)
    for name in names:
        began, learnt = (load_file(folder / f"{name}.safetensors") for folder in (ASSETS / "mini", tmp_path / "model"))
        for key, value in learnt.items():
            torch.testing.assert_close(value, began[key], rtol=1e-2, atol=1e-3)
    assert {"text.model", "codec.json", "codec.safetensors", "cluster_labels.npy", "preset.json"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
    assert load_safetensors(tmp_path / "model", PRESETS["mini"].model).sizes.own_parts["superres"] == []


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        ({"models": {}}, "assets, clusters"),
        ({"start": "mini", "models": {}}, ""),
        ({"start": "mini", "stage1": {}}, "data"),
        ({"data": "clips", "stage1": {}}, "start"),
        ({"start": "mini"}, r"\[tokenizer\]"),
    ],
)
def test_a_recipe_names_what_its_kind_needs(tmp_path: Path, said: dict[str, object], lacking: str) -> None:
    path = tmp_path / "recipe.toml"
    lines = [f'{name} = "{value}"' for name, value in said.items() if isinstance(value, str)]
    path.write_text("\n".join(['preset = "mini"', "seed = 0", *lines, *(f"[{n}]" for n in said if said[n] == {})]))
    if not lacking:
        assert read_recipe(path)["seed"] == 0
        return
    with pytest.raises(RequestError, match=f"lacks: {lacking}"):
        read_recipe(path)


def test_recipe_with_a_misspelt_option_is_refused() -> None:
    with pytest.raises(RequestError, match="learning_rat"):
        options_from(TrainerOptions, {"steps": 3, "learning_rat": 1e-3})


@pytest.mark.parametrize("text", ["preset = 'mini'", "not toml at all ["])
def test_recipe_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match="recipe"):
        read_recipe(path)


def test_export_without_training_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--part models"):
        RecipeRunner(read_recipe(RECIPE), tmp_path).run_part("export")


@pytest.mark.parametrize("keys", [7, 95])
def test_attention_of_bfloat16_training_is_that_of_single_precision(keys: int) -> None:
    from kernels.dense_attention import dense_attention

    torch.manual_seed(0)
    exact = [torch.randn(2, 3, n, 32, requires_grad=True) for n in (5, keys, keys)]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    mask = torch.zeros(2, 1, 5, keys).masked_fill_(torch.rand(2, 1, 5, keys) < 0.3, float("-inf"))
    mask[..., 0] = 0.0
    toward = torch.randn(2, 3, 5, 32)
    for inputs in (exact, rough):
        (dense_attention(*inputs, mask) * toward).sum().backward()
    for one, other in zip(exact, rough, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad.float(), one.grad, atol=0.03, rtol=0.03)


def test_codes_that_look_alike_start_as_embeddings_that_lie_near() -> None:
    models = JointModels(SMALL)
    codes = torch.randn(SMALL.model.image_tokens, 8)
    codes[1] = codes[0] + 0.05 * torch.randn(8)
    init_structured(models, codes)
    words = models.stage1.transformer.word_embeddings.weight
    alike, other = (torch.cosine_similarity(words[0], words[i], dim=0) for i in (1, 2))
    assert alike > 0.4
    assert alike > other + 0.2


@needs_font
def test_twins_of_the_codec_differ_in_the_ground_alone() -> None:
    from cogvideo.training.vqvae_data import sample_world
    from cogvideo.training.vqvae_task import VQVAEOptions

    pixels, masks = sample_world(sample_held_out())(
        np.random.default_rng(0), VQVAEOptions(small_frames=8, fine_crops=4)
    )
    assert np.array_equal(masks[:4], masks[4:8])
    inside = masks[:4] > 0.99
    assert inside.any()
    assert np.abs(pixels[:4].astype(int) - pixels[4:8])[inside].max() <= 3
    outside = pixels[4:8][masks[:4] == 0]
    assert (outside == outside[0]).all()


@needs_font
def test_the_codec_sees_motions_and_sizes_by_its_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    from cogvideo.training import vqvae_data, vqvae_task

    seen: list[Clip] = []

    def listen(*place: Any, **how: Any) -> Clip:
        clip = sample_clip(*place, **how)
        seen.append(clip)
        return clip

    monkeypatch.setattr(vqvae_data, "sample_clip", listen)
    options = vqvae_task.VQVAEOptions(
        small_frames=40, fine_crops=2, motion_odds=[0, 0, 0, 0, 0, 1, 0, 0], size_odds=[1, 0, 0]
    )
    vqvae_data.sample_world(sample_held_out())(np.random.default_rng(0), options)
    assert {clip.motion for clip in seen} == {MOTIONS.index("旋转"), -1}  # and those without a name
    assert {clip.size for clip in seen if clip.motion >= 0} == {2.0}


@needs_font
def test_the_codec_sees_those_who_turn_at_every_angle_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from cogvideo.data import synthetic_render
    from cogvideo.training import vqvae_data, vqvae_task

    angles: list[float] = []

    def listen(subject: int, scene: int, variant: int, state: State, cell: int) -> Any:
        angles.append(state.angle)
        return synthetic_render.render_state(subject, scene, variant, state, cell)

    monkeypatch.setattr(vqvae_data, "render_state", listen)
    options = vqvae_task.VQVAEOptions(small_frames=600, fine_crops=2, motion_odds=[0, 0, 0, 0, 0, 1, 0, 0])
    vqvae_data.sample_world(sample_held_out())(np.random.default_rng(0), options)
    turned = np.array([angle for angle in angles if angle])
    quarters = np.bincount((turned // 90).astype(int), minlength=4) / len(turned)
    assert quarters.min() > 0.14  # who drifts half as fast comes to half of them


def test_an_odd_number_of_frames_has_no_pairs() -> None:
    from cogvideo.training.vqvae_data import sample_world
    from cogvideo.training.vqvae_task import VQVAEOptions

    with pytest.raises(RequestError, match="small_frames"):
        sample_world(sample_held_out())(np.random.default_rng(0), VQVAEOptions(small_frames=3, fine_crops=2))


@needs_font
def test_a_subject_has_the_same_tokens_in_every_scene() -> None:
    task = small_task()
    clip = sample_clip(np.random.default_rng(4), sample_held_out(), 4.0)
    drawn = [(dataclasses.replace(clip, scene=scene), clip.state(0)) for scene in range(len(SCENES))]
    tokens, cells = task._tokenise(drawn, synthetic_render.COARSE)
    assert cells.any(1).all()
    assert (tokens[:, cells[0]] == tokens[0, cells[0]]).all()
    assert len(tokens[:, ~cells[0]].unique(dim=0)) == len(SCENES)
    own, _ = task._tokenise(drawn, synthetic_render.COARSE, np.zeros(len(drawn), bool))
    assert not torch.equal(own, tokens)


def test_networks_read_some_wrong_tokens() -> None:
    task = small_task()
    task.options = dataclasses.replace(task.options, corruption_rate=0.1)
    tokens = torch.arange(40 * 5 * 64).view(40, 5, 64)
    wrong = task.corrupt(tokens, np.random.default_rng(0)) != tokens
    assert 0.08 < float(wrong.float().mean()) < 0.12
    assert torch.equal(tokens, torch.arange(40 * 5 * 64).view(40, 5, 64))
    task.options = dataclasses.replace(task.options, corruption_rate=0.0)
    assert torch.equal(task.corrupt(tokens, np.random.default_rng(0)), tokens)
