"""The model that ships, through the door that users take: it is complete, it draws, and it knows what was asked for.

What it draws is left to chance. So tests look at the scores that it gives to films whose content is known.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from moviepy import VideoFileClip

from cogvideo.data.synthetic_render import COARSE, FINE, FONT_PATHS, render_clip
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES, SUBJECTS
from cogvideo.data.synthetic_world import Clip
from cogvideo.evaluation.frame_reader import classify_motion, read_frame
from cogvideo.events import Frames, KeyframeCompleted, RoundCompleted, VideoCompleted
from cogvideo.inference import generation
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.tokenizers.text import superres_text
from tests.support.dealer import Dealer

GRASS = VideoRequest("一只熊猫在草地上向右跑", seed=7, num_frames=5)
SEA = VideoRequest("一艘帆船在大海上向右行驶", seed=7, num_frames=5, superres=False)
OWL = "一只猫头鹰在沙漠里变大"
GALLERY = Path(__file__).resolve().parent.parent / "examples" / "gallery"
PANDA = Clip(0, 0, MOTIONS.index("向右"), 0, 3.0, 5.5, 2.5, 4.0)
CLEARLY = 5.0
"""Nats, so a ratio of 150. Processors and compilers differ by less than 0.1."""

needs_font = pytest.mark.skipif(
    not any(p.exists() for p in FONT_PATHS), reason="the world is drawn with fonts-noto-color-emoji"
)


@pytest.fixture(scope="module")
def pipe() -> CogVideoPipeline:
    return CogVideoPipeline.from_pretrained("mini", device="cpu")


def colour(frames: Frames) -> np.ndarray:
    """Mean red, green and blue of the lower third of all frames."""
    return frames[:, -frames.shape[1] // 3 :].reshape(-1, 3).mean(0)


def kept_film(name: str) -> Frames:
    """The keyframes of a film of the gallery, uint8 [5, 64, 64, 3]."""
    with VideoFileClip(str(GALLERY / name)) as film:
        return np.stack(list(film.iter_frames()))[::8]


def likelihoods(pipe: CogVideoPipeline, prompt: str, tokens: torch.Tensor, keyframes: int) -> list[float]:
    """How likely each of the first `keyframes` of `tokens` [5, N] is to be drawn for `prompt`, in nats.

    By the scores that the sampler is shown, with the given tokens in place of drawn ones.
    """
    dealer, found = Dealer(pipe.preset.model.image_tokens, tokens.flatten().tolist()), []
    wish = VideoRequest(prompt, num_frames=5, superres=False)
    with (
        mock.patch.dict(pipe._parts, clusters=dealer),
        mock.patch.object(generation, "LOOKAHEAD_TOKENS", 1),
    ):
        for event in pipe.stream(wish):
            if isinstance(event, KeyframeCompleted):
                found.append(sum(float(d.logits[0].double().log_softmax(0)[d.ids[0]]) for d in dealer.seen))
                dealer.seen.clear()
            if len(found) == keyframes:
                break
    return found


def test_a_film_has_its_frames_small_and_large(pipe: CogVideoPipeline) -> None:
    events = list(pipe.stream(GRASS))
    (small,) = [e.frames for e in events if isinstance(e, RoundCompleted)]
    assert isinstance(events[-1], VideoCompleted)
    large = events[-1].frames
    assert (small.dtype, small.shape) == (np.uint8, (5, 64, 64, 3))
    assert (large.dtype, large.shape) == (np.uint8, (5, 192, 192, 3))


def test_every_run_is_the_same(pipe: CogVideoPipeline) -> None:
    np.testing.assert_array_equal(pipe(SEA), pipe(SEA))


def test_its_codec_keeps_the_colours_of_a_film(pipe: CogVideoPipeline) -> None:
    codec = pipe.components().codec
    grass, sea = (
        colour(codec.decode(codec.encode(kept_film(name)), pipe.preset.model.grid))
        for name in ("panda.mp4", "boat.mp4")
    )
    assert grass[1] > grass[0] + 10 and grass[1] > grass[2] + 10
    assert sea[2] > sea[0] + 10


def test_a_first_frame_is_likeliest_for_its_own_sentence(pipe: CogVideoPipeline) -> None:
    films = {GRASS.prompt: "panda.mp4", SEA.prompt: "boat.mp4", OWL: "owl.mp4"}
    for prompt, name in films.items():
        tokens = pipe.components().codec.encode(kept_film(name))
        (own,), *others = (likelihoods(pipe, other, tokens, 1) for other in sorted(films, key=lambda p: p != prompt))
        assert own > max(others)[0] + CLEARLY, name


def test_its_vocabulary_knows_its_world(pipe: CogVideoPipeline) -> None:
    assert pipe.check_inputs(GRASS).notes == ()
    (note,) = pipe.check_inputs(VideoRequest("一只恐龙在草地上")).notes
    assert "恐龙" in note.zh
    assert "熊猫" in note.zh


@needs_font
def test_a_panda_that_runs_to_the_right_is_likeliest_for_its_own_sentence(pipe: CogVideoPipeline) -> None:
    tokens = pipe.components().codec.encode(render_clip(PANDA))
    first, *later = likelihoods(pipe, GRASS.prompt, tokens, 5)
    assert sum(later) > -CLEARLY  # after the first frame hardly anything else can be drawn
    for prompt in ("一只兔子在草地上向右跑", "一只熊猫在雪地上向右跑"):
        assert first > likelihoods(pipe, prompt, tokens, 1)[0] + CLEARLY, prompt
    _, *wrong = likelihoods(pipe, "一只熊猫在草地上向左跑", tokens, 5)
    assert sum(later) > sum(wrong) + CLEARLY


@needs_font
def test_its_codec_shows_a_panda_that_runs_to_the_right_on_grass(pipe: CogVideoPipeline) -> None:
    codec = pipe.components().codec
    shown = codec.decode(codec.encode(render_clip(PANDA)), pipe.preset.model.grid)
    readings = [read_frame(frame) for frame in shown]
    assert {SCENES[r.scene] for r in readings} == {"草地"}
    assert {SUBJECTS[r.subject].name for r in readings} == {"熊猫"}
    states = [r.state for r in readings]
    assert MOTIONS[classify_motion(states, GRASS.duration)] == "向右"
    assert all(now.x < later.x for now, later in pairwise(states) if now and later)


@needs_font
def test_a_large_frame_is_likeliest_beside_its_own_small_one(pipe: CogVideoPipeline) -> None:
    parts = pipe.components()
    small, large = (parts.codec.encode(render_clip(PANDA, cell=cell)[[0, 4]]) for cell in (COARSE, FINE))
    text = torch.tensor([superres_text(parts.tokenizer, GRASS.prompt)])

    def likelihood(coarse: torch.Tensor, fine: torch.Tensor) -> float:
        with torch.inference_mode():
            scores = parts.models.superres(text, torch.tensor([text.shape[1]]), coarse[None])[0]
        return float(scores.double().log_softmax(-1).gather(1, fine[:, None]).sum())

    for own, other in ((0, 1), (1, 0)):
        assert likelihood(small[own], large[own]) > likelihood(small[other], large[own]) + CLEARLY
