"""The visitor's session, which the browser stores; the server stores none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cogvideo.jobs.service import new_key
from cogvideo.web.strings import LANGUAGES, preferred_language


@dataclass(frozen=True)
class Session:
    """Key of the visitor's jobs, and the language of the page."""

    key: str
    language: str

    @classmethod
    def from_browser(cls, value: Any, accept_language: str | None = None) -> Session:
        """Read the browser's value; replace what is missing or invalid by a new key and the preferred language."""
        stored = value if isinstance(value, dict) else {}
        key, language = stored.get("key"), stored.get("language")
        return cls(
            key if isinstance(key, str) and len(key) >= 16 else new_key(),
            language if language in LANGUAGES else preferred_language(accept_language),
        )

    def to_browser(self) -> dict[str, str]:
        return asdict(self)

    def with_language(self, language: str) -> Session:
        return replace(self, language=language)
