"""Sizes, sampling options and presets: frozen data, checked on creation.

All differences between the included model (`mini`) and the published one (`cogvideo`) are rows of `PRESETS`. No other
file contains the name of a model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from cogvideo.errors import RequestError
from cogvideo.messages import message

FRAME_COUNTS = (5, 9, 17, 33)
"""Frames of a video after 0, 1, 2 and 3 rounds of interpolation."""

DURATIONS = (4.0, 2.0, 1.0, 0.5)
"""Allowed durations of a video, in seconds."""

MAX_SEED = 2**32 - 1

MAX_DRAFTS = 4
"""Drafts (videos of keyframes only) that are generated side by side for the user to choose from."""

MAX_BEST_OF = 16
"""First frames that are generated side by side for the model to choose from."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 5.0

MAX_GUIDANCE = 20.0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the three networks, which share one backbone (section 1 of the paper's model, `model_config.json`).

    Sizes in tokens are (height, width); `window` and `fine_window` count token cells.
    """

    layers: int
    hidden: int
    heads: int
    vocab_size: int
    """Rows of the word embedding: image tokens first, then text, then the special tokens."""
    image_tokens: int
    start_of_image: int
    """Id of `<start_of_image>` (BOI), the input of every frame's first slot."""
    grid: tuple[int, int] = (20, 20)
    """Token grid of one frame before super-resolution."""
    keyframes: int = 5
    text_length: int = 64
    """Slots of the text in training. A longer prompt is an error."""
    image_start: int = 512
    """Position of the first frame's first slot. The positions before it are for text."""
    base_positions: int = 1024
    """Rows of the backbone's position table."""
    extra_positions: int = 2000
    """Rows of the extra position table of stages 1 and 2."""
    window: int = 10
    """Side of the temporal attention's windows in stage 2. Odd layers shift them by half."""
    upscale: int = 3
    """Super-resolution multiplies height and width of the grid by this."""
    superres_text_length: int = 96
    fine_window: tuple[int, int] = (9, 5)
    """Super-resolution: the window on the fine grid around each slot (height, width)."""
    coarse_window: tuple[int, int] = (5, 5)
    """Super-resolution: the window on the coarse grid around each slot's cell (height, width)."""

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def fine_grid(self) -> tuple[int, int]:
        return (self.grid[0] * self.upscale, self.grid[1] * self.upscale)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


def check_type(name: str, value: object, *kinds: type) -> None:
    """Check that `value` is of one of the types `kinds`. Raises RequestError.

    A bool is not accepted as a number; an int is accepted as a float.
    """
    fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits:
        expected, got = " or ".join(kind.__name__ for kind in kinds), type(value).__name__
        raise RequestError(*message("config.wrong_type", name=name, got=got, expected=expected))


@dataclass(frozen=True)
class TokenSampling:
    """Options for sampling one token ("cluster" sampling, section 7 of the model's description)."""

    temperature: float
    top_k: int
    """Number of most probable clusters to sample from."""
    within_cluster_temperature: float
    """Temperature of sampling within the cluster."""
    plausibility: float = 0.0
    """With guidance: minimum probability of a token, as a fraction of the most probable one, both without guidance.

    Less probable tokens are never sampled. 0: no limit, as published. (The constraint of contrastive decoding, Li et
    al. 2022, arXiv:2210.15097, section 3.3, called alpha there.)"""

    def __post_init__(self) -> None:
        check_type("top_k", self.top_k, int)
        for temperature in (self.temperature, self.within_cluster_temperature):
            check_type("temperature", temperature, float)
            if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
                raise RequestError(
                    *message(
                        "config.temperature_out_of_range",
                        temperature=temperature,
                        min_temperature=MIN_TEMPERATURE,
                        max_temperature=MAX_TEMPERATURE,
                    )
                )
        check_type("plausibility", self.plausibility, float)
        if not 0 <= self.plausibility <= 1:
            raise RequestError(*message("config.plausibility_out_of_range", plausibility=self.plausibility))
        if self.top_k < 1:
            raise RequestError(*message("config.top_k_too_small", top_k=self.top_k))


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options of a video. The defaults are the published ones."""

    first_frame: TokenSampling = TokenSampling(1.0, 16, 0.89)
    video: TokenSampling = TokenSampling(1.05, 12, 0.89)
    superres: TokenSampling = TokenSampling(1.0, 6, 0.6)
    guidance_scale: float = 3.0
    """Guidance scale s of stage 1: logits are u + s * (c - u), c conditional, u unconditional. 1.0: no guidance."""
    interpolation_guidance_scale: float = 1.0
    """Guidance scale of stage 2. 1.0 (off) in the published model."""
    text_attention_bias: float = 1.4
    """Added to frame-to-text attention scores in passes without guidance (first frame, stage 2)."""
    best_of: int = 1
    """First frames that are generated side by side. The video continues from the most likely one. (Sample and rank,
    Adiwardana et al. 2020, arXiv:2001.09977: high temperature for variety, likelihood for quality.)"""

    def __post_init__(self) -> None:
        for name in ("first_frame", "video", "superres"):
            check_type(name, getattr(self, name), TokenSampling)
        for scale in (self.guidance_scale, self.interpolation_guidance_scale):
            check_type("guidance_scale", scale, float)
            if not 1.0 <= scale <= MAX_GUIDANCE:
                raise RequestError(*message("config.guidance_out_of_range", scale=scale, max_guidance=MAX_GUIDANCE))
        check_type("text_attention_bias", self.text_attention_bias, float)
        if not abs(self.text_attention_bias) <= MAX_GUIDANCE:
            raise RequestError(
                *message(
                    "config.invalid_attention_bias",
                    text_attention_bias=self.text_attention_bias,
                    max_guidance=MAX_GUIDANCE,
                )
            )
        check_type("best_of", self.best_of, int)
        if not 1 <= self.best_of <= MAX_BEST_OF:
            raise RequestError(*message("config.invalid_best_of", best_of=self.best_of, max_best_of=MAX_BEST_OF))


@dataclass(frozen=True)
class Preset:
    """One model: its sizes and its defaults."""

    name: str
    model: ModelConfig
    sampling: SamplingOptions
    patch_size: int
    """Pixels along one side of a token's patch (compress rate of the VQ-VAE)."""
    first_frame_suffix: str = " 高清摄影"
    video_suffix: str = " 视频"
    unconditional: str = "视频"
    upscale_by_default: bool = True
    """Whether super-resolution is on by default."""
    back_projection: float = 0.0
    """Fraction, 0 to 1, of the difference to the small frames that upscaled frames get back (`image.back_project`)."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """Pixels of a frame before super-resolution (height, width)."""
        return (self.model.grid[0] * self.patch_size, self.model.grid[1] * self.patch_size)

    @property
    def final_size(self) -> tuple[int, int]:
        """Pixels of a frame after super-resolution (height, width)."""
        return (self.model.fine_grid[0] * self.patch_size, self.model.fine_grid[1] * self.patch_size)


PRESETS: dict[str, Preset] = {
    "mini": Preset(
        name="mini",
        model=ModelConfig(
            layers=6,
            hidden=192,
            heads=6,
            vocab_size=4608,
            image_tokens=4096,
            start_of_image=4605,
            grid=(8, 8),
            text_length=32,
            image_start=64,
            base_positions=160,
            extra_positions=256,
            window=4,
            superres_text_length=32,
            fine_window=(9, 5),
            coarse_window=(5, 5),
        ),
        # Selected with `evaluate`: a small model has flatter logits, and was trained without a text attention bias.
        sampling=SamplingOptions(
            first_frame=TokenSampling(1.0, 16, 0.5),
            video=TokenSampling(0.3, 12, 0.5, plausibility=0.6),
            superres=TokenSampling(0.1, 1, 0.1),
            text_attention_bias=0.0,
            best_of=4,
        ),
        patch_size=8,
        upscale_by_default=False,  # it improves keyframes, but damages faces in in-between frames
        back_projection=0.7,
    ),
    "cogvideo": Preset(
        name="cogvideo",
        model=ModelConfig(
            layers=48,
            hidden=3072,
            heads=48,
            vocab_size=150010,
            image_tokens=20000,
            start_of_image=150000,
        ),
        sampling=SamplingOptions(),
        patch_size=8,
    ),
}


WeightFormat = Literal["exact", "int8", "bnb8", "nf4"]
"""Storage of the layers' weight matrices.

`exact`: unchanged. `int8`: 8 bits and one scale a row, computed in the model's precision (W8A16). `bnb8`: LLM.int8 of
bitsandbytes, with activations in 8 bits too. `nf4`: NF4 of bitsandbytes, 4 bits with one scale for 64 numbers."""

_HERE = Path(__file__).resolve().parent
ASSETS = _HERE / "assets" if (_HERE / "assets").is_dir() else _HERE.parent / "assets"
"""In the repository: beside the code. In an installed package: inside it."""

PRESET_FILE = "preset.json"
"""File in the folder of a trained model: the preset that it derives from, and its sizes."""


def load_preset(name: str) -> tuple[Preset, Path]:
    """Return a preset and the folder of its files. Raises RequestError.

    `name`: a key of `PRESETS`, or the folder of a trained model.
    """
    if name in PRESETS:
        return PRESETS[name], ASSETS / name
    folder = Path(name)
    try:
        about = json.loads((folder / PRESET_FILE).read_text(encoding="utf-8"))
        base = PRESETS[about["preset"]]
        return replace(base, name=folder.name, model=resize_model(base.model, about["model"])), folder
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            *message(
                "config.unknown_model",
                name=name,
                presets_zh="、".join(PRESETS),
                preset_file=PRESET_FILE,
                presets_en=", ".join(PRESETS),
            )
        ) from error


def describe_preset(base: str, model: ModelConfig) -> str:
    """Return the content of `preset.json`, which `load_preset` reads."""
    return json.dumps({"preset": base, "model": asdict(model)}, indent=1) + "\n"


def resize_model(model: ModelConfig, sizes: dict[str, Any]) -> ModelConfig:
    """Return `model` with some of its sizes replaced. Raises RequestError if a name is not that of a size."""
    allowed = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(set(sizes) - allowed):
        raise RequestError(
            *message(
                "config.unknown_sizes",
                unknown_zh="、".join(unknown),
                allowed_zh="、".join(sorted(allowed)),
                unknown_en=", ".join(unknown),
                allowed_en=", ".join(sorted(allowed)),
            )
        )
    # JSON and TOML store pairs as lists.
    pairs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()}
    return replace(model, **pairs)


MAX_IDLE_CACHES: Final = 6
"""Idle caches kept for later videos: for the first frame, the keyframes, three rounds, and one spare."""
