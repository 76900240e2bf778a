"""The autoregressive loop: text (and given frames) in, image tokens out, one by one.

`first_frame`, `keyframes` and `interpolate` are iterators: each token appears as soon as it is drawn, and whoever stops
asking stops the work. `collect` runs one of them to its end. How a token is drawn from its scores is the caller's
business: `draw`.

    first = collect(first_frame(lm, texts, draw))                                    # [rows, 1, N]
    rest = collect(keyframes(lm, texts, first[:, 0], draw, unconditional=others))    # [rows, 4, N]
    between = collect(interpolate(lm2, texts2, clip[:, [0, 1, 2]], draw))            # [rows, 2, N]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cogvideo.errors import Cancelled
from cogvideo.models.base import GuidanceConfig, left_pad
from cogvideo.models.kv_cache import KVCache, TokenSlot
from cogvideo.models.video_lm import VideoLM

SampleFn = Callable[[Tensor, int, int], Tensor]
"""(logits [rows, image_tokens] fp32, frame, slot) -> ids [rows] int64. `frame` counts from 0 within the sequence."""

IsCancelled = Callable[[], bool]
"""Asked once a step; True raises `Cancelled` before anything is computed."""

MAX_QUEUED_STEPS: Final = 4
"""So many steps a card may be behind who asks for them: enough for it to have work at any time."""

Texts = Sequence[Sequence[int]]
"""Ids of the text of each row. Rows may differ in length; none may be empty."""


class DecodedTokens(NamedTuple):
    """One token of every row has been drawn."""

    frame: int
    """Time-order number within the sequence (0 .. 4)."""
    slot: int
    ids: Tensor  # [rows]


def first_frame(
    lm: VideoLM,
    texts: Texts,
    draw: SampleFn,
    *,
    text_boost: float = 1.4,
    stop: IsCancelled | None = None,
    ahead: int = 1,
) -> Iterator[DecodedTokens]:
    """Frame 0 from text (with its suffix) by the backbone alone: tokens_per_frame tokens, frame 0.

    `ahead`: see `speculate`; as for the other two, more than 1 changes the number of steps and not the tokens.
    """
    cache = prefill(lm, texts, given=(), boost=text_boost, both=False)
    try:
        yield from _decode_missing(lm, cache, [0], draw, None, stop, None, None, ahead)
    finally:
        lm.release_cache(cache)


def keyframes(
    lm: VideoLM,
    texts: Texts,
    first: Tensor,
    draw: SampleFn,
    *,
    unconditional: Texts | None = None,
    guidance: float = 3.0,
    plausibility: float = 0.0,
    text_boost: float = 1.4,
    stop: IsCancelled | None = None,
    ahead: int = 1,
) -> Iterator[DecodedTokens]:
    """Frames 1 .. 4 after `first` [rows, N], one after the other, by stage 1.

    `unconditional`: texts of the sequences to be guided away from, one for each row; logits are then
    u + guidance * (c - u) and no boost is used. None: no guidance, and the boost. `plausibility`: see `TokenSampling`.
    """
    guide = GuidanceConfig(guidance, plausibility)
    yield from _decode(lm, texts, (0,), first[:, None], draw, unconditional, guide, text_boost, stop, None, ahead)


def interpolate(
    lm: VideoLM,
    texts: Texts,
    given: Tensor,
    draw: SampleFn,
    *,
    unconditional: Texts | None = None,
    guidance: float = 3.0,
    plausibility: float = 0.0,
    text_boost: float = 1.4,
    stop: IsCancelled | None = None,
    wavefront: bool = True,
    ahead: int = 1,
) -> Iterator[DecodedTokens]:
    """Frames 1 and 3 between `given` [rows, 3, N], which are frames 0, 2 and 4 of the sequence, by stage 2.

    All blocks of a round are rows of one call. Guidance: see `keyframes`. `wavefront`: frame 3 is drawn while frame 1
    is, as far behind as its windows ask, so that their tokens alternate: the same tokens in fewer steps. With `ahead`
    frames come one after the other.
    """
    lag = lm.layout.wavefront_lag if wavefront and ahead == 1 else None
    guide = GuidanceConfig(guidance, plausibility)
    yield from _decode(lm, texts, lm.layout.given, given, draw, unconditional, guide, text_boost, stop, lag, ahead)


def collect(tokens: Iterable[DecodedTokens], on_token: Callable[[DecodedTokens], None] | None = None) -> Tensor:
    """Run to the end -> ids [rows, frames, N], frames as they were drawn; `on_token` sees each token."""
    frames: dict[int, list[Tensor]] = {}
    for token in tokens:
        frames.setdefault(token.frame, []).append(token.ids)
        if on_token is not None:
            on_token(token)
    return torch.stack([torch.stack(ids, dim=1) for ids in frames.values()], dim=1)


def prefill(
    lm: VideoLM,
    texts: Texts,
    given: tuple[int, ...],
    tokens: Tensor | None = None,
    *,
    boost: float,
    both: bool,
    lanes: int = 1,
) -> KVCache:
    """Read `texts` and the frames `given`, whose `tokens` are [rows, len(given), N], into a cache.

    Who is done with it should `lm.give_back` it, for the next video.
    """
    cache = lm.acquire_cache(len(texts), max(map(len, texts)), given, both, boost, lanes)
    text, text_length = left_pad(texts, cache.text, device=lm.transformer.word_embeddings.weight.device)
    lm.prefill(cache, text, text_length, tokens)
    return cache


def decode_one(
    lm: VideoLM, cache: KVCache, ids: Tensor, places: Sequence[TokenSlot], guidance: GuidanceConfig | None = None
) -> Tensor:
    """Scores of the tokens of some slots, which hold `ids` [samples, places] -> [samples, places, image_tokens] fp32.

    With `guidance` the cache has two rows for a sample: first all conditional ones, then all unconditional ones.
    """
    return lm.decode_one(cache, ids if guidance is None else ids.repeat(2, 1), places, guidance)


def decode_frames(
    lm: VideoLM,
    cache: KVCache,
    frames: Sequence[int],
    draw: SampleFn,
    guidance: GuidanceConfig | None = None,
    stop: IsCancelled | None = None,
    lag: int | None = None,
) -> Iterator[DecodedTokens]:
    """Draw `frames` after what `cache` holds, each beginning `lag` steps after the one before it.

    `lag` None: when that one is complete. Less needs as many lanes in the cache as frames are drawn at once.
    """
    samples = cache.rows if guidance is None else cache.rows // 2
    start = torch.full((samples,), lm.config.start_of_image, device=lm.transformer.word_embeddings.weight.device)
    held = dict.fromkeys(frames, start)  # what each frame's next slot holds
    leash = StepThrottle(start.device)
    for places in schedule(frames, lm.layout.tokens_per_frame, lag):
        leash.wait()
        if stop is not None and stop():
            raise Cancelled
        ids = torch.stack([held[frame] for frame, _ in places], dim=1)
        logits = decode_one(lm, cache, ids, places, guidance)
        for i, (frame, slot) in enumerate(places):
            held[frame] = draw(logits[:, i], frame, slot)
            yield DecodedTokens(frame, slot, held[frame])


class StepThrottle:
    """Keeps the host near a card, which is told of steps much sooner than it has computed them: so a stop acts, and
    progress is what has been drawn, but for a few tokens. It never waits for the step that it has just asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Between two steps; elsewhere than on a card nothing."""
        if self._device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        self._begun.append(done)
        if len(self._begun) > MAX_QUEUED_STEPS:
            self._begun.popleft().synchronize()


def jacobi_decode(
    lm: VideoLM,
    cache: KVCache,
    frame: int,
    draw: SampleFn,
    ahead: int,
    guess: Tensor | None = None,
    guidance: GuidanceConfig | None = None,
    stop: IsCancelled | None = None,
) -> Iterator[DecodedTokens]:
    """Draw `frame` some slots at a time: those after the next one are fed with guesses, and kept as far as they hold.

    A step reads `ahead` slots. The first holds what was drawn, so its draw is right; where it equals the guess in the
    next slot, so is the next draw, and so on in every row: draws are a function of their key and scores alone, hence
    the tokens are those of `fill`. What the guesses draw is the guess of the next step (Jacobi's iteration). `guess`
    [rows, N]: the first guesses; None: the token before. Each step waits once for the device.
    """
    size = lm.layout.tokens_per_frame
    device = lm.transformer.word_embeddings.weight.device
    samples = cache.rows if guidance is None else cache.rows // 2
    ids = torch.full((samples, size + 1), lm.config.start_of_image, device=device)  # what each slot holds; one spare
    if guess is not None:
        ids[:, 1:] = guess
    slot = 0
    while slot < size:
        if stop is not None and stop():
            raise Cancelled
        end = min(slot + ahead, size)
        logits = decode_one(lm, cache, ids[:, slot:end], [TokenSlot(frame, s) for s in range(slot, end)], guidance)
        drawn = torch.stack([draw(logits[:, i], frame, slot + i) for i in range(end - slot)], dim=1)
        held = (drawn == ids[:, slot + 1 : end + 1]).all(0)[:-1]
        kept = 1 + int(held.long().cumprod(0).sum())
        ids[:, slot + 1 : end + 1] = drawn
        for i in range(kept):
            yield DecodedTokens(frame, slot + i, drawn[:, i])
        slot += kept
        if guess is None:
            ids[:, end + 1 : slot + ahead + 1] = drawn[:, -1:]


def schedule(frames: Sequence[int], size: int, lag: int | None = None) -> list[list[TokenSlot]]:
    """The slots of each step, when each of `frames` of `size` tokens begins `lag` steps after the one before it."""
    lag = size if lag is None else lag
    steps = range(size + lag * (len(frames) - 1))
    begun = [(frame, i * lag) for i, frame in enumerate(frames)]
    return [[TokenSlot(frame, step - at) for frame, at in begun if 0 <= step - at < size] for step in steps]


def _decode(
    lm: VideoLM,
    texts: Texts,
    given: tuple[int, ...],
    tokens: Tensor,
    draw: SampleFn,
    unconditional: Texts | None,
    guidance: GuidanceConfig,
    text_boost: float,
    stop: IsCancelled | None,
    lag: int | None,
    ahead: int,
) -> Iterator[DecodedTokens]:
    """All frames that are not `given`."""
    known = {frame: tokens[:, i] for i, frame in enumerate(given)}
    if unconditional is not None:
        texts, tokens, text_boost = [*texts, *unconditional], tokens.repeat(2, 1, 1), 0.0
    frames = [frame for frame in range(lm.layout.frames) if frame not in given]
    lanes = 1 if lag is None else len(frames)
    cache = prefill(lm, texts, given, tokens, boost=text_boost, both=True, lanes=lanes)
    try:
        guide = guidance if unconditional is not None else None
        yield from _decode_missing(lm, cache, frames, draw, guide, stop, lag, known, ahead)
    finally:
        lm.release_cache(cache)


def _decode_missing(
    lm: VideoLM,
    cache: KVCache,
    frames: Sequence[int],
    draw: SampleFn,
    guidance: GuidanceConfig | None,
    stop: IsCancelled | None,
    lag: int | None,
    known: dict[int, Tensor] | None,
    ahead: int,
) -> Iterator[DecodedTokens]:
    """`fill`, or `speculate` where it is to look ahead; then each frame is guessed from the one before it."""
    if ahead == 1:
        yield from decode_frames(lm, cache, frames, draw, guidance, stop, lag)
        return
    clip = dict(known or {})
    for frame in frames:
        tokens: list[Tensor] = []
        for token in jacobi_decode(lm, cache, frame, draw, ahead, clip.get(frame - 1), guidance, stop):
            tokens.append(token.ids)
            yield token
        clip[frame] = torch.stack(tokens, dim=1)
