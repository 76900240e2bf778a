"""`python -m cogvideo evaluate`: prompts of the small world -> what the drawn clips show, a table and a picture grid.

The judge (`training/judge.py`) reads decoded frames; nothing here looks at tokens. A quarter of the prompts combine a
subject with a motion or a scene in a way that training never showed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cogvideo.config import ASSETS, PRESETS, Preset, SamplingOptions
from cogvideo.training.judge import Reading, is_exact, name_motion, read_frame
from cogvideo.training.world import (
    MOTIONS,
    SCENES,
    SUBJECTS,
    Clip,
    HeldOut,
    caption,
    draw_held_out,
    place_clip,
    sample_clip,
)

Pixels = npt.NDArray[np.uint8]
BATCH = 20


@dataclass(frozen=True)
class Case:
    """A prompt, the clip it describes, and whether training never showed its combination."""

    prompt: str
    clip: Clip
    held_out: bool
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What the judge found in the keyframes of one case."""

    subject: bool
    scene: bool
    motion: bool
    exact: bool
    held_out: bool
    seen_motion: int


def draw_cases(count: int, seed: int, held_out: HeldOut) -> list[Case]:
    """`count` prompts, every fourth from the held-out pairs, over all durations of four and two seconds."""
    rng = np.random.default_rng((seed, 7))
    cases = []
    for index in range(count):
        duration = (4.0, 2.0)[index % 3 == 2]
        hidden = index % 4 == 3
        clip = _hidden_clip(rng, held_out, duration) if hidden else sample_clip(rng, held_out, duration)
        cases.append(Case(caption(rng, clip, partial=0.0), clip, hidden, int(rng.integers(2**32))))
    return cases


def _hidden_clip(rng: np.random.Generator, held_out: HeldOut, duration: float) -> Clip:
    """A clip that training never shows, half of them for the motion and half for the scene."""
    if rng.random() < 0.5:
        pairs = sorted(held_out.subject_motion)
        subject, motion = pairs[int(rng.integers(len(pairs)))]
        return place_clip(rng, subject, int(rng.integers(len(SCENES))), motion, duration)
    pairs = sorted(held_out.subject_scene)
    subject, scene = pairs[int(rng.integers(len(pairs)))]
    return place_clip(rng, subject, scene, int(rng.integers(len(MOTIONS))), duration)


class Studio:
    """Draws the keyframes of many cases at once with the networks in `folder`."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        import torch

        from cogvideo.frames import FrameCodec
        from cogvideo.models.loader import load_safetensors
        from cogvideo.sampling import ClusterSampler
        from cogvideo.text import TextTokenizer

        assets = ASSETS / preset.name
        self.preset = preset
        self.tokenizer = TextTokenizer(assets / "text.model", preset.model.image_tokens)
        self.codec = FrameCodec.load(preset)
        self.models = load_safetensors(folder, preset.model)
        labels = np.load(assets / "cluster_labels.npy", allow_pickle=False).astype(np.int64)
        self.sampler = ClusterSampler(torch.from_numpy(labels))

    def keyframes(self, cases: Sequence[Case], options: SamplingOptions) -> Pixels:
        """Decoded keyframes of all cases, uint8 [cases, 5, H, W, 3]."""
        parts = [self._batch(cases[i : i + BATCH], options) for i in range(0, len(cases), BATCH)]
        return np.concatenate(parts)

    def _batch(self, cases: Sequence[Case], options: SamplingOptions) -> Pixels:
        import torch

        from cogvideo.stages import keyframes
        from cogvideo.text import between_text, first_frame_text, unconditional_text, video_text

        tok, preset = self.tokenizer, self.preset
        guided = options.guidance != 1.0
        texts = keyframes.KeyframeTexts(
            first=[first_frame_text(tok, preset, c.prompt) for c in cases],
            video=[
                video_text(tok, preset, c.prompt, c.clip.duration)
                if guided
                else between_text(tok, c.prompt, c.clip.duration)
                for c in cases
            ],
            unconditional=[unconditional_text(tok, preset, c.clip.duration) for c in cases] if guided else None,
        )
        with torch.inference_mode():
            *_, last = keyframes.draw(self.models.stage1, texts, self.sampler, options, [case.seed for case in cases])
        frames = self.codec.decode(last.clip.flatten(0, 1), preset.model.grid)
        return frames.reshape(len(cases), -1, *frames.shape[1:])


def judge_keyframes(case: Case, frames: Pixels) -> Verdict:
    """Compare the keyframes [5, H, W, 3] of a case with what its prompt says."""
    readings = [read_frame(frame) for frame in frames]
    states = [reading.state for reading in readings]
    seen = name_motion(states, case.clip.duration)
    return Verdict(
        subject=_most_common(r.subject for r in readings) == case.clip.subject,
        scene=_most_common(r.scene for r in readings) == case.clip.scene,
        motion=seen == case.clip.motion,
        exact=_all_exact(case.clip, readings),
        held_out=case.held_out,
        seen_motion=seen,
    )


def _all_exact(clip: Clip, readings: Sequence[Reading]) -> bool:
    """Whether all states follow the motion's course from the first one, with the right subject in every frame."""
    first = readings[0].state
    if first is None or any(r.subject != clip.subject for r in readings):
        return False
    course = replace(clip, size=first.size, y=first.y, x=first.x).states(clip.frame_times(len(readings)))
    return all(is_exact(reading.state, meant) for reading, meant in zip(readings, course, strict=True))


