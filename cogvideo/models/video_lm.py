"""Stages 1 and 2: token ids of text and frames in, fp32 logits of the next image token out.

Training and generation use the same definition.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from cogvideo.models.cache_pool import CachePool, text_slots
from cogvideo.models.cuda_graph import CudaGraphStep
from cogvideo.models.fused_decode import FusedDecoder, fuse
from cogvideo.models.kv_cache import CacheKey, KVCache, TokenSlot, fast_path_unsupported_reason
from cogvideo.models.sat_adapter import Transformer
from cogvideo.token_layout import Stage
from kernels.cpu_decode import Precision


class VideoLM(TokenModel):
    """Stage 1 (generates frames one after the other) or stage 2 (generates frames between given ones).

    `transformer`: a backbone to share. None: a new one on `device` ("meta": without storage).
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
        self.cache_pool = CachePool()  # caches and captured steps for later videos
        self.int8_cache = False  # whether caches store keys and values in 8 bits
        self.swapped = False  # whether weights are moved to the device for each step, and back
        with torch.random.fork_rng(devices=[]), torch.device(device):
            self.add_mixin("extra_position_embedding", ExtraPositions(config.extra_positions, config.hidden))
            self.add_mixin("attention_plus", AttentionPlus(config, gated=True))
        if torch.device(device).type != "meta":
            self.get_mixin("attention_plus").reinit(self)

    def forward_training(
        self, text: Tensor, text_length: Tensor, frames: Tensor, scored: Sequence[int] | None = None
    ) -> Tensor:
        """Compute the logits of every token of a video, with teacher forcing.

        text [B, T] left-padded ids, text_length [B] (at least 1), frames [B, F, N] image tokens in time order
        -> [B, F, N, image_tokens] fp32.

        Entry [b, f, k] predicts token k of frame f. `scored`: compute the logits of these frames only, in this order
        (the head is a sixth of a small model's work).

        Raises ValueError if the shape of `frames` is not that of the model.
        """
        count, size = frames.shape[1:]
        if count != self.layout.frames or size != self.layout.tokens_per_frame:
            raise ValueError(
                f"frames {list(frames.shape)} do not fit {self.layout.frames} frames of {self.config.grid}"
            )
        seen = text_padding_mask(text_length, text.shape[1])
        numbers = tuple(range(count))
        pattern = VideoAttention.of(self.layout, self.stage, numbers, seen, self.dtype)
        scored_frames = list(numbers if scored is None else scored)
        slots = torch.arange(count * size, device=text.device).view(count, size)[scored_frames].flatten()
        slots = slots + text.shape[1]
        logits = self._run(text, text_length, self.slots(frames).flatten(1), pattern, slots, numbers)
        return logits.unflatten(1, (len(scored_frames), size))

    def forward_images(self, text: Tensor, text_length: Tensor, frames: Tensor) -> Tensor:
        """Compute the logits of a single frame (text to image) with the backbone alone.

        text [B, T] left-padded ids, text_length [B], frames [B, N] -> [B, N, image_tokens] fp32.
        """
        pattern = ImageAttention.of(self.layout, text_length, text.shape[1], self.dtype)
        return self._run(text, text_length, self.slots(frames), pattern, slice(text.shape[1], None), (0,))

    @torch.inference_mode()
    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, given: Tensor | None = None) -> None:
        """Read the text and the given frames, and write their keys and values to `cache`.

        text [B, T] left-padded ids, text_length [B], given [B, frames, N] in time order (None: no frame).
        """
        cache.set_text(text_padding_mask(text_length, text.shape[1]))
        slots = text[:, :0] if given is None else self.slots(given).flatten(1)
        if self._fused is None or not self._fused.prefill(cache, text, text_length, slots):
            self.prefill_fused(cache, text, text_length, slots)

    @torch.inference_mode()
    def prefill_fused(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> None:
        """Run the prefill with the network itself, without fused weights. slots [B, frames * N].

        It is the reference of `FusedDecoder.prefill`.
        """
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
        """Decode with concatenated weights from now on: fewer matrix products, but a copy of the layers.

        Later changes of the weights have no effect. `compiled`: use the C form if possible. Only that form supports
        `precision` (see `fused_decode`) and divides rows among `threads`.
        """
        positions = self.get_mixin("extra_position_embedding").position_embeddings.weight
        parts = (self.transformer, self.get_mixin("attention_plus"), positions, self.head)
        self._fused = fuse(self.layout, *parts, precision, compiled, threads)
        self.cache_pool.clear()  # steps captured before use the unfused weights

    def acquire_cache(
        self,
        rows: int,
        longest: int,
        given: tuple[int, ...],
        use_temporal: bool,
        text_attention_bias: float,
        parallel_frames: int,
    ) -> KVCache:
        """Return a cache for texts of at most `longest` tokens, from the pool or new. It requires `prefill`.

        The other sizes: see `KVCache`. The caller returns it with `release_cache`.
        """
        weight = self.transformer.word_embeddings.weight
        reason = "a captured step requires weights at fixed addresses" if self.swapped else None
        reason = reason or fast_path_unsupported_reason(self.config, weight, self.int8_cache)
        text = longest if reason is not None else text_slots(longest, self.config.text_length)
        key = CacheKey(
            self.stage, rows, text, given, use_temporal, text_attention_bias, parallel_frames, self.int8_cache
        )
        cache = self.cache_pool.acquire(key)
        if cache is None:
            self.cache_pool.evict(KVCache(self.layout, key, weight.new_empty(0, device="meta")).nbytes)
            cache = KVCache(self.layout, key, weight)
        cache.fast_path_unsupported_reason = reason
        return cache

    def release_cache(self, cache: KVCache) -> None:
        """Return `cache` to the pool: its storage and captured steps may serve a later video."""
        self.cache_pool.release(cache.key, cache)

    @torch.inference_mode()
    def decode_one(
        self, cache: KVCache, ids: Tensor, slots: Sequence[TokenSlot], guidance: GuidanceConfig | None = None
    ) -> Tensor:
        """Compute the logits of `slots` of one or several frames, and write their keys and values to `cache`.

        ids [B, slots]: the slots' inputs -> logits [B, slots, image_tokens] fp32. Slots of a frame are in ascending
        order. With `guidance` the first half of the rows is conditional, the second half unconditional. The result is
        then the guided logits [B / 2, slots, image_tokens].
        """
        cache.select_slots(slots)
        if not cache.fast:
            return self._step(cache, ids, guidance)
        graph = cache.graphs.get((len(slots), guidance))
        if not isinstance(graph, CudaGraphStep):
            storage = proxy(cache)  # the cache owns the graph: a strong reference would keep both alive
            graph = cache.graphs[len(slots), guidance] = CudaGraphStep(
                lambda ids: self._step(storage, ids, guidance), ids
            )
        return graph(ids)

    def _step(self, cache: KVCache, ids: Tensor, guidance: GuidanceConfig | None) -> Tensor:
        """Compute the logits of the selected slots of `cache`.

        If it is `fast`, slot numbers are read from the device only, so that the step can be captured.
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
        """Run text [B, T] and slots [B, S] of `frames`; return the logits of the `scored` positions among both."""
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
