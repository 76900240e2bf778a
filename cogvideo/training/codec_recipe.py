"""Parts of a recipe that come before the networks: text tokenizer, codec, added codes, decoder and frame classifier."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.data.dataset import ClipDataset, PreparedClips, open_dataset, write_text
from cogvideo.data.synthetic_world import describe_held_out, describe_world, sample_held_out
from cogvideo.errors import RequestError, WeightsError
from cogvideo.messages import message
from cogvideo.tokenizers.image import ImageTokenizer, build_vqvae
from cogvideo.training import frame_classifier
from cogvideo.training.codebook_growth import CodebookGrowthOptions, CodeSearch, grow_codebook
from cogvideo.training.decoder_task import DecoderOptions, DecoderTask
from cogvideo.training.export import export_clusters, export_codec, write_tensors
from cogvideo.training.recipe import Recipe, TokenizerOptions, options_from
from cogvideo.training.starting_point import StartingPoint, Tensors
from cogvideo.training.text_tokenizer import train_caption_tokenizer, train_world_tokenizer
from cogvideo.training.training_run import TrainingRun
from cogvideo.training.vqvae_data import Sample, sample_clips, sample_world
from cogvideo.training.vqvae_task import VQVAEOptions, VQVAETask

CODEBOOK = "quantize.embed.weight"


def final_sizes(recipe: Recipe, start: StartingPoint) -> ModelConfig:
    """Return the sizes of the finished model: those of the starting point, and the codes that `[codes]` adds.

    Raises RequestError if `[codes]` cannot be used.
    """
    if "codes" not in recipe.parts:
        return start.sizes
    if start.folder is None or start.is_published:
        raise RequestError(*message("codec_recipe.start_without_codec", start=recipe.start))
    if "codec" in recipe.parts:
        raise RequestError(*message("codec_recipe.codes_and_codec"))
    return grow_codebook(start.sizes, recipe.options("codes", CodebookGrowthOptions).more)


class CodecRecipe:
    """Makes tokenizer, codec, codes, decoder and frame classifier of one run."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.recipe = run.recipe
        self.assets = run.assets

    def make_tokenizer(self) -> None:
        """Train `text.model` on the world's words or on captions. The world's lists are written beside it."""
        path = self.assets / "text.model"
        pieces = options_from(TokenizerOptions, self.recipe.parts["tokenizer"]).pieces
        if self.recipe.own_clips:
            captions = [self.dataset[index].caption for index in range(len(self.dataset))]
            train_caption_tokenizer(path, pieces, captions)
            return
        train_world_tokenizer(path, pieces)
        for name, content in (("world", describe_world()), ("held_out", describe_held_out())):
            write_text(self.assets / f"{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def make_codec(self) -> None:
        """Train the VQ-VAE on frames of the world or of prepared clips, and cluster its codes."""
        codec = build_vqvae(self.assets / "codec.json")
        options = self.recipe.options("codec", VQVAEOptions)
        self.run.train("codec", VQVAETask(codec, self.images, options, self.recipe.seed))
        self.run.on_main_process(self._export_codec)

    def _export_codec(self) -> None:
        tensors = self.run.trained_weights("codec")
        export_codec(tensors, self.assets)
        export_clusters(tensors[CODEBOOK], self.recipe.clusters, self.assets)

    def make_codes(self) -> None:
        """Add codes to the codec of the starting point, and cluster all codes. Does nothing if they are there.

        The description is written last: it states that the other files are complete.
        """
        description = json.loads((self.assets / "codec.json").read_text(encoding="utf-8"))
        codebook = description["quantize_config"]["params"]
        if int(codebook["n_embed"]) == self.run.sizes.image_tokens:
            return
        assert self.run.start.folder is not None  # `final_sizes` refuses other recipes
        codec = read_codec(self.run.start.folder)
        options = self.recipe.options("codes", CodebookGrowthOptions)
        codes = CodeSearch(codec, self.images, options, self.recipe.seed).codebook()
        export_codec({**codec.state_dict(), CODEBOOK: codes}, self.assets)
        export_clusters(codes, self.recipe.clusters, self.assets)
        codebook["n_embed"] = len(codes)
        write_text(self.assets / "codec.json", json.dumps(description))

    def make_decoder(self) -> None:
        """Train the codec's decoder on the same frames; encoder and codebook stay."""
        options = self.recipe.options("decoder", DecoderOptions)
        self.run.train("decoder", DecoderTask(self.trained_codec(), self.images, options, self.recipe.seed))
        self.run.on_main_process(lambda: export_codec(self.run.trained_weights("decoder"), self.assets))

    def make_judge(self) -> None:
        """Train the frame classifier that `evaluate` uses, on rendered frames."""
        options = self.recipe.options("judge", frame_classifier.FrameClassifierOptions)
        self.run.train("judge", frame_classifier.FrameClassifierTask(options, self.recipe.seed))
        path = self.assets / frame_classifier.FILE
        self.run.on_main_process(lambda: write_tensors(self.run.trained_weights("judge"), path))

    def trained_codec(self) -> Any:
        """Return the codec of this run in single precision, else the one in the model's folder."""
        trained = self.run.trained_weights("codec") if self.run.has_checkpoint("codec") else None
        return read_codec(self.assets, trained)

    @cached_property
    def codes(self) -> Tensor:
        """The codebook [image tokens, z], added codes included. Raises WeightsError if they have not been made."""
        codes: Tensor = self.trained_codec().quantize.embed.weight.detach()
        wanted = self.run.sizes.image_tokens
        if len(codes) != wanted:
            raise WeightsError(
                *message("codec_recipe.wrong_number_of_codes", assets=self.assets, num_codes=len(codes), wanted=wanted)
            )
        return codes

    @cached_property
    def images(self) -> Sample:
        """Samples the images that codec and decoder learn from."""
        if self.recipe.data is not None:
            return sample_clips(PreparedClips(Path(self.recipe.data), self.run.preset), self.run.sizes.upscale)
        return sample_world(sample_held_out())

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """The image tokenizer in the model's folder. Raises WeightsError."""
        return ImageTokenizer.load(self.run.preset, folder=self.assets)

    @cached_property
    def dataset(self) -> ClipDataset:
        """The user's clips as tokens. Raises RequestError."""
        assert self.recipe.data is not None
        return open_dataset(self.recipe.data, self.run.preset, lambda: self.image_tokenizer)


def read_codec(folder: Path, tensors: Tensors | None = None) -> Any:
    """Build the codec that a folder describes, in single precision, from `tensors` or the folder's weights."""
    codec = build_vqvae(folder / "codec.json")
    weights = load_file(folder / "codec.safetensors") if tensors is None else tensors
    codec.load_state_dict(codec.state_dict() | weights)  # exported files have no statistics of the codebook
    return codec.float()