def _most_common(values: Iterable[int]) -> int:
    return int(np.bincount(np.array(list(values)) + 1).argmax()) - 1


def summarise(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares of clips that are right, in percent."""
    shares = {}
    for name in ("subject", "scene", "motion", "exact"):
        shares[name] = 100 * float(np.mean([getattr(v, name) for v in verdicts])) if verdicts else float("nan")
    return shares


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, judge, print a table; write a grid and the figures where asked."""
    args = _parser().parse_args(arguments)
    preset = PRESETS["mini"]
    options = preset.sampling
    video = replace(options.video, temperature=args.temperature) if args.temperature else options.video
    options = replace(options, guidance=args.guidance or options.guidance, video=video)
    cases = draw_cases(args.count, args.seed, draw_held_out())
    frames = Studio(preset, args.folder).keyframes(cases, options)
    verdicts = [judge_keyframes(case, clip) for case, clip in zip(cases, frames, strict=True)]
    groups = {
        "all": verdicts,
        "shown pairs": [v for v in verdicts if not v.held_out],
        "held-out pairs": [v for v in verdicts if v.held_out],
    }
    _print_table({name: (len(group), summarise(group)) for name, group in groups.items()})
    by_motion = {
        MOTIONS[m]: summarise([v for v, c in zip(verdicts, cases, strict=True) if c.clip.motion == m])
        for m in range(len(MOTIONS))
    }
    for name, shares in by_motion.items():
        print(f"{name:4} motion {shares['motion']:5.1f} %  exact {shares['exact']:5.1f} %")
    if args.out:
        write_grid(frames[:32], args.out / "grid.png")
        _write_figures(args.out / "figures.json", cases, verdicts, options)
    return 0


def _print_table(groups: dict[str, tuple[int, dict[str, float]]]) -> None:
    print(f"{'':16}{'clips':>6}{'subject':>9}{'scene':>9}{'motion':>9}{'exact':>9}   (percent right)")
    for name, (count, shares) in groups.items():
        print(f"{name:16}{count:6}" + "".join(f"{shares[k]:9.1f}" for k in ("subject", "scene", "motion", "exact")))


def _write_figures(path: Path, cases: Sequence[Case], verdicts: Sequence[Verdict], options: SamplingOptions) -> None:
    rows: list[dict[str, Any]] = []
    for case, verdict in zip(cases, verdicts, strict=True):
        wanted = (SUBJECTS[case.clip.subject].name, SCENES[case.clip.scene], MOTIONS[case.clip.motion])
        rows.append({"prompt": case.prompt, "seed": case.seed, "wanted": wanted, **asdict(verdict)})
    content = {"summary": summarise(verdicts), "sampling": asdict(options), "cases": rows}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogvideo evaluate",
        description="让评委检验 mini 画得对不对 / let the judge say how often mini draws what the prompt says",
    )
    parser.add_argument("--count", type=int, default=200, help="number of prompts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and of the draws (default: 0)")
    parser.add_argument("--guidance", type=float, help="guidance of stage 1 (default: the preset's)")
    parser.add_argument("--temperature", type=float, help="temperature of keyframes 2 to 5 (default: the preset's)")
    parser.add_argument("--folder", type=Path, default=ASSETS / "mini", help="folder of the weights")
    parser.add_argument("--out", type=Path, help="folder for grid.png and figures.json")
    return parser
