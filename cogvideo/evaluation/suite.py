"""Parts of the evaluation: prompts of the synthetic world -> figures of what the videos show, and a picture grid."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cogvideo.config import SamplingOptions
from cogvideo.data.synthetic_render import COARSE, FINE, render_clip, render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES, SUBJECTS
from cogvideo.data.synthetic_world import Clip, caption, place_clip, sample_held_out
from cogvideo.evaluation import metrics
from cogvideo.evaluation.metrics import KeyframeVerdict, VideoVerdict

if TYPE_CHECKING:
    from torch import Tensor

    from cogvideo.evaluation.sampler import EvaluationCase, EvaluationSampler

Pixels = npt.NDArray[np.uint8]
Figures = dict[str, Any]
GRID_CLIPS = 32
PUBLISHED_TEMPERATURE = SamplingOptions().video.temperature


class Evaluation:
    """The figures of one set of networks, part by part. Each part is a method that prints a table and returns it."""

    def __init__(self, studio: EvaluationSampler, options: SamplingOptions, args: argparse.Namespace) -> None:
        from cogvideo.evaluation.sampler import draw_cases

        self.studio = studio
        self.options = options
        self.args = args
        self.cases = draw_cases(args.count, args.seed, sample_held_out())
        self._clips: Tensor | None = None

    @property
    def clips(self) -> Tensor:
        """Keyframes of all cases, tokens [cases, 5, N]."""
        if self._clips is None:
            self._clips = self.studio.keyframes(self.cases, self.options)
        return self._clips

    def judge(self) -> Figures:
        """How often the judge is right on drawings of the world at both sizes, before the codec and after it."""
        rng = np.random.default_rng((self.args.seed, 11))
        figures: Figures = {}
        print("\nThe judge on rendered clips of held-out pairs (percent right)")
        clips = [_any_clip(rng) for _ in range(self.args.clips)]
        for cell, count in ((COARSE, len(clips)), (FINE, max(1, len(clips) // 4))):
            films = [render_clip(clip, cell=cell) for clip in clips[:count]]
            for name, seen in (("drawn", films), ("after the codec", [self._through_codec(film) for film in films])):
                verdicts = [metrics.judge_keyframes(c, film) for c, film in zip(clips, seen, strict=False)]
                figures[f"{name}, {cell * 8} px"] = {"clips": count, **summarise(verdicts)}
        _print_table(figures)
        return figures

    def keyframes(self) -> Figures:
        """Subject, scene, motion and states of the five keyframes; by kind of pair, and by motion."""
        frames = self.studio.show(self.clips)
        verdicts = [metrics.judge_keyframes(case.clip, clip) for case, clip in zip(self.cases, frames, strict=True)]
        paired = list(zip(self.cases, verdicts, strict=True))
        groups = {
            "all": verdicts,
            "shown pairs": [v for case, v in paired if not case.held_out],
            "held-out pairs": [v for case, v in paired if case.held_out],
        }
        groups |= {name: [v for case, v in paired if MOTIONS[case.clip.motion] == name] for name in MOTIONS}
        figures: Figures = {name: {"clips": len(group), **summarise(group)} for name, group in groups.items() if group}
        print("\nKeyframes (percent right)")
        _print_table(figures)
        if self.args.out:
            write_grid(frames[:GRID_CLIPS], self.args.out / "grid.png")
        return figures | {"cases": [_describe(case, verdict) for case, verdict in paired]}

    def guidance(self) -> Figures:
        """The keyframes' figures at other strengths of guidance, with this temperature and with the published one."""
        figures: Figures = {}
        cases = self.cases[: self.args.clips]
        own = self.options.video
        strengths = sorted({1.0, self.options.guidance_scale, 3.0})
        for temperature, strength in product(sorted({own.temperature, PUBLISHED_TEMPERATURE}), strengths):
            options = replace(self.options, guidance_scale=strength, video=replace(own, temperature=temperature))
            frames = self.studio.show(self.studio.keyframes(cases, options))
            verdicts = [metrics.judge_keyframes(case.clip, clip) for case, clip in zip(cases, frames, strict=True)]
            figures[f"{strength:g}, temperature {temperature:g}"] = {"clips": len(cases), **summarise(verdicts)}
        print("\nGuidance of stage 1 (percent right)")
        _print_table(figures)
        return figures

    def videos(self) -> Figures:
        """All 33 frames: the same subject throughout, and in-betweens against cross-fades."""
        cases, clips = self.cases[: self.args.clips], self.clips[: self.args.clips]
        films = self.studio.show(self.studio.videos(cases, clips, self.options))
        verdicts = [
            metrics.judge_video(case.clip, film, self._through_codec) for case, film in zip(cases, films, strict=True)
        ]
        movers = [v for v in verdicts if v.nearer is not None]  # who grows or turns on the spot a fade leaves there too
        moved = {"clips": len(movers), **(_summarise_films(movers) if movers else {})}
        if movers:
            moved["nearer"] = 100 * float(np.mean([v.nearer for v in movers]))
        kinds = {name: [v for c, v in zip(cases, verdicts) if MOTIONS[c.clip.motion] == name] for name in MOTIONS}
        by_motion = {name: {"clips": len(kind), **_summarise_films(kind)} for name, kind in kinds.items() if kind}
        figures = {"clips": len(cases), **_summarise_films(verdicts), "change place": moved, "by motion": by_motion}
        print(f"\nAll 33 frames of {len(cases)} clips")
        print(f"  right subject in every frame   {figures['steady']:5.1f} % of clips")
        print("   ", ", ".join(f"{name} {row['steady']:.0f} % of {row['clips']}" for name, row in by_motion.items()))
        print(f"  right subject                  {figures['steady_frames']:5.1f} % of frames")
        print("  in-betweens nearer to the true frame than a cross-fade of the keyframes is:")
        print(f"    as it is drawn               {figures['beats_fade']:5.1f} % of clips")
        print(f"    as the codec shows it        {figures['beats_fade_coded']:5.1f} % of clips")
        if movers:
            print(f"    as it is drawn               {moved['beats_fade']:5.1f} % of {len(movers)} that change place")
            print(f"    by the place that is read    {moved['nearer']:5.1f} % of these")
        return figures

    def tokens(self) -> Figures:
        """How many tokens the networks know, by motion and round, where the subject is in any frame."""
        task, figures = self.studio.task(), {}
        print("\nTokens of the subject that are the likeliest, given the true ones before them (percent)")
        print(f"{'':24}{'clips':>6}{'keyframes':>11}{'5 -> 9':>9}{'9 -> 17':>9}{'17 -> 33':>9}")
        for motion, name in enumerate(MOTIONS):
            rng = np.random.default_rng((self.args.seed, 23, motion))
            clips = [_shown_clip(rng, motion) for _ in range(self.args.clips)]
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
        """Clips that travel, at four, two and one seconds with the same seed: how far the subject goes."""
        rng = np.random.default_rng((self.args.seed, 13))
        base = [_travelling(rng, index) for index in range(max(2, self.args.clips // 2))]
        prompts = [caption(rng, clip, partial=0.0) for clip in base]
        meant, gone = [], []
        for duration in (4.0, 2.0, 1.0):
            cases = [_case(p, replace(clip, duration=duration), i) for i, (p, clip) in enumerate(zip(prompts, base))]
            frames = self.studio.show(self.studio.keyframes(cases, self.options))
            gone += [metrics.distance_travelled(case.clip, clip) for case, clip in zip(cases, frames, strict=True)]
            meant += [duration] * len(cases)
        correlation = float(np.corrcoef(meant, gone)[0, 1])
        ways = {f"{d:g} s": float(np.median([g for m, g in zip(meant, gone) if m == d])) for d in (4.0, 2.0, 1.0)}
        print(f"\nDuration against way gone, {len(gone)} clips: correlation {correlation:.2f}; median cells {ways}")
        return {"clips": len(gone), "correlation": correlation, "median_cells": ways}

    def codec(self) -> Figures:
        """How well the codec reproduces frames of held-out pairs at both sizes."""
        rng = np.random.default_rng((self.args.seed, 17))
        figures: Figures = {}
        print("\nCodec on frames of held-out pairs, at random moments")
        for cell, count in ((COARSE, 2 * self.args.clips), (FINE, self.args.clips)):
            frames = np.stack([_any_frame(rng, cell) for _ in range(count)])
            again = self._through_codec(frames)
            values = [metrics.psnr(one, other) for one, other in zip(again, frames, strict=True)]
            figures[f"{cell * 8} px"] = {"frames": count, "psnr": float(np.mean(values))}
            print(f"  {cell * 8:3} px: {np.mean(values):.1f} dB, mean of {count} frames")
        return figures

    def superres(self) -> Figures:
        """Super-resolution of coded small frames against enlarging them by bicubic interpolation."""
        rng = np.random.default_rng((self.args.seed, 19))
        rows = [self._enlarge_one(rng) for _ in range(max(2, self.args.clips // 2))]
        ways = ("super-resolution", "bicubic", "codec alone")
        figures: Figures = {
            name: {
                "psnr": float(np.mean([row[name][0] for row in rows])),
                "sharpness": float(np.mean([row[name][1] for row in rows])),
            }
            for name in ways
        }
        print(f"\nSuper-resolution of {len(rows)} frames against the large drawing (sharpness: 1 is the drawing's own)")
        for name in ways:
            print(f"  {name:17} {figures[name]['psnr']:5.1f} dB  sharpness {figures[name]['sharpness']:.2f}")
        return {"frames": len(rows), **figures}

    def _enlarge_one(self, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """PSNR and relative sharpness of one drawing's small frame, enlarged in each way."""
        clip = _any_clip(rng)
        state = clip.state(float(rng.integers(0, 33)) / 32 * clip.duration)
        small, large = (render_state(clip.subject, clip.scene, clip.variant, state, cell)[0] for cell in (COARSE, FINE))
        tokens = self.studio.codec.encode(small[None])
        shown = self.studio.show(tokens)[0]
        drawn = self.studio.upscale(caption(rng, clip, partial=0.0), tokens, self.options, int(rng.integers(2**32)))[0]
        size = (large.shape[1], large.shape[0])
        bicubic = np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BICUBIC))
        own = metrics.sharpness(large)
        pictures = {"super-resolution": drawn, "bicubic": bicubic, "codec alone": self._through_codec(large[None])[0]}
        return {n: (metrics.psnr(p, large), metrics.sharpness(p) / own) for n, p in pictures.items()}

    def _through_codec(self, frames: Pixels) -> Pixels:
        """Frames [F, H, W, 3] -> tokens -> frames."""
        codec = self.studio.codec
        return codec.decode(codec.encode(frames), (frames.shape[1] // 8, frames.shape[2] // 8))


PARTS: dict[str, Callable[[Evaluation], Figures]] = {
    "judge": Evaluation.judge,
    "codec": Evaluation.codec,
    "keyframes": Evaluation.keyframes,
    "guidance": Evaluation.guidance,
    "films": Evaluation.videos,
    "tokens": Evaluation.tokens,
    "durations": Evaluation.durations,
    "superres": Evaluation.superres,
}


def _any_clip(rng: np.random.Generator) -> Clip:
    from cogvideo.evaluation.sampler import held_out_clip

    return held_out_clip(rng, sample_held_out(), float(rng.choice((4.0, 2.0))))


def _any_frame(rng: np.random.Generator, cell: int) -> Pixels:
    clip = _any_clip(rng)
    state = clip.state(float(rng.integers(0, 33)) / 32 * clip.duration)
    return render_state(clip.subject, clip.scene, clip.variant, state, cell)[0]


def _shown_clip(rng: np.random.Generator, motion: int) -> Clip:
    """A clip of four seconds with this motion, as training shows it."""
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
    """Shares of clips that are right, in percent."""
    names = ("subject", "scene", "motion", "exact")
    return {name: 100 * float(np.mean([getattr(v, name) for v in verdicts])) for name in names}


def _summarise_films(verdicts: Sequence[VideoVerdict]) -> dict[str, float]:
    return {
        "steady": 100 * float(np.mean([v.subject_consistent for v in verdicts])),
        "steady_frames": 100 * float(np.mean([v.consistent_fraction for v in verdicts])),
        "beats_fade": 100 * float(np.mean([v.better_than_crossfade for v in verdicts])),
        "beats_fade_coded": 100 * float(np.mean([v.better_than_crossfade_decoded for v in verdicts])),
    }


def write_grid(frames: Pixels, path: Path, zoom: int = 2) -> None:
    """Keyframes [cases, 5, H, W, 3] as a PNG, one clip a row, two columns of clips."""
    rows = [np.concatenate(list(clip), axis=1) for clip in frames]
    half = (len(rows) + 1) // 2
    columns = [np.concatenate(part, axis=0) for part in (rows[:half], rows[half:]) if part]
    height = columns[0].shape[0]
    columns = [np.pad(c, ((0, height - c.shape[0]), (0, 8), (0, 0)), constant_values=255) for c in columns]
    picture = Image.fromarray(np.concatenate(columns, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)


def _print_table(groups: Figures) -> None:
    print(f"{'':24}{'clips':>6}{'subject':>9}{'scene':>9}{'motion':>9}{'exact':>9}")
    for name, row in groups.items():
        wide = 24 - sum(ord(letter) > 0x2E80 for letter in name)  # Chinese letters take two columns
        print(
            f"{name:{wide}}{row['clips']:6}"
            + "".join(f"{row[k]:9.1f}" for k in ("subject", "scene", "motion", "exact"))
        )


def _describe(case: EvaluationCase, verdict: KeyframeVerdict) -> Figures:
    wanted = (SUBJECTS[case.clip.subject].name, SCENES[case.clip.scene], MOTIONS[case.clip.motion])
    return {"prompt": case.prompt, "seed": case.seed, "wanted": wanted, "held_out": case.held_out, **asdict(verdict)}
