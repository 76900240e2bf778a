"""Run of a recipe: every part trained in the order of `PARTS`, each resumed from its last checkpoint.

`export` writes the model's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.config import (
    ASSETS,
    PRESET_FILE,
    PRESETS,
    ModelConfig,
    describe_preset,
    load_preset,
    resize_model,
)
from cogvideo.errors import RequestError, WeightsError
from cogvideo.training.recipe import NETWORKS, TRAINED, options_from

if TYPE_CHECKING:
    from torch import Tensor

    from cogvideo.data.dataset import ClipDataset
    from cogvideo.models.base import TokenModel
    from cogvideo.tokenizers.image import ImageTokenizer
    from cogvideo.training.codebook_growth import CodebookGrowthOptions
    from cogvideo.training.joint_models import SingleNetwork
    from cogvideo.training.joint_task import JointTask
    from cogvideo.training.network_task import Part
    from cogvideo.training.trainer import Task
    from cogvideo.training.vqvae_data import Sample

    Tensors = dict[str, Tensor]
SMALL_FILES = ("text.model", "codec.json", "codec.safetensors", "cluster_labels.npy")
"""What a model's folder has beside its networks; taken over from the starting point until trained anew."""
EMBEDDINGS = "transformer.word_embeddings.weight"


class RecipeRunner:
    """Makes the parts of one recipe; checkpoints go to `out`, finished files to the model's folder.

    A recipe with `data` trains each network on its own on clips; one without trains all on the synthetic world, from
    nothing or from the model that `start` names.
    """

    def __init__(self, recipe: dict[str, Any], out: Path) -> None:
        from accelerate import PartialState

        self.recipe = recipe
        self.out = out
        self.assets = Path(recipe.get("assets", out / "model"))
        self.own = "data" in recipe
        base = PRESETS[recipe["preset"]]
        self.start_sizes: ModelConfig = resize_model(self._known_sizes() or base.model, recipe.get("model", {}))
        self.sizes = self._widen(self.start_sizes)
        self.seed = int(recipe["seed"])
        self.processes = PartialState()
        self.preset = base
        if "start" in recipe:
            self._once(self._begin_folder)
            self.preset = load_preset(str(self.assets))[0]

    @property
    def plan(self) -> list[str]:
        """The recipe's parts in their order, and the export of networks where there are some."""
        parts = [part for part in TRAINED if part in self.recipe]
        return [*parts, "export"] if self.own or {"models", *NETWORKS} & set(parts) else parts

    def run_part(self, part: str) -> None:
        """Make one of `PARTS`. Raises RequestError where the recipe has no table for it."""
        if part in TRAINED and part not in self.recipe:
            raise RequestError(f"训练配置没有 [{part}] 部分。", f"The recipe has no part [{part}].")
        match part:
            case "tokenizer":
                self._once(self._make_tokenizer)
            case "codec":
                self._make_codec()
            case "codes":
                self._once(self._make_codes)
            case "decoder":
                self._make_decoder()
            case "judge":
                self._make_judge()
            case "models":
                self._make_models()
            case "export":
                self._once(self._export)
            case "published":
                self._once(self._publish)
            case "stage2" | "superres" if not self.own:
                self._make_alone(part)
            case "backbone" | "stage1" | "stage2" | "superres":
                self._make_network(part)

    # Parts of both kinds of recipe.

    def _make_tokenizer(self) -> None:
        """Words of the world, or captions -> `text.model`; what the world holds -> `world.json`, `held_out.json`."""
        from cogvideo.data.synthetic_world import describe_held_out, describe_world
        from cogvideo.training.text_tokenizer import train_caption_tokenizer, train_world_tokenizer

        path, table = self.assets / "text.model", self.recipe["tokenizer"]
        if self.own:
            captions = [self._dataset[i].caption for i in range(len(self._dataset))]
            train_caption_tokenizer(path, int(table["pieces"]), captions)
            return
        train_world_tokenizer(path, int(table["pieces"]))
        for name, content in (("world", describe_world()), ("held_out", describe_held_out())):
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            (self.assets / f"{name}.json").write_text(text, encoding="utf-8")

    def _make_codec(self) -> None:
        """World frames, or keyframes of prepared clips -> the VQ-VAE, and the clusters of its codes."""
        from cogvideo.tokenizers.image import build_vqvae
        from cogvideo.training.export import export_clusters, export_codec
        from cogvideo.training.vqvae_task import VQVAEOptions, VQVAETask

        def export() -> None:
            tensors = self._trained("codec")
            export_codec(tensors, self.assets)
            export_clusters(tensors["quantize.embed.weight"], int(self.recipe.get("clusters", 256)), self.assets)

        codec = build_vqvae(self.assets / "codec.json")
        options = options_from(VQVAEOptions, self.recipe["codec"].get("data", {}))
        self._train("codec", VQVAETask(codec, self._pictures, options, self.seed))
        self._once(export)

    def _known_sizes(self) -> ModelConfig | None:
        """The sizes of the model that is the starting point, where its folder tells them."""
        folder = self._start_folder
        told = folder is not None and (folder / PRESET_FILE).is_file()
        return load_preset(str(folder))[0].model if told else None

    def _widen(self, sizes: ModelConfig) -> ModelConfig:
        """The sizes of what is made from a starting point of `sizes`. Raises RequestError for codes without one."""
        if "codes" not in self.recipe:
            return sizes
        from cogvideo.training.codebook_growth import grow_codebook

        if self._start_folder is None or self._is_published(self._start_folder):
            raise RequestError(
                f"[codes] 为训练好的编解码器增加编码，而 start = {self.recipe.get('start')!r} 没有："
                '请改为 "mini" 或模型文件夹。',
                f"[codes] adds codes to a trained codec, and start = {self.recipe.get('start')!r} has none: "
                'name "mini" or a model\'s folder.',
            )
        if "codec" in self.recipe:
            raise RequestError(
                "[codes] 与 [codec] 不能写在同一份训练配置中：编码是加给 start 的编解码器的。"
                "请先训练编解码器，再从它的文件夹开始。",
                "[codes] and [codec] do not go into one recipe: codes are added to the codec of `start`. "
                "Train the codec first, then start from its folder.",
            )
        return grow_codebook(sizes, self._code_options.more)

    @cached_property
    def _code_options(self) -> CodebookGrowthOptions:
        from cogvideo.training.codebook_growth import CodebookGrowthOptions

        return options_from(CodebookGrowthOptions, self.recipe["codes"].get("data", {}))

    def _make_codes(self) -> None:
        """The starting point's codec -> the same with more codes, and the clusters of all; once made, nothing."""
        from cogvideo.training.codebook_growth import CodeSearch
        from cogvideo.training.export import export_clusters, export_codec

        about = self.assets / "codec.json"
        if self._codes(self.assets) == self.sizes.image_tokens:
            return
        assert self._start_folder is not None  # or the recipe would have been refused
        codec = self._read_codec(self._start_folder)
        codes = CodeSearch(codec, self._pictures, self._code_options, self.seed).codebook()
        export_codec({**codec.state_dict(), "quantize.embed.weight": codes}, self.assets)
        export_clusters(codes, int(self.recipe.get("clusters", 256)), self.assets)
        description = json.loads(about.read_text(encoding="utf-8"))
        description["quantize_config"]["params"]["n_embed"] = len(codes)
        temporary = about.with_suffix(".tmp")
        temporary.write_text(json.dumps(description), encoding="utf-8")
        temporary.replace(about)  # at the end: it tells that the rest is done

    @staticmethod
    def _codes(folder: Path) -> int:
        """How many codes the codec in a model's folder has."""
        description = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
        return int(description["quantize_config"]["params"]["n_embed"])

    def _make_decoder(self) -> None:
        """The same pictures -> a decoder that reads the codec's tokens better; the tokens stay what they are."""
        from cogvideo.training.decoder_task import DecoderOptions, DecoderTask
        from cogvideo.training.export import export_codec

        options = options_from(DecoderOptions, self.recipe["decoder"].get("data", {}))
        self._train("decoder", DecoderTask(self._trained_codec(), self._pictures, options, self.seed))
        self._once(lambda: export_codec(self._trained("decoder"), self.assets))

    def _trained_codec(self) -> Any:
        """The codec of this run, in single precision; else the one in the model's folder."""
        trained = (self.out / "codec" / "checkpoint.pt").is_file()
        return self._read_codec(self.assets, self._trained("codec") if trained else None)

    @staticmethod
    def _read_codec(folder: Path, tensors: Tensors | None = None) -> Any:
        """The codec that a folder describes, in single precision, with `tensors`, or those of its file."""
        from safetensors.torch import load_file

        from cogvideo.tokenizers.image import build_vqvae

        codec = build_vqvae(folder / "codec.json")
        known = load_file(folder / "codec.safetensors") if tensors is None else tensors
        codec.load_state_dict(codec.state_dict() | known)  # the files that ship have no statistics of the codebook
        return codec.float()

    @cached_property
    def _pictures(self) -> Sample:
        """What codec and decoder are shown."""
        from cogvideo.data.dataset import PreparedClips
        from cogvideo.data.synthetic_world import sample_held_out
        from cogvideo.training.vqvae_data import sample_clips, sample_world

        if self.own:
            return sample_clips(PreparedClips(Path(self.recipe["data"]), self.preset), self.sizes.upscale)
        return sample_world(sample_held_out())

    def _export(self) -> None:
        """The last checkpoints -> the files that are used."""
        from cogvideo.training.export import export_models, export_parts
        from cogvideo.training.joint_models import ALONE

        if self.own:
            export_parts({part: self._weights(part) for part in NETWORKS}, self.assets)
            return
        alone = [part for part in ALONE if (self.out / part / "checkpoint.pt").is_file()]
        if (self.out / "models" / "checkpoint.pt").is_file() or not alone:
            export_models(self._trained("models"), self.assets)
        export_parts({part: self._trained(part) for part in alone}, self.assets)

    def _publish(self) -> None:
        """The exported files -> three folders in the published format."""
        from cogvideo.training.export import to_published

        to_published(self.assets, self.sizes, self.out / "published")

    # The synthetic world.

    def _make_judge(self) -> None:
        """Drawings of the world -> the classifier by which `evaluate` names what it sees."""
        from cogvideo.training.export import write_tensors
        from cogvideo.training.frame_classifier import FILE, FrameClassifierOptions, FrameClassifierTask

        options = options_from(FrameClassifierOptions, self.recipe["judge"].get("data", {}))
        self._train("judge", FrameClassifierTask(options, self.seed))
        self._once(lambda: write_tensors(self._trained("judge"), self.assets / FILE))

    def _make_models(self) -> None:
        """Clips of the world -> backbone, stage 1, stage 2 and super-resolution, together."""
        world = self._world_task("models")
        if self._start_folder is not None:
            self._load_networks(world, self._start_folder)
        self._train("models", world)

    def _world_task(self, part: str) -> JointTask:
        from cogvideo.training.initialization import make_world_task
        from cogvideo.training.joint_models import ALONE
        from cogvideo.training.joint_task import JointTaskOptions, SingleNetworkOptions

        kind = SingleNetworkOptions if part in ALONE else JointTaskOptions
        options = options_from(kind, {"seed": self.seed, **self.recipe[part].get("data", {})})
        return make_world_task(self.preset, self.assets, self._trained_codec(), options)

    def _make_alone(self, part: SingleNetwork) -> None:
        """Clips of the world -> one network alone, beside finished ones that stay what they are."""
        from cogvideo.training.export import export_parts
        from cogvideo.training.joint_task import SingleNetworkOptions, SingleNetworkTask

        world = self._world_task(part)
        if (self.out / "models" / "checkpoint.pt").is_file():
            world.models.load_weights(self._trained("models"))
        else:
            self._load_networks(world, self._start_folder or self.assets)
        assert isinstance(world.options, SingleNetworkOptions)
        self._train(part, SingleNetworkTask(world, part, world.options.freeze_backbone))
        self._once(lambda: export_parts({part: self._trained(part)}, self.assets))

    def _load_networks(self, world: JointTask, folder: Path) -> None:
        from cogvideo.models.loader import load_safetensors

        known = load_safetensors(folder, self.start_sizes if folder == self._start_folder else self.sizes)
        states = {part: self._for_all_codes(getattr(known, part).state_dict()) for part in NETWORKS[1:]}
        world.models.load_weights({f"{part}.{name}": t for part, state in states.items() for name, t in state.items()})

    def _for_all_codes(self, tensors: Tensors) -> Tensors:
        """Weights of the starting point, with an embedding for each code that came after it."""
        if "codes" not in self.recipe or len(tensors[EMBEDDINGS]) == self.sizes.vocab_size:
            return tensors
        from cogvideo.training.codebook_growth import grow_embeddings

        return {**tensors, EMBEDDINGS: grow_embeddings(tensors[EMBEDDINGS], self._all_codes, self.sizes)}

    @cached_property
    def _all_codes(self) -> Tensor:
        """The codebook that [codes] made. Raises WeightsError where it has not been made yet."""
        codes: Tensor = self._trained_codec().quantize.embed.weight.detach()
        if len(codes) != self.sizes.image_tokens:
            raise WeightsError(
                f"{self.assets} 的编解码器有 {len(codes)} 个编码，应为 {self.sizes.image_tokens}："
                "请先运行 --part codes。",
                f"The codec in {self.assets} has {len(codes)} codes, not {self.sizes.image_tokens}: "
                "run --part codes first.",
            )
        return codes

    # Own clips.

    def _begin_folder(self) -> None:
        """The model's folder: its sizes, tokenizer and codec to start with; in the world also the networks."""
        self.assets.mkdir(parents=True, exist_ok=True)
        source = self._start_folder or ASSETS / self.recipe["preset"]
        whole = not self.own and self._start_folder is not None and "codes" not in self.recipe
        for name in (*SMALL_FILES, *(f"{network}.safetensors" for network in NETWORKS if whole)):
            if (source / name).is_file() and not (self.assets / name).is_file():
                shutil.copyfile(source / name, self.assets / f"{name}.tmp")
                (self.assets / f"{name}.tmp").replace(self.assets / name)
        (self.assets / PRESET_FILE).write_text(describe_preset(self.recipe["preset"], self.sizes), encoding="utf-8")

    @cached_property
    def _start_folder(self) -> Path | None:
        """Where the starting weights lie; None: nowhere ("nothing" and "small" are numbers that are made)."""
        start = str(self.recipe.get("start", "small"))
        if start in ("nothing", "small"):
            return None
        if start == "published":
            from cogvideo.weights.catalog import published_home

            return published_home()
        return Path(start) if self._is_published(Path(start)) else load_preset(start)[1]

    @staticmethod
    def _is_published(folder: Path) -> bool:
        from cogvideo.weights.published_format import PUBLISHED

        return any((folder / name).is_dir() for name in PUBLISHED.values())

    @cached_property
    def _codec(self) -> ImageTokenizer:
        from cogvideo.tokenizers.image import ImageTokenizer

        return ImageTokenizer.load(self.preset, folder=self.assets)

    @cached_property
    def _dataset(self) -> ClipDataset:
        from cogvideo.data.dataset import open_dataset

        return open_dataset(str(self.recipe["data"]), self.preset, lambda: self._codec)

    def _make_network(self, part: Part) -> None:
        """Clips -> one network, its backbone frozen unless the recipe says otherwise."""
        from cogvideo.data.dataset import open_tokenizer
        from cogvideo.training.network_task import NetworkTask, NetworkTaskOptions

        options = options_from(NetworkTaskOptions, {"seed": self.seed, **self.recipe[part].get("data", {})})
        network = self._build(part, options.fresh)
        tokenizer = open_tokenizer(self.assets, self.preset)
        self._train(
            part,
            NetworkTask(
                network, part, self._dataset, self.preset, tokenizer, options, lambda *a: self._codec.decode(*a)
            ),
        )

    def _build(self, part: Part, fresh: bool) -> TokenModel:
        """A network as training begins: backbone, then what the starting point has of it, else copies and chance."""
        import torch

        from cogvideo.models.loader import fill_backbone
        from cogvideo.models.sat_adapter import build_transformer
        from cogvideo.models.superres_lm import SuperResLM
        from cogvideo.models.video_lm import VideoLM
        from cogvideo.weights import checkpoint

        backbone = self._start("backbone") if part == "backbone" else self._weights_or_none("backbone")
        if backbone is None:
            transformer = build_transformer(self.sizes)
        else:
            transformer = fill_backbone(self.sizes, self.assets, backbone, torch.float32, "cpu")
        network: TokenModel
        if part == "superres":
            network = SuperResLM(self.sizes, transformer)
        else:
            network = VideoLM(self.sizes, 2 if part == "stage2" else 1, transformer)
        own = None if fresh or part == "backbone" else self._start(part)
        if own is not None:
            wanted = {n: t for n, t in network.state_dict().items() if n in own or n.startswith("mixins.")}
            checkpoint.check(self.assets, own, wanted)
            network.load_state_dict({n: own[n].float() for n in wanted}, strict=False)
        return network.train()

    def _weights(self, part: str) -> Tensors:
        found = self._weights_or_none(part)
        if found is None:
            raise self._not_trained(part)
        return found

    def _weights_or_none(self, part: str) -> Tensors | None:
        """A network's weights: trained here, else those of the starting point, else None."""
        return self._trained(part) if (self.out / part / "checkpoint.pt").is_file() else self._start(part)

    def _start(self, part: str) -> Tensors | None:
        """The starting point's weights of a network: `transformer.*` of the backbone, `mixins.*` of the others."""
        from cogvideo.weights import checkpoint, published_format

        if self.recipe["start"] == "small":
            return self._small_start[part]
        if self._start_folder is None:
            return None
        prefix = "transformer." if part == "backbone" else "mixins."
        if self._is_published(self._start_folder):
            folders = [
                self._start_folder / name for p, name in published_format.PUBLISHED.items() if part in (p, "backbone")
            ]
            found = next((folder for folder in folders if folder.is_dir()), None)
            tensors = {} if found is None else published_format.read_published(found)
            return {n: t for n, t in tensors.items() if n.startswith(prefix)} or None
        path = self._start_folder / f"{part}.safetensors"
        if not path.is_file():
            return None
        own = checkpoint.read_safetensors(path)
        return self._for_all_codes(own) if part == "backbone" else own

    @cached_property
    def _small_start(self) -> dict[str, Tensors]:
        """Starting values that let a small model learn in minutes, by network."""
        from cogvideo.training.initialization import init_structured
        from cogvideo.training.joint_models import JointModels

        models = JointModels(self.preset)
        init_structured(models)
        networks = {part: dict(getattr(models, part).state_dict()) for part in NETWORKS[1:]}
        parts = {p: {n: t for n, t in w.items() if n.startswith("mixins.")} for p, w in networks.items()}
        return {"backbone": {n: t for n, t in networks["stage1"].items() if n.startswith("transformer.")}, **parts}

    # Training.

    def _train(self, part: str, task: Task) -> None:
        from cogvideo.training.trainer import Trainer, TrainerOptions

        Trainer(task, options_from(TrainerOptions, self.recipe[part]["run"]), self.out / part).run()

    def _once(self, work: Callable[[], None]) -> None:
        """Do something in the main process alone; the others wait."""
        if self.processes.is_main_process:
            work()
        self.processes.wait_for_everyone()

    def _trained(self, part: str) -> Tensors:
        """What training left in the last checkpoint."""
        from cogvideo.training.trainer import export_weights

        state = self._checkpoint(part)
        return export_weights(state["module"], state["average"])

    def _checkpoint(self, part: str) -> dict[str, Any]:
        import torch

        path = self.out / part / "checkpoint.pt"
        if not path.is_file():
            raise self._not_trained(part)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def _not_trained(self, part: str) -> WeightsError:
        path = self.out / part / "checkpoint.pt"
        return WeightsError(
            f"找不到检查点 {path}：请先运行 --part {part}。",
            f"The checkpoint {path} is missing: run --part {part} first.",
        )
