"""What cannot be guessed: keys of browsers and programs, and seeds."""

from __future__ import annotations

import hashlib
import secrets

from cogvideo.errors import RequestError


def new_key() -> str:
    """A key for one browser or one program: whoever has it may stop and delete what was asked for with it."""
    return secrets.token_urlsafe(24)


def owner_of(key: str) -> str:
    """What is stored of a key. Raises RequestError where the key is too short to be a secret."""
    if len(key) < 16:
        raise RequestError("缺少密钥：请重新载入页面。", "The key is missing: reload the page.")
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_seed() -> int:
    """A seed of 32 bits."""
    return secrets.randbits(32)
