"""Evaluation of a model on prompts of the synthetic world: percentages, tables, and a grid of keyframes.

`frame_reader` reads decoded frames. A quarter of the prompts have a held-out pair of subject and motion or scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from cogvideo.config import SamplingOptions
from cogvideo.data.synthetic_render import COARSE, FINE, render_clip, render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES, SUBJECTS
from cogvideo.data.synthetic_world import Clip, caption, place_clip, sample_held_out
from cogvideo.evaluation import metrics
from cogvideo.evaluation.metrics import KeyframeVerdict, VideoVerdict
from cogvideo.events import Frames

if TYPE_CHECKING:
    from torch import Tensor

    from cogvideo.evaluation.sampler import EvaluationCase, EvaluationSampler

Figures = dict[str, Any]
"""Content of figures.json: names -> numbers or further figures."""
GRID_CLIPS: Final = 32
PUBLISHED_TEMPERATURE: Final = SamplingOptions().video.temperature


@dataclass(frozen=True)
class EvaluationOptions:
    """How much is evaluated."""

    count: int = 200
    """Prompts whose keyframes are judged."""
    clips: int = 60
    """Clips of each other part."""
    seed: int = 0
    """Seed of the prompts and of the videos."""
    output: Path | None = None
    """Folder of grid.png; None: no grid."""


class Evaluation:
    """Figures of one model, part by part. Each part is a method that prints a table and returns its figures."""

    def __init__(self, sampler: EvaluationSampler, sampling: SamplingOptions, options: EvaluationOptions) -> None:
        from cogvideo.evaluation.sampler import draw_cases

        self.sampler = sampler
        self.sampling = sampling
        self.options = options
        self.cases = draw_cases(options.count, options.seed, sample_held_out())
        self._keyframe_tokens: Tensor | None = None

    @property
    def keyframe_tokens(self) -> Tensor:
        """Keyframes of all cases, tokens [cases, 5, N], generated on first use."""
        if self._keyframe_tokens is None:
            self._keyframe_tokens = self.sampler.keyframes(self.cases, self.sampling)
        return self._keyframe_tokens

    def judge(self) -> Figures:
        """Measure the judge's accuracy on rendered clips at both sizes, before and after the codec."""
        rng = np.random.default_rng((self.options.seed, 11))
        figures: Figures = {}
        print("\nThe judge on rendered clips of held-out pairs (percent correct)")
        clips = [_any_clip(rng) for _ in range(self.options.clips)]
        for cell, count in ((COARSE, len(clips)), (FINE, max(1, len(clips) // 4))):
            videos = [render_clip(clip, cell=cell) for clip in clips[:count]]
            for name, seen in (("drawn", videos), ("after the codec", [self._through_codec(v) for v in videos])):
                verdicts = [metrics.judge_keyframes(c, video) for c, video in zip(clips, seen, strict=False)]
                figures[f"{name}, {cell * 8} px"] = {"clips": count, **summarise(verdicts)}
        _print_table(figures)
        return figures

    def keyframes(self) -> Figures:
        """Judge subject, scene, motion and poses of the five keyframes, by kind of pair and by motion."""
        frames = self.sampler.show(self.keyframe_tokens)
        verdicts = [metrics.judge_keyframes(case.clip, clip) for case, clip in zip(self.cases, frames, strict=True)]
        paired = list(zip(self.cases, verdicts, strict=True))
        groups = {
            "all": verdicts,
            "shown pairs": [v for case, v in paired if not case.held_out],
            "held-out pairs": [v for case, v in paired if case.held_out],
        }
        groups |= {name: [v for case, v in paired if MOTIONS[case.clip.motion] == name] for name in MOTIONS}
        figures: Figures = {name: {"clips": len(group), **summarise(group)} for name, group in groups.items() if group}
        print("\nKeyframes (percent correct)")
        _print_table(figures)
        if self.options.output:
            write_grid(frames[:GRID_CLIPS], self.options.output / "grid.png")
        return figures | {"cases": [_describe(case, verdict) for case, verdict in paired]}

    def guidance(self) -> Figures:
        """Judge keyframes at other guidance scales, with the preset's temperature and the published one."""
        figures: Figures = {}
        cases = self.cases[: self.options.clips]
        own = self.sampling.video
        scales = sorted({1.0, self.sampling.guidance_scale, 3.0})
        for temperature, scale in product(sorted({own.temperature, PUBLISHED_TEMPERATURE}), scales):
            sampling = replace(self.sampling, guidance_scale=scale, video=replace(own, temperature=temperature))
            frames = self.sampler.show(self.sampler.keyframes(cases, sampling))
            verdicts = [metrics.judge_keyframes(case.clip, clip) for case, clip in zip(cases, frames, strict=True)]
            figures[f"{scale:g}, temperature {temperature:g}"] = {"clips": len(cases), **summarise(verdicts)}
        print("\nGuidance of stage 1 (percent correct)")
        _print_table(figures)
        return figures

    def videos(self) -> Figures:
        """Judge all 33 frames: whether the subject is consistent, and in-betweens against cross-fades."""
        cases, keyframes = self.cases[: self.options.clips], self.keyframe_tokens[: self.options.clips]
        videos = self.sampler.show(self.sampler.videos(cases, keyframes, self.sampling))
        verdicts = [
            metrics.judge_video(case.clip, video, self._through_codec)
            for case, video in zip(cases, videos, strict=True)
        ]
        moving = [v for v in verdicts if v.nearer is not None]  # in a cross-fade other subjects keep their place too
        moved: Figures = {"clips": len(moving)}
        if moving:
            moved |= {**_summarise_videos(moving), "nearer": 100 * float(np.mean([v.nearer for v in moving]))}
        kinds = {name: [v for c, v in zip(cases, verdicts) if MOTIONS[c.clip.motion] == name] for name in MOTIONS}
        by_motion = {name: {"clips": len(kind), **_summarise_videos(kind)} for name, kind in kinds.items() if kind}
        figures = {"clips": len(cases), **_summarise_videos(verdicts), "change place": moved, "by motion": by_motion}
        _print_videos(figures)
        return figures

    def tokens(self) -> Figures:
        """Measure how many tokens of the subject the networks predict, by motion and round."""
        task, figures = self.sampler.task(), {}
        print("\nTokens of the subject that are predicted, given the true tokens before them (percent)")
        print(f"{'':24}{'clips':>6}{'keyframes':>11}{'5 -> 9':>9}{'9 -> 17':>9}{'17 -> 33':>9}")
        for motion, name in enumerate(MOTIONS):
            rng = np.random.default_rng((self.options.seed, 23, motion))
            clips = [_shown_clip(rng, motion) for _ in range(self.options.clips)]
            row = {"keyframes": 100 * task.teacher_forced_accuracy(clips, rng)}
            row |= {
                f"round {number}": 100 * task.teacher_forced_interpolation_accuracy(clips, number, rng)
                for number in (1, 2, 3)
            }
            figures[name] = {"clips": len(clips), **row}
            print(f"{name:{24 - len(name)}}{len(clips):6}{row['keyframes']:11.1f}", end="")
            print("".join(f"{row[f'round {number}']:9.1f}" for number in (1, 2, 3)))
        return figures

    def durations(self) -> Figures:
        """Measure how far subjects travel in four, two and one seconds with the same seed."""
        rng = np.random.default_rng((self.options.seed, 13))
        base = [_travelling(rng, index) for index in range(max(2, self.options.clips // 2))]
        prompts = [caption(rng, clip, partial=0.0) for clip in base]
        durations, distances = [], []
        for duration in (4.0, 2.0, 1.0):
            cases = [_case(p, replace(clip, duration=duration), i) for i, (p, clip) in enumerate(zip(prompts, base))]
            frames = self.sampler.show(self.sampler.keyframes(cases, self.sampling))
            distances += [metrics.distance_travelled(case.clip, clip) for case, clip in zip(cases, frames, strict=True)]
            durations += [duration] * len(cases)
        correlation = float(np.corrcoef(durations, distances)[0, 1])
        medians = {
            f"{duration:g} s": float(np.median([g for d, g in zip(durations, distances) if d == duration]))
            for duration in (4.0, 2.0, 1.0)
        }
        print(f"\nDuration and distance, {len(distances)} clips: correlation {correlation:.2f}; median cells {medians}")
        return {"clips": len(distances), "correlation": correlation, "median_cells": medians}

    def codec(self) -> Figures:
        """Measure the codec's PSNR on frames of held-out pairs at both sizes."""
        rng = np.random.default_rng((self.options.seed, 17))
        figures: Figures = {}
        print("\nCodec on frames of held-out pairs, at random times")
        for cell, count in ((COARSE, 2 * self.options.clips), (FINE, self.options.clips)):
            frames = np.stack([_any_frame(rng, cell) for _ in range(count)])
            again = self._through_codec(frames)
            values = [metrics.psnr(one, other) for one, other in zip(again, frames, strict=True)]
            figures[f"{cell * 8} px"] = {"frames": count, "psnr": float(np.mean(values))}
            print(f"  {cell * 8:3} px: {np.mean(values):.1f} dB, mean of {count} frames")
        return figures

    def superres(self) -> Figures:
        """Compare super-resolution of small frames with bicubic interpolation."""
        rng = np.random.default_rng((self.options.seed, 19))
        rows = [self._upscale_one(rng) for _ in range(max(2, self.options.clips // 2))]
        methods = ("super-resolution", "bicubic", "codec alone")
        figures: Figures = {
            name: {
                "psnr": float(np.mean([row[name][0] for row in rows])),
                "sharpness": float(np.mean([row[name][1] for row in rows])),
            }
            for name in methods
        }
        print(f"\nSuper-resolution of {len(rows)} frames (sharpness: 1 is that of the rendered frame)")
        for name in methods:
            print(f"  {name:17} {figures[name]['psnr']:5.1f} dB  sharpness {figures[name]['sharpness']:.2f}")
        return {"frames": len(rows), **figures}

    def _upscale_one(self, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """Return PSNR and relative sharpness of a small frame, upscaled by each method."""
        clip = _any_clip(rng)
        state = clip.state(float(rng.integers(0, 33)) / 32 * clip.duration)
        small, large = (render_state(clip.subject, clip.scene, clip.variant, state, cell)[0] for cell in (COARSE, FINE))
        tokens = self.sampler.codec.encode(small[None])
        decoded = self.sampler.show(tokens)[0]
        upscaled = self.sampler.upscale(
            caption(rng, clip, partial=0.0), tokens, self.sampling, int(rng.integers(2**32))
        )[0]
        size = (large.shape[1], large.shape[0])
        bicubic = np.asarray(Image.fromarray(decoded).resize(size, Image.Resampling.BICUBIC))
        own = metrics.sharpness(large)
        coded = self._through_codec(large[None])[0]
        images = {"super-resolution": upscaled, "bicubic": bicubic, "codec alone": coded}
        return {n: (metrics.psnr(p, large), metrics.sharpness(p) / own) for n, p in images.items()}

    def _through_codec(self, frames: Frames) -> Frames:
        """Encode and decode frames [F, H, W, 3]."""
        codec = self.sampler.codec
        return codec.decode(codec.encode(frames), (frames.shape[1] // 8, frames.shape[2] // 8))


EVALUATION_PARTS: dict[str, Callable[[Evaluation], Figures]] = {
    "judge": Evaluation.judge,
    "codec": Evaluation.codec,
    "keyframes": Evaluation.keyframes,
    "guidance": Evaluation.guidance,
    "videos": Evaluation.videos,
    "tokens": Evaluation.tokens,
    "durations": Evaluation.durations,
    "superres": Evaluation.superres,
}
OLD_PART_NAMES: Final = {"films": "videos"}
"""Names of parts in version 0.1 -> names of parts. figures.json has both."""


def _any_clip(rng: np.random.Generator) -> Clip:
    from cogvideo.evaluation.sampler import held_out_clip

    return held_out_clip(rng, sample_held_out(), float(rng.choice((4.0, 2.0))))


def _any_frame(rng: np.random.Generator, cell: int) -> Frames:
    clip = _any_clip(rng)
    state = clip.state(float(rng.integers(0, 33)) / 32 * clip.duration)
    return render_state(clip.subject, clip.scene, clip.variant, state, cell)[0]


def _shown_clip(rng: np.random.Generator, motion: int) -> Clip:
    """Sample a clip of four seconds with this motion, without held-out pairs."""
    held_out = sample_held_out()
    while True:
        clip = place_clip(rng, int(rng.integers(len(SUBJECTS))), int(rng.integers(len(SCENES))), motion, 4.0)
        if not held_out.contains(clip):
            return clip


def _travelling(rng: np.random.Generator, index: int) -> Clip:
    motion = metrics.TRAVELS[index % len(metrics.TRAVELS)]
    return place_clip(rng, int(rng.integers(len(SUBJECTS))), int(rng.integers(len(SCENES))), motion, 4.0)


def _case(prompt: str, clip: Clip, seed: int) -> EvaluationCase:
    from cogvideo.evaluation.sampler import EvaluationCase

    return EvaluationCase(prompt, clip, False, seed)


def summarise(verdicts: Sequence[KeyframeVerdict]) -> dict[str, float]:
    """Return the percentages of clips with the correct subject, scene, motion and poses."""
    names = ("subject", "scene", "motion", "exact")
    return {name: 100 * float(np.mean([getattr(v, name) for v in verdicts])) for name in names}


_OLD_KEYS: Final = {
    "subject_consistent": "steady",
    "consistent_fraction": "steady_frames",
    "better_than_crossfade": "beats_fade",
    "better_than_crossfade_decoded": "beats_fade_coded",
}
"""Fields of `VideoVerdict` -> keys of figures.json in version 0.1, which are still written."""


def _summarise_videos(verdicts: Sequence[VideoVerdict]) -> dict[str, float]:
    """Return the mean of each field in percent, under its name and its old key."""
    means = {name: 100 * float(np.mean([getattr(v, name) for v in verdicts])) for name in _OLD_KEYS}
    return means | {old: means[name] for name, old in _OLD_KEYS.items()}


def write_grid(frames: Frames, path: Path, zoom: int = 2) -> None:
    """Write keyframes [cases, 5, H, W, 3] as a PNG: a clip a row, two columns of clips, `zoom` times as large."""
    rows = [np.concatenate(list(clip), axis=1) for clip in frames]
    half = (len(rows) + 1) // 2
    columns = [np.concatenate(part, axis=0) for part in (rows[:half], rows[half:]) if part]
    height = columns[0].shape[0]
    columns = [np.pad(c, ((0, height - c.shape[0]), (0, 8), (0, 0)), constant_values=255) for c in columns]
    image = Image.fromarray(np.concatenate(columns, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def _print_videos(figures: Figures) -> None:
    moved, by_motion = figures["change place"], figures["by motion"]
    print(f"\nAll 33 frames of {figures['clips']} clips")
    print(f"  correct subject in every frame  {figures['subject_consistent']:5.1f} % of clips")
    parts = [f"{name} {row['subject_consistent']:.0f} % of {row['clips']}" for name, row in by_motion.items()]
    print("   ", ", ".join(parts))
    print(f"  correct subject                 {figures['consistent_fraction']:5.1f} % of frames")
    print("  in-betweens closer to the true frame than a cross-fade of the keyframes is:")
    print(f"    rendered                      {figures['better_than_crossfade']:5.1f} % of clips")
    print(f"    after the codec               {figures['better_than_crossfade_decoded']:5.1f} % of clips")
    if moved["clips"]:
        print(f"    rendered, if it changes place {moved['better_than_crossfade']:5.1f} % of {moved['clips']} clips")
        print(f"    by the place of the subject   {moved['nearer']:5.1f} % of these")


def _print_table(groups: Figures) -> None:
    print(f"{'':24}{'clips':>6}{'subject':>9}{'scene':>9}{'motion':>9}{'exact':>9}")
    for name, row in groups.items():
        width = 24 - sum(ord(letter) > 0x2E80 for letter in name)  # Chinese characters take two columns
        print(
            f"{name:{width}}{row['clips']:6}"
            + "".join(f"{row[k]:9.1f}" for k in ("subject", "scene", "motion", "exact"))
        )


def _describe(case: EvaluationCase, verdict: KeyframeVerdict) -> Figures:
    wanted = (SUBJECTS[case.clip.subject].name, SCENES[case.clip.scene], MOTIONS[case.clip.motion])
    return {"prompt": case.prompt, "seed": case.seed, "wanted": wanted, "held_out": case.held_out, **asdict(verdict)}
