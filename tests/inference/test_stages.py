"""Stages on toy networks in fp32: a frame's tokens depend on its own text and seed, never on its company."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cogvideo.config import SamplingOptions
from cogvideo.errors import Cancelled, WeightsError
from cogvideo.inference import decoding, interpolation, keyframes, super_resolution
from cogvideo.inference.decoding import StageOptions
from cogvideo.inference.interpolation import InterpolationTexts
from cogvideo.inference.sampling import ClusterSampler, TokenSampler, noise_frame_indices
from cogvideo.inference.super_resolution import UpscaleOptions
from tests.support.dealer import Dealer, Draw, differ
from tests.support.toy_model import CONFIG, IMAGE_TOKENS, ToyModels, flat_models, toy_models

OPTIONS = SamplingOptions()
N = CONFIG.tokens_per_frame
PROMPTS = [[70, 71, 72], [73, 74], [75, 76, 77, 78, 79]]
SEEDS = [7, 7, 4294967295]


@pytest.fixture(scope="module")
def models() -> ToyModels:
    return toy_models()


@pytest.fixture(scope="module")
def sampler() -> ClusterSampler:
    return ClusterSampler(torch.arange(IMAGE_TOKENS) % 17)


def texts(prompts: list[list[int]], guided: bool = True) -> keyframes.KeyframeTexts:
    return keyframes.KeyframeTexts(
        first=[[*p, 90] for p in prompts],
        video=[[80, 81, *p, 91] for p in prompts],
        unconditional=[[80, 81, 91] for _ in prompts] if guided else None,
    )


def draw_keyframes(models: ToyModels, sampler: ClusterSampler, rows: list[int], guided: bool = True) -> Tensor:
    wanted = texts([PROMPTS[r] for r in rows], guided)
    *_, last = keyframes.generate_keyframes(models.stage1, wanted, sampler, OPTIONS, [SEEDS[r] for r in rows])
    return last.video_tokens


def draw_between(
    models: ToyModels, sampler: ClusterSampler, clip: Tensor, rows: list[int], rounds: int = 3, max_rows: int = 32
) -> list[Tensor]:
    rounds_texts = [[[80 + r, *PROMPTS[row]] for row in rows] for r in range(rounds)]
    seeds = [SEEDS[r] for r in rows]
    steps = interpolation.interpolate(
        models.stage2, clip, InterpolationTexts(rounds_texts), sampler, OPTIONS, seeds, StageOptions(max_rows)
    )
    return [step.video_tokens for step in steps if step.video_tokens is not None]


def test_the_clock_is_that_of_the_longest_clip() -> None:
    assert noise_frame_indices(5) == [0, 8, 16, 24, 32]
    assert noise_frame_indices(33) == list(range(33))


def test_keyframe_steps_count_every_token(models: ToyModels, sampler: ClusterSampler) -> None:
    steps = [
        (s.frame, s.num_tokens)
        for s in keyframes.generate_keyframes(models.stage1, texts(PROMPTS[:1]), sampler, OPTIONS, [1])
    ]
    assert steps == [(frame, slot + 1) for frame in range(5) for slot in range(N)]


@pytest.mark.parametrize("guided", [True, False])
def test_keyframes_do_not_depend_on_the_batch(models: ToyModels, sampler: ClusterSampler, guided: bool) -> None:
    together = draw_keyframes(models, sampler, [0, 1, 2], guided)
    turned = draw_keyframes(models, sampler, [2, 0, 1], guided)
    alone = torch.cat([draw_keyframes(models, sampler, [row], guided) for row in range(3)])
    assert torch.equal(together, alone)
    assert torch.equal(turned, together[[2, 0, 1]])


def test_a_frame_is_scored_by_its_own_prompt(models: ToyModels) -> None:
    def scores(row: int) -> list[Draw]:
        dealer = Dealer(IMAGE_TOKENS)
        list(keyframes.generate_keyframes(models.stage1, texts([PROMPTS[row]]), dealer, OPTIONS, [7]))
        return dealer.seen

    one, other, again = scores(0), scores(1), scores(0)
    assert not differ(one, again)
    for frame in range(5):
        assert differ(one[frame * N : frame * N + N], other[frame * N : frame * N + N])


@pytest.mark.parametrize(("guided", "rows", "batches"), [(True, 2, 3), (True, 4, 2), (False, 2, 2), (True, 1, 3)])
def test_keyframes_that_do_not_fit_into_one_batch_are_the_same(
    models: ToyModels, sampler: ClusterSampler, guided: bool, rows: int, batches: int
) -> None:
    wish = models.stage1, texts(PROMPTS, guided), sampler, OPTIONS, SEEDS
    *_, whole = keyframes.generate_keyframes(*wish)
    steps = list(keyframes.generate_keyframes(*wish, StageOptions(rows)))
    assert torch.equal(steps[-1].video_tokens, whole.video_tokens)
    assert sum(step.tokens for step in steps) == whole.video_tokens.numel()
    shown = [step.is_complete for step in steps]
    assert shown == sorted(shown) and sum(shown) == len(shown) // batches


def draw_first(
    models: ToyModels, sampler: ClusterSampler, rows: list[int], candidates: int, max_rows: int = 32, ahead: int = 1
) -> list[keyframes.KeyframeStep]:
    """The steps of first frames, and the first of those that follow."""
    wish = texts([PROMPTS[row] for row in rows]), sampler, replace(OPTIONS, best_of=candidates)
    seeds = [SEEDS[row] for row in rows]
    steps = keyframes.generate_keyframes(models.stage1, *wish, seeds, StageOptions(max_rows, ahead))
    return [
        s._replace(video_tokens=s.video_tokens.clone())
        for s in itertools.takewhile(lambda step: step.frame == 0, steps)
    ]


def log_likelihood(models: ToyModels, prompt: list[int], frame: Tensor) -> float:
    """Of a first frame [N], read at once."""
    text = torch.tensor([[*prompt, 90]])
    with torch.inference_mode():
        scores = models.stage1.forward_images(text, torch.tensor([text.shape[1]]), frame[None])[0]  # [N, V]
    return float(scores.log_softmax(-1).gather(1, frame[:, None]).sum())


def test_a_video_goes_on_from_the_likeliest_of_its_first_frames(models: ToyModels, sampler: ClusterSampler) -> None:
    # Without the boost, which reading a frame at once does not know.
    plain = replace(OPTIONS, text_attention_bias=0.0)
    for row, prompt in enumerate(PROMPTS):
        found = []
        for count in (1, 2, 4, 8, 16):
            wish = texts([prompt]), sampler, replace(plain, best_of=count), [SEEDS[row]]
            *_, last = keyframes.generate_keyframes(models.stage1, *wish)
            first = last.video_tokens[0, 0]
            others = keyframes.generate_keyframes(models.stage1, *wish, given=first[None])
            assert torch.equal(list(others)[-1].video_tokens, last.video_tokens)
            found.append(log_likelihood(models, prompt, first))
        assert found == sorted(found)  # one more to choose from is never worse


def test_the_likeliest_candidate_is_what_reading_at_once_finds_likeliest(
    models: ToyModels, sampler: ClusterSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pick, seen = keyframes._select_most_likely, []

    def listen(drawn: Tensor, likelihoods: Tensor, videos: int) -> Tensor:
        seen.append(drawn.clone())
        return pick(drawn, likelihoods, videos)

    monkeypatch.setattr(keyframes, "_select_most_likely", listen)
    wish = texts(PROMPTS), sampler, replace(OPTIONS, text_attention_bias=0.0, best_of=8)
    *_, last = keyframes.generate_keyframes(models.stage1, *wish, SEEDS)
    candidates = seen[0].view(8, len(PROMPTS), N)
    for row, prompt in enumerate(PROMPTS):
        found = [log_likelihood(models, prompt, frame) for frame in candidates[:, row]]
        chosen = log_likelihood(models, prompt, last.video_tokens[row, 0])
        assert chosen == pytest.approx(max(found), abs=1e-3)


def test_first_frames_to_choose_from_do_not_depend_on_batches(models: ToyModels, sampler: ClusterSampler) -> None:
    whole = draw_first(models, sampler, [0, 1, 2], 4)[-1].video_tokens[:, 0]
    for row in range(3):
        for max_rows, ahead in ((32, 1), (3, 1), (1, 1), (32, 3)):
            alone = draw_first(models, sampler, [row], 4, max_rows, ahead)
            assert torch.equal(alone[-1].video_tokens[0, 0], whole[row])
            assert sum(step.tokens for step in alone) == N
            assert [step.num_tokens for step in alone if step.tokens] == list(range(1, N + 1))
    together = draw_first(models, sampler, [0, 1], 4, max_rows=4)
    assert torch.equal(together[-1].video_tokens[:, 0], whole[:2])


@pytest.mark.parametrize("likeliest", range(4))
def test_while_it_grows_the_first_candidate_is_seen_and_the_likeliest_is_kept(
    sampler: ClusterSampler, likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All scores are alike: candidates, and so the last steps, agree with a probability below 36 ** -32.
    flat = flat_models()
    order = torch.zeros(4, 2, dtype=torch.double)  # [candidate, video]
    order[likeliest] = 1.0
    monkeypatch.setattr(TokenSampler, "log_likelihood", lambda self: order.flatten())
    alone, chosen = (draw_first(flat, sampler, [0, 1], candidates) for candidates in (1, 4))
    for one, other in zip(alone[:-1], chosen[:-1], strict=True):
        assert torch.equal(one.video_tokens, other.video_tokens)
    assert torch.equal(alone[-1].video_tokens, chosen[-1].video_tokens) == (likeliest == 0)


def test_seeds_make_a_difference_in_every_frame(sampler: ClusterSampler) -> None:
    # All scores are alike: a frame is the same for two seeds with a probability below 36 ** -16.
    flat = flat_models()
    one, other = (
        list(keyframes.generate_keyframes(flat.stage1, texts(PROMPTS[:1]), sampler, OPTIONS, [seed]))[-1].video_tokens[
            0
        ]
        for seed in (1, 2)
    )
    assert (one != other).any(1).all()


def test_guidance_changes_the_scores_of_all_frames_but_the_first(models: ToyModels) -> None:
    def scores(guided: bool) -> list[Draw]:
        dealer = Dealer(IMAGE_TOKENS)
        list(keyframes.generate_keyframes(models.stage1, texts(PROMPTS[:1], guided), dealer, OPTIONS, [1]))
        return dealer.seen

    guided, plain = scores(True), scores(False)
    assert not differ(guided[:N], plain[:N])
    assert all(differ(guided[at : at + N], plain[at : at + N]) for at in range(N, 5 * N, N))


def test_guidance_has_no_choice_where_only_the_prompts_favourite_is_plausible(
    models: ToyModels, sampler: ClusterSampler
) -> None:
    def clips(guidance: float, plausibility: float, sampler: ClusterSampler = sampler) -> list[Tensor]:
        video = replace(OPTIONS.video, plausibility=plausibility)
        options = replace(OPTIONS, video=video, guidance_scale=guidance)
        *_, keys = keyframes.generate_keyframes(models.stage1, texts(PROMPTS[:1]), sampler, options, [1])
        clip = torch.arange(5 * N).view(1, 5, N) % IMAGE_TOKENS
        rounds = InterpolationTexts([[[80, *PROMPTS[0]]]], [[[80, 91]]])
        guided = replace(options, interpolation_guidance_scale=guidance)
        *_, between = interpolation.interpolate(models.stage2, clip, rounds, sampler, guided, [1])
        assert between.video_tokens is not None
        return [keys.video_tokens, between.video_tokens]

    for weak, strong in zip(clips(2.0, 1.0), clips(6.0, 1.0), strict=True):
        assert torch.equal(weak, strong)
    weak, strong = Dealer(IMAGE_TOKENS), Dealer(IMAGE_TOKENS)
    clips(2.0, 0.0, weak)
    clips(6.0, 0.0, strong)
    for some in (slice(N, 5 * N), slice(5 * N, None)):  # later keyframes, and frames between
        assert weak.seen[some] and differ(weak.seen[some], strong.seen[some])


def test_rounds_keep_old_frames_and_do_not_depend_on_the_batch(models: ToyModels, sampler: ClusterSampler) -> None:
    clip = draw_keyframes(models, sampler, [0, 1, 2])
    levels = draw_between(models, sampler, clip, [0, 1, 2])
    assert [tuple(level.shape) for level in levels] == [(3, 9, N), (3, 17, N), (3, 33, N)]
    for before, after in itertools.pairwise([clip, *levels]):
        assert torch.equal(after[:, ::2], before)
    for max_rows in (1, 3, 5):  # batches that divide nothing evenly
        assert torch.equal(draw_between(models, sampler, clip, [0, 1, 2], max_rows=max_rows)[-1], levels[-1])
    for row in range(3):
        assert torch.equal(draw_between(models, sampler, clip[row : row + 1], [row])[-1], levels[-1][row : row + 1])


def test_fewer_rounds_give_the_same_frames(models: ToyModels, sampler: ClusterSampler) -> None:
    clip = draw_keyframes(models, sampler, [0])
    assert torch.equal(
        draw_between(models, sampler, clip, [0], rounds=1)[0], draw_between(models, sampler, clip, [0])[0]
    )


def test_between_steps_count_every_token(models: ToyModels, sampler: ClusterSampler) -> None:
    clip = draw_keyframes(models, sampler, [0])
    steps = list(
        interpolation.interpolate(
            models.stage2, clip, InterpolationTexts([[PROMPTS[0]]] * 2), sampler, OPTIONS, [1], StageOptions(3)
        )
    )
    assert sum(step.tokens for step in steps) == 12 * N
    assert [step.round for step in steps if step.video_tokens is not None] == [1, 2]


@pytest.mark.parametrize("per_pass", [1, 4, 9])
def test_superres_does_not_depend_on_the_frames_beside(
    models: ToyModels, sampler: ClusterSampler, per_pass: int
) -> None:
    clip = torch.randint(0, IMAGE_TOKENS, (9, N), generator=torch.Generator().manual_seed(0))
    wish = PROMPTS[0], sampler, OPTIONS.superres, 7
    parts = list(super_resolution.upscale(models.superres, clip, *wish, UpscaleOptions(per_pass)))
    whole = torch.cat([part.tokens for part in parts])
    assert whole.shape == (9, 9 * N)
    assert [part.first for part in parts] == list(range(0, 9, per_pass))
    fewer = list(super_resolution.upscale(models.superres, clip[::2], *wish, UpscaleOptions(3)))
    assert torch.equal(torch.cat([part.tokens for part in fewer]), whole[::2])  # frame 2 of 9 is frame 1 of 5


def all_stages(models: ToyModels, sampler: ClusterSampler, stop: decoding.IsCancelled | None = None) -> list[Iterator]:
    clip = torch.zeros(1, 5, N, dtype=torch.long)
    run, rounds = StageOptions(is_cancelled=stop), InterpolationTexts([[PROMPTS[0]]])
    once = UpscaleOptions(2, is_cancelled=stop)
    return [
        keyframes.generate_keyframes(models.stage1, texts(PROMPTS[:1]), sampler, OPTIONS, [1], run),
        interpolation.interpolate(models.stage2, clip, rounds, sampler, OPTIONS, [1], run),
        super_resolution.upscale(models.superres, clip[0], PROMPTS[0], sampler, OPTIONS.superres, 1, once),
    ]


@pytest.mark.parametrize("stage", range(3))
def test_stop_is_asked_before_every_step(models: ToyModels, sampler: ClusterSampler, stage: int) -> None:
    answers = iter([False, False, True])
    seen = []
    with pytest.raises(Cancelled):
        seen.extend(all_stages(models, sampler, lambda: next(answers))[stage])
    assert len(seen) <= 2  # extend keeps what came before; an enlarged frame asks more than once
    assert next(answers, None) is None


@pytest.mark.parametrize("stage", range(3))
def test_numbers_that_are_none_end_in_a_clear_error(sampler: ClusterSampler, stage: int) -> None:
    broken = toy_models()
    broken.stage1.transformer.final_layernorm.bias.data[0] = torch.nan
    with pytest.raises(WeightsError, match="NaN"):
        list(all_stages(broken, sampler)[stage])
