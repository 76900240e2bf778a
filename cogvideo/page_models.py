"""The models of a server as a visitor sees them: which are there, and what a missing one takes."""

from __future__ import annotations

import html
from collections.abc import Iterable

from cogvideo.offers import Offer
from cogvideo.page import Words


def model_choices(words: Words, language: str, offers: Iterable[Offer]) -> list[tuple[str, str]]:
    """What to call each model, with its name."""
    return [
        (words.say(language, "model_missing", model=offer.name) if offer.missing() else offer.name, offer.name)
        for offer in offers
    ]


def model_note(words: Words, language: str, offer: Offer) -> str:
    """A sentence about the model, or what it takes to have it; as HTML."""
    missing = offer.missing()
    if missing:
        return f'<p class="cv-say" data-kind="missing">{html.escape(missing[language != "zh"])}</p>'
    height, width = offer.preset.final_size if offer.preset.enlarge else offer.preset.frame_size
    return f"<p>{html.escape(words.say(language, 'model_size', width=width, height=height))}</p>"
