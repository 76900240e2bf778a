"""The pipeline on toy networks: events in order with exact counts, one video for one request, lazy and safe parts."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogvideo.config import SamplingOptions
from cogvideo.errors import Cancelled, CapacityError, OutOfMemoryError, RequestError, WeightsError
from cogvideo.events import (
    Event,
    FrameUpscaled,
    KeyframeCompleted,
    KeyframePreview,
    Loading,
    Progress,
    RoundCompleted,
    VideoCompleted,
)
from cogvideo.inference import generation
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.tokenizers.text import duration_text
from tests.support.dealer import dealt, differ
from tests.support.toy_model import TOY, ToyModels, flat_models, toy_models, write_toy

PROMPT = "一只熊猫在草地上向右跑"
CPU = DevicePlacement(torch.device("cpu"), torch.float32)
REQUEST = VideoRequest(PROMPT, seed=7, num_frames=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    write_toy(path)
    return path


@pytest.fixture(scope="module")
def models() -> ToyModels:
    return toy_models()


@pytest.fixture(scope="module")
def pipe(folder: Path, models: ToyModels) -> CogVideoPipeline:
    return CogVideoPipeline(TOY, CPU, folder, lambda *_: models)


@pytest.fixture(scope="module")
def events(pipe: CogVideoPipeline) -> list[Event]:
    pipe.load()
    return list(pipe.stream(REQUEST))


def of_type(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_events_come_in_order_and_done_is_last(events: list[Event]) -> None:
    milestones = [e for e in events if not isinstance(e, Progress | KeyframePreview)]
    names = [type(e).__name__ for e in milestones]
    assert names == ["KeyframeCompleted"] * 5 + ["RoundCompleted"] * 2 + ["FrameUpscaled"] * 9 + ["VideoCompleted"]
    assert [e.index for e in of_type(events, KeyframeCompleted)] == list(range(5))
    assert [e.round for e in of_type(events, RoundCompleted)] == [0, 1]
    assert [(e.index, e.total) for e in of_type(events, FrameUpscaled)] == [(i, 9) for i in range(9)]


def test_progress_is_exact(events: list[Event]) -> None:
    progress = of_type(events, Progress)
    plan = tokens_per_stage(TOY.model, REQUEST)
    assert {e.total for e in progress} == {sum(plan.values())}
    done = [e.done for e in progress]
    assert done == sorted(set(done))
    assert done[-1] == sum(plan.values())
    assert done[: 5 * 16] == list(range(1, 5 * 16 + 1))  # keyframes: one token at a time
    for stage, tokens in plan.items():
        last = max(e.done for e in progress if e.stage == stage)
        first = min(e.done for e in progress if e.stage == stage)
        assert last - first < tokens


def test_pictures_fit_together(events: list[Event]) -> None:
    keyframes = np.stack([e.frame for e in of_type(events, KeyframeCompleted)])
    level0, level1 = (e.frames for e in of_type(events, RoundCompleted))
    assert keyframes.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(level0, keyframes)
    np.testing.assert_allclose(level1[::2].astype(int), level0, atol=1)
    (done,) = of_type(events, VideoCompleted)
    assert done.frames.dtype == np.uint8
    np.testing.assert_array_equal(done.frames, np.stack([e.frame for e in of_type(events, FrameUpscaled)]))
    assert done.frames.shape == (9, 96, 96, 3)
    assert (done.frames_per_second, done.seed) == (2.0, 7)


def test_keyframes_are_shown_while_they_are_painted(events: list[Event]) -> None:
    painted = of_type(events, KeyframePreview)
    assert [(e.index, e.tokens) for e in painted] == [(i, k) for i in range(5) for k in (4, 8, 12)]
    finished = of_type(events, KeyframeCompleted)[0].frame
    np.testing.assert_allclose(painted[2].frame[:16].astype(int), finished[:16], atol=8)
    assert (painted[0].frame[8:] == painted[0].frame[8, 0]).all()


def test_previews_can_be_switched_off(folder: Path, models: ToyModels, events: list[Event]) -> None:
    quiet = CogVideoPipeline(TOY, CPU, folder, lambda *_: models, previews=False)
    quiet.load()
    heard = list(quiet.stream(REQUEST))
    assert len(heard) == len([e for e in events if not isinstance(e, KeyframePreview)])
    np.testing.assert_array_equal(heard[-1].frames, events[-1].frames)


def test_the_same_request_gives_the_same_frames(pipe: CogVideoPipeline, events: list[Event]) -> None:
    np.testing.assert_array_equal(pipe(REQUEST), events[-1].frames)


def test_another_seed_gives_other_tokens(folder: Path) -> None:
    # All scores are alike, so that equal clips have a probability below 36 ** -80.
    flat = CogVideoPipeline(TOY, CPU, folder, lambda *_: flat_models())
    for seed in (8, 2**32 - 1):
        clips = [
            [level.tokens for level in of_type(list(flat.stream(wish)), RoundCompleted)]
            for wish in (REQUEST, dataclasses.replace(REQUEST, seed=seed))
        ]
        for one, other in zip(*clips, strict=True):
            assert (one != other).any(2).all()  # in every frame


def test_two_videos_at_once_do_not_disturb_each_other(pipe: CogVideoPipeline, events: list[Event]) -> None:
    other = VideoRequest("小猫旋转", seed=1, num_frames=9)
    alone = pipe(other)
    ours, theirs = pipe.stream(REQUEST), pipe.stream(other)
    last: list[Event] = []
    for pair in zip(ours, theirs):  # token by token in turn
        last = list(pair)
    np.testing.assert_array_equal(last[0].frames, events[-1].frames)
    np.testing.assert_array_equal(last[1].frames, alone)


def test_drafts_that_do_not_fit_into_one_batch_are_the_same_and_come_side_by_side(
    folder: Path, models: ToyModels, pipe: CogVideoPipeline
) -> None:
    wish = VideoRequest(PROMPT, seed=7, num_frames=5, num_drafts=3)
    small = CogVideoPipeline(
        TOY,
        dataclasses.replace(CPU, memory=dataclasses.replace(MEMORY_PRESETS["cpu"], max_batch_rows=2)),
        folder,
        lambda *_: models,
    )
    expected, found = ([e for e in p.stream(wish) if not isinstance(e, Loading)] for p in (pipe, small))
    for kind in (KeyframeCompleted, KeyframePreview, RoundCompleted):
        for one, other in zip(of_type(expected, kind), of_type(found, kind), strict=True):
            for name, value in vars(one).items():
                np.testing.assert_array_equal(getattr(other, name), value)
    steps = of_type(found, Progress)
    assert [step.done for step in steps] == list(range(1, 3 * 5 * 16 + 1))
    assert len(of_type(expected, Progress)) == 5 * 16  # where all three fit


def test_forwards_of_a_whole_video(folder: Path, models: ToyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LOOKAHEAD_TOKENS", 1)
    calls: Counter[str] = Counter()
    for network, name in ((VideoLM, "prefill"), (VideoLM, "decode_one"), (SuperResLM, "begin")):
        run = getattr(network, name)

        def counted(self: Any, *given: Any, run: Any = run, name: str = name, **named: Any) -> Any:
            calls[name] += 1
            return run(self, *given, **named)

        monkeypatch.setattr(network, name, counted)
    pipe = CogVideoPipeline(TOY, CPU, folder, lambda *_: models)
    pipe(dataclasses.replace(REQUEST, num_frames=33, superres=True))
    frame, round_ = 16, 16 + models.stage2.layout.wavefront_lag
    assert calls == {"prefill": 2 + 3, "decode_one": 5 * frame + 3 * round_, "begin": 9}


def test_a_longer_clip_has_the_same_keyframes(pipe: CogVideoPipeline, events: list[Event]) -> None:
    longer = list(pipe.stream(dataclasses.replace(REQUEST, num_frames=17)))
    short = {e.round: e.frames for e in of_type(events, RoundCompleted)}
    for level in of_type(longer, RoundCompleted)[:2]:
        np.testing.assert_array_equal(level.frames, short[level.round])


def test_each_enlarged_frame_is_brought_back_to_its_own_small_one(folder: Path, models: ToyModels) -> None:
    """Whole, so that what its pixels average to is the small frame, up to rounding and what is cut off at 0 and 255."""
    preset = dataclasses.replace(TOY, back_projection=1.0)
    heard = list(CogVideoPipeline(preset, CPU, folder, lambda *_: models).stream(REQUEST))
    small = of_type(heard, RoundCompleted)[-1].frames
    large = np.stack([event.frame for event in of_type(heard, FrameUpscaled)])  # [F, 3h, 3w, 3]
    count, height, width, _ = small.shape
    averages = large.reshape(count, height, 3, width, 3, 3).mean((2, 4))
    apart = np.abs(averages[:, None] - small[None]).mean((2, 3, 4))  # [large, small]
    assert apart.argmin(1).tolist() == list(range(count))


@pytest.mark.parametrize("frames_per_pass", [1, 2])
def test_the_codec_decodes_no_more_at_once_than_the_memory_preset_allows(
    folder: Path, models: ToyModels, monkeypatch: pytest.MonkeyPatch, frames_per_pass: int
) -> None:
    place = dataclasses.replace(CPU, memory=dataclasses.replace(CPU.memory, frames_per_pass=frames_per_pass))
    pipe = CogVideoPipeline(TOY, place, folder, lambda *_: models)
    codec = pipe._part("codec")
    seen: list[int] = []
    decode = codec.model.single_decode_code
    monkeypatch.setattr(codec.model, "single_decode_code", lambda c, level: seen.append(c.numel()) or decode(c, level))
    height, width = TOY.model.fine_grid
    codec.decode(torch.zeros(5, height * width, dtype=torch.long), TOY.model.fine_grid)
    assert max(seen) == frames_per_pass * height * width


def test_without_superres_the_small_frames_are_the_video(pipe: CogVideoPipeline, events: list[Event]) -> None:
    heard = list(pipe.stream(dataclasses.replace(REQUEST, superres=False)))
    np.testing.assert_array_equal(heard[-1].frames, of_type(events, RoundCompleted)[-1].frames)
    assert of_type(heard, FrameUpscaled) == []
    progress = of_type(heard, Progress)
    assert progress[-1].done == progress[-1].total == 9 * 16


def test_five_frames_need_no_interpolation(pipe: CogVideoPipeline) -> None:
    heard = list(pipe.stream(dataclasses.replace(REQUEST, num_frames=5)))
    assert [e.round for e in of_type(heard, RoundCompleted)] == [0]
    assert len(heard[-1].frames) == 5
    assert {e.stage for e in of_type(heard, Progress)} == {"keyframes", "superres"}


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(guidance_scale=1.0),
        SamplingOptions(guidance_scale=6.0),
        SamplingOptions(video=dataclasses.replace(SamplingOptions().video, top_k=1)),
        SamplingOptions(video=dataclasses.replace(SamplingOptions().video, temperature=3.0)),
    ],
)
def test_sampling_options_reach_the_later_keyframes(pipe: CogVideoPipeline, options: SamplingOptions) -> None:
    wish = dataclasses.replace(REQUEST, num_frames=5, superres=False)
    usual, asked = dealt(pipe, wish), dealt(pipe, dataclasses.replace(wish, sampling=options))
    assert not differ(usual[0], asked[0])
    assert {draw.options for draw in asked[0]} == {options.first_frame}
    guided = options.guidance_scale != TOY.sampling.guidance_scale
    for number in range(1, 5):
        assert {draw.options for draw in asked[number]} == {options.video}
        assert differ(usual[number], asked[number]) == guided  # temperature and top_k come after the scores


def test_the_duration_reaches_the_later_keyframes(pipe: CogVideoPipeline) -> None:
    wish = dataclasses.replace(REQUEST, num_frames=5, superres=False)
    usual, short = dealt(pipe, wish), dealt(pipe, dataclasses.replace(wish, duration=0.5))
    assert [differ(usual[number], short[number]) for number in range(5)] == [False, True, True, True, True]
    tokenizer = pipe.components().tokenizer
    for guidance in (1.0, 3.0):
        texts = generation.keyframe_texts(tokenizer, TOY, [(PROMPT, 0.5)], guidance)
        for text in (*texts.video, *(texts.unconditional or [])):
            assert text[: len(duration_text(tokenizer, 0.5))] == duration_text(tokenizer, 0.5)


def test_bad_requests_are_refused_before_anything_starts(folder: Path) -> None:
    def never(*_: object) -> ToyModels:
        raise AssertionError("networks were loaded")

    pipe = CogVideoPipeline(TOY, CPU, folder, never)
    for prompt in ("", "   ", "a panda", "熊猫\x00", "熊" * 10000, PROMPT * 9):
        with pytest.raises(RequestError):
            pipe.stream(VideoRequest(prompt))
    assert pipe.check_inputs(VideoRequest("一隻熊貓")).text == "一只熊猫"


def test_the_checked_prompt_is_drawn(pipe: CogVideoPipeline, events: list[Event]) -> None:
    np.testing.assert_array_equal(
        pipe(dataclasses.replace(REQUEST, prompt=" 一隻熊貓在草地上向右跑\n")), events[-1].frames
    )


@pytest.mark.parametrize("stage, milestone", [("keyframes", 0), ("keyframes", 2), ("interpolate", 6), ("superres", 9)])
def test_stop_acts_before_the_next_step_and_everything_shown_stays(
    pipe: CogVideoPipeline, events: list[Event], stage: str, milestone: int
) -> None:
    """Somebody stops in the middle of a stage, when so many keyframes, levels and frames have been shown."""
    heard: list[Event] = []
    shown = (KeyframeCompleted, RoundCompleted, FrameUpscaled)

    def stop() -> bool:
        done = [e for e in heard if isinstance(e, shown)]
        return len(done) >= milestone and any(e.stage == stage for e in of_type(heard, Progress))

    with pytest.raises(Cancelled):
        for event in pipe.stream(REQUEST, stop):
            heard.append(event)
    assert [type(e) for e in heard] == [type(e) for e in events[: len(heard)]]
    began = next(i for i, e in enumerate(heard) if isinstance(e, Progress) and e.stage == stage)
    waited = next(i for i in range(len(heard)) if len([e for e in heard[: i + 1] if isinstance(e, shown)]) >= milestone)
    late = [e for e in heard[max(began, waited) + 1 :] if isinstance(e, Progress)]
    assert len(late) <= 1  # a step of interpolation may bring two tokens, a question lies between any two steps


def test_leaving_early_puts_the_threads_back(pipe: CogVideoPipeline) -> None:
    torch.set_num_threads(2)
    try:
        stream = pipe.stream(REQUEST)
        next(stream)
        assert torch.get_num_threads() == 1
        stream.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_parts_are_loaded_once_when_first_needed_by_any_thread(folder: Path, models: ToyModels) -> None:
    loads: list[str] = []
    both = threading.Barrier(2)

    def load(name: str, dtype: torch.dtype, device: torch.device) -> ToyModels:
        loads.append(name)
        return models

    pipe = CogVideoPipeline(TOY, CPU, folder, load)
    assert loads == []

    def use() -> None:
        both.wait()
        pipe.load()

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert loads == ["toy"]
    assert of_type(list(pipe.stream(dataclasses.replace(REQUEST, num_frames=5))), Loading) == []


def test_loading_is_told_part_by_part(folder: Path, models: ToyModels) -> None:
    pipe = CogVideoPipeline(TOY, CPU, folder, lambda *_: models)
    loading = of_type(list(pipe.stream(dataclasses.replace(REQUEST, num_frames=5, superres=False))), Loading)
    assert [(e.done, e.total) for e in loading] == [(i, 3) for i in range(4)]  # the text came with the check
    assert [e.part for e in loading][:3] == ["clusters", "codec", "models"]


def test_from_pretrained_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cogvideo.pipeline.ASSETS", tmp_path)
    pipe = CogVideoPipeline.from_pretrained("mini", device="cpu")
    assert pipe.preset.name == "mini"
    (tmp_path / "mini").mkdir()
    with pytest.raises(WeightsError, match=r"mini/text\.model"):
        pipe.stream(REQUEST)
    with pytest.raises(RequestError, match="mini"):
        CogVideoPipeline.from_pretrained("minni")


def test_the_published_model_reads_the_text_model_of_icetk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cogvideo.pipeline.ASSETS", tmp_path)
    monkeypatch.setattr("cogvideo.pipeline.ICETK_FOLDER", tmp_path / "icetk")
    pipe = CogVideoPipeline.from_pretrained("cogvideo", device="cpu")
    with pytest.raises(WeightsError, match=r"icetk/ice_text\.model"):
        pipe.check_inputs(REQUEST)
    write_toy(tmp_path)
    (tmp_path / "icetk").mkdir()
    (tmp_path / "text.model").rename(tmp_path / "icetk" / "ice_text.model")
    assert pipe.check_inputs(REQUEST).text == PROMPT


@pytest.mark.parametrize("content", [None, b"junk", b"\x93NUMPY\x01\x00"])
def test_missing_and_damaged_clusters_name_the_file(tmp_path: Path, models: ToyModels, content: bytes | None) -> None:
    write_toy(tmp_path)
    labels = tmp_path / "cluster_labels.npy"
    labels.unlink()
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cluster_labels\.npy"):
        CogVideoPipeline(TOY, CPU, tmp_path, lambda *_: models).load()


def test_clusters_of_another_model_are_refused(tmp_path: Path, models: ToyModels) -> None:
    write_toy(tmp_path)
    np.save(tmp_path / "cluster_labels.npy", np.zeros(65, np.int16))
    with pytest.raises(WeightsError, match=r"65"):
        CogVideoPipeline(TOY, CPU, tmp_path, lambda *_: models).load()


def test_networks_that_compute_no_numbers_end_in_a_clear_error(folder: Path) -> None:
    broken = toy_models()
    broken.stage2.get_mixin("attention_plus").dense[0].weight.data[0] = torch.inf
    pipe = CogVideoPipeline(TOY, CPU, folder, lambda *_: broken)
    heard: list[Event] = []
    with pytest.raises(WeightsError, match="NaN"):
        for event in pipe.stream(REQUEST):
            heard.append(event)
    assert [e.round for e in of_type(heard, RoundCompleted)] == [0]  # what was fine is kept


def test_too_little_memory_is_said(folder: Path, models: ToyModels) -> None:
    def load(*_: object) -> ToyModels:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CapacityError, match="fewer frames"):
        CogVideoPipeline(TOY, CPU, folder, load)(REQUEST)


@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_every_preset_makes_the_whole_video(folder: Path, events: list[Event], name: str) -> None:
    pipe = CogVideoPipeline(TOY, dataclasses.replace(CPU, memory=MEMORY_PRESETS[name]), folder, lambda *_: toy_models())
    heard = list(pipe.stream(REQUEST))
    assert heard[-1].frames.shape == events[-1].frames.shape
    assert of_type(heard, Progress)[-1].done == of_type(heard, Progress)[-1].total
    if MEMORY_PRESETS[name].weights == "exact":
        np.testing.assert_array_equal(heard[-1].frames, events[-1].frames)
    np.testing.assert_array_equal(pipe(REQUEST), heard[-1].frames)  # also the second time


STAGES_THAT_FAIL = {
    "loading": "cogvideo.pipeline.place_models",
    "first frame": "cogvideo.inference.keyframes.decoding.first_frame",
    "keyframes": "cogvideo.inference.keyframes.decoding.keyframes",
    "interpolate": "cogvideo.inference.interpolation.decoding.interpolate",
    "superres": "cogvideo.inference.super_resolution._states",
    "pixels": "cogvideo.tokenizers.image.ImageTokenizer.decode",
}


@pytest.mark.parametrize("stage", STAGES_THAT_FAIL)
def test_out_of_memory_frees_everything_and_the_next_try_is_the_same_video(
    folder: Path, events: list[Event], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[torch.nn.Module]] = []

    def load(*_: object) -> ToyModels:
        models = toy_models()
        networks.extend(weakref.ref(network) for network in models)
        return models

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipe = CogVideoPipeline(TOY, CPU, folder, load)
    with monkeypatch.context() as broken:
        broken.setattr(STAGES_THAT_FAIL[stage], full)
        with pytest.raises(OutOfMemoryError, match="same seed") as refusal:
            list(pipe.stream(REQUEST))
    assert refusal.value.next_preset in MEMORY_PRESETS
    assert len(networks) == 3 and not any(network() for network in networks)
    np.testing.assert_array_equal(pipe(REQUEST), events[-1].frames)
