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
    AttentionPlus,
    ClipPattern,
    ImagePattern,
    Pattern,
    StepPattern,
    TextPattern,
    text_seen,
)
from cogvideo.models.base import ExtraPositions, Guide, TokenModel, guided_scores, text_positions
from cogvideo.models.cache_pool import Kept, Shape, text_slots
from cogvideo.models.cuda_graph import StepGraph
from cogvideo.models.fused_decode import FusedSteps, fuse
from cogvideo.models.kv_cache import Cache, Place, why_not_fast
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
        self._fused: FusedSteps | None = None
        self.kept = Kept()  # storage and captured steps for the next video, where weights stay where they are
        self.int8_cache = False  # whether what is drawn keeps its keys and values in 8 bits
        self.moving = False  # whether weights come to the device for each step and go again
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
        seen = text_seen(text_length, text.shape[1])
        clip = tuple(range(count))
        pattern = ClipPattern.of(self.layout, self.stage, clip, seen, self.dtype)
        wanted = list(range(count) if scored is None else scored)
        slots = torch.arange(count * size, device=text.device).view(count, size)[wanted].flatten() + text.shape[1]
        logits = self._run(text, text_length, self.slots(frames).flatten(1), pattern, slots, clip)
        return logits.unflatten(1, (len(wanted), size))

    def forward_images(self, text: Tensor, text_length: Tensor, frames: Tensor) -> Tensor:
        """Text to image with the backbone alone: a single frame at the first frame's position.

        text [B, T] left-padded ids, text_length [B], frames [B, N] -> [B, N, image_tokens] fp32.
        """
        pattern = ImagePattern.of(self.layout, text_length, text.shape[1], self.dtype)
        return self._run(text, text_length, self.slots(frames), pattern, slice(text.shape[1], None), (0,))

    @torch.inference_mode()
    def prefill(self, cache: Cache, text: Tensor, text_length: Tensor, given: Tensor | None = None) -> None:
        """Read the text and the frames that `cache` says are given; their keys and values go into it.

        text [B, T] left-padded ids, text_length [B], given [B, frames, N] in time order (None: no frame).
        """
        cache.set_text(text_seen(text_length, text.shape[1]))
        slots = text[:, :0] if given is None else self.slots(given).flatten(1)
        if self._fused is None or not self._fused.read(cache, text, text_length, slots):
            self.read(cache, text, text_length, slots)

    @torch.inference_mode()
    def read(self, cache: Cache, text: Tensor, text_length: Tensor, slots: Tensor) -> None:
        """The network's own pass over the same, slots [B, frames * N]: the reference of what is `fuse`d."""
        seen = text_seen(text_length, text.shape[1])
        pattern: Pattern
        if cache.both:
            pattern = ClipPattern.of(self.layout, self.stage, cache.given, seen, self.dtype, cache, cache.boost)
        else:
            pattern = TextPattern.of(seen, self.dtype, cache)
        self._run(text, text_length, slots, pattern, slice(0, 0), cache.given)

    def fuse(self, precision: Precision = "fp32", compiled: bool = True, threads: int = 1) -> None:
        """From now on decode with weights laid side by side: fewer products, a copy of the layers, changes not seen.

        `compiled`: as C, where that can be; only then the copy may be kept in fewer bits, see `models.fused`, and
        rows be divided among `threads`.
        """
        positions = self.get_mixin("extra_position_embedding").position_embeddings.weight
        parts = (self.transformer, self.get_mixin("attention_plus"), positions, self.head)
        self._fused = fuse(self.layout, *parts, precision, compiled, threads)
        self.kept.clear()  # what was captured before computes otherwise

    def storage(self, rows: int, longest: int, given: tuple[int, ...], both: bool, boost: float, lanes: int) -> Cache:
        """A cache for texts of at most `longest` tokens, perhaps one that an earlier video left; `prefill` it first.

        The other sizes: see `Cache`. Who is done with it says so, `give_back`.
        """
        weight = self.transformer.word_embeddings.weight
        why_not = "a captured step expects its weights where they were" if self.moving else None
        why_not = why_not or why_not_fast(self.config, weight, self.int8_cache)
        text = longest if why_not is not None else text_slots(longest, self.config.text_length)
        shape = Shape(self.stage, rows, text, given, both, boost, lanes, self.int8_cache)
        cache = self.kept.take(shape)
        if cache is None:
            make = partial(Cache, self.layout, *shape[:-2], lanes=lanes, int8=self.int8_cache)
            self.kept.make_room(make(like=weight.new_empty(0, device="meta")).nbytes)
            cache = make(like=weight)
        cache.why_not_fast = why_not
        return cache

    def give_back(self, cache: Cache) -> None:
        """Nobody draws with `cache` any more: storage and captured steps may serve the next video."""
        sizes = (cache.rows, cache.text, cache.given, cache.both, cache.boost, cache.lanes)
        self.kept.give_back(Shape(self.stage, *sizes, self.int8_cache), cache)

    @torch.inference_mode()
    def decode_one(self, cache: Cache, ids: Tensor, places: Sequence[Place], guidance: Guide | None = None) -> Tensor:
        """What slots predict, one or more of one frame or of several; their keys and values join `cache`.

        ids [B, places]: what the slots hold -> logits [B, places, image_tokens] fp32. Slots of a frame come in
        ascending order. With `guidance` rows are conditional ones, then as many unconditional ones -> logits
        [B / 2, places, image_tokens] of the guided distribution.
        """
        cache.seek(places)
        if not cache.fast:
            return self._step(cache, ids, guidance)
        graph = cache.graphs.get((len(places), guidance))
        if not isinstance(graph, StepGraph):
            storage = proxy(cache)  # which keeps the graph, and is to be freed with it as soon as nobody draws with it
            graph = cache.graphs[len(places), guidance] = StepGraph(lambda ids: self._step(storage, ids, guidance), ids)
        return graph(ids)

    def _step(self, cache: Cache, ids: Tensor, guidance: Guide | None) -> Tensor:
        """Scores of the slots that `cache` was told to `seek`; where it is `fast`, without anything that Python knows
        of them.
        """
        cache.prepare()
        if self._fused is not None:
            return guided_scores(self._fused.run(ids, cache), guidance, self._fused.scores)
        logits: Tensor = self(
            ids,
            cache.position_rows(),
            None,
            pattern=StepPattern(cache, cache.both),
            base_slots=0 if cache.both else ids.shape[1],
            scored=slice(None),
            guidance=guidance,
        )[0]
        return logits

    def _run(
        self,
        text: Tensor,
        text_length: Tensor,
        slots: Tensor,
        pattern: Pattern,
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
