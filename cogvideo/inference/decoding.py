"""Autoregressive decoding: text and given frames in, image tokens out, one token of every row at a time.

`first_frame`, `keyframes` and `interpolate` are iterators. Closing one ends the work; `collect` exhausts one.

    first = collect(first_frame(lm, texts, sample))                                      # [rows, 1, N]
    rest = collect(keyframes(lm, texts, first[:, 0], sample, unconditional=others))      # [rows, 4, N]
    between = collect(interpolate(lm2, texts2, tokens[:, [0, 1, 2]], sample))            # [rows, 2, N]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cogvideo.errors import Cancelled
from cogvideo.models.base import GuidanceConfig, left_pad
from cogvideo.models.kv_cache import KVCache, TokenSlot
from cogvideo.models.video_lm import VideoLM

SampleFn = Callable[[Tensor, int, int], Tensor]
"""(logits [rows, image_tokens] fp32, frame, slot) -> ids [rows] int64. `frame` counts from 0 in the sequence."""

IsCancelled = Callable[[], bool]
"""Called once a step. If it returns True, the step raises `Cancelled` before it computes anything."""

MAX_QUEUED_STEPS: Final = 4
"""Steps that the CPU queues ahead of the GPU: enough that the GPU never waits."""

MAX_ROWS: Final = 32
"""Sequences in one batch: in stage 2, the eight blocks of the last round of four videos."""

Texts = Sequence[Sequence[int]]
"""Ids of the text of each row. Rows may differ in length; none may be empty."""


class DecodedTokens(NamedTuple):
    """One sampled token of every row."""

    frame: int
    """Time-order number within the sequence (0 .. 4)."""
    slot: int
    ids: Tensor  # [rows]


@dataclass(frozen=True)
class DecodeOptions:
    """Options for the logits and the number of steps. The last three do not change any token."""

    guidance_scale: float = 3.0
    """With unconditional texts: logits are u + guidance_scale * (c - u)."""
    plausibility: float = 0.0
    """See `TokenSampling.plausibility`."""
    text_attention_bias: float = 1.4
    """Added to the scores of frame-to-text attention if there are no unconditional texts."""
    lookahead: int = 1
    """Slots evaluated in one step, see `jacobi_decode`. More than 1 decodes frames one after the other."""
    wavefront: bool = True
    """Stage 2: decode the second frame together with the first, `TokenLayout.wavefront_lag` slots behind it."""
    is_cancelled: IsCancelled | None = None


@dataclass(frozen=True)
class StageOptions:
    """Options of stages 1 and 2. No option changes a token, except by rounding."""

    max_rows: int = MAX_ROWS
    """Sequences that the network reads at once."""
    lookahead: int = 1
    """See `DecodeOptions`. Stage 1 only."""
    is_cancelled: IsCancelled | None = None


def first_frame(
    lm: VideoLM, texts: Texts, sample: SampleFn, options: DecodeOptions = DecodeOptions()
) -> Iterator[DecodedTokens]:
    """Decode the tokens of frame 0 from text (with its suffix), with the backbone alone."""
    cache = prefill(lm, texts, given=(), text_attention_bias=options.text_attention_bias, use_temporal=False)
    try:
        yield from _decode_missing(lm, cache, [0], sample, None, options, None, {})
    finally:
        lm.release_cache(cache)


def keyframes(
    lm: VideoLM,
    texts: Texts,
    first: Tensor,
    sample: SampleFn,
    unconditional: Texts | None = None,
    options: DecodeOptions = DecodeOptions(),
) -> Iterator[DecodedTokens]:
    """Decode frames 1 .. 4 after `first` [rows, N], one after the other, with stage 1.

    `unconditional`: the texts to guide away from, one for each row. None: no guidance, and the text attention bias.
    """
    yield from _decode(lm, texts, (0,), first[:, None], sample, unconditional, options)


def interpolate(
    lm: VideoLM,
    texts: Texts,
    given: Tensor,
    sample: SampleFn,
    unconditional: Texts | None = None,
    options: DecodeOptions = DecodeOptions(),
) -> Iterator[DecodedTokens]:
    """Decode frames 1 and 3 between `given` [rows, 3, N], which are frames 0, 2 and 4 of the sequence, with stage 2.

    All blocks of a round are rows of one call. `unconditional`: see `keyframes`.
    """
    yield from _decode(lm, texts, lm.layout.given, given, sample, unconditional, options)


def collect(tokens: Iterable[DecodedTokens], on_token: Callable[[DecodedTokens], None] | None = None) -> Tensor:
    """Exhaust `tokens`; return ids [rows, frames, N], frames in decoding order. `on_token` receives each token."""
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
    text_attention_bias: float,
    use_temporal: bool,
    parallel_frames: int = 1,
) -> KVCache:
    """Read `texts` and the frames `given`, whose `tokens` are [rows, len(given), N], into a cache.

    The caller returns the cache with `lm.release_cache`.
    """
    cache = lm.acquire_cache(
        len(texts), max(map(len, texts)), given, use_temporal, text_attention_bias, parallel_frames
    )
    text, text_length = left_pad(texts, cache.text, device=lm.transformer.word_embeddings.weight.device)
    lm.prefill(cache, text, text_length, tokens)
    return cache


def decode_one(
    lm: VideoLM, cache: KVCache, ids: Tensor, slots: Sequence[TokenSlot], guidance: GuidanceConfig | None = None
) -> Tensor:
    """Compute the logits after `slots`, which hold `ids` [samples, slots] -> [samples, slots, image_tokens] fp32.

    With `guidance` the cache has two rows for each sample: first all conditional rows, then all unconditional rows.
    """
    return lm.decode_one(cache, ids if guidance is None else ids.repeat(2, 1), slots, guidance)


def decode_frames(
    lm: VideoLM,
    cache: KVCache,
    frames: Sequence[int],
    sample: SampleFn,
    guidance: GuidanceConfig | None = None,
    is_cancelled: IsCancelled | None = None,
    lag: int | None = None,
) -> Iterator[DecodedTokens]:
    """Decode `frames` after the content of `cache`. Each begins `lag` steps after the frame before it.

    `lag` None: each begins when the one before is complete. With a smaller lag, the cache must hold as many parallel
    frames as overlap.
    """
    samples = cache.rows if guidance is None else cache.rows // 2
    start = torch.full((samples,), lm.config.start_of_image, device=lm.transformer.word_embeddings.weight.device)
    latest = dict.fromkeys(frames, start)  # the input of each frame's next slot
    throttle = StepThrottle(start.device)
    for slots in schedule(frames, lm.layout.tokens_per_frame, lag):
        throttle.wait()
        if is_cancelled is not None and is_cancelled():
            raise Cancelled
        ids = torch.stack([latest[frame] for frame, _ in slots], dim=1)
        logits = decode_one(lm, cache, ids, slots, guidance)
        for i, (frame, slot) in enumerate(slots):
            latest[frame] = sample(logits[:, i], frame, slot)
            yield DecodedTokens(frame, slot, latest[frame])


class StepThrottle:
    """Limit on the steps that the CPU queues ahead of the GPU, so that cancellation and progress stay accurate.

    It never waits for the step that was queued last.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queued: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until at most `MAX_QUEUED_STEPS` steps are queued. To be called between two steps; no-op on a CPU."""
        if self._device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        self._queued.append(done)
        if len(self._queued) > MAX_QUEUED_STEPS:
            self._queued.popleft().synchronize()


def jacobi_decode(
    lm: VideoLM,
    cache: KVCache,
    frame: int,
    sample: SampleFn,
    lookahead: int,
    guess: Tensor | None = None,
    guidance: GuidanceConfig | None = None,
    is_cancelled: IsCancelled | None = None,
) -> Iterator[DecodedTokens]:
    """Decode `frame` by Jacobi iteration: evaluate `lookahead` slots in one pass and accept the correct prefix.

    The first slot of a pass holds a sampled token, so its own sample is correct. If that equals the guess in the next
    slot in every row, the next sample is correct as well, and so on. Samples are functions of key and logits, hence
    the tokens are those of `decode_frames`. Samples after the prefix are the guesses of the next pass.

    `guess` [rows, N]: the first guesses. None: a guess repeats the token before it. Each pass waits once for the
    device.
    """
    size = lm.layout.tokens_per_frame
    device = lm.transformer.word_embeddings.weight.device
    samples = cache.rows if guidance is None else cache.rows // 2
    ids = torch.full((samples, size + 1), lm.config.start_of_image, device=device)  # the input of each slot; one spare
    if guess is not None:
        ids[:, 1:] = guess
    slot = 0
    while slot < size:
        if is_cancelled is not None and is_cancelled():
            raise Cancelled
        end = min(slot + lookahead, size)
        logits = decode_one(lm, cache, ids[:, slot:end], [TokenSlot(frame, s) for s in range(slot, end)], guidance)
        sampled = torch.stack([sample(logits[:, i], frame, slot + i) for i in range(end - slot)], dim=1)
        correct = (sampled == ids[:, slot + 1 : end + 1]).all(0)[:-1]
        accepted = 1 + int(correct.long().cumprod(0).sum())
        ids[:, slot + 1 : end + 1] = sampled
        for i in range(accepted):
            yield DecodedTokens(frame, slot + i, sampled[:, i])
        slot += accepted
        if guess is None:
            ids[:, end + 1 : slot + lookahead + 1] = sampled[:, -1:]


def schedule(frames: Sequence[int], size: int, lag: int | None = None) -> list[list[TokenSlot]]:
    """Return the slots of each step. Each of `frames`, of `size` tokens, begins `lag` steps after the one before.

    `lag` None: `size`.
    """
    lag = size if lag is None else lag
    steps = range(size + lag * (len(frames) - 1))
    starts = [(frame, i * lag) for i, frame in enumerate(frames)]
    return [[TokenSlot(frame, step - start) for frame, start in starts if 0 <= step - start < size] for step in steps]


def _decode(
    lm: VideoLM,
    texts: Texts,
    given: tuple[int, ...],
    tokens: Tensor,
    sample: SampleFn,
    unconditional: Texts | None,
    options: DecodeOptions,
) -> Iterator[DecodedTokens]:
    """Decode all frames that are not `given`, whose `tokens` are [rows, len(given), N]."""
    given_tokens = {frame: tokens[:, i] for i, frame in enumerate(given)}
    text_attention_bias, guidance = options.text_attention_bias, None
    if unconditional is not None:
        texts, tokens, text_attention_bias = [*texts, *unconditional], tokens.repeat(2, 1, 1), 0.0
        guidance = GuidanceConfig(options.guidance_scale, options.plausibility)
    frames = [frame for frame in range(lm.layout.frames) if frame not in given]
    lag = lm.layout.wavefront_lag if lm.stage == 2 and options.wavefront and options.lookahead == 1 else None
    parallel = 1 if lag is None else len(frames)
    cache = prefill(
        lm, texts, given, tokens, text_attention_bias=text_attention_bias, use_temporal=True, parallel_frames=parallel
    )
    try:
        yield from _decode_missing(lm, cache, frames, sample, guidance, options, lag, given_tokens)
    finally:
        lm.release_cache(cache)


def _decode_missing(
    lm: VideoLM,
    cache: KVCache,
    frames: Sequence[int],
    sample: SampleFn,
    guidance: GuidanceConfig | None,
    options: DecodeOptions,
    lag: int | None,
    given_tokens: dict[int, Tensor],
) -> Iterator[DecodedTokens]:
    """Decode `frames` slot by slot, or with lookahead. With lookahead, the first guess is the frame before."""
    if options.lookahead == 1:
        yield from decode_frames(lm, cache, frames, sample, guidance, options.is_cancelled, lag)
        return
    decoded = dict(given_tokens)
    for frame in frames:
        tokens: list[Tensor] = []
        guess = decoded.get(frame - 1)
        for token in jacobi_decode(lm, cache, frame, sample, options.lookahead, guess, guidance, options.is_cancelled):
            tokens.append(token.ids)
            yield token
        decoded[frame] = torch.stack(tokens, dim=1)
