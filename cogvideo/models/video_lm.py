"""Stages 1 and 2: text and frames in, scores of the next image token out. One definition trains and draws.

In: token ids. Out: logits over the image tokens, fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from weakref import proxy

import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.models.attention import (
    AttentionPattern,
    AttentionPlus,
    DecodeStepAttention,
    ImageAttention,
    TextAttention,
    VideoAttention,
    text_padding_mask,
)
from cogvideo.models.base import ExtraPositions, GuidanceConfig, TokenModel, guided_logits, text_positions
from cogvideo.models.cache_pool import CacheKey, CachePool, text_slots
from cogvideo.models.cuda_graph import CudaGraphStep
from cogvideo.models.fused_decode import FusedDecoder, fuse
from cogvideo.models.kv_cache import KVCache, TokenSlot, fast_path_unsupported_reason
from cogvideo.models.sat_adapter import Transformer
from cogvideo.token_layout import Stage
from kernels.cpu_decode import Precision


class VideoLM(TokenModel):
    """Stage 1 (draws frames one after the other) or stage 2 (draws frames between given ones).

    `transformer`: a backbone to share; None builds one, as `device` says ("meta": without storage).
    """

    def __init__(
        self,
        config: ModelConfig,
        stage: Stage,
        transformer: Transformer | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(config, transformer, device)
        self.stage: Stage = stage
        self._fused: FusedDecoder | None = None
        self.cache_pool = (
            CachePool()
        )  # storage and captured steps for the next video, where weights stay where they are
        self.int8_cache = False  # whether what is drawn keeps its keys and values in 8 bits
        self.swapped = False  # whether weights come to the device for each step and go again
        with torch.random.fork_rng(devices=[]), torch.device(device):
            self.add_mixin("extra_position_embedding", ExtraPositions(config.extra_positions, config.hidden))
            self.add_mixin("attention_plus", AttentionPlus(config, gated=True))
        if torch.device(device).type != "meta":
            self.get_mixin("attention_plus").reinit(self)

    def forward_training(
        self, text: Tensor, text_length: Tensor, frames: Tensor, scored: Sequence[int] | None = None
    ) -> Tensor:
        """Logits of every token of a clip, each given all that it may see.

        text [B, T] left-padded ids, text_length [B] (at least 1), frames [B, F, N] image tokens in time order
        -> [B, F, N, image_tokens] fp32; [b, f, k] scores token k of frame f. `scored`: only these frames, in this
        order, are given logits (the head is a sixth of a small model's work).
        """
        count, size = frames.shape[1:]
        if count != self.layout.frames or size != self.layout.tokens_per_frame:
            raise ValueError(
                f"frames {list(frames.shape)} do not fit {self.layout.frames} frames of {self.config.grid}"
            )
        seen = text_padding_mask(text_length, text.shape[1])
        clip = tuple(range(count))
        pattern = VideoAttention.of(self.layout, self.stage, clip, seen, self.dtype)
        wanted = list(range(count) if scored is None else scored)
        slots = torch.arange(count * size, device=text.device).view(count, size)[wanted].flatten() + text.shape[1]
        logits = self._run(text, text_length, self.slots(frames).flatten(1), pattern, slots, clip)
        return logits.unflatten(1, (len(wanted), size))

    def forward_images(self, text: Tensor, text_length: Tensor, frames: Tensor) -> Tensor:
        """Text to image with the backbone alone: a single frame at the first frame's position.

        text [B, T] left-padded ids, text_length [B], frames [B, N] -> [B, N, image_tokens] fp32.
        """
        pattern = ImageAttention.of(self.layout, text_length, text.shape[1], self.dtype)
        return self._run(text, text_length, self.slots(frames), pattern, slice(text.shape[1], None), (0,))

    @torch.inference_mode()
    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, given: Tensor | None = None) -> None:
        """Read the text and the frames that `cache` says are given; their keys and values go into it.

        text [B, T] left-padded ids, text_length [B], given [B, frames, N] in time order (None: no frame).
        """
        cache.set_text(text_padding_mask(text_length, text.shape[1]))
        slots = text[:, :0] if given is None else self.slots(given).flatten(1)
        if self._fused is None or not self._fused.prefill(cache, text, text_length, slots):
            self.prefill_fused(cache, text, text_length, slots)

    @torch.inference_mode()
    def prefill_fused(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> None:
        """The network's own pass over the same, slots [B, frames * N]: the reference of what is `fuse`d."""
        seen = text_padding_mask(text_length, text.shape[1])
        pattern: AttentionPattern
        if cache.use_temporal:
            pattern = VideoAttention.of(
                self.layout, self.stage, cache.num_given, seen, self.dtype, cache, cache.text_attention_bias
            )
        else:
            pattern = TextAttention.of(seen, self.dtype, cache)
        self._run(text, text_length, slots, pattern, slice(0, 0), cache.num_given)

    def fuse(self, precision: Precision = "fp32", compiled: bool = True, threads: int = 1) -> None:
        """From now on decode with weights laid side by side: fewer products, a copy of the layers, changes not seen.

        `compiled`: as C, where that can be; only then the copy may be kept in fewer bits, see `models.fused`, and
        rows be divided among `threads`.
        """
        positions = self.get_mixin("extra_position_embedding").position_embeddings.weight
        parts = (self.transformer, self.get_mixin("attention_plus"), positions, self.head)
        self._fused = fuse(self.layout, *parts, precision, compiled, threads)
        self.cache_pool.clear()  # what was captured before computes otherwise

    def acquire_cache(
        self,
        rows: int,
        longest: int,
        given: tuple[int, ...],
        use_temporal: bool,
        text_attention_bias: float,
        parallel_frames: int,
    ) -> KVCache:
        """A cache for texts of at most `longest` tokens, perhaps one that an earlier video left; `prefill` it first.

        The other sizes: see `Cache`. Who is done with it says so, `give_back`.
        """
        weight = self.transformer.word_embeddings.weight
        why_not = "a captured step expects its weights where they were" if self.swapped else None
        why_not = why_not or fast_path_unsupported_reason(self.config, weight, self.int8_cache)
        text = longest if why_not is not None else text_slots(longest, self.config.text_length)
        shape = CacheKey(
            self.stage, rows, text, given, use_temporal, text_attention_bias, parallel_frames, self.int8_cache
        )
        cache = self.cache_pool.acquire(shape)
        if cache is None:
            make = partial(KVCache, self.layout, *shape[:-2], parallel_frames=parallel_frames, int8=self.int8_cache)
            self.cache_pool.evict(make(like=weight.new_empty(0, device="meta")).nbytes)
            cache = make(like=weight)
        cache.fast_path_unsupported_reason = why_not
        return cache

    def release_cache(self, cache: KVCache) -> None:
        """Nobody draws with `cache` any more: storage and captured steps may serve the next video."""
        sizes = (
            cache.rows,
            cache.text,
            cache.num_given,
            cache.use_temporal,
            cache.text_attention_bias,
            cache.parallel_frames,
        )
        self.cache_pool.release(CacheKey(self.stage, *sizes, self.int8_cache), cache)

    @torch.inference_mode()
    def decode_one(
        self, cache: KVCache, ids: Tensor, places: Sequence[TokenSlot], guidance: GuidanceConfig | None = None
    ) -> Tensor:
        """What slots predict, one or more of one frame or of several; their keys and values join `cache`.

        ids [B, places]: what the slots hold -> logits [B, places, image_tokens] fp32. Slots of a frame come in
        ascending order. With `guidance` rows are conditional ones, then as many unconditional ones -> logits
        [B / 2, places, image_tokens] of the guided distribution.
        """
        cache.select_slots(places)
        if not cache.fast:
            return self._step(cache, ids, guidance)
        graph = cache.graphs.get((len(places), guidance))
        if not isinstance(graph, CudaGraphStep):
            storage = proxy(cache)  # which keeps the graph, and is to be freed with it as soon as nobody draws with it
            graph = cache.graphs[len(places), guidance] = CudaGraphStep(
                lambda ids: self._step(storage, ids, guidance), ids
            )
        return graph(ids)

    def _step(self, cache: KVCache, ids: Tensor, guidance: GuidanceConfig | None) -> Tensor:
        """Scores of the slots that `cache` was told to `seek`; where it is `fast`, without anything that Python knows
        of them.
        """
        cache.prepare()
        if self._fused is not None:
            return guided_logits(self._fused.step(ids, cache), guidance, self._fused.logits)
        logits: Tensor = self(
            ids,
            cache.position_rows(),
            None,
            pattern=DecodeStepAttention(cache, cache.use_temporal),
            base_slots=0 if cache.use_temporal else ids.shape[1],
            scored=slice(None),
            guidance=guidance,
        )[0]
        return logits

    def _run(
        self,
        text: Tensor,
        text_length: Tensor,
        slots: Tensor,
        pattern: AttentionPattern,
        scored: Tensor | slice,
        frames: tuple[int, ...],
    ) -> Tensor:
        """text [B, T], slots [B, S] of `frames` -> logits of the `scored` places in text and slots."""
        layout, (batch, length) = self.layout, text.shape
        rows = [text_positions(text_length, length)]
        rows += [torch.as_tensor(layout.frame_rows(f), device=text.device).expand(batch, -1) for f in frames]
        logits: Tensor = self(
            torch.cat((text, slots), dim=1),
            torch.cat(rows, dim=1),
            None,
            pattern=pattern,
            base_slots=length + (layout.tokens_per_frame if frames else 0),
            scored=scored,
        )[0]
        return logits
