"""The models of one server: each pipeline made once, by whoever needs it first; one at a time has its weights.

In: offers. Out: pipelines. Any thread may ask for one; `ready` and `let_go` are for the worker alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from cogvideo.config import Preset
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.jobs.available_models import Offer, Pipeline

LOG = logging.getLogger(__name__)

Which = tuple[str, str | None]
"""A model and the memory preset that somebody asked for, None: what fits."""


class Registry:
    """`offers`: what may be asked for, the server's own model first."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self.offers: dict[str, Offer] = {offer.name: offer for offer in offers}
        self.own = offers[0].name
        self._made: dict[Which, Pipeline] = {}
        self._loaded: set[Which] = set()  # which of them may have read weights
        self._making = threading.Lock()

    def offer(self, model: str) -> Offer:
        """The model of that name. Raises RequestError where this server does not know it."""
        if model not in self.offers:
            raise RequestError(
                f"这台服务器没有名为 {model} 的模型：可用的有 {'、'.join(self.offers)}。",
                f"This server has no model called {model}: there are {', '.join(self.offers)}.",
            )
        return self.offers[model]

    def preset(self, model: str) -> Preset:
        """The sizes of the model of that name; of the server's own where it does not know that one any more."""
        return self.offers.get(model, self.offers[self.own]).preset

    def pipeline(self, model: str, memory: str | None = None) -> Pipeline:
        """The pipeline of a model; it may have read nothing yet. Raises CogVideoError where it cannot be made."""
        with self._making:
            if (model, memory) not in self._made:
                offer = self.offer(model)
                if missing := offer.missing():
                    raise RequestError(*missing)
                self._made[model, memory] = offer.make(memory)
            return self._made[model, memory]

    def held(self, model: str) -> tuple[str, str] | None:
        """The kind of device and the memory preset that fit the model; None where it cannot be made here."""
        try:
            pipeline = self.pipeline(model)
        except CogVideoError as error:
            LOG.info("No pipeline of %s: %s", model, error)
            return None
        return pipeline.kind, pipeline.memory

    def ready(self, model: str, memory: str | None) -> Pipeline:
        """The pipeline that may have its weights now; any other lets go of them."""
        pipeline = self.pipeline(model, memory)
        self.let_go((model, memory))
        self._loaded.add((model, memory))
        return pipeline

    def used(self, model: str) -> None:
        """The model, as the server holds it by itself, may have read some of its files."""
        self._loaded.add((model, None))

    def let_go(self, following: Which | None) -> None:
        """Frees the memory of all models but the `following` one."""
        for which in self._loaded - {following}:
            self._made[which].unload()
            self._loaded.discard(which)
