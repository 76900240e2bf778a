"""A request -> events as the video grows, and the video: the only place where all parts meet.

prompt -> text ids -> keyframes [1, 5, N] -> in-betweens [1, F, N] -> super-resolution [F, 9N] -> uint8 [F, H, W, 3]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cogvideo.config import ASSETS, PRESETS, ModelConfig, Preset, load_preset
from cogvideo.errors import OutOfMemoryError, RequestError, WeightsError
from cogvideo.events import (
    Event,
    Frames,
    FrameUpscaled,
    KeyframeCompleted,
    KeyframePreview,
    Loading,
    Progress,
    RoundCompleted,
    StageName,
    VideoCompleted,
)
from cogvideo.inference import interpolation, keyframes, super_resolution
from cogvideo.inference.keyframes import KeyframeStep, KeyframeTexts
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.media.images import side_by_side
from cogvideo.models.fused_decode import should_fuse
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.runtime.device import DevicePlacement, default_placement, placement_for, torch_threads, usable_cores
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.oom import free_memory, translate_oom
from cogvideo.runtime.placement import on_device, place_models, upscaler_on_device
from cogvideo.token_frames import TokenFrames
from cogvideo.tokenizers.image import ImageTokenizer, back_project
from cogvideo.tokenizers.prompt import CheckedPrompt, KnownConcepts, TokenizedPrompt, check_prompt, tokenize_prompt
from cogvideo.tokenizers.text import (
    TextTokenizer,
    first_frame_text,
    interpolation_text,
    round_seconds,
    superres_text,
    unconditional_text,
    video_text,
)
from cogvideo.weights.catalog import ICETK_FOLDER, published_home

PREVIEWS: Final = 4
"""Pictures of a keyframe while it is painted, the finished one included."""

LOOKAHEAD_TOKENS: Final = 4
"""Slots of a keyframe that one step reads on a CPU. With `mini` and real prompts: 2.6 to 3.4 tokens a step (figures in
assets/bench/ahead.json), keyframes in 82 % of the time on one core and in 65 % on two; eight slots gain no more. Off
for frames between, where the wavefront is as fast and all rows would have to agree, and on a GPU, where each step would
wait for the host.
"""

Stop = Callable[[], bool]


class Models(Protocol):
    """The three networks, in evaluation mode; they may share a backbone."""

    @property
    def stage1(self) -> VideoLM: ...

    @property
    def stage2(self) -> VideoLM: ...

    @property
    def superres(self) -> SuperResLM: ...


@dataclass(frozen=True)
class Text:
    """What reads prompts."""

    tokenizer: TextTokenizer
    world: KnownConcepts


class PipelineComponents(NamedTuple):
    """What draws videos, ready for work."""

    tokenizer: TextTokenizer
    sampler: ClusterSampler
    codec: ImageTokenizer
    models: Models


class CogVideoPipeline:
    """Text to video with one preset. Nothing is read before it is needed; any thread may be the first to need it.

    `folder`: the preset's text model, clusters, codec and world; None: its assets, then icetk's own folder.
    `load_models`: (preset name, dtype or None for the files' own, device) -> Models; None: the files of the preset.
    `previews`: whether keyframes are shown while they are painted.
    """

    def __init__(
        self,
        preset: Preset,
        place: DevicePlacement,
        folder: Path | None = None,
        load_models: Callable[[str, torch.dtype | None, torch.device], Models] | None = None,
        previews: bool = True,
    ) -> None:
        self.preset, self.place, self.previews = preset, place, previews
        self._folder = folder or ASSETS / preset.name
        self._load_models = load_models or _load_models
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}
        self._found: tuple[str, str] | None = None  # what there is to tell of the files that were read

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",
        device: str | None = None,
        previews: bool = True,
        eight_bit: bool = False,
        offload: bool = False,
        memory: str | None = None,
    ) -> CogVideoPipeline:
        """The pipeline of a preset, or of the folder of a trained model. Raises RequestError, CapacityError.

        `device` None: the best there is. `memory`: a name of `config.MEMORY`; None: $COGVIDEO_MEMORY, else what fits.
        In place of a preset: `eight_bit` keeps the layers' matrices in 8 bits (bitsandbytes), `offload` brings each of
        them to the device for its product alone.
        """
        preset, folder = load_preset(name)
        by_hand = eight_bit or offload
        place = (
            default_placement(device, eight_bit, offload) if by_hand else placement_for(preset.model, device, memory)
        )
        if name in PRESETS:
            return cls(preset, place, previews=previews)
        return cls(preset, place, folder, partial(_load_folder, folder, preset.model), previews)

    def __call__(self, request: VideoRequest) -> Frames:
        """The frames uint8 [F, H, W, 3] of the video. Raises CogVideoError."""
        *_, done = self.stream(request)
        assert isinstance(done, VideoCompleted)
        return done.frames

    def stream(self, request: VideoRequest, stop: Stop | None = None) -> Generator[Event, None, None]:
        """The video as it grows; `Done` comes last.

        Raises RequestError at once, before anything is started; later Cancelled, within a token of `stop` saying True,
        WeightsError and CapacityError.
        """
        checked = self.check_inputs(request)
        return self._stream(replace(request, prompt=checked.text), stop or (lambda: False))

    def check_inputs(self, request: VideoRequest) -> CheckedPrompt:
        """What the model will read, and notes about it. Raises RequestError. Reads the vocabulary, not the networks."""
        for given in (request.first_frame, request.initial_tokens):
            if given is not None:
                check_initial_tokens(self.preset.model, given)
        text: Text = self._part("text")
        return check_prompt(request.prompt, text.tokenizer, self.preset, text.world, request.superres)

    def tokenize_prompt(self, request: VideoRequest) -> TokenizedPrompt:
        """The prompt as the model reads it, piece by piece. Raises RequestError."""
        text: Text = self._part("text")
        return tokenize_prompt(request.prompt, text.tokenizer, self.preset, request.superres)

    def encode(self, picture: Frames) -> TokenFrames:
        """A picture uint8 [H, W, 3] of the preset's `frame_size` -> the tokens of a first frame.

        Raises WeightsError, CapacityError.
        """
        with self.unload_on_oom():
            tokens = self._part("codec").encode(picture[None])  # [1, N]
            return TokenFrames.of(tokens.tolist())

    def decode(self, tokens: TokenFrames) -> Frames:
        """Tokens [F, N] -> the pictures that the model sees in them, uint8 [F, H, W, 3].

        Raises RequestError, WeightsError, CapacityError.
        """
        check_initial_tokens(self.preset.model, tokens)
        with self.unload_on_oom():
            frames: Frames = self._part("codec").decode(torch.tensor(tokens.rows()), self.preset.model.grid)
            return frames

    def load(self) -> None:
        """Read all files now. Raises WeightsError, CapacityError."""
        with self.unload_on_oom():
            for _ in self.loading():
                pass

    def unload(self) -> None:
        """Let go of everything but the vocabulary; it is read again when it is needed."""
        with self._lock:
            for name in ("clusters", "codec", "models"):
                self._parts.pop(name, None)
        free_memory(self.place)

    @property
    def device_type(self) -> str:
        """Of device that it computes on: "cuda" or "cpu"."""
        return self.place.kind

    @property
    def memory(self) -> str:
        """Name of the memory preset that it computes under."""
        return self.place.memory.name

    @property
    def profile_key(self) -> str:
        """In a word, on what and under which memory preset it computes: speeds are kept for each."""
        return f"{self.device_type}-{self.memory}"

    @property
    def memory_summary(self) -> str:
        """The memory preset, and the most memory that a video is expected to take, in both languages."""
        memory = self.place.memory
        peak = peak_bytes(self.preset.model, memory, self.place.kind) / 1e9
        return f"显存预设 memory preset: {memory.name} (≤ {peak:.1f} GB)"

    # The parts, each made once.

    def components(self) -> PipelineComponents:
        """Whatever is needed to draw, read where it was not yet. Raises WeightsError, CapacityError."""
        names = "clusters", "codec", "models"
        return PipelineComponents(self._part("text").tokenizer, *(self._part(name) for name in names))

    def loading(self) -> Iterator[Loading]:
        """Read what was not read yet, part by part. Raises WeightsError, CapacityError."""
        missing = [name for name in _MAKERS if name not in self._parts]
        for number, name in enumerate(missing):
            yield Loading(name, number, len(missing))
            self._part(name)
        if missing:
            yield Loading(missing[-1], len(missing), len(missing), self._found)

    def _stream(self, request: VideoRequest, stop: Stop) -> Generator[Event, None, None]:
        with self.unload_on_oom():
            frames = yield from self._draw(request, stop)
        yield VideoCompleted(frames, request.frames_per_second, request.seed)

    def _draw(self, request: VideoRequest, stop: Stop) -> Generator[Event, None, Frames]:
        yield from self.loading()
        run = _Run(self, request, stop)
        clip = yield from run.begin()  # [B, 5 or more, N]
        clip = yield from run.interpolate(clip)  # [B, F, N]
        return (yield from run.enlarge(clip))

    @contextmanager
    def unload_on_oom(self) -> Iterator[None]:
        """Raises OutOfMemory once nothing is held any more, neither by the pipeline nor by the video."""
        try:
            with translate_oom(self.preset.model, self.place):
                yield
        except OutOfMemoryError:
            self.unload()
            raise

    def _part(self, name: str) -> Any:
        with self._lock:
            if name not in self._parts:
                self._parts[name] = _MAKERS[name](self)
            return self._parts[name]

    def _make_text(self) -> Text:
        path = self._first(self._folder / "text.model", ICETK_FOLDER.expanduser() / "ice_text.model")
        tokenizer = TextTokenizer(path, self.preset.model.image_tokens)
        return Text(tokenizer, KnownConcepts.load(self._folder / "world.json"))

    def _make_clusters(self) -> ClusterSampler:
        path = self._first(self._folder / "cluster_labels.npy", published_home() / "cluster_label2.npy")
        labels = _read_labels(path, self.preset.model.image_tokens)
        return ClusterSampler(labels, usable_cores()).to(self.place.device)

    def _make_codec(self) -> ImageTokenizer:
        codec = ImageTokenizer.load(self.preset, self.place.device, self.place.dtype, self._folder)
        height, width = self.preset.model.fine_grid
        codec.tokens_per_pass = min(codec.tokens_per_pass, self.place.memory.frames_per_pass * height * width)
        return codec

    def _make_models(self) -> Models:
        # Read into host memory, mapped where nothing has to be changed: whole, it might not fit on the device.
        loaded = self._load_models(self.preset.name, self.place.read_as, torch.device("cpu"))
        self._found = getattr(loaded, "message", None)
        models = place_models(loaded, self.place)
        memory = self.place.memory
        plain = memory.weights == "exact" and not (memory.offload or memory.swap_networks or memory.int8_cache)
        plain = plain and (memory.fused or self.place.kind == "cpu")
        if plain and should_fuse(self.preset.model, self.place.device):
            models.stage1.fuse(threads=usable_cores())
            models.stage2.fuse(threads=usable_cores())
        return models

    def _first(self, *paths: Path) -> Path:
        """The first file that exists; where none does, the one that the error should name."""
        expected = paths[0] if self._folder.is_dir() else paths[-1]
        return next((path for path in paths if path.is_file()), expected)


_MAKERS: Final[dict[str, Callable[[CogVideoPipeline], Any]]] = {
    "text": CogVideoPipeline._make_text,
    "clusters": CogVideoPipeline._make_clusters,
    "codec": CogVideoPipeline._make_codec,
    "models": CogVideoPipeline._make_models,
}


class _Run:
    """One video on its way. Its methods are generators of events that return what the next step needs."""

    def __init__(self, pipeline: CogVideoPipeline, request: VideoRequest, stop: Stop) -> None:
        self.preset, self.place, self.previews = pipeline.preset, pipeline.place, pipeline.previews
        self.tokenizer, self.sampler, self.codec, self.models = pipeline.components()
        self.request, self.stop = request, stop
        self.options = request.sampling or self.preset.sampling
        self.done, self.total = 0, sum(tokens_per_stage(self.preset.model, request).values())
        self.shown: Frames  # of the last level: the final ones, where none is enlarged

    def begin(self) -> Generator[Event, None, Tensor]:
        """-> tokens [B, 5, N] of keyframes, or those [1, F, N] that were drawn before, shown at once."""
        given = self.request.initial_tokens
        if given is None:
            return (yield from self.keyframes())
        clip = self._tensor(given)[None]  # [1, F, N]
        yield self._level(self.request.completed_rounds, clip)
        return clip

    def keyframes(self) -> Generator[Event, None, Tensor]:
        """-> tokens [B, 5, N]; shows every keyframe, and the five as a first video. B: the number of drafts, or 1."""
        request, first = self.request, self.request.first_frame
        given = None if first is None else self._tensor(first).repeat(request.num_drafts, 1)  # [B, N]
        with on_device(self.models.stage1, self.place) as lm, torch_threads(1):
            texts = keyframe_texts(
                self.tokenizer, self.preset, [request.wish] * request.num_drafts, self.options.guidance_scale
            )
            ahead = LOOKAHEAD_TOKENS if self.place.device.type == "cpu" else 1
            wish = request.seeds, self.stop, ahead, given, self.place.memory.max_batch_rows
            for step in keyframes.generate_keyframes(lm, texts, self.sampler, self.options, *wish):
                if step.tokens:
                    yield self._progress("drafts" if request.num_drafts > 1 else "keyframes", step.tokens)
                if step.is_complete:
                    yield from self._show(step)
        yield self._level(0, step.video_tokens)
        return step.video_tokens

    def interpolate(self, clip: Tensor) -> Generator[Event, None, Tensor]:
        """Tokens [1, 5 or more, N] -> [1, F, N]; shows every level. Drafts stay as they are."""
        request = self.request
        begun, wanted = request.completed_rounds, request.rounds
        if request.num_drafts > 1 or begun == wanted:
            return clip
        texts, away = interpolation_texts(
            self.tokenizer, self.preset, [request], self.options.interpolation_guidance_scale
        )
        seeds = [request.seed if request.interpolation_seed is None else request.interpolation_seed]
        wish = self.sampler, self.options.video, self.options.text_attention_bias, seeds, self.stop
        with on_device(self.models.stage2, self.place) as lm, torch_threads(1):
            for step in interpolation.interpolate(
                lm, clip, texts, *wish, self.place.memory.max_batch_rows, begun + 1, away
            ):
                if step.tokens:
                    yield self._progress("interpolate", step.tokens)
                if step.clip is not None:
                    clip = step.clip
                    yield self._level(step.level, clip)
        return clip

    def enlarge(self, clip: Tensor) -> Generator[Event, None, Frames]:
        """Tokens [B, F, N] -> the final frames uint8 [F, H, W, 3]; shows each of them. Drafts stay small."""
        model, request = self.preset.model, self.request
        if request.num_drafts > 1 or not request.superres:
            return self.shown
        frames: list[Frames] = []
        text = superres_text(self.tokenizer, request.prompt)
        options, seed = self.options.superres, request.seed
        at_once = self.place.memory.frames_per_pass
        lm = self.models.superres
        with upscaler_on_device(lm, self.place) as layers, torch_threads():
            for part in super_resolution.upscale(
                lm, clip[0], text, self.sampler, options, seed, at_once, self.stop, layers
            ):
                small = self.shown[len(frames) : len(frames) + len(part.tokens)]
                large = self.codec.decode(part.tokens, model.fine_grid)
                for frame in back_project(large, small, self.preset.back_projection):
                    yield FrameUpscaled(len(frames), request.num_frames, frame)
                    frames.append(frame)
                yield self._progress("superres", part.tokens.numel())
        return np.stack(frames)

    def _show(self, step: KeyframeStep) -> Iterator[Event]:
        """A finished keyframe, or a growing one at the end of some of its rows; of every draft."""
        height, width = grid = self.preset.model.grid
        size, rows = height * width, width * max(1, height // PREVIEWS)
        for draft, tokens in enumerate(step.video_tokens[:, step.frame, : step.num_tokens]):
            if step.num_tokens == size:
                yield KeyframeCompleted(step.frame, self.codec.decode(tokens[None], grid)[0], draft)
            elif self.previews and step.num_tokens % rows == 0:
                yield KeyframePreview(step.frame, step.num_tokens, self.codec.decode_partial(tokens, grid), draft)

    def _level(self, level: int, clip: Tensor) -> RoundCompleted:
        self.shown = self._pictures(clip)
        return RoundCompleted(level, self.shown, clip.cpu().numpy())

    def _pictures(self, clip: Tensor) -> Frames:
        """Tokens [B, F, N] -> uint8 [F, H, W, 3]; several videos side by side."""
        return side_by_side([self.codec.decode(video, self.preset.model.grid) for video in clip])

    def _tensor(self, given: TokenFrames) -> Tensor:
        return torch.tensor(given.rows(), device=self.sampler.device)  # [F, N]

    def _progress(self, stage: StageName, tokens: int) -> Progress:
        self.done += tokens
        return Progress(stage, self.done, self.total)


def keyframe_texts(
    tokenizer: TextTokenizer, preset: Preset, wishes: Sequence[tuple[str, float]], guidance: float
) -> KeyframeTexts:
    """What keyframes of `wishes` (prompt, seconds) read. Without guidance all but the first read the bare prompt."""
    first = [first_frame_text(tokenizer, preset, prompt) for prompt, _ in wishes]
    if guidance == 1.0:
        return KeyframeTexts(first, [interpolation_text(tokenizer, *wish) for wish in wishes], None)
    return KeyframeTexts(
        first,
        [video_text(tokenizer, preset, *wish) for wish in wishes],
        [unconditional_text(tokenizer, preset, seconds) for _, seconds in wishes],
    )


def interpolation_texts(
    tokenizer: TextTokenizer, preset: Preset, requests: Sequence[VideoRequest], guidance: float
) -> tuple[list[list[list[int]]], interpolation.InterpolationGuidance | None]:
    """What stage 2 reads in each round that is left, for each of `requests`, which are equally long; and without."""
    like = requests[0]
    spans = round_seconds(like.duration, like.rounds)[like.completed_rounds :]
    texts = [[interpolation_text(tokenizer, request.prompt, span) for request in requests] for span in spans]
    if guidance == 1.0:
        return texts, None
    return texts, interpolation.InterpolationGuidance(
        [unconditional_text(tokenizer, preset, span) for span in spans], guidance
    )


def check_initial_tokens(model: ModelConfig, given: TokenFrames) -> None:
    """Raises RequestError where the tokens are no frames of this model."""
    rows = given.rows()
    if len(rows[0]) != model.tokens_per_frame or max(map(max, rows)) >= model.image_tokens:
        raise RequestError(
            "起始画面属于另一个模型：请换回该模型，或重新选择起始画面。",
            "The frames to start from belong to another model: choose that model again, or other frames.",
        )


def _load_models(name: str, dtype: torch.dtype | None, device: torch.device) -> Models:
    from cogvideo.models.loader import load

    return load(name, dtype, device)


def _load_folder(
    folder: Path, model: ModelConfig, name: str, dtype: torch.dtype | None, device: torch.device
) -> Models:
    from cogvideo.models.loader import load_safetensors

    return load_safetensors(folder, model, dtype, device)


def _read_labels(path: Path, tokens: int) -> Tensor:
    """The cluster of every image token, int64 [tokens]. Raises WeightsError."""
    try:
        labels = np.load(path, allow_pickle=False)
        if labels.shape != (tokens,):
            raise ValueError(f"shape {labels.shape}, not {(tokens,)}")
        labels = labels.astype(np.int64)
    except Exception as error:  # a damaged header brings up whatever it can, down to tokenize's errors
        reason = "文件不存在" if isinstance(error, FileNotFoundError) else str(error)
        raise WeightsError(
            f"无法读取聚类标签 {path}（{reason}）：请重新克隆本仓库，或按 README 下载已发布的模型。",
            f"The cluster labels {path} cannot be read ({error}): clone the repository anew, or download the published "
            "model as the README says.",
        ) from error
    return torch.from_numpy(labels)
